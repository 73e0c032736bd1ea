"""`examples/wave_and_spirals` against the article's printed numbers and its claims, at reduced size."""

import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest

from abstain.training.config.methods import ChEESConfig
from tests.helpers.montecarlo import z_bound
from tests.helpers.paths import PROJECT

_SPEC = importlib.util.spec_from_file_location("article_e", PROJECT / "examples" / "wave_and_spirals" / "run.py")
run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(run)


@pytest.fixture(scope="module")
def problem():
    """The wave."""
    return run.pose_wave()


@pytest.fixture(scope="module")
def fitted(problem):
    """Its posterior, by a few short chains."""
    settings = ChEESConfig(chains=8, warmup=400, samples=400, max_leapfrogs=200, reports=1)
    return run.infer("wave", problem, settings, draws=800)


@pytest.fixture(scope="module")
def quantiles(fitted):
    """The band over `X`."""
    return run.band(fitted.posterior)


def test_the_points_are_the_articles(problem):
    """Forty points in [−1, 1], about the wave by 0.1; the first are those of the older way of drawing."""
    x, y = problem.train
    assert x.shape == (40, 1)
    np.testing.assert_allclose(x[:2, 0], [0.047087, -0.926386], atol=1e-5)
    assert float(jnp.std(y - x[:, 0] * jnp.sin(5 * x[:, 0]))) == pytest.approx(0.1, abs=0.03)


def test_the_noise_is_the_articles(problem, fitted):
    """Mean .09, standard deviation .01, 90 % of it in [.07, .11]: each within its rounding and Monte Carlo's error."""
    noise = run.chain_figures(problem, fitted)["noise"]
    article = {"mean": 0.09, "std": 0.01, "5%": 0.07, "95%": 0.11}
    assert abs(noise["mean"] - article["mean"]) <= 0.005 + z_bound(1) * noise["mcse"]
    assert 0.07 <= noise["5%"] <= noise["95%"] <= 0.12
    assert noise["std"] == pytest.approx(article["std"], abs=0.006)


def test_the_band_covers_the_data(problem, fitted):
    """The 95 % band with noise contains at least 90 % of the points."""
    x, y = (np.asarray(part) for part in problem.train)
    low, _, high = run.band(fitted.posterior, x)
    noise = fitted.posterior.draws["noise"].mean()
    assert np.mean((y > low - 1.96 * noise) & (y < high + 1.96 * noise)) >= 0.9


def test_the_band_widens_where_there_are_no_data(quantiles):
    """The band at both ends is several times as wide as on [−1, 1]."""
    width = run.widths(quantiles)
    assert min(width["at -1.5"], width["at 1.5"]) > 3 * width["inside"]


def test_a_narrow_prior_flattens_the_wave(quantiles):
    """A prior of standard deviation 0.1 gives almost a constant."""
    settings = ChEESConfig(chains=4, warmup=200, samples=200, max_leapfrogs=100, reports=1)
    flat = run.band(run.infer("flat", run.pose_wave(prior_std=0.1), settings, draws=200).posterior)
    inside = np.abs(run.X[:, 0]) <= 1
    assert np.ptp(flat[1][inside]) < np.ptp(quantiles[1][inside]) / 3


@pytest.fixture(scope="module")
def classifiers():
    """The spirals' Bayesian classifier and its twin, after fewer steps."""
    problem = run.pose_spirals()
    return problem, *run.infer_spirals(problem, steps=1_500)


def test_both_classifiers_learn_the_spirals(classifiers):
    """Nine points in ten, at least."""
    problem, *both = classifiers
    for posterior in both:
        assert run.entropies(posterior, problem.train, run.square(0.05))["accuracy"] > 0.9


def test_far_from_the_data_only_the_bayesian_is_unsure(classifiers):
    """Its entropy there is several times its twin's, which is as sure there as anywhere; so beyond the picture."""
    problem, bayesian, twin = (classifiers[0], *classifiers[1:])
    ours, theirs = (run.entropies(each, problem.train, run.square(0.05)) for each in (bayesian, twin))
    assert ours["far"] > 2 * theirs["far"]
    assert ours["radius 2"] > 5 * theirs["radius 2"]
    assert theirs["far"] < 0.1


def test_labels_are_drawn_for_every_place(classifiers):
    """Three draws of a label for each place of the map, which differ somewhere."""
    drawn = run.label_draws(classifiers[1], run.square(0.1))
    assert drawn.shape == (3, 100)
    assert set(np.unique(drawn)) <= {0, 1, 2}
    assert (drawn != drawn[0]).any()
