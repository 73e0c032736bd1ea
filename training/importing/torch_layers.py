"""From the names of PyTorch's linear layers to those of the built-in network `mlp`: `weight` [out, in] is `kernel` transposed.

A state dict says neither the order of its layers nor their activation. The order is taken from the numbers in the names, as
in `0.weight`, `2.weight` or `fc1.weight`, `fc2.weight`; for other names it must be given, or be the only one whose shapes fit.
"""

from __future__ import annotations

import re
from itertools import islice, pairwise, permutations

from abstain.models.errors import ConfigError, DataError
from abstain.models.networks.specs import MLPSpec, NetworkSpec
from abstain.training.importing.found import Arrays

MOST_ORDERS = 5_040
"""The largest number of orders of layers that are tried: those of seven layers."""


def with_flax_names(arrays: Arrays, network: NetworkSpec, layers: tuple[str, ...], where: str) -> Arrays:
    """Renames the arrays of PyTorch's linear layers, and transposes their weights.

    A file with Flax's names, which end in `kernel`, stays as it is.

    Args:
        layers: the layers from input to output; empty to find the order.

    Raises:
        DataError: the arrays are not those of linear layers with biases, or no order or several orders fit.
        ConfigError: the network is not built in as `mlp`, or `layers` names other layers.
    """
    if any(name.endswith("kernel") for name in arrays):
        if layers:
            raise ConfigError("posterior.layers", where=where, expected="PyTorch's layers", found="Flax's names")
        return arrays
    if not isinstance(network, MLPSpec):
        raise ConfigError(
            "network.kind",
            where=where,
            expected='"mlp", the only network that arrays of PyTorch are imported for',
            found=network.kind,
            fix="save the arrays with the names and the order of axes of Flax, as an .npz",
        )
    found = _layers(arrays, where)
    order = _given(found, layers, where) if layers else _find_order(arrays, found, network, where)
    if len(order) != len(network.hidden) + 1:
        raise DataError(
            "layers",
            where=where,
            expected=f"{len(network.hidden) + 1}, for network.hidden = {list(network.hidden)}",
            found=f"{len(order)}: {', '.join(map(repr, order))}",
            fix="set network.hidden to the widths of the hidden layers",
        )
    renamed: Arrays = {}
    for index, layer in enumerate(order):
        renamed[f"Dense_{index}.kernel"] = arrays[_join(layer, "weight")].T
        renamed[f"Dense_{index}.bias"] = arrays[_join(layer, "bias")]
    return renamed


def _layers(arrays: Arrays, where: str) -> list[str]:
    """Returns the names of the layers, after checking that each is linear and has a bias."""
    names = {name.rpartition(".")[0] for name in arrays}
    for name, array in arrays.items():
        layer, _, part = name.rpartition(".")
        if part not in {"weight", "bias"} or array.ndim != (2 if part == "weight" else 1):
            raise DataError(
                f"array {name!r}",
                where=where,
                expected="weights [out, in] and biases [out] of linear layers",
                found=f"shape {list(array.shape)}",
                fix="import the linear layers alone; other layers need a Flax module and an .npz",
            )
        for other in {"weight", "bias"} - {part}:
            if _join(layer, other) not in arrays:
                raise DataError(
                    f"array {_join(layer, other)!r} is missing",
                    where=where,
                    expected="a weight and a bias for each layer",
                    found=f"{name!r} alone",
                    fix="for a layer without bias save zeros" if other == "bias" else "add it to the file",
                )
    return sorted(names, key=_natural)


def _given(found: list[str], layers: tuple[str, ...], where: str) -> list[str]:
    if sorted(layers) != sorted(found):
        raise ConfigError(
            "posterior.layers", where=where, expected=f"each of {', '.join(found)} once", found=", ".join(layers)
        )
    return list(layers)


def _find_order(arrays: Arrays, found: list[str], network: MLPSpec, where: str) -> list[str]:
    """Returns the order of the numbers in the names, or the only order whose shapes fit the network."""
    if len({re.sub(r"\d+", "#", layer) for layer in found}) == 1:
        return found
    orders = (list(order) for order in islice(permutations(found), MOST_ORDERS + 1))
    fitting = list(islice((order for order in orders if _fits(arrays, order, network)), 2))
    if len(fitting) == 1 and len(found) <= 7:
        return fitting[0]
    raise DataError(
        "order of the layers",
        where=where,
        expected="names that differ only by numbers, or one order whose shapes fit",
        found=f"{', '.join(found)}, of which {'several orders fit' if fitting else 'no order fits'}",
        fix=f'set posterior.layers to the layers from input to output, such as ["{found[0]}", …]'
        if fitting
        else f"set network.hidden to the widths of the hidden layers; it is {list(network.hidden)}",
    )


def _fits(arrays: Arrays, order: list[str], network: MLPSpec) -> bool:
    weights = [arrays[_join(layer, "weight")].shape for layer in order]
    chained = all(first[0] == second[1] for first, second in pairwise(weights))
    return chained and tuple(shape[0] for shape in weights[:-1]) == network.hidden


def _join(layer: str, part: str) -> str:
    return f"{layer}.{part}" if layer else part


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
