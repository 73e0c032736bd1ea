"""Specs: the records that name a network in a config or a manifest. They are checked without JAX, which takes seconds to load.

`build` loads JAX and makes the Flax module (`architectures.py`, `user_module.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, JsonValue, PositiveInt, PrivateAttr, field_validator

from abstain.models.networks.allowed import MODULE_PATTERN, check_allowed

if TYPE_CHECKING:
    import flax.linen as nn

    from abstain.models.networks.user_module import OneExample

Activation = Literal["relu", "tanh", "gelu", "silu", "softplus", "sigmoid"]
Widths = Annotated[tuple[PositiveInt, ...], Field(strict=False, max_length=256)]
"""A list in TOML and JSON; only its items are checked strictly. No network in use has more layers."""


class MLPSpec(BaseModel):
    """`kind = "mlp"`: the widths of the hidden layers and their activation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: Literal["mlp"] = "mlp"
    hidden: Widths = (64, 64)
    """The widths of the hidden layers."""
    activation: Activation = "relu"
    """The activation of the hidden layers."""

    def build(self, outputs: int) -> nn.Module:
        """Builds the module with `outputs` output units."""
        from abstain.models.networks.architectures import MLP  # noqa: PLC0415 - loads JAX

        return MLP(hidden=self.hidden, outputs=outputs, activation=self.activation)


class LeNetSpec(BaseModel):
    """`kind = "lenet"`: two 5×5 convolutions with pooling, then dense layers; needs images of at least 12×12."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: Literal["lenet"] = "lenet"
    channels: Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)] = (6, 16)
    """The channels of the two convolutions."""
    hidden: Widths = (120, 84)
    """The widths of the hidden layers."""
    activation: Activation = "relu"
    """The activation of the hidden layers."""

    def build(self, outputs: int) -> nn.Module:
        """Builds the module with `outputs` output units."""
        from abstain.models.networks.architectures import LeNet  # noqa: PLC0415 - loads JAX

        return LeNet(outputs=outputs, channels=self.channels, hidden=self.hidden, activation=self.activation)


class ModuleSpec(BaseModel):
    """`kind = "module"`: a class of Flax Linen or NNX, `package.file:ClassName`, and its arguments; a list becomes a tuple.

    A spec that was read from a file may import nothing, until `allow` gives it the allowed modules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: Literal["module"] = "module"
    module: Annotated[str, Field(pattern=f"^{MODULE_PATTERN}$", max_length=200)]
    """The class, `package.file:ClassName`."""
    arguments: dict[str, JsonValue] = {}
    """The arguments of the class by name."""
    running_statistics: Annotated[bool, Field(exclude_if=lambda kept: not kept)] = False
    """Whether draws hold the running statistics of batch normalisation as well; only an import sets it."""
    _allowed: tuple[str, ...] = PrivateAttr(())

    @field_validator("arguments")
    @classmethod
    def _check_json(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Refuses values that JSON cannot hold at the start of a fit; writing the manifest at its end would lose them."""
        try:
            restored = orjson.loads(orjson.dumps(arguments))
        except TypeError as error:
            raise ValueError(f"values that JSON holds: {error}") from error
        if restored != arguments:
            raise ValueError("values that JSON holds: no NaN and no infinity")
        return arguments

    def __hash__(self) -> int:
        """Hashes the hashable parts, so that equal specs have equal hashes."""
        return hash((self.module, frozenset(self.arguments)))

    def allow(self, modules: tuple[str, ...]) -> ModuleSpec:
        """Returns the spec, which may import its module if it is among these entries (see `allowed.read_modules`)."""
        spec = self.model_copy()
        spec._allowed = modules
        return spec

    def build(self, outputs: int) -> OneExample:
        """Builds the network with `outputs` output units.

        Raises:
            AbstainError: the module is not allowed, cannot be imported, is not a Linen class, or refuses its arguments.
        """
        from abstain.models.networks.user_module import OneExample, instance_of  # noqa: PLC0415 - loads JAX

        check_allowed(self.module, self._allowed)
        arguments = orjson.dumps(self.arguments, option=orjson.OPT_SORT_KEYS)
        network = OneExample(self.module, arguments, outputs, self.running_statistics)
        instance_of(network)
        return network


NetworkSpec = Annotated[MLPSpec | LeNetSpec | ModuleSpec, Field(discriminator="kind")]
