"""Which array is which parameter; and sources that are refused: by name, what was expected, and what was found."""

import numpy as np
import pytest

from abstain.models.errors import ConfigError, DataError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.imports import PosteriorConfig
from abstain.training.importing.found import Found, stack_members
from abstain.training.importing.matching import digest_of, evenly_spaced, match

CLASSES = Model(network=MLPSpec(hidden=(4,)), likelihood="categorical", feature_shape=(2,), class_names=("0", "1", "2"))
NUMBERS = Model(network=MLPSpec(hidden=(4,)), likelihood="normal", feature_shape=(2,))
SHAPES = {"Dense_0.kernel": (2, 4), "Dense_0.bias": (4,), "Dense_1.kernel": (4, 3), "Dense_1.bias": (3,)}


def arrays(lead=(5,), start="", separator=".", shapes=SHAPES):
    """Arrays of the parameters, after a beginning."""
    rng = np.random.default_rng(0)
    return {start + name.replace(".", separator): rng.normal(size=(*lead, *shape)) for name, shape in shapes.items()}


def found_of(**content):
    """What a reader would return."""
    return Found("npz", "draws.npz", content)


def match_classes(content, **settings):
    """Matches arrays with the classifier."""
    return match(found_of(**content), CLASSES, PosteriorConfig(**settings))


@pytest.mark.parametrize(
    ("start", "separator"),
    [("", "."), ("", "/"), ("params/", "/"), ("params.", "."), ("net/", "."), ("net.", "."), ("a/b/params/", "/")],
)
def test_names_of_flax_numpyro_and_arviz_are_understood(start, separator):
    """With slashes or dots, after `params`, and after the name of a NumPyro module."""
    content = arrays(start=start, separator=separator)
    draws = match_classes(content).draws["network"]
    for name in SHAPES:
        layer, part = name.split(".")
        expected = content[start + name.replace(".", separator)].astype(np.float32)
        np.testing.assert_array_equal(draws[layer][part], expected)


def test_chains_follow_one_another():
    """Two first axes are chains and draws."""
    content = arrays((3, 5))
    matched = match_classes(content)
    kernel = matched.draws["network"]["Dense_0"]["kernel"]
    assert (matched.chains, kernel.shape) == (3, (15, 2, 4))
    np.testing.assert_array_equal(kernel[5:10], content["Dense_0.kernel"][1].astype(np.float32))


def test_other_names_are_given_and_other_arrays_ignored():
    """A network that was written by hand in NumPyro."""
    content = arrays()
    renamed = dict(zip(("w1", "b1", "w2", "b2"), content.values(), strict=True)) | {
        "mu": np.zeros(5),
        "prec_a": np.ones(5),
    }
    names = dict(zip(SHAPES, ("w1", "b1", "w2", "b2"), strict=True))
    draws = match_classes(renamed, names=names, ignore=["mu", "prec_*"]).draws
    np.testing.assert_array_equal(draws["network"]["Dense_1"]["kernel"], content["Dense_1.kernel"].astype(np.float32))
    assert digest_of(draws) == digest_of(match_classes(content).draws)


def test_of_two_networks_the_prefix_chooses():
    """Without it, the names of both are listed."""
    content = arrays(start="a/") | arrays(start="b/")
    with pytest.raises(ConfigError, match=r"posterior.prefix: expected one of a, b, which all have every parameter"):
        match_classes(content)
    match_classes(content, prefix="b", ignore=["a/*"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"Dense_1.bias": None}, "draws.npz: parameter 'Dense_1.bias' is missing: expected Dense_0.bias"),
        ({"extra": np.zeros(5)}, "array 'extra' is not used: expected only the network's parameters, found extra; if"),
        (
            {"Dense_0.kernel": np.zeros((5, 4, 2))},
            r"expected shape [draws, 2, 4] or [chains, draws, 2, 4], found shape [5, 4, 2]",
        ),
        ({"Dense_0.bias": np.zeros(4)}, "parameter 'Dense_0.bias': expected shape [draws, 4] or"),
        ({"Dense_0.bias": np.zeros((6, 4))}, "expected draws of shape [6], as Dense_0.bias has them, found [5]"),
        ({"Dense_0.bias": np.full((5, 4), np.nan)}, "array 'Dense_0.bias', index [0, 0]: expected a finite number"),
        ({"Dense_0.bias": np.full((5, 4), 1e39)}, "expected a finite number within float32's range, found 1e+39"),
        ({"Dense_0.bias": np.full((5, 4), 1j)}, "array 'Dense_0.bias': expected real numbers, found type complex128"),
        (
            {"Dense_0/bias": np.zeros((5, 4))},
            "arrays: expected each name once, found 'Dense_0.bias' and 'Dense_0/bias'",
        ),
    ],
)
def test_a_wrong_source_is_refused(change, text):
    """Missing, extra, of another shape or number of draws, not finite, of another type, twice."""
    content = {name: array for name, array in (arrays() | change).items() if array is not None}
    with pytest.raises(DataError) as caught:
        match_classes(content)
    assert text in str(caught.value)


def test_no_draws_are_refused():
    """An axis of length 0."""
    with pytest.raises(DataError, match="expected at least one draw, found none"):
        match_classes(arrays((0,)))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"names": {"Dense_9.kernel": "w"}}, "posterior.names: expected some of Dense_0.bias, "),
        ({"names": {"Dense_0.kernel": "w"}}, "posterior.names, Dense_0.kernel: expected one of Dense_0.kernel"),
        ({"ignore": ["mu"]}, "posterior.ignore: expected nothing, because every array is used, found mu"),
    ],
)
def test_settings_that_name_nothing_are_refused(settings, text):
    """An unknown parameter, an unknown array, a pattern that ignores nothing."""
    with pytest.raises(ConfigError) as caught:
        match_classes(arrays(), **settings)
    assert text in str(caught.value)


# ---- the noise -------------------------------------------------------------------------------------------------------

SCALAR = {"Dense_1.kernel": (4, 1), "Dense_1.bias": (1,)}


def noise_of(sigma, **settings):
    """The noise's draws of a regression with the array `sigma`."""
    content = arrays(shapes=SHAPES | SCALAR) | {"sigma": sigma}
    return match(found_of(**content), NUMBERS, PosteriorConfig(noise="sigma", **settings)).draws["noise"]


@pytest.mark.parametrize(
    ("kind", "value"), [("std", 0.5), ("variance", 0.25), ("precision", 4.0), ("log_std", np.log(0.5))]
)
def test_the_noise_is_a_standard_deviation(kind, value):
    """Whatever it is in the source, with or without an axis of length 1."""
    for shape in ((5,), (5, 1)):
        np.testing.assert_allclose(noise_of(np.full(shape, value), noise_is=kind), np.full(5, 0.5), rtol=1e-6)


def test_a_number_is_the_noise_of_every_draw():
    """For networks that were trained with a known noise."""
    content = arrays(shapes=SHAPES | SCALAR)
    draws = match(found_of(**content), NUMBERS, PosteriorConfig(noise=0.25)).draws
    np.testing.assert_array_equal(draws["noise"], np.full(5, 0.25, np.float32))


@pytest.mark.parametrize(
    ("sigma", "text"),
    [
        (
            np.zeros(5),
            "noise (array 'sigma'), draw 0: expected a standard deviation above 0 in every draw, found std 0.0",
        ),
        (np.ones((5, 7)), "noise (array 'sigma'): expected shape [5]: one number for each draw, found shape [5, 7]"),
        (np.ones(4), "expected shape [5]: one number for each draw, found shape [4]"),
        (np.full(5, np.inf), "array 'sigma', index [0]: expected a finite number"),
    ],
)
def test_noise_that_cannot_be_expressed_is_refused(sigma, text):
    """Not above 0, one for each row, of other draws, not finite."""
    with pytest.raises(DataError) as caught:
        noise_of(sigma)
    assert text in str(caught.value)


def test_unknown_noise_is_refused():
    """The nearest name is told."""
    content = arrays(shapes=SHAPES | SCALAR) | {"sigma": np.ones(5)}
    with pytest.raises(ConfigError, match=r"found sigmas; did you mean 'sigma'\?"):
        match(found_of(**content), NUMBERS, PosteriorConfig(noise="sigmas"))


# ---- ensembles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ({"a": np.zeros(3)}, "b: array 'a': expected shape (2,), as in first, found shape (3,)"),
        ({}, "found none of that name"),
    ],
)
def test_networks_of_another_architecture_are_refused(second, text):
    """Another shape, or an array less."""
    with pytest.raises(DataError) as caught:
        stack_members({"first": {"a": np.zeros(2)}, "b": second}, "orbax")
    assert text in str(caught.value)


def test_draws_are_chosen_evenly():
    """The middles of equal parts."""
    assert evenly_spaced(10, 5).tolist() == [1, 3, 5, 7, 9]
    assert evenly_spaced(7, 7).tolist() == [*range(7)]
