"""The user's own network: a Flax Linen class that the config names, imported only if allowed, and then checked.

It may be written for one example or for a batch; for the rest of abstain it is a network for ONE example.
"""

from __future__ import annotations

import importlib
import inspect
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orjson
from flax.errors import InvalidRngError
from jaxtyping import Array, Float

from abstain.models.errors import AbstainError, clip_repr, suggest
from abstain.models.networks.specs import ModuleSpec

__all__ = ["ModuleSpec", "OneExample", "check_network", "instance_of", "takes_batches"]

_IMPORTABLE = "install its package, or put the folder that holds it on PYTHONPATH"


@dataclass(frozen=True)
class OneExample:
    """A user's module as a network for ONE example, with the module's parameter names. `ModuleSpec.build` makes it.

    The shapes of its outputs show whether the module takes one example or a batch; a module for batches gets a batch of one.
    """

    name: str
    arguments: bytes
    """JSON, because 1, 1.0 and true are equal in Python but must be different networks."""
    outputs: int

    def init(self, key: Any, x: Float[Array, "..."]) -> Any:
        """Returns the module's initial variables for one example."""
        return instance_of(self).init(key, x[None] if takes_batches(self, x.shape) else x)

    def apply(self, variables: Any, x: Float[Array, "..."]) -> Any:
        """Returns the outputs for one example."""
        module = instance_of(self)
        return module.apply(variables, x[None])[0] if takes_batches(self, x.shape) else module.apply(variables, x)


@lru_cache(maxsize=64)
def takes_batches(network: OneExample, example_shape: tuple[int, ...]) -> bool:
    """Whether the module takes only batches; False if it takes one example, or both with the same result.

    Raises:
        AbstainError: neither an example nor a batch gives the outputs that the likelihood needs, or both do but with
            different results.
    """
    module, outputs = instance_of(network), network.outputs
    example = jax.ShapeDtypeStruct(example_shape, jnp.float32)
    batch = jax.ShapeDtypeStruct((1, *example_shape), jnp.float32)
    example_trial, batch_trial = _Trial.run(module, example), _Trial.run(module, batch)
    fits = (example_trial.gives((outputs,)), batch_trial.gives((1, outputs)))
    if not any(fits):
        raise AbstainError(
            f"{network.name} does not fit",
            where="network",
            expected=f"float32 {(outputs,)} from an example of shape {example_shape}, or {(1, outputs)} from a batch "
            "of one",
            found=example_trial.description
            if example_trial.description == batch_trial.description
            else f"{example_trial.description}, and from the batch {batch_trial.description}",
            fix="check its arguments and its last layer; abstain sets the field outputs if the class has one",
        )
    if all(fits) and not _same_network(module, example_trial, batch_trial, example_shape):
        raise AbstainError(
            f"{network.name} takes one example and a batch, but gives different outputs for them",
            where="network",
            expected=f"a network that takes only one of the shapes {example_shape} and {(1, *example_shape)}",
            found="both",
            fix="begin __call__ by naming the axes, as in: batch, height, width = x.shape",
        )
    return not fits[0]


def check_network(network: OneExample, parameters: Any, example: jax.ShapeDtypeStruct) -> None:
    """Refuses parameters that inference does not support, and a network that needs more than its parameters.

    Raises:
        AbstainError: names the parameter, or what the network needs.
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
            f"{network.name} draws random numbers when it predicts",
            where="network",
            expected="outputs that depend only on the parameters and the input",
            found=_one_line(error),
            fix="remove dropout, or set deterministic=True: the draws of the posterior are the randomness",
        ) from error
    except Exception as error:  # The user's code may raise anything; it becomes a message without a traceback.
        raise AbstainError(
            f"{network.name} cannot be applied with its parameters alone", where="network", found=_one_line(error)
        ) from error


@dataclass(frozen=True)
class _Trial:
    """The result of applying a module to an input's shape: parameters and output, or an error."""

    parameters: Any
    output: Any
    error: Exception | None = None

    @staticmethod
    def run(module: nn.Module, x: jax.ShapeDtypeStruct) -> _Trial:
        """Applies the module to an input of this shape, without computing anything."""
        try:
            output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        except Exception as error:  # The user's code may raise anything; that is a result too.
            return _Trial({}, None, error)
        return _Trial(variables.get("params", {}), output)

    def gives(self, shape: tuple[int, ...]) -> bool:
        """Whether the output is a float32 array of this shape."""
        return isinstance(self.output, jax.ShapeDtypeStruct) and (self.output.shape, self.output.dtype) == (
            shape,
            np.float32,
        )

    @property
    def description(self) -> str:
        """The error, or the type and shape of the output, for error texts."""
        if self.error:
            return _one_line(self.error)
        if isinstance(self.output, jax.ShapeDtypeStruct):
            return f"{self.output.dtype} {self.output.shape}"
        return f"a {type(self.output).__name__}"


def _same_network(module: nn.Module, example_trial: _Trial, batch_trial: _Trial, shape: tuple[int, ...]) -> bool:
    """Whether an example and a batch of one give the same parameters, and the same outputs for random ones.

    With only dense layers they do. A mean over axes 1 and 2 averages an example over width and channels, but a batch over
    height and width.
    """
    if example_trial.parameters != batch_trial.parameters:
        return False
    rng = np.random.default_rng(0)
    parameters: Any = jax.tree.map(partial(_random, rng), example_trial.parameters)
    x = rng.standard_normal(shape, np.float32)
    apply: Any = jax.jit(module.apply)
    try:
        with jax.ensure_compile_time_eval():
            alone, batched = apply({"params": parameters}, x), apply({"params": parameters}, x[None])[0]
    except Exception:  # `check_network` reports why it cannot be applied.
        return True
    # The tolerance covers an accelerator's rounded products; different networks differ by more.
    return bool(np.allclose(alone, batched, rtol=0, atol=1e-2 * np.abs(alone).max(), equal_nan=True))


@lru_cache(maxsize=64)
def instance_of(network: OneExample) -> nn.Module:
    """Makes the Linen module; `build` has checked its name against the allow-list."""
    cls = _import_class(network.name)
    arguments = _with_tuples(orjson.loads(network.arguments))
    # Linen's fields "parent" and "name" are the position of a module within another one.
    fields = {key: field for key, field in inspect.signature(cls).parameters.items() if key not in {"parent", "name"}}
    unknown = [key for key in arguments if key not in fields]
    if unknown:
        raise AbstainError(
            "unknown arguments",
            where=f"network, {network.name}",
            expected=f"some of {', '.join(fields)}" if fields else "none",
            found=", ".join(unknown),
            fix=suggest(unknown[0], fields),
        )
    if "outputs" in fields:
        arguments.setdefault("outputs", network.outputs)
    missing = [
        key for key, field in fields.items() if field.default is inspect.Parameter.empty and key not in arguments
    ]
    if missing:
        raise AbstainError(
            "arguments are missing",
            where=f"network, {network.name}",
            expected=", ".join(missing),
            fix="set them under [network] arguments",
        )
    try:
        return cls(**arguments)
    except (Exception, SystemExit) as error:  # A class may raise anything when it checks its fields.
        raise AbstainError("refuses its arguments", where=f"network, {network.name}", found=_one_line(error)) from error


def _import_class(name: str) -> type[nn.Module]:
    file, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(file)
    except (Exception, SystemExit) as error:  # Importing runs the user's code.
        absent = isinstance(error, ModuleNotFoundError) and f"{file}.".startswith(f"{error.name}.")
        raise AbstainError(
            f"module {file!r} {'cannot be found' if absent else 'raises an error when it is imported'}",
            where="network",
            expected=name,
            found=_one_line(error),
            fix=_IMPORTABLE if absent else None,
        ) from error
    value: Any = getattr(module, attribute, None)
    if not (isinstance(value, type) and issubclass(value, nn.Module)):
        classes = [key for key, item in vars(module).items() if isinstance(item, type) and issubclass(item, nn.Module)]
        raise AbstainError(
            f"{attribute!r} is no flax.linen.Module" if hasattr(module, attribute) else f"no class {attribute!r}",
            where=f"network, {getattr(module, '__file__', None) or file}",
            expected=f"one of {', '.join(sorted(classes))}" if classes else "a subclass of flax.linen.Module",
            found=None if value is None else clip_repr(cast("object", value)),
            fix=suggest(attribute, classes),
        )
    return value


def _leaves(network: OneExample, tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every parameter with its dotted path, which names it in bundles and in inference."""
    for name, value in cast("dict[str, Any]", tree).items():
        full_path = f"{path}.{name}" if path else name
        if "." in name or "/" in name:
            raise AbstainError(
                f"{network.name}, parameter {full_path}", where="network", expected="a name without dots", found=name
            )
        if isinstance(value, dict):
            yield from _leaves(network, value, full_path)
        elif isinstance(value, jax.ShapeDtypeStruct):
            yield full_path, value
        else:
            raise AbstainError(
                f"{network.name}, parameter {full_path}",
                where="network",
                expected="an array",
                found=type(value).__name__,
            )


def _random(rng: np.random.Generator, parameter: Any) -> np.ndarray:
    """Draws normal numbers, scaled by the number of inputs so that nothing overflows."""
    shape: tuple[int, ...] = parameter.shape
    return np.asarray(rng.standard_normal(shape, np.float32) / np.float32(max(1, math.prod(shape[:-1])) ** 0.5))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return tuple(map(_with_tuples, cast("list[Any]", value)))
    return value


def _one_line(error: BaseException) -> str:
    """Returns an error's type and the first line of its message."""
    # Flax ends its messages with the address of a page.
    lines = (re.sub(r" \(https://\S+\)$", "", line.strip()) for line in str(error).splitlines())
    line = next(filter(None, lines), "")
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__
