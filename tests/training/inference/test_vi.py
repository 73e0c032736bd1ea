"""VI: its objective by hand, its optimum on a linear model by quadrature, its guides' laws, its seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import distributions as dist
from scipy import optimize, stats
from scipy.special import log_softmax

from abstain.models.errors import ConfigError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.methods import VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.inference.bnn import BNN, Observations
from abstain.training.inference.guides import guide_at, guide_distribution, inverse_softplus, kl_divergence
from abstain.training.inference.methods import vi
from abstain.training.inference.problem import Problem
from abstain.training.inference.target import Target
from abstain.training.runs.journal import Journal
from tests.helpers.fits import silent
from tests.helpers.linear_models import ROWS, classifier, columns, linear, linear_posterior


def run(bnn, train, settings, seed=0, draws=4, progress=silent):
    """A fit that is monitored on its own rows."""
    return vi.fit(jax.random.key(seed), Problem(bnn, train, train), settings, draws, Journal(progress=progress))


def gaussian_kl(mean, std, prior_std):
    """KL(N(mean, std²) ‖ N(0, prior_std²)) in nats, summed."""
    return np.sum(np.log(prior_std / std) + (std**2 + mean**2) / (2 * prior_std**2) - 0.5)


STILL = VIConfig(steps=6, batch_size=5, learning_rate=1e-30, init_scale=1e-4, kl_weight=0.25, particles=2, reports=4)
"""Under these the guide stays where it starts, next to a point."""


@pytest.fixture(scope="module")
def stood():
    """The classifier fitted so that it stays where it starts, over one epoch of minibatches; and the calls of progress."""
    bnn, train, *_ = classifier()
    calls = []
    return run(bnn, train, STILL, progress=lambda *place, **facts: calls.append((place, facts))), calls


def test_the_loss_is_the_weighted_elbo_and_an_epoch_visits_every_row_once(stood):
    """The mean loss of one epoch is −mean log likelihood + kl_weight · KL / N of all rows, by hand.

    It is that only if each minibatch stands for all rows, the KL term is weighted once, and no row comes twice.
    """
    fitted, _ = stood
    *_, x, y = classifier()
    layer = jax.tree.map(lambda leaf: leaf.mean(axis=0, dtype=np.float64), fitted.posterior.draws["network"]["Dense_0"])
    log_likelihood = log_softmax(x @ layer["kernel"] + layer["bias"], axis=1)[np.arange(ROWS), y].mean()
    kl = gaussian_kl(np.append(layer["kernel"], layer["bias"]), 1e-4, 2.0)
    losses = fitted.diagnostics.to_json()["loss"]
    assert len(losses) == 6
    assert np.mean(losses) == pytest.approx(-log_likelihood + 0.25 * kl / ROWS, rel=1e-4)
    last = fitted.diagnostics.to_json()["reports"][-1]
    assert last["kl_divergence"] == pytest.approx(kl, rel=1e-4)
    assert last["train_log_likelihood"] == pytest.approx(log_likelihood, abs=1e-3)
    assert not [name for name in last if name.startswith(("test", "held_out"))]


def test_reports_are_at_even_steps_and_progress_gets_each(stood):
    """There are at most as many reports as configured, the last at the last step, each with its metrics."""
    fitted, calls = stood
    reports = fitted.diagnostics.to_json()["reports"]
    assert [report["step"] for report in reports] == [2, 4, 6]
    steps, after = calls[:3], calls[3:]
    assert [place for place, _ in steps] == [(2, 6), (4, 6), (6, 6)]
    assert {facts["passage"] for _, facts in steps} == {"vi"}
    assert [facts["train_accuracy"] for _, facts in steps] == [report["train_accuracy"] for report in reports]
    assert after == [((0, 1), {"passage": "diagnostics"}), ((1, 1), {"passage": "diagnostics"})]
    assert fitted.posterior.size == 4


def raw(scale):
    """The numbers whose softplus are these standard deviations."""
    return jnp.float32([inverse_softplus(float(value)) for value in scale])


def test_the_kl_divergence_is_the_closed_form():
    """KL(q ‖ prior) of normals, summed over every weight and bias, whatever the draws at hand."""
    bnn, *_ = classifier()
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=9), rng.uniform(0.1, 3, 9)
    guide = {"loc": jnp.float32(loc), "raw_scale": raw(scale)}
    expected = gaussian_kl(loc, scale, 2.0)
    for draws in (jnp.zeros((1, 9)), jnp.float32(rng.normal(size=(3, 9)))):
        assert float(kl_divergence(bnn.target, guide, draws)) == pytest.approx(expected, rel=1e-5)


def test_the_kl_divergence_of_other_priors_is_the_mean_over_draws():
    """A noise's prior and a Laplace are known by the draws alone; with many it is the integral, by quadrature."""
    model = Model(network=MLPSpec(hidden=()), likelihood="normal", feature_shape=(1,))
    bnn = BNN(
        model, PriorConfig(scale=0.7, noise="half_normal", noise_scale=0.5, layers={"*.kernel": {"kind": "laplace"}})
    )
    paths = [site.path for site in bnn.target.sites]
    assert paths == ["network.Dense_0.bias", "network.Dense_0.kernel", "noise"]
    loc, scale = np.array([0.3, -0.2, -1.0]), np.array([0.5, 0.8, 0.3])
    guide = {"loc": jnp.float32(loc), "raw_scale": raw(scale)}
    nodes, masses = np.polynomial.hermite_e.hermegauss(80)
    masses = masses / masses.sum()
    grid = loc[:, None] + scale[:, None] * nodes
    prior = stats.norm.logpdf(grid[0], scale=0.7) + stats.halfnorm.logpdf(np.exp(grid[2]), scale=0.5) + grid[2]
    expected = (
        -(stats.norm.entropy(scale=scale)).sum() - masses @ prior - masses @ stats.laplace.logpdf(grid[1], scale=0.7)
    )
    draws = guide_distribution(guide).sample(jax.random.key(0), (100_000,))
    assert float(kl_divergence(bnn.target, guide, draws)) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("family", ["mean_field", "low_rank", "full_rank"])
def test_a_guide_starts_with_the_configured_standard_deviation(family):
    """Whatever the family: its mean is the place, its standard deviations `init_scale` (a percent more, of low rank)."""
    loc = jnp.arange(5.0)
    q = guide_distribution(guide_at(loc, VIConfig(family=family, init_scale=0.07, rank=3)))
    np.testing.assert_array_equal(loc, q.mean)
    np.testing.assert_allclose(np.sqrt(q.variance), 0.07, rtol=2e-2 if family == "low_rank" else 1e-5)


def test_the_guides_laws_are_the_normals_that_the_module_says():
    """Covariance diag s², diag s² + F Fᵀ, and L Lᵀ: densities and entropies as scipy has them."""
    rng = np.random.default_rng(1)
    loc, scale = rng.normal(size=4), rng.uniform(0.5, 2, 4)
    factor, below = rng.normal(size=(4, 2)), rng.normal(size=(4, 4))
    lower = scale[:, None] * (np.tril(below, -1) + np.eye(4))
    base = {"loc": jnp.float32(loc), "raw_scale": raw(scale)}
    guides = [
        (base, np.diag(scale**2)),
        (base | {"factor": jnp.float32(factor)}, np.diag(scale**2) + factor @ factor.T),
        (base | {"below": jnp.float32(below)}, lower @ lower.T),
    ]
    for guide, covariance in guides:
        exact = stats.multivariate_normal(loc, covariance)
        place = rng.normal(size=4)
        assert float(guide_distribution(guide).log_prob(jnp.float32(place))) == pytest.approx(
            exact.logpdf(place), rel=1e-4
        )
        assert float(guide_distribution(guide).entropy()) == pytest.approx(exact.entropy(), rel=1e-5)
        np.testing.assert_allclose(covariance.diagonal(), guide_distribution(guide).variance, rtol=1e-4)


def mean_field_optimum(design, y, weight):
    """Mean and std of weights, bias and noise under the best mean-field guide, from the ELBO in closed form.

    With w ~ N(m, s²) and log σ ~ N(μ, τ²), E 1/σ² = exp(2τ² − 2μ) and E ‖y − Φw‖² = ‖y − Φm‖² + Σ s²ⱼ ‖Φⱼ‖²; only the
    half-Cauchy's expectation is left to Gauss–Hermite quadrature.
    """
    nodes, masses = np.polynomial.hermite_e.hermegauss(60)

    def negative_elbo(terms):
        m, s, mu, tau = terms[:3], np.exp(terms[3:6]), terms[6], np.exp(terms[7])
        squares = ((y - design @ m) ** 2).sum() + (s**2 * (design**2).sum(axis=0)).sum()
        log_likelihood = -ROWS * (mu + 0.5 * np.log(2 * np.pi)) - 0.5 * np.exp(2 * tau**2 - 2 * mu) * squares
        log_noise = masses @ stats.halfcauchy.logpdf(np.exp(mu + tau * nodes), scale=0.5) / masses.sum()
        entropy = mu + 0.5 + np.log(tau) + 0.5 * np.log(2 * np.pi)
        return weight * (gaussian_kl(m, s, 1.0) - log_noise - entropy) - log_likelihood

    found = optimize.minimize(negative_elbo, np.r_[0, 0, 0, -2, -2, -2, -1, -2], method="BFGS", tol=1e-9).x
    m, s, noise = found[:3], np.exp(found[3:6]), stats.lognorm(np.exp(found[7]), scale=np.exp(found[6]))
    return np.append(m, noise.mean()), np.append(s, noise.std())


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_linear_model_reaches_the_mean_field_optimum(weight):
    """Means within a tenth of a standard deviation, and standard deviations within 5 %, of the best guide there is."""
    bnn, train, design, y = linear()
    mean, std = mean_field_optimum(design, y, weight)
    settings = VIConfig(
        steps=4000, batch_size=ROWS, learning_rate=0.03, init_scale=0.1, particles=4, reports=1, kl_weight=weight
    )
    draws = columns(run(bnn, train, settings, draws=20_000).posterior.draws)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean) / std, 0.1)
    np.testing.assert_allclose(std, draws.std(axis=0), rtol=0.05)


@pytest.mark.parametrize(("family", "near"), [("low_rank", 0.1), ("full_rank", 0.05)])
def test_guides_with_correlations_reach_the_posterior_of_a_linear_model(family, near):
    """They have the exact posterior's means and standard deviations, for which the mean-field guide is too narrow."""
    bnn, train, design, y = linear()
    mean, variance = linear_posterior(design, y)
    settings = VIConfig(
        family=family, rank=3, steps=4000, batch_size=ROWS, learning_rate=0.03, init_scale=0.1, particles=4, reports=1
    )
    fitted = run(bnn, train, settings, draws=20_000)
    draws = columns(fitted.posterior.draws)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean) / np.sqrt(variance), 0.1)
    np.testing.assert_allclose(np.sqrt(variance)[:3], draws.std(axis=0)[:3], rtol=near)
    # A normal of the noise's logarithm has not the posterior's tail.
    assert draws[:, 3].std() == pytest.approx(np.sqrt(variance[3]), rel=0.15)
    narrow = mean_field_optimum(design, y, 1.0)[1]
    np.testing.assert_array_less(1.05 * narrow[:2], draws.std(axis=0)[:2])
    assert fitted.diagnostics.to_json()["k_hat"] < 0.7
    assert fitted.notes == ()


def test_k_hat_tells_that_a_guide_is_far_from_the_posterior(stood):
    """A guide that stayed where it started, next to a point, is noted; in JSON there is no infinity."""
    fitted, _ = stood
    k_hat = fitted.diagnostics.to_json()["k_hat"]
    assert k_hat is None or k_hat > 0.7
    assert len(fitted.notes) == 1
    assert fitted.notes[0].startswith("the guide is not close to the posterior of the parameters: k-hat is ")
    assert fitted.shortfalls == ()


@pytest.mark.parametrize(("std", "shape"), [(0.4, 0.84), (0.6, 0.64), (2.0, None)])
def test_k_hat_is_the_shape_of_the_ratios_tail(std, shape):
    """For a guide of standard deviation s and a standard normal it is 1 − s², and there is no tail if the guide is wider."""
    bnn, train, *_ = classifier()
    vars(bnn)["target"] = Target({"a": dist.Normal()}, lambda *_: jnp.zeros(1), {"a": (1,)})
    guide = {"loc": jnp.zeros((1, 1)), "raw_scale": raw([std])[None]}
    problem = Problem(bnn, train, train)
    found = [vi.k_hat(jax.random.key(seed), problem, guide, VIConfig()) for seed in range(10)]
    assert np.mean(found) == pytest.approx(shape, abs=0.2) if shape else np.mean(found) < 0.3


def test_several_starts_are_fitted_apart_and_their_draws_pooled():
    """Seven draws of three guides that stayed at their starts: three places, and near-equal shares."""
    bnn, train, *_ = classifier()
    fitted = run(bnn, train, STILL.model_copy(update={"starts": 3}), draws=7)
    kernels = fitted.posterior.draws["network"]["Dense_0"]["kernel"].reshape(7, -1).round(2)
    _, counts = np.unique(kernels, axis=0, return_counts=True)
    assert sorted(counts) in ([2, 2, 3], [1, 3, 3])
    assert fitted.diagnostics.to_json()["starts"] == 3


def test_full_rank_is_refused_for_a_large_network():
    """Its matrix would not fit; the error says how many parameters there may be."""
    network = MLPSpec(hidden=(80, 80))
    bnn = BNN(Model(network=network, likelihood="normal", feature_shape=(2,)), PriorConfig())
    rows = Observations(jnp.zeros((4, 2)), jnp.zeros(4))
    with pytest.raises(ConfigError, match=r"method.family: expected at most 5000 parameters for full_rank, found 6802"):
        run(bnn, rows, VIConfig(family="full_rank", steps=1))


def test_the_same_seed_gives_the_same_draws(stood):
    """Bit for bit, and the same losses on the way; another seed gives others of both."""
    bnn, train, *_ = classifier()
    first = stood[0]
    again, other = (run(bnn, train, STILL, seed) for seed in (0, 1))
    assert again.diagnostics.to_json() == first.diagnostics.to_json()
    jax.tree.map(np.testing.assert_array_equal, first.posterior.draws, again.posterior.draws)
    assert (np.array(other.diagnostics.to_json()["loss"]) != first.diagnostics.to_json()["loss"]).all()
    layers = [fitted.posterior.draws["network"]["Dense_0"]["kernel"] for fitted in (first, other)]
    assert (layers[0] != layers[1]).all()
