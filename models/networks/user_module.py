"""Your own network: a Flax Linen class named in the config, imported from the allow-list, and held to what all need.

It may be written for one example or for a batch; everything else sees a network for ONE example.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Annotated, Any, Literal, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orjson
from flax.errors import InvalidRngError
from jaxtyping import Array, Float
from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from abstain.models.errors import AbstainError, clip_repr
from abstain.models.networks.allowed import MODULE_PATTERN, check_allowed

_IMPORTABLE = "install its package, or put the folder that holds it on PYTHONPATH"


class ModuleSpec(BaseModel):
    """`kind = "module"`: a Flax Linen class, `package.file:ClassName`, and its arguments; a list becomes a tuple."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    kind: Literal["module"] = "module"
    module: Annotated[str, Field(pattern=f"^{MODULE_PATTERN}$", max_length=200)]
    arguments: dict[str, JsonValue] = {}

    @field_validator("arguments")
    @classmethod
    def _survives_the_manifest(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """A number that JSON cannot hold would be lost at the end of a fit, not at its start."""
        try:
            kept = orjson.loads(orjson.dumps(arguments))
        except TypeError as error:
            raise ValueError(f"values that JSON holds: {error}") from error
        if kept != arguments:
            raise ValueError("values that JSON holds: no NaN and no infinity")
        return arguments

    def __hash__(self) -> int:
        """By what has a hash; equal specs have the same."""
        return hash((self.module, frozenset(self.arguments)))

    def build(self, outputs: int) -> OneExample:
        """The network with `outputs` numbers at its end.

        Raises:
            AbstainError: the module is not allowed, cannot be imported, is no Linen class, or refuses its arguments.
        """
        check_allowed(self.module)
        network = OneExample(self.module, orjson.dumps(self.arguments, option=orjson.OPT_SORT_KEYS), outputs)
        _instance(network)
        return network


@dataclass(frozen=True)
class OneExample:
    """A module as a network for ONE example, its parameters under their own names. Made by `ModuleSpec.build`.

    Which of the two it was written for is found by the shapes it gives; a batch module is given a batch of one.
    """

    name: str
    arguments: bytes
    """JSON: told apart, and hashed, where 1, 1.0 and true are equal."""
    outputs: int

    def init(self, key: Any, x: Float[Array, "..."]) -> Any:
        """The module's variables for one example."""
        return _instance(self).init(key, x[None] if takes_batches(self, x.shape) else x)

    def apply(self, variables: Any, x: Float[Array, "..."]) -> Any:
        """The outputs for one example."""
        module = _instance(self)
        return module.apply(variables, x[None])[0] if takes_batches(self, x.shape) else module.apply(variables, x)


@lru_cache(maxsize=64)
def takes_batches(network: OneExample, example_shape: tuple[int, ...]) -> bool:
    """Whether the module wants a batch; if it takes both, and to the same end, one example.

    Raises:
        AbstainError: neither gives the outputs that the likelihood needs, or the two are different networks.
    """
    module, outputs = _instance(network), network.outputs
    example = jax.ShapeDtypeStruct(example_shape, jnp.float32)
    batch = jax.ShapeDtypeStruct((1, *example_shape), jnp.float32)
    of_example, of_batch = _Trial.of(module, example), _Trial.of(module, batch)
    fits = (of_example.gives((outputs,)), of_batch.gives((1, outputs)))
    if not any(fits):
        raise AbstainError(
            f"{network.name} does not fit",
            where="network",
            expected=f"float32 {(outputs,)} from an example of shape {example_shape}, or {(1, outputs)} from a batch "
            "of one",
            found=of_example.told
            if of_example.told == of_batch.told
            else f"{of_example.told}, and from the batch {of_batch.told}",
            fix="check its arguments and its last layer; the field outputs, if the class has one, is filled in",
        )
    if all(fits) and not _same_network(module, of_example, of_batch, example_shape):
        raise AbstainError(
            f"{network.name} takes one example and a batch, and means different things by them",
            where="network",
            expected=f"only one of the shapes {example_shape} and {(1, *example_shape)} to be taken",
            found="both",
            fix="let __call__ begin by naming its axes, as in: batch, height, width = x.shape",
        )
    return not fits[0]


def check_network(network: OneExample, parameters: Any, example: jax.ShapeDtypeStruct) -> None:
    """Refuses parameters that no posterior is inferred over, and a network that wants more than its parameters.

    Raises:
        AbstainError: naming the parameter, or what is wanted.
    """
    leaves = list(_leaves(network, parameters))
    if not leaves:
        raise AbstainError(f"{network.name} has no parameters", where="network", expected="at least one")
    for path, leaf in leaves:
        if leaf.dtype != jnp.float32:
            raise AbstainError(
                f"{network.name}, parameter {path}",
                where="network",
                expected="float32",
                found=leaf.dtype,
                fix="set param_dtype=jnp.float32",
            )
    try:
        jax.eval_shape(network.apply, {"params": parameters}, example)
    except InvalidRngError as error:
        raise AbstainError(
            f"{network.name} draws random numbers as it predicts",
            where="network",
            expected="outputs that the parameters and the input decide",
            found=_told(error),
            fix="leave dropout out, or make it deterministic=True: the draws of the posterior are the randomness",
        ) from error
    except Exception as error:  # Whatever somebody's code raises is told, not shown as a traceback.
        raise AbstainError(
            f"{network.name} cannot be applied to its parameters alone", where="network", found=_told(error)
        ) from error


@dataclass(frozen=True)
class _Trial:
    """What a module makes of an input's shape."""

    parameters: Any
    output: Any
    error: Exception | None = None

    @staticmethod
    def of(module: nn.Module, x: jax.ShapeDtypeStruct) -> _Trial:
        try:
            output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        except Exception as error:  # Somebody's code may raise anything; that, too, is an answer.
            return _Trial({}, None, error)
        return _Trial(variables.get("params", {}), output)

    def gives(self, shape: tuple[int, ...]) -> bool:
        return isinstance(self.output, jax.ShapeDtypeStruct) and (self.output.shape, self.output.dtype) == (
            shape,
            np.float32,
        )

    @property
    def told(self) -> str:
        if self.error:
            return _told(self.error)
        if isinstance(self.output, jax.ShapeDtypeStruct):
            return f"{self.output.dtype} {self.output.shape}"
        return f"a {type(self.output).__name__}"


def _same_network(module: nn.Module, of_example: _Trial, of_batch: _Trial, shape: tuple[int, ...]) -> bool:
    """Whether both readings have the same parameters, and give the same outputs for random ones.

    Dense layers alone do not care; a mean over axes 1 and 2 takes an image's width and channels for height and width.
    """
    if of_example.parameters != of_batch.parameters:
        return False
    rng = np.random.default_rng(0)
    parameters: Any = jax.tree.map(partial(_random, rng), of_example.parameters)
    x = rng.standard_normal(shape, np.float32)
    apply: Any = jax.jit(module.apply)
    try:
        with jax.ensure_compile_time_eval():
            alone, batched = apply({"params": parameters}, x), apply({"params": parameters}, x[None])[0]
    except Exception:  # `check_network` says why it cannot be applied.
        return True
    # Wide enough for the coarse products of an accelerator: two networks differ by more.
    return bool(np.allclose(alone, batched, rtol=0, atol=1e-2 * np.abs(alone).max(), equal_nan=True))


@lru_cache(maxsize=64)
def _instance(network: OneExample) -> nn.Module:
    """The Linen module; its name has been checked against the allow-list by `build`."""
    cls = _imported(network.name)
    given = _with_tuples(orjson.loads(network.arguments))
    # Linen's own fields say where a module stands within another.
    taken = {key: field for key, field in inspect.signature(cls).parameters.items() if key not in {"parent", "name"}}
    unknown = [key for key in given if key not in taken]
    if unknown:
        raise AbstainError(
            "unknown arguments",
            where=f"network, {network.name}",
            expected=f"some of {', '.join(taken)}" if taken else "none",
            found=", ".join(unknown),
        )
    if "outputs" in taken:
        given.setdefault("outputs", network.outputs)
    missing = [key for key, field in taken.items() if field.default is inspect.Parameter.empty and key not in given]
    if missing:
        raise AbstainError(
            "arguments are missing",
            where=f"network, {network.name}",
            expected=", ".join(missing),
            fix="set them under [network] arguments",
        )
    try:
        return cls(**given)
    except (Exception, SystemExit) as error:  # A class may check its fields as it likes.
        raise AbstainError("refuses its arguments", where=f"network, {network.name}", found=_told(error)) from error


def _imported(name: str) -> type[nn.Module]:
    file, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(file)
    except (Exception, SystemExit) as error:  # Importing runs somebody's code.
        absent = isinstance(error, ModuleNotFoundError) and f"{file}.".startswith(f"{error.name}.")
        raise AbstainError(
            f"module {file!r} {'cannot be found' if absent else 'raises as it is imported'}",
            where="network",
            expected=name,
            found=_told(error),
            fix=_IMPORTABLE if absent else None,
        ) from error
    found: Any = getattr(module, attribute, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        there = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
        raise AbstainError(
            f"{attribute!r} is no flax.linen.Module" if hasattr(module, attribute) else f"no class {attribute!r}",
            where=f"network, {getattr(module, '__file__', None) or file}",
            expected=f"one of {', '.join(sorted(there))}" if there else "a subclass of flax.linen.Module",
            found="nothing of that name" if found is None else clip_repr(cast("object", found)),
        )
    return found


def _leaves(network: OneExample, tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every parameter by its dotted path: what a bundle, and every site of the inference, is named by."""
    for name, value in cast("dict[str, Any]", tree).items():
        here = f"{path}.{name}" if path else name
        if "." in name or "/" in name:
            raise AbstainError(
                f"{network.name}, parameter {here}", where="network", expected="a name without dots", found=name
            )
        if isinstance(value, dict):
            yield from _leaves(network, value, here)
        elif isinstance(value, jax.ShapeDtypeStruct):
            yield here, value
        else:
            raise AbstainError(
                f"{network.name}, parameter {here}", where="network", expected="an array", found=type(value).__name__
            )


def _random(rng: np.random.Generator, parameter: Any) -> np.ndarray:
    """Normal, and by its inputs so small that nothing overflows on the way."""
    shape: tuple[int, ...] = parameter.shape
    return np.asarray(rng.standard_normal(shape, np.float32) / np.float32(max(1, math.prod(shape[:-1])) ** 0.5))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return tuple(map(_with_tuples, cast("list[Any]", value)))
    return value


def _told(error: BaseException) -> str:
    # Flax ends its messages in an address.
    lines = (re.sub(r" \(https://\S+\)$", "", line.strip()) for line in str(error).splitlines())
    line = next(filter(None, lines), "")
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__
