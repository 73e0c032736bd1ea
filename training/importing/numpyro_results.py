"""Reads draws from objects in memory: NumPyro's `MCMC` and SVI results, ArviZ's objects, dicts of arrays, lists of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from abstain.models.errors import ConfigError, DataError, clip_repr
from abstain.training.importing.found import Arrays, Found, flatten, stack_members

DRAWS = 100
"""The number of draws of a guide, if the config does not set it."""
_AUTO = "_auto_"
"""The beginning of the latent sites of NumPyro's automatic guides, which are not sites of the model."""
_PARAMS = "$params"
"""The end of the site in which `flax_module` and `nnx_module` keep a network's parameters."""


class GuideCall(NamedTuple):
    """How to draw from the guide of an SVI result.

    Attributes:
        guide: the guide that was fitted; None for a result without random parameters.
        arguments: the positional arguments of the guide, if it is a function that has any.
        draws: the number of draws.
        seed: for the random numbers of the draws.
    """

    guide: Any = None
    arguments: tuple[Any, ...] = ()
    draws: int = DRAWS
    seed: int = 0


def read_result(result: Any, call: GuideCall) -> Found:
    """Reads the draws of a result.

    Args:
        result: an `MCMC` that has run; an SVI result, or its `params`, with a guide; ArviZ's `DataTree` or
            `InferenceData`; a dict of arrays by name, nested or not, with the draws as first axis; or a list of dicts,
            one for each network of an ensemble.

    Raises:
        DataError: the result has no draws.
        ConfigError: the result is of another kind, or there is a guide where none is needed, or none where one is.
    """
    from numpyro.infer import MCMC  # noqa: PLC0415 - a second to import

    if call.guide is not None:
        return _from_guide(getattr(result, "params", result), call)
    if isinstance(result, MCMC):
        return _from_mcmc(result)
    posterior = _arviz_posterior(result)
    if posterior is not None:
        return _from_arviz(posterior)
    parameters = getattr(result, "params", None)
    if isinstance(parameters, Mapping) and hasattr(result, "losses"):
        return _from_optimum(cast("Mapping[str, Any]", parameters))
    if isinstance(result, Mapping):
        arrays = flatten(cast("Mapping[str, Any]", result), "the dict of draws")
        return Found("arrays", "the dict of draws", arrays)
    if isinstance(result, Sequence) and result and all(isinstance(member, Mapping) for member in cast("Any", result)):
        members = cast("Sequence[Mapping[str, Any]]", result)
        named = {f"network {index}": flatten(member, f"network {index}") for index, member in enumerate(members)}
        return stack_members(named, "arrays")
    raise ConfigError(
        "result",
        expected="an MCMC that has run, an SVI result, ArviZ's DataTree or InferenceData, a dict of arrays, or a list of them",
        found=clip_repr(cast("object", result)),
        fix="for other results pass a dict of arrays by the names of the network's parameters",
    )


def _from_mcmc(mcmc: Any) -> Found:
    try:
        samples = mcmc.get_samples(group_by_chain=True)
        extra = mcmc.get_extra_fields(group_by_chain=True)
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise DataError("MCMC", expected="a result", found="none", fix="call its method run first") from error
    arrays = flatten(samples, "MCMC")
    diverging = extra.get("diverging")
    divergences = None if diverging is None else int(np.asarray(diverging).sum())
    return Found("mcmc", "MCMC", arrays, divergences=divergences)


def _from_guide(params: Any, call: GuideCall) -> Found:
    """Draws from the guide, and repeats the parameters of networks that are not random."""
    from numpyro.infer import Predictive  # noqa: PLC0415

    if not isinstance(params, Mapping):
        raise ConfigError(
            "guide",
            expected="an SVI result, or its params, with it",
            found=clip_repr(params),
            fix="leave out the guide",
        )
    fixed = cast("Mapping[str, Any]", params)
    key = jax.random.key(call.seed)
    if hasattr(call.guide, "sample_posterior"):
        samples = call.guide.sample_posterior(key, fixed, *call.arguments, sample_shape=(call.draws,))
    else:
        predictive = Predictive(call.guide, params=dict(fixed), num_samples=call.draws)
        try:
            samples = predictive(key, *call.arguments)
        except TypeError as error:
            raise ConfigError(
                "guide",
                expected="its arguments",
                found=str(error).splitlines()[0],
                fix="pass guide_arguments=(…), the arguments that svi.run got",
            ) from error
    arrays = {name: array for name, array in flatten(samples, "the guide").items() if not name.startswith(_AUTO)}
    for name, array in _network_parameters(fixed).items():
        arrays.setdefault(name, np.repeat(array[None], call.draws, axis=0))
    return Found("svi", "the SVI result", arrays, members=True)


def _from_optimum(params: Mapping[str, Any]) -> Found:
    """Reads the parameters of networks, one draw, if none of them is random."""
    random = sorted({name for name in params if "_auto_" in name})
    if random:
        raise ConfigError(
            "guide",
            expected="the guide of the SVI result, because its parameters are random",
            found="none",
            fix="pass guide=…, the one that SVI got",
        )
    others = {name: np.asarray(value) for name, value in params.items() if not name.endswith(_PARAMS)}
    arrays = {name: array[None] for name, array in (_network_parameters(params) | others).items()}
    return Found("svi", "the SVI result", arrays, members=True)


def _network_parameters(params: Mapping[str, Any]) -> Arrays:
    """Returns the parameters that `flax_module` and `nnx_module` registered, named as random ones are: `net/Dense_0.kernel`."""
    arrays: Arrays = {}
    for name, tree in params.items():
        if name.endswith(_PARAMS):
            branch = name.removesuffix(_PARAMS)
            plain = flatten(_without_random(tree), "the SVI result")
            arrays |= {f"{branch}/{path}": array for path, array in plain.items()}
    return arrays


def _without_random(tree: Any) -> Any:
    """Leaves out the places of random parameters, where NumPyro keeps only the shape."""
    if isinstance(tree, Mapping):
        return {key: _without_random(value) for key, value in cast("Mapping[Any, Any]", tree).items()}
    return None if type(tree).__name__ == "ParamShape" else tree


def _arviz_posterior(result: Any) -> Any:
    """Returns the variables of the group `posterior` of ArviZ's object; None for other objects."""
    data: Any = getattr(result, "posterior", None)
    if data is None and hasattr(result, "children"):
        data = dict(result.children).get("posterior")
    data = result if data is None else data
    return data if hasattr(data, "data_vars") else None


def _from_arviz(posterior: Any) -> Found:
    arrays: Arrays = {}
    for name, variable in posterior.data_vars.items():
        if tuple(variable.dims[:2]) != ("chain", "draw"):
            raise DataError(
                f"variable {name!r}",
                where="posterior",
                expected="the dimensions chain, draw, …",
                found=", ".join(map(str, variable.dims)) or "none",
                fix="pass the result of ArviZ as it is",
            )
        arrays[str(name)] = np.asarray(variable.values)
    if not arrays:
        raise DataError("posterior", expected="at least one variable", found="none")
    return Found("arviz", "posterior", arrays)
