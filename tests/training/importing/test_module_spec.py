"""From a network in Python to the spec of a bundle."""

import flax.linen as nn
import pytest
from flax import nnx

from abstain.models.errors import ConfigError
from abstain.models.networks.architectures import MLP, MLPSpec
from abstain.models.networks.user_module import ModuleSpec
from abstain.training.importing.module_spec import spec_of
from tests.helpers.imported_networks import Graph, Net

NETWORKS = "tests.helpers.imported_networks"


class Chosen(nn.Module):
    """A network with a function as argument."""

    activation: object = nn.relu
    widths: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x):
        """Returns the outputs."""
        return nn.Dense(1)(self.activation(x))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Net(), ModuleSpec(module=f"{NETWORKS}:Net")),
        (Net(width=7), ModuleSpec(module=f"{NETWORKS}:Net", arguments={"width": 7})),
        (Net, ModuleSpec(module=f"{NETWORKS}:Net")),
        (Graph, ModuleSpec(module=f"{NETWORKS}:Graph")),
        ("package.file:Class", ModuleSpec(module="package.file:Class")),
        (Chosen(widths=(3, 4)), ModuleSpec(module=f"{__name__}:Chosen", arguments={"widths": [3, 4]})),
        ({"kind": "mlp", "hidden": [3]}, MLPSpec(hidden=(3,))),
        (MLP(hidden=(3,), outputs=1, activation="tanh"), MLPSpec(hidden=(3,), activation="tanh")),
    ],
)
def test_networks_are_named(module, expected):
    """By class and the arguments that differ from their defaults; built-in ones by their kind."""
    assert spec_of(module) == expected


def test_what_no_server_could_build_is_refused():
    """A class inside of a function, a function as argument, an NNX module, whose arguments are not known, a number."""

    class Inner(nn.Module):
        """A class that cannot be imported."""

    for module, text in (
        (Inner(), "expected a class at the top of a file that can be imported"),
        (Chosen(activation=nn.tanh), "module, argument activation: expected a value that JSON holds"),
        (Graph(rngs=nnx.Rngs(0)), f'pass {{"kind": "module", "module": "{NETWORKS}:Graph", "arguments": {{…}}}}'),
        (7, "expected a Flax Linen module, its class, package.file:ClassName"),
        ("no colon", "module"),
    ):
        with pytest.raises(ConfigError) as caught:
            spec_of(module)
        assert text in str(caught.value)
