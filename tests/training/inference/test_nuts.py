"""NUTS against exact posteriors, its blocks, its seeds, its thinning, and its convergence in function space."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_expit, logsumexp

from abstain.models.errors import ConfigError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.methods import NUTSConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.config.reading import read_config
from abstain.training.fit import build_model, build_problem, infer, load_dataset
from abstain.training.inference.bnn import BNN, Observations
from abstain.training.inference.chains import Chains
from abstain.training.inference.methods import nuts
from abstain.training.inference.problem import Problem
from abstain.training.runs.journal import Journal, Traces
from tests.helpers.fits import silent
from tests.helpers.linear_models import columns, linear, linear_posterior
from tests.helpers.montecarlo import assert_chains_agree, assert_means, assert_variances
from tests.helpers.paths import CONFIGS


def run(bnn, train, settings, seed=0, draws=None, progress=silent):
    """A fit that is monitored on its own rows and keeps every sample by default."""
    kept = draws or settings.chains * settings.samples
    return nuts.fit(jax.random.key(seed), Problem(bnn, train, train), settings, kept, Journal(progress=progress))


def assert_moments(samples, mean, variance):
    """Every column's mean and variance are the exact ones, by the bounds of `tests/helpers/montecarlo.py`.

    Args:
        samples: `[chains, samples, columns]`.
        mean: exact, by column; `variance` likewise.
    """
    assert_means(samples, mean)
    assert_variances(samples, mean, variance)


# Sixteen chains: R-hat's limit of 1.01 is then further from what chance makes of it than 1e-6 allows.
LINEAR = NUTSConfig(chains=16, warmup=300, samples=1000, reports=1)


@pytest.fixture(scope="module")
def fitted(key):
    """The linear model's posterior, sampled in one block."""
    bnn, train, *_ = linear()
    return run(bnn, train, LINEAR, seed=key)


def test_linear_regression_with_unknown_noise_is_sampled_exactly(fitted):
    """Weights, bias and noise of a network without hidden layers have the exact posterior's means and variances."""
    *_, design, y = linear()
    assert_moments(columns(fitted.posterior.draws).reshape(16, 1000, 4), *linear_posterior(design, y))


def test_logistic_regression_is_sampled_exactly(key):
    """Weight and bias of a logistic regression have the means and variances that a two-dimensional grid gives."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=12)
    y = (rng.random(12) < 1 / (1 + np.exp(-1.5 * x))).astype(int)
    model = Model(network=MLPSpec(hidden=()), likelihood="bernoulli", feature_shape=(1,), class_names=("no", "yes"))
    bnn = BNN(model, PriorConfig(scale=2.0))
    fitted = run(
        bnn,
        Observations(jnp.float32(x[:, None]), jnp.asarray(y)),
        LINEAR,
        seed=key,
    )
    layer = fitted.posterior.draws["network"]["Dense_0"]
    samples = np.concatenate([layer["kernel"][:, 0], layer["bias"]], axis=1).reshape(16, 1000, 2)

    grid = np.stack(np.meshgrid(*[np.linspace(-9, 9, 400)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    logits = np.where(y == 1, 1, -1) * (grid[:, :1] * x + grid[:, 1:])
    log_mass = log_expit(logits).sum(axis=1) + stats.norm.logpdf(grid, scale=2).sum(axis=1)
    mass = np.exp(log_mass - logsumexp(log_mass))
    mean = mass @ grid
    assert_moments(samples, mean, mass @ grid**2 - mean**2)


def test_the_same_seed_gives_the_same_draws_in_blocks_of_any_size(fitted, key):
    """Bit for bit, in one block or in seven for the warm-up and as many for the sampling."""
    bnn, train, *_ = linear()
    calls = []
    settings = LINEAR.model_copy(update={"reports": 7})
    pieces = run(
        bnn, train, settings, key, progress=lambda *place, passage, **facts: calls.append((passage, place, set(facts)))
    )
    np.testing.assert_array_equal(columns(fitted.posterior.draws), columns(pieces.posterior.draws))
    calls = [call for call in calls if call[0] != "diagnostics"]
    warmup = [("warm-up", (min(43 * block, 300), 300)) for block in range(1, 8)]
    assert [place for *place, _ in map(list, calls)] == [
        list(place) for place in (*warmup, *(("sampling", (min(143 * block, 1000), 1000)) for block in range(1, 8)))
    ]
    assert all(facts == {"acceptance", "divergences"} for *_, facts in calls)


def test_another_seed_gives_other_draws(fitted, key):
    """No draw of one seed is a draw of the other, and no chain is another's copy."""
    bnn, train, *_ = linear()
    draws = columns(fitted.posterior.draws)
    other = columns(run(bnn, train, LINEAR, seed=key + 1000).posterior.draws)
    assert (draws != other).any(axis=1).all()
    assert (draws[:1000] != draws[1000:2000]).any(axis=1).all()


def test_diagnostics_say_how_the_chains_did(fitted):
    """Converged, no divergences, the acceptance aimed at by every chain, and trees far from the limit."""
    diagnostics = fitted.diagnostics.to_json()
    assert diagnostics["divergences"] == diagnostics["max_tree_depth_hits"] == 0
    assert (diagnostics["chains"], diagnostics["samples"]) == (16, 16_000)
    assert len(diagnostics["acceptance"]) == len(diagnostics["ebfmi"]) == 16
    assert np.mean(diagnostics["acceptance"]) == pytest.approx(LINEAR.target_acceptance, abs=0.1)
    assert min(diagnostics["ebfmi"]) > 0.3
    assert 1 <= diagnostics["leapfrogs_per_sample"] < 32
    assert 1 <= diagnostics["tree_depth"] <= 5
    assert diagnostics["parameters"]["values"] == 4
    assert max(diagnostics[space]["rhat"] for space in ("function", "parameters")) < 1.01
    assert np.shape(diagnostics["trace"]) == (16, 200)
    seconds = diagnostics["sampling_seconds"]
    assert diagnostics["function"]["ess_per_second"] == pytest.approx(diagnostics["function"]["ess_bulk"] / seconds)
    assert fitted.shortfalls == ()


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize(
    ("draws", "kept"),
    [(5, [0, 3, 6, 8, 11]), (12, list(range(12))), (99, list(range(12))), (1, [0]), (2, [0, 11])],
)
def test_thinning_keeps_draws_at_even_distances_over_all_chains(draws, kept, blocks):
    """`draws` of them from the first chain's first to the last chain's last, all if there are fewer, from any blocks."""
    places = np.arange(12.0).reshape(3, 4).T
    parts = np.array_split(np.stack([places, 2 * places], axis=-1), blocks)
    traces = [{"position": part, "log_density": part[..., 0]} for part in parts]
    thinned_positions = Chains(None, Traces(traces), 0.0, 0.0).thinned_positions(draws)
    assert thinned_positions[:, 0].tolist() == kept
    assert thinned_positions[:, 1].tolist() == [2 * place for place in kept]
    assert thinned_positions.flags.c_contiguous


def test_more_draws_than_samples_are_refused_before_anything_is_sampled():
    """Thinning cannot make draws; the error says how many there will be."""
    bnn, train, *_ = linear()
    message = r"draws: expected at most chains × samples = 16000, found 16001; raise method.samples, or lower draws"
    with pytest.raises(ConfigError, match=message):
        run(bnn, train, LINEAR, draws=16_001, progress=lambda *_, **__: pytest.fail("the sampling was begun"))


def test_chains_agree_in_function_space():
    """All chains on `wave` find the same function: no R-hat of a held-out input is larger than chance explains."""
    # Wide under a prior scaled by fan-in, the posterior is near a Gaussian process's: no mode for a chain to be caught in.
    overrides = ("hidden=[20]", "fan_in=true", "warmup=300", "samples=600", "max_tree_depth=6", "reports=1")
    config = read_config(CONFIGS / "wave-nuts.toml", overrides)
    dataset = load_dataset(config, None)
    fitted = infer(config, build_problem(config, build_model(config, dataset), dataset), Journal())
    function = fitted.diagnostics.to_json()["function"]
    assert function["values"] == 50
    assert function["rhat"] < 1.1
    assert_chains_agree(fitted.chains.column("values"))
    assert fitted.posterior.size == config.draws == 400
