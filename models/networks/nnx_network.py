"""A Flax NNX class with the interface of a Linen module: `init`, `init_with_output` and `apply` over dicts of arrays.

NNX keeps parameters inside of objects. `nnx.split` takes them out of the object, and `nnx.merge` puts others in. The network
is always in evaluation mode, as `model.eval()` sets it: no dropout, and batch normalisation by its running statistics.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import jax

from abstain.models.errors import AbstainError
from abstain.models.networks.running_statistics import STATISTICS


def is_nnx_class(value: Any) -> bool:
    """Whether a value is a class of NNX modules; does not import NNX, because a file with such a class has imported it."""
    nnx: Any = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, type) and issubclass(value, nnx.Module)


class NnxNetwork:
    """A class of NNX modules with its arguments; its call takes one array, a row or a batch.

    Args:
        build: makes the module with random numbers, `build(rngs)`.
        name: the class, for errors.

    Raises:
        AbstainError: the module has variables other than parameters, running statistics and random keys.
    """

    def __init__(self, build: Callable[[Any], Any], name: str) -> None:
        from flax import nnx  # noqa: PLC0415 - half a second, and only networks of this kind need it

        self._nnx: Any = nnx
        self._build = build
        self._graph, self._parameters, self._statistics, self._random, other = self._split(
            nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        )
        if jax.tree.leaves(other):
            raise AbstainError(
                f"{name} has variables of other kinds",
                where="network",
                expected="parameters (nnx.Param) and running statistics (nnx.BatchStat)",
                found=", ".join(sorted(map(str, nnx.to_pure_dict(other)))),
                fix="make them nnx.Param, or compute constants in __call__",
            )

    def init(self, key: Any, x: Any) -> dict[str, Any]:
        """Returns initial variables, `{"params": …}`, with `"batch_stats"` if the module has running statistics."""
        del x  # NNX modules know the shapes of their parameters without it.
        return self._variables(self._build(self._nnx.Rngs(key)))

    def init_with_output(self, key: Any, x: Any) -> tuple[Any, dict[str, Any]]:
        """Returns the output for an input, and the initial variables."""
        module = self._build(self._nnx.Rngs(key))
        module.eval()
        return module(x), self._variables(module)

    def apply(self, variables: dict[str, Any], x: Any) -> Any:
        """Returns the output for an input."""
        parameters = _filled(self._parameters, variables["params"], self._nnx)
        statistics = _filled(self._statistics, variables.get(STATISTICS, {}), self._nnx)
        return self._nnx.merge(self._graph, parameters, statistics, self._random)(x)

    def _split(self, module: Any) -> tuple[Any, Any, Any, Any, Any]:
        module.eval()
        nnx = self._nnx
        return nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)

    def _variables(self, module: Any) -> dict[str, Any]:
        _, parameters, statistics, _, _ = self._split(module)
        trees = {"params": parameters, STATISTICS: statistics}
        pure = {name: _with_text_keys(self._nnx.to_pure_dict(tree)) for name, tree in trees.items()}
        return pure if pure[STATISTICS] else {"params": pure["params"]}


def _with_text_keys(tree: Any) -> Any:
    """Returns the tree with all keys as text: NNX names the items of a list by numbers."""
    if isinstance(tree, dict):
        return {str(key): _with_text_keys(value) for key, value in cast("dict[Any, Any]", tree).items()}
    return tree


def _filled(state: Any, tree: dict[str, Any], nnx: Any) -> Any:
    """Returns a copy of a state with the arrays of a tree with text keys."""

    def of(template: Any, values: Any) -> Any:
        if isinstance(template, dict):
            return {key: of(value, values[str(key)]) for key, value in cast("dict[Any, Any]", template).items()}
        return values

    leaves, structure = cast("tuple[list[Any], Any]", jax.tree.flatten(state))
    filled = jax.tree.unflatten(structure, leaves)
    nnx.replace_by_pure_dict(filled, of(nnx.to_pure_dict(state), tree))
    return filled
