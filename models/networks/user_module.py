"""The user's own network: a class of Flax Linen or NNX that the config names, imported only if allowed, and then checked.

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
from flax.errors import InvalidRngError, ModifyScopeVariableError
from jaxtyping import Array, Float

from abstain.models.errors import AbstainError, clip_repr, suggest
from abstain.models.networks.nnx_network import NnxNetwork, is_nnx_class
from abstain.models.networks.running_statistics import STATISTICS, fold, unfold
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
    running_statistics: bool = False
    """Whether the parameters have a branch of running statistics (`running_statistics.py`)."""

    def init(self, key: Any, x: Float[Array, "..."]) -> Any:
        """Returns the module's initial variables for one example."""
        variables = instance_of(self).init(key, x[None] if takes_batches(self, x.shape) else x)
        return fold(variables) if self.running_statistics else variables

    def apply(self, variables: Any, x: Float[Array, "..."]) -> Any:
        """Returns the outputs for one example."""
        module = instance_of(self)
        variables = unfold(variables) if self.running_statistics else variables
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
            fix=_advice(module, outputs, example_shape, example_trial),
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


def _advice(module: Any, outputs: int, example_shape: tuple[int, ...], trial: _Trial) -> str:
    """Returns what to do about a module that does not fit."""
    if len(example_shape) == 2:
        with_channel = (*example_shape, 1)
        shapes = {(*with_channel,): (outputs,), (1, *with_channel): (1, outputs)}
        if any(
            _Trial.run(module, jax.ShapeDtypeStruct(shape, jnp.float32)).gives(output)
            for shape, output in shapes.items()
        ):
            return (
                f"it needs a channel axis: give the rows the shape [rows, {', '.join(map(str, with_channel))}], as "
                "x[..., None] does, or begin __call__ with x = x[..., None]"
            )
    missing = re.search(r"__call__\(\) missing \d+ required \w+(?:-only)? arguments?: (.*)", str(trial.error or ""))
    if missing:
        return (
            f"its __call__ is called with one array, so {missing[1]} must have a default: for train or deterministic the "
            "value of inference; several inputs must be one array"
        )
    return "check its arguments and its last layer; abstain sets the field outputs if the class has one"


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
    except ModifyScopeVariableError as error:
        raise AbstainError(
            f"{network.name} changes its running statistics when it predicts",
            where="network",
            expected="outputs that depend only on the parameters and the input",
            found=_one_line(error),
            fix="switch batch normalisation to inference: BatchNorm(use_running_average=True), or give the argument "
            "that sets it, such as train=False, that default",
        ) from error
    except Exception as error:  # The user's code may raise anything; it becomes a message without a traceback.
        raise AbstainError(
            f"{network.name} cannot be applied with its parameters alone", where="network", found=_one_line(error)
        ) from error


@dataclass(frozen=True)
class _Trial:
    """The result of applying a module to an input's shape: variables and output, or an error."""

    variables: Any
    output: Any
    error: Exception | None = None

    @staticmethod
    def run(module: Any, x: jax.ShapeDtypeStruct) -> _Trial:
        """Applies the module to an input of this shape, without computing anything."""
        try:
            output, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
        except Exception as error:  # The user's code may raise anything; that is a result too.
            return _Trial({}, None, error)
        return _Trial(variables, output)

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


def _same_network(module: Any, example_trial: _Trial, batch_trial: _Trial, shape: tuple[int, ...]) -> bool:
    """Whether an example and a batch of one give the same parameters, and the same outputs for random ones.

    With only dense layers they do. A mean over axes 1 and 2 averages an example over width and channels, but a batch over
    height and width.
    """
    if example_trial.variables != batch_trial.variables:
        return False
    rng = np.random.default_rng(0)
    kept = {name: tree for name, tree in example_trial.variables.items() if name in {"params", STATISTICS}}
    variables: Any = jax.tree.map(partial(_random, rng), kept)
    if STATISTICS in variables:  # Variances must not be negative.
        variables[STATISTICS] = jax.tree.map(np.abs, variables[STATISTICS])
    x = rng.standard_normal(shape, np.float32)
    apply: Any = jax.jit(module.apply)
    try:
        with jax.ensure_compile_time_eval():
            alone, batched = apply(variables, x), apply(variables, x[None])[0]
    except Exception:  # `check_network` reports why it cannot be applied.
        return True
    # The tolerance covers an accelerator's rounded products; different networks differ by more.
    return bool(np.allclose(alone, batched, rtol=0, atol=1e-2 * np.abs(alone).max(), equal_nan=True))


@lru_cache(maxsize=64)
def instance_of(network: OneExample) -> Any:
    """Makes the Linen module, or the NNX network; `build` has checked its name against the allow-list."""
    cls = _import_class(network.name)
    arguments = _with_tuples(orjson.loads(network.arguments))
    # Linen's fields "parent" and "name" are the position of a module within another one; NNX draws with "rngs".
    # The metaclass of NNX hides the signature of the class.
    own, make = ({"self", "rngs"}, cls.__init__) if is_nnx_class(cls) else ({"parent", "name"}, cls)
    fields = {key: field for key, field in inspect.signature(make).parameters.items() if key not in own}
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
        if is_nnx_class(cls):
            return NnxNetwork(lambda rngs: cls(**arguments, rngs=rngs), network.name)
        return cls(**arguments)
    except AbstainError:
        raise
    except (Exception, SystemExit) as error:  # A class may raise anything when it checks its fields.
        raise AbstainError("refuses its arguments", where=f"network, {network.name}", found=_one_line(error)) from error


def _import_class(name: str) -> type[Any]:
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
    if not _is_network_class(value):
        classes = [key for key, item in vars(module).items() if _is_network_class(item)]
        raise AbstainError(
            f"{attribute!r} is no flax.linen.Module" if hasattr(module, attribute) else f"no class {attribute!r}",
            where=f"network, {getattr(module, '__file__', None) or file}",
            expected=f"one of {', '.join(sorted(classes))}" if classes else "a subclass of flax.linen.Module",
            found=None if value is None else clip_repr(cast("object", value)),
            fix=suggest(attribute, classes),
        )
    return value


def _is_network_class(value: Any) -> bool:
    return (isinstance(value, type) and issubclass(value, nn.Module)) or is_nnx_class(value)


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
