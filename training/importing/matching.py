"""Matches the arrays of a source with the parameters of a network: names, shapes, the axes of draws, and the noise."""

from __future__ import annotations

import hashlib
import math
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from jaxtyping import Float

from abstain.models.errors import ConfigError, DataError, clip_repr, suggest
from abstain.models.networks.running_statistics import STATISTICS
from abstain.models.prediction.posterior import Draws, Model
from abstain.training.config.imports import PosteriorConfig
from abstain.training.importing.found import Arrays, Found

MOST_NAMED = 12
"""The largest number of names that an error lists."""


class Matched(NamedTuple):
    """The draws of a source in the form that a model needs.

    Attributes:
        draws: all draws, with one axis of draws.
        chains: the number of chains, whose draws follow one another; 0 if the source does not separate chains.
    """

    draws: Draws
    chains: int


def match(found: Found, model: Model, settings: PosteriorConfig) -> Matched:
    """Finds each parameter of the model, and the noise, among the arrays of a source.

    Raises:
        DataError: an array is missing, is not used, has another shape or number of draws, or is not finite.
        ConfigError: a setting names no parameter or no array, or several beginnings of the names fit.
    """
    names = _by_plain_name(found)
    shapes: Any = model.parameter_shapes()
    expected = {_path(key): tuple(leaf.shape) for key, leaf in _leaves(shapes["network"])}
    sources = _find_parameters(found, names, expected, settings)
    noise = settings.noise if isinstance(settings.noise, str) else None
    if noise is not None and noise.replace("/", ".") not in names:
        known = [*found.arrays]
        fix = suggest(noise, known) or "name the array of the noise's standard deviation"
        raise ConfigError(
            "posterior.noise", where=found.where, expected=f"one of {_listed(known)}", found=noise, fix=fix
        )
    used = {*sources.values()} | ({names[noise.replace("/", ".")]} if noise else set[str]())
    _refuse_unused(found, used, settings)

    lead = _leading_shape(found, sources, expected)
    total = math.prod(lead)
    parameters = {path: _draws(found, sources[path], shape, lead) for path, shape in expected.items()}
    draws: Draws = {
        "network": jax.tree.map_with_path(lambda key, _: parameters[_path(key)], shapes["network"]),
    }
    if settings.noise is not None:
        draws["noise"] = (
            _noise_draws(found, names[noise.replace("/", ".")], lead, settings)
            if noise
            else np.full(total, _noise_number(cast("float", settings.noise), settings), np.float32)
        )
    return Matched(draws, lead[0] if len(lead) == 2 else 0)


def digest_of(draws: Draws) -> str:
    """Returns the SHA-256 of draws: of name, shape and bytes of each array, ordered by name."""
    digest = hashlib.sha256()
    for name, leaf in sorted((_path(key), leaf) for key, leaf in _leaves(draws)):
        digest.update(f"{name}{leaf.shape}".encode())
        digest.update(np.ascontiguousarray(leaf, "<f4").tobytes())
    return f"sha256:{digest.hexdigest()}"


# ---- names -----------------------------------------------------------------------------------------------------------


def _by_plain_name(found: Found) -> dict[str, str]:
    """Returns the names of the source by their form with dots."""
    names: dict[str, str] = {}
    for name in found.arrays:
        other = names.setdefault(name.replace("/", "."), name)
        if other != name:
            raise DataError("arrays", where=found.where, expected="each name once", found=f"{other!r} and {name!r}")
    return names


def _find_parameters(
    found: Found, names: dict[str, str], expected: dict[str, tuple[int, ...]], settings: PosteriorConfig
) -> dict[str, str]:
    """Returns the name of each parameter's array in the source, by the parameter's path."""
    sources: dict[str, str] = {}
    for path, name in settings.names.items():
        plain = path.replace("/", ".").removeprefix("params.")
        if plain not in expected:
            fix = suggest(plain, expected) or "use the network's parameters"
            raise ConfigError("posterior.names", expected=f"some of {_listed(expected)}", found=path, fix=fix)
        if name.replace("/", ".") not in names:
            fix = suggest(name, found.arrays) or "use the names in the source"
            raise ConfigError(
                f"posterior.names, {path}",
                where=found.where,
                expected=f"one of {_listed(found.arrays)}",
                found=name,
                fix=fix,
            )
        sources[plain] = names[name.replace("/", ".")]
    rest = [path for path in expected if path not in sources]
    if not rest:
        return sources
    candidates = _prefixes(names, rest, settings.prefix)
    found_by = {prefix: _with_prefix(names, rest, prefix) for prefix in candidates}
    whole = [prefix for prefix in candidates if len(found_by[prefix]) == len(rest)]
    if len(whole) == 1:
        return sources | found_by[whole[0]]
    if whole:
        shown = [prefix.rstrip(".") or "(none)" for prefix in whole]
        raise ConfigError(
            "posterior.prefix",
            where=found.where,
            expected=f"one of {_listed(shown)}, which all have every parameter",
            found="nothing",
            fix="set it",
        )
    nearest = max(candidates, key=lambda prefix: len(found_by[prefix]), default="")
    missing = [path for path in rest if path not in found_by.get(nearest, {})]
    raise DataError(
        f"parameter {missing[0]!r} is missing" + (f", and {len(missing) - 1} more" if missing[1:] else ""),
        where=found.where,
        expected=f"{_listed(nearest + path for path in rest)}",
        found=_listed(found.arrays),
        fix="check the network's arguments; posterior.names gives the arrays that have other names",
    )


def _prefixes(names: dict[str, str], paths: list[str], chosen: str | None) -> list[str]:
    """Returns the beginnings before at least one parameter's path, in the order of their length."""
    if chosen is not None:
        start = f"{chosen.replace('/', '.').rstrip('.')}." if chosen else ""
        return [start, f"{start}params."]
    own = [path for path in paths if not path.startswith(f"{STATISTICS}.")]
    ends = {(name, path) for path in own for name in names if name == path or name.endswith(f".{path}")}
    return sorted({name[: len(name) - len(path)] for name, path in ends}, key=lambda prefix: (len(prefix), prefix))


def _with_prefix(names: dict[str, str], paths: list[str], prefix: str) -> dict[str, str]:
    """Returns the source's name of each path that it has after a beginning."""
    sources: dict[str, str] = {}
    for path in paths:
        # Linen keeps running statistics in a collection beside `params`, NNX in the module itself.
        inside = path.removeprefix(f"{STATISTICS}.")
        places = [prefix + path] if inside == path else [f"{prefix.removesuffix('params.')}{path}", prefix + inside]
        name = next((names[place] for place in places if place in names), None)
        if name is not None:
            sources[path] = name
    return sources


def _refuse_unused(found: Found, used: set[str], settings: PosteriorConfig) -> None:
    """Refuses arrays that are neither used nor ignored, and patterns that ignore nothing."""
    others = [name for name in found.arrays if name not in used]
    ignored = {pattern: [name for name in others if fnmatchcase(name, pattern)] for pattern in settings.ignore}
    for pattern, matches in ignored.items():
        if not matches:
            raise ConfigError(
                "posterior.ignore",
                where=found.where,
                expected=f"some of {_listed(others)}" if others else "nothing, because every array is used",
                found=pattern,
                fix=suggest(pattern, others) or "leave it out",
            )
    extra = sorted(set(others) - {name for matches in ignored.values() for name in matches})
    if extra:
        raise DataError(
            f"array {extra[0]!r} is not used" + (f", and {len(extra) - 1} more" if extra[1:] else ""),
            where=found.where,
            expected="only the network's parameters" + ("" if settings.noise is None else " and the noise"),
            found=_listed(extra),
            fix="if the predictions do not depend on them, list them in posterior.ignore; else the network is another one",
        )


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _leading_shape(found: Found, sources: dict[str, str], expected: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Returns the shape of the axes of draws, `(draws,)` or `(chains, draws)`, which is one for all parameters."""
    leads: dict[str, tuple[int, ...]] = {}
    for path, shape in expected.items():
        array = found.arrays[sources[path]]
        axes = array.ndim - len(shape)
        if axes not in {1, 2} or array.shape[axes:] != shape:
            inner = ", ".join(map(str, shape))
            raise DataError(
                _called(path, sources[path]),
                where=found.where,
                expected=f"shape [draws, {inner}] or [chains, draws, {inner}]".replace(", ]", "]"),
                found=f"shape {list(array.shape)}",
                fix="check the network's arguments and the order of the axes",
            )
        leads[path] = array.shape[:axes]
    first_path, first = next(iter(leads.items()))
    for path, lead in leads.items():
        if lead != first:
            raise DataError(
                _called(path, sources[path]),
                where=found.where,
                expected=f"draws of shape {list(first)}, as {first_path} has them",
                found=f"{list(lead)}",
                fix="give all arrays the same draws",
            )
    if 0 in first:
        raise DataError(
            _called(first_path, sources[first_path]), where=found.where, expected="at least one draw", found="none"
        )
    return first


def _called(path: str, name: str) -> str:
    """Returns a parameter in words, with its name in the source if that is another one."""
    return f"parameter {path!r}" if name == path else f"parameter {path!r} (array {name!r})"


def _draws(found: Found, name: str, shape: tuple[int, ...], lead: tuple[int, ...]) -> Float[np.ndarray, "draws ..."]:
    """Returns an array as float32 with one axis of draws."""
    return _as_float32(found, name).reshape(math.prod(lead), *shape)


def _as_float32(found: Found, name: str) -> Float[np.ndarray, "..."]:
    array = found.arrays[name]
    if array.dtype.kind not in "fiu":
        raise DataError(f"array {name!r}", where=found.where, expected="real numbers", found=f"type {array.dtype}")
    with np.errstate(over="ignore"):
        single = np.asarray(array, np.float32)
    if not np.isfinite(single).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(single))[0])
        raise DataError(
            f"array {name!r}, index {list(index)}",
            where=found.where,
            expected="a finite number within float32's range",
            found=array[index],
            fix="leave out draws that diverged",
        )
    return single


def _noise_draws(
    found: Found, name: str, lead: tuple[int, ...], settings: PosteriorConfig
) -> Float[np.ndarray, " draws"]:
    """Returns the draws of the noise's standard deviation."""
    array = found.arrays[name]
    single = array.shape[: len(lead)] == lead and math.prod(array.shape[len(lead) :]) == 1
    if not single:
        raise DataError(
            f"noise (array {name!r})",
            where=found.where,
            expected=f"shape {list(lead)}: one number for each draw",
            found=f"shape {list(array.shape)}",
            fix='noise that differs from row to row is likelihood = "heteroscedastic_normal", whose network has it as '
            "its second output",
        )
    _as_float32(found, name)  # refuses what is not finite
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        deviations = _as_deviation(array.reshape(-1).astype(np.float64), settings)
        single_precision = deviations.astype(np.float32)
    wrong = np.flatnonzero(~(np.isfinite(single_precision) & (single_precision > 0)))
    if wrong.size:
        raise DataError(
            f"noise (array {name!r}), draw {int(wrong[0])}",
            where=found.where,
            expected="a standard deviation above 0 in every draw",
            found=f"{settings.noise_is} {array.reshape(-1)[wrong[0]]}",
            fix="check posterior.noise and posterior.noise_is: std, variance, precision or log_std",
        )
    return single_precision


def _noise_number(number: float, settings: PosteriorConfig) -> np.float32:
    deviation = np.float32(_as_deviation(np.array([number], np.float64), settings)[0])
    if not (np.isfinite(deviation) and deviation > 0):
        expected = "a standard deviation above 0 within float32's range"
        raise ConfigError("posterior.noise", expected=expected, found=clip_repr(number))
    return deviation


def _as_deviation(values: Float[np.ndarray, " draws"], settings: PosteriorConfig) -> Float[np.ndarray, " draws"]:
    if settings.noise_is == "variance":
        return np.sqrt(values)
    if settings.noise_is == "precision":
        return 1 / np.sqrt(values)
    return np.exp(values) if settings.noise_is == "log_std" else values


def evenly_spaced(total: int, count: int) -> np.ndarray:
    """Returns the indices of `count` of `total` draws: the middles of equal parts."""
    return ((np.arange(count) + 0.5) * total / count).astype(int)


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return cast("list[tuple[Any, Any]]", jax.tree.leaves_with_path(tree))


def _path(key: Any) -> str:
    return jax.tree_util.keystr(key, simple=True, separator=".")


def _listed(names: Any) -> str:
    """Returns the first names, and how many more there are."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - MOST_NAMED} more" if len(listed) > MOST_NAMED else ""
    return ", ".join(listed[:MOST_NAMED]) + more if listed else "none"


__all__ = ["Arrays", "Matched", "digest_of", "evenly_spaced", "match"]
