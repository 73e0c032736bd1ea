"""`examples/custom_posterior` against the article's printed numbers, and against the exact posterior."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import logsumexp

from abstain.training.config.methods import HMCConfig, NUTSConfig
from abstain.training.inference.chains import parameters, sample_chains
from abstain.training.inference.diagnostics import parameter_names
from abstain.training.inference.methods import hmc
from abstain.training.runs.journal import Journal
from tests.helpers.montecarlo import assert_chains_agree, z_bound
from tests.helpers.paths import PROJECT

_SPEC = importlib.util.spec_from_file_location("article_a", PROJECT / "examples" / "custom_posterior" / "run.py")
run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(run)

FULL = NUTSConfig(chains=4, warmup=1000, samples=1000, reports=1)


@pytest.fixture(scope="module")
def data():
    """The article's hundred points."""
    return run.points()


@pytest.fixture(scope="module")
def chains(data):
    """The linear regression at the article's size."""
    return run.sample("linear regression", run.linear_target(), data, FULL)


@pytest.fixture(scope="module")
def rows(chains):
    """Its table."""
    return {row["name"]: row for row in run.by_name(run.linear_target(), chains)}


def exact_means(data):
    """The posterior means of alpha, beta and sigma: normal given sigma, and sigma integrated on a grid."""
    x, y = np.asarray(data.x[:, 0], np.float64), np.asarray(data.y, np.float64)
    design = np.stack([np.ones_like(x), x], axis=1)
    log_mass, means = [], []
    for sigma in np.linspace(0.2, 0.6, 400):
        mean = np.linalg.solve(np.eye(2) + design.T @ design / sigma**2, design.T @ y / sigma**2)
        evidence = stats.multivariate_normal.logpdf(y, cov=sigma**2 * np.eye(len(y)) + design @ design.T)
        log_mass.append(evidence + stats.lognorm.logpdf(sigma, 1))
        means.append([*mean, sigma])
    return dict(zip(("alpha", "beta", "sigma"), np.exp(log_mass - logsumexp(log_mass)) @ np.array(means), strict=True))


@pytest.mark.parametrize("name", ["alpha", "beta", "sigma"])
def test_means_are_the_articles_within_monte_carlo_error(rows, name):
    """Both runs have an error, and the article prints two decimals."""
    ours, theirs = rows[name], run.ARTICLE[name]
    theirs_mcse = ours["std"] / theirs["ess_bulk"] ** 0.5
    assert abs(ours["mean"] - theirs["mean"]) <= 0.005 + z_bound(3) * np.hypot(ours["mcse"], theirs_mcse)


@pytest.mark.parametrize("name", ["alpha", "beta", "sigma"])
def test_spreads_and_quantiles_are_the_articles(rows, name):
    """Standard deviation and the ends of the shortest 90 % agree within the rounding and Monte Carlo error."""
    ours, theirs = rows[name], run.ARTICLE[name]
    ends = {"std": ours["std"], "5%": ours["hpdi"][0], "95%": ours["hpdi"][1]}
    for column, inflation in (("std", 0.71), ("5%", 2.1), ("95%", 2.1)):
        error = inflation * ours["std"] * (1 / ours["ess_tail"] + 1 / theirs["ess_bulk"]) ** 0.5
        assert abs(ends[column] - theirs[column]) <= 0.005 + z_bound(9) * error, column


def test_means_are_the_exact_ones(rows, data):
    """Within Monte Carlo error of what quadrature gives."""
    for name, exact in exact_means(data).items():
        assert abs(rows[name]["mean"] - exact) <= z_bound(3) * rows[name]["mcse"], name


def test_the_chains_mixed_as_the_articles_did(rows, chains):
    """No R-hat larger than chance makes it, no divergences, thousands of effective samples."""
    assert all(row["ess_bulk"] > 2000 for row in rows.values())
    assert_chains_agree(chains.column("position"))
    assert not chains.column("diverging").any()


def test_chains_start_apart_and_sigma_stays_positive(chains, data):
    """The first transitions of the chains are of as many places, and no sample leaves the support."""
    samples = parameters(run.linear_target(), chains)
    assert len(np.unique(samples["alpha"][:, 0])) == 4
    assert (samples["sigma"] > 0).all()


def test_cauchy_biases_are_one_density_as_a_tree_and_as_a_config(data):
    """The tree of priors and `[prior.layers]` give one log density, up to float32, and the same names."""
    tree, config = run.network_target(dist.Cauchy()), run.configured_bnn().target
    assert parameter_names(tree) == parameter_names(config)
    assert run.largest_difference(tree, config, data) < 1e-5


def test_nested_trees_have_diagnostics_by_name(data):
    """A row for each of the network's 82 numbers, its quantiles in order, and predictions for every row of `X`."""
    target, short = run.network_target(dist.Normal()), HMCConfig(chains=2, warmup=20, samples=20, reports=1)
    starts = jax.jit(jax.vmap(target.sample_prior))(jax.random.split(jax.random.key(0), 2))
    chains = sample_chains(jax.random.key(1), hmc.kernel(target, short), target, data, starts, short, Journal())
    rows = run.by_name(target, chains)
    assert [row["name"] for row in rows] == parameter_names(target)
    assert (len(rows), rows[0]["name"], rows[-1]["name"]) == (82, "network.Dense_0.bias[0]", "noise")
    assert all(row["5%"] <= row["50%"] <= row["95%"] for row in rows)
    means, noisy = run.predict(target, chains, 10)
    assert means.shape == noisy.shape == (10, len(run.X))
    drawn = jax.tree.map(lambda leaf: leaf[0, 0], parameters(target, chains))
    np.testing.assert_allclose(run.outputs(drawn, run.X), means[0], rtol=1e-4, atol=1e-4)


def test_without_a_bijector_the_density_is_no_number_below_zero(data):
    """The article's sigma can step there, and the trajectory ends; ours has no such place."""
    unbounded, line = run.unbounded_target(), run.linear_target()
    at = jnp.array([0.3, 1.2, -0.1])
    assert np.isnan(jax.jit(unbounded.log_density)(at, data))
    assert np.isfinite(line.log_density(at, data))
    inside = {"alpha": 0.3, "beta": 1.2, "sigma": 0.3}
    jacobian = np.log(0.3)
    ours, theirs = (target.log_density(target.unconstrain(inside), data) for target in (line, unbounded))
    assert float(ours - theirs) == pytest.approx(jacobian, abs=1e-3)
