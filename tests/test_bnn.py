"""The Bayesian network: its joint density against the same formula written in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import log_expit, log_softmax

from models.networks import LeNetSpec, MLPSpec
from models.posterior import Model
from models.preprocessing import Preprocessing
from training.bnn import (
    BNN,
    Observations,
    as_draws,
    as_sites,
    log_likelihood,
    network_start,
    numpyro_model,
    observe,
    prior_sites,
)
from training.config import PriorConfig
from training.rows import Rows

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 2))
OUTPUTS = {"categorical": 3, "bernoulli": 1, "normal": 1, "heteroscedastic_normal": 2}
TARGETS = {
    "categorical": np.arange(7) % 3,
    "bernoulli": np.arange(7) % 2,
    "normal": RNG.normal(size=7),
    "heteroscedastic_normal": RNG.normal(size=7),
}


def toy(likelihood, **prior):
    """A 2-3-outputs network with a prior, observations of it, and one draw of its sites, all in float64."""
    names = {"categorical": ("a", "b", "c"), "bernoulli": ("a", "b")}.get(likelihood, ())
    network = MLPSpec(hidden=(3,), activation="tanh")
    model = Model(network=network, likelihood=likelihood, feature_shape=(2,), class_names=names)
    bnn = BNN(model, PriorConfig(**prior))
    rng = np.random.default_rng(1)
    sites = {site: rng.normal(size=law.shape()) for site, law in prior_sites(bnn).items()}
    if "noise" in sites:
        sites["noise"] = np.array(0.7)
    return bnn, Observations(jnp.asarray(X, jnp.float32), jnp.asarray(TARGETS[likelihood])), sites


def log_rows(likelihood, sites):
    """Each row's log density by hand."""
    hidden = np.tanh(X @ sites["network.Dense_0.kernel"] + sites["network.Dense_0.bias"])
    outputs = hidden @ sites["network.Dense_1.kernel"] + sites["network.Dense_1.bias"]
    y = TARGETS[likelihood]
    if likelihood == "categorical":
        return log_softmax(outputs, axis=1)[np.arange(7), y]
    if likelihood == "bernoulli":
        return log_expit(np.where(y == 1, outputs[:, 0], -outputs[:, 0]))
    std = sites["noise"] if likelihood == "normal" else np.exp(outputs[:, 1] / 2)
    return stats.norm.logpdf(y, outputs[:, 0], std)


def log_prior(sites, scale, noise_scale):
    """The log prior by hand, `scale` by site."""
    return sum(
        stats.halfcauchy.logpdf(value, scale=noise_scale)
        if site == "noise"
        else stats.norm.logpdf(value, scale=scale(site)).sum()
        for site, value in sites.items()
    )


def log_joint(bnn, observations, sites, *terms):
    """The log joint density as inference sees it."""
    return float(log_density(numpyro_model, (bnn, observations, *terms), {}, jax.tree.map(jnp.float32, sites))[0])


@pytest.mark.parametrize(
    ("likelihood", "fan_in"),
    [(likelihood, likelihood != "categorical") for likelihood in OUTPUTS] + [("normal", False)],
)
def test_the_joint_density_is_prior_times_likelihood(likelihood, fan_in):
    """Normals over weights and biases, a half-Cauchy over the noise, and each likelihood's density, summed over rows."""
    bnn, observations, sites = toy(likelihood, scale=1.7, noise_scale=0.5, fan_in=fan_in)

    def scale(site):
        inputs = {"network.Dense_0.kernel": 2, "network.Dense_1.kernel": 3}.get(site, 1)
        return 1.7 / np.sqrt(inputs) if fan_in else 1.7

    expected = log_prior(sites, scale, 0.5) + log_rows(likelihood, sites).sum()
    assert log_joint(bnn, observations, sites) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("likelihood", OUTPUTS)
def test_the_likelihood_is_of_each_row(likelihood):
    """`log_likelihood` gives the rows' log densities one by one."""
    bnn, observations, sites = toy(likelihood)
    found = log_likelihood(bnn.model, as_draws(jax.tree.map(jnp.float32, sites)), observations)
    np.testing.assert_allclose(log_rows(likelihood, sites), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("likelihood", OUTPUTS)
def test_a_minibatch_stands_for_all_rows_and_the_prior_is_weighted_once(likelihood):
    """With `total_rows` N and `prior_weight` w the density is w · log prior + N / batch · Σ log likelihood."""
    bnn, observations, sites = toy(likelihood)
    prior = log_prior(sites, lambda _: 1.0, 1.0)
    batch = Observations(observations.x[:3], observations.y[:3])
    expected = 0.1 * prior + 70 / 3 * log_rows(likelihood, sites)[:3].sum()
    assert log_joint(bnn, batch, sites, 70, 0.1) == pytest.approx(expected, rel=1e-5)


def test_a_convolutions_fan_in_counts_its_window():
    """Under `fan_in` a 5×5 kernel over c channels has prior std scale / √(25 c); biases keep the scale."""
    model = Model(
        network=LeNetSpec(channels=(2, 3), hidden=(4,)),
        likelihood="categorical",
        feature_shape=(12, 12),
        class_names=("a", "b"),
    )
    sites = prior_sites(BNN(model, PriorConfig(scale=2.0, fan_in=True)))
    stds = {site: float(law.base_dist.scale.ravel()[0]) for site, law in sites.items()}
    assert stds["network.Conv_0.kernel"] == pytest.approx(2 / 5)
    assert stds["network.Conv_1.kernel"] == pytest.approx(2 / np.sqrt(50))
    assert stds["network.Dense_1.kernel"] == pytest.approx(1)
    assert {std for site, std in stds.items() if site.endswith("bias")} == {2.0}


@pytest.mark.parametrize("likelihood", OUTPUTS)
def test_every_parameter_is_a_site_and_back(likelihood):
    """Sites and the tree of draws name the same parameters; the start is the network's own initialisation."""
    bnn, _, _ = toy(likelihood)
    start = network_start(bnn, jax.random.key(3))
    expected = bnn.model.module.init(jax.random.key(3), jnp.zeros(2))["params"]
    assert {site: leaf.shape for site, leaf in start.items()} == {
        site: law.shape() for site, law in prior_sites(bnn).items()
    }
    draws = as_draws(start)
    jax.tree.map(np.testing.assert_array_equal, expected, draws["network"])
    assert set(draws) == ({"network", "noise"} if likelihood == "normal" else {"network"})
    jax.tree.map(np.testing.assert_array_equal, start, as_sites(draws))


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_inference_sees_preprocessed_rows(dtype):
    """Inputs are shifted and scaled in float32 whatever their dtype, past one chunk; regression targets standardised."""
    x = RNG.integers(0, 256, (5000, 2)).astype(dtype)
    y = RNG.normal(100, 7, 5000)
    terms = Preprocessing(shift=(3.0, 4.0), scale=(2.0, 5.0), target_shift=100.0, target_scale=7.0)
    model = Model(network=MLPSpec(), likelihood="normal", preprocessing=terms, feature_shape=(2,))
    found = observe(model, Rows(x, y))
    np.testing.assert_allclose((x - np.array([3.0, 4.0])) / [2, 5], found.x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose((y - 100) / 7, found.y, rtol=1e-5, atol=1e-5)
    assert (found.x.dtype, found.y.dtype) == (jnp.float32, jnp.float32)
