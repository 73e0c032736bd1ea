"""From a network in Python to the spec of a bundle."""

import flax.linen as nn
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from flax import nnx
from numpyro.infer import MCMC, NUTS
from numpyro.infer.svi import SVIRunResult

import abstain
from abstain.models.errors import AbstainError, ConfigError
from abstain.models.networks.architectures import MLP, MLPSpec
from abstain.models.networks.user_module import ModuleSpec
from abstain.training.importing.module_spec import spec_of
from abstain.training.importing.numpyro_results import GuideCall, read_result
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


def test_a_network_is_given_once_and_a_guide_with_its_arguments():
    """Else one of them would have no effect."""
    with pytest.raises(ConfigError, match="expected no table network, because module is the network"):
        abstain.from_numpyro({}, Net(), {"name": "own", "network": {"kind": "mlp"}}, data="rows.npz")
    with pytest.raises(ConfigError, match="guide_arguments: expected a guide that gets them"):
        abstain.from_numpyro({}, Net(), {"name": "own"}, data="rows.npz", guide_arguments=(1,))


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (7, "result: expected an MCMC that has run, an SVI result"),
        (
            MCMC(NUTS(lambda: None), num_warmup=1, num_samples=1),
            "MCMC: expected a result, found none; call its method run",
        ),
        (SVIRunResult({"w_auto_loc": 1.0}, None, None), "guide: expected the guide of the SVI result"),
    ],
)
def test_results_without_draws_are_refused(result, text):
    """Another object, chains that have not run, an SVI result without its guide."""
    with pytest.raises(AbstainError) as caught:
        read_result(result, GuideCall())
    assert text in str(caught.value)


def test_parameters_that_are_not_random_are_repeated_or_one_draw():
    """Of `flax_module` in an SVI result: alone one draw, with a guide beside the random sites."""
    params = {"net$params": {"Dense_0": {"bias": np.ones(2)}}, "sigma": np.float32(0.5)}
    alone = read_result(SVIRunResult(params, None, np.zeros(1)), GuideCall()).arrays
    assert {name: array.shape for name, array in alone.items()} == {"net/Dense_0.bias": (1, 2), "sigma": (1,)}

    def guide():
        numpyro.sample("sigma", dist.HalfNormal(1.0))

    found = read_result(SVIRunResult(params, None, np.zeros(1)), GuideCall(guide, draws=3))
    assert {name: array.shape for name, array in found.arrays.items()} == {"net/Dense_0.bias": (3, 2), "sigma": (3,)}
