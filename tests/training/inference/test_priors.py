"""Priors as the config words them: every kind against scipy, by layer, by fan-in, and with inferred scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import k0

from abstain.models.errors import ConfigError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.priors import LayerPrior, PriorConfig
from abstain.training.inference.bnn import BNN
from abstain.training.inference.priors import distribution, noise_distribution, parameter_priors, scale_distribution

VALUES = np.array([-3.0, -0.4, 0.0, 0.05, 1.0, 7.5])


class Mixture:
    """Two normals about 0, as scipy has them."""

    def __init__(self, weight, narrow, wide):
        self.parts = [(weight, narrow), (1 - weight, wide)]

    def logpdf(self, x):
        """Log density."""
        return np.log(sum(weight * stats.norm.pdf(x, scale=scale) for weight, scale in self.parts))


KINDS = {
    "normal": ({"scale": 0.7}, stats.norm(scale=0.7)),
    "cauchy": ({"scale": 0.7}, stats.cauchy(scale=0.7)),
    "laplace": ({"scale": 0.7}, stats.laplace(scale=0.7)),
    "student_t": ({"scale": 0.7, "degrees": 4.5}, stats.t(4.5, scale=0.7)),
    "scale_mixture": ({"scale": 0.7, "narrow_scale": 0.1, "narrow_weight": 0.3}, Mixture(0.3, 0.07, 0.7)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_distribution_of_its_name(kind):
    """Its log density is scipy's."""
    settings, exact = KINDS[kind]
    law = distribution(LayerPrior(kind=kind, **settings), (6,))
    np.testing.assert_allclose(exact.logpdf(VALUES), law.log_prob(jnp.float32(VALUES)), rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_prior_of_a_whole_network(kind):
    """Expanded to every array, independent over its numbers: a draw's density is the sum; draws are of the same law."""
    settings, exact = KINDS[kind]
    target = bnn(kind=kind, **settings).target
    keys = jax.random.split(jax.random.key(0), 500)
    zs = jax.jit(jax.vmap(target.sample_prior))(keys)
    assert zs.shape == (500, 14)
    expected = (
        exact.logpdf(np.asarray(zs[0, :13], np.float64)).sum() + stats.halfcauchy.logpdf(np.exp(zs[0, 13])) + zs[0, 13]
    )
    assert float(target.log_prior(zs[0])) == pytest.approx(float(expected), rel=1e-4)
    if kind != "scale_mixture":
        assert stats.kstest(np.asarray(zs[:, :13]).ravel(), exact.cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("kind", "exact"),
    [
        ("half_cauchy", stats.halfcauchy(scale=0.4)),
        ("half_normal", stats.halfnorm(scale=0.4)),
        ("log_normal", stats.lognorm(0.4)),
    ],
)
def test_every_prior_of_the_noise(kind, exact):
    """Its log density is scipy's, of that kind and scale."""
    law = noise_distribution(PriorConfig(noise=kind, noise_scale=0.4))
    values = np.array([0.01, 0.3, 1.0, 5.0])
    np.testing.assert_allclose(exact.logpdf(values), law.log_prob(jnp.float32(values)), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "fan_in"),
    [((9,), 1), ((4, 7), 4), ((5, 5, 3, 8), 75), ((), 1)],
    ids=["bias", "dense", "convolution", "one"],
)
def test_fan_in_divides_the_scale_of_kernels_by_the_root_of_their_inputs(shape, fan_in):
    """All axes but the last are inputs; biases keep the scale, and so does everything without `fan_in`."""
    for prior, expected in ((LayerPrior(scale=2.0, fan_in=True), 2 / np.sqrt(fan_in)), (LayerPrior(scale=2.0), 2.0)):
        assert float(distribution(prior, shape).scale) == pytest.approx(expected)


SHAPES = {"Conv_0.bias": (2,), "Conv_0.kernel": (3, 3, 1, 2), "Dense_0.bias": (4,), "Dense_0.kernel": (8, 4)}


def test_the_first_pattern_that_fits_holds_and_says_only_what_differs():
    """A layer inherits the settings that it leaves out; a layer without a pattern inherits all."""
    prior = PriorConfig(
        kind="laplace",
        scale=0.3,
        fan_in=True,
        layers={"Dense_0.bias": {"scale": 5.0}, "*.bias": {"kind": "normal"}, "Conv_?.*": {"fan_in": False}},
    )
    found = parameter_priors(prior, SHAPES)
    assert list(found) == list(SHAPES)
    assert {name: (law.kind, law.scale, law.fan_in) for name, law in found.items()} == {
        "Conv_0.bias": ("normal", 0.3, True),
        "Conv_0.kernel": ("laplace", 0.3, False),
        "Dense_0.bias": ("laplace", 5.0, True),
        "Dense_0.kernel": ("laplace", 0.3, True),
    }


def test_what_is_written_down_of_a_prior_by_layer_means_the_same_when_read_again():
    """A layer's dump holds what it says and no defaults, or a fit's record would tell of another prior."""
    prior = PriorConfig(scale=0.3, layers={"*.bias": {"kind": "laplace"}})
    content = prior.model_dump(mode="json")
    assert content["layers"] == {"*.bias": {"kind": "laplace"}}
    again = PriorConfig.model_validate(content)
    assert parameter_priors(again, SHAPES)["Dense_0.bias"].scale == 0.3
    assert content != PriorConfig(scale=0.3, layers={"*.bias": {"kind": "laplace", "scale": 1.0}}).model_dump(
        mode="json"
    )


def test_a_pattern_that_fits_nothing_is_refused_with_the_names_there_are():
    """A layer that is misspelt, or that another network had."""
    message = (
        r'prior.layers."Dense_7.\*": expected a parameter of the network, or a pattern: '
        r"Conv_0.bias, Conv_0.kernel, Dense_0.bias, Dense_0.kernel, found no match"
    )
    with pytest.raises(ConfigError, match=message):
        parameter_priors(PriorConfig(layers={"*.bias": {}, "Dense_7.*": {}}), SHAPES)
    with pytest.raises(ConfigError, match=r'prior.layers."dense_0.bias"'):
        parameter_priors(PriorConfig(layers={"dense_0.bias": {}}), SHAPES)


def bnn(**prior):
    """A 2-3-1 regression network under a prior."""
    network = MLPSpec(hidden=(3,), activation="tanh")
    return BNN(Model(network=network, likelihood="normal", feature_shape=(2,)), PriorConfig(**prior))


def test_an_inferred_scale_is_half_normal():
    """The scale's prior has the scale of the prior."""
    law = scale_distribution(LayerPrior(scale=0.6, hierarchical=True))
    np.testing.assert_allclose(
        stats.halfnorm.logpdf([0.1, 2], scale=0.6), law.log_prob(jnp.array([0.1, 2.0])), rtol=1e-5
    )


def test_a_weight_under_an_inferred_scale_has_the_marginal_of_a_product():
    """It is s · u with s half-normal and u normal: density K₀(|w| / σ) / (π σ), its weights sharing one s by array."""
    net = bnn(scale=0.6, fan_in=True, hierarchical=True)
    keys = jax.random.split(jax.random.key(1), 4000)
    draws = net.draws(np.asarray(jax.jit(jax.vmap(net.target.sample_prior))(keys)))
    kernel = draws["network"]["Dense_0"]["kernel"]
    grid = np.linspace(1e-6, 12, 200_001)
    mass = np.append(0, np.cumsum((k0(grid)[1:] + k0(grid)[:-1]) / 2 * np.diff(grid))) / np.pi

    def cdf(w):
        return 0.5 + np.sign(w) * np.interp(np.abs(w), grid, mass)

    sigma = 0.6 / np.sqrt(2)
    assert stats.kstest(kernel[:, 0, 0] / sigma, cdf).pvalue > 1e-3
    assert stats.kstest(kernel[:, 0, 0], stats.norm(scale=sigma).cdf).pvalue < 1e-6
    squares = np.stack([kernel[:, 0, 0], kernel[:, 1, 2], draws["network"]["Dense_1"]["kernel"][:, 0, 0]])
    ranks = stats.spearmanr(np.abs(squares).T).statistic
    assert ranks[0, 1] > 0.2
    assert abs(ranks[0, 2]) < 0.06
