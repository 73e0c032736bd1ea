"""Diagnostics: R-hat and ESS of chains whose answers are known, of predictions and of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, stats

from models.networks import MLPSpec
from models.posterior import Model
from training.bnn import Observations
from training.diagnostics import FUNCTION_ROWS, chain_diagnostics, predictions, summary

CHAINS, SAMPLES = 4, 1000


def independent(seed=0, values=1):
    """Chains of independent standard normals."""
    return np.random.default_rng(seed).normal(size=(CHAINS, SAMPLES, values))


def autoregressive(rho):
    """Stationary chains xₜ = ρ xₜ₋₁ + √(1 − ρ²) ε."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(CHAINS, 10 * SAMPLES, 1)) * np.sqrt(1 - rho**2)
    noise[:, 0] /= np.sqrt(1 - rho**2)
    return signal.lfilter([1], [1, -rho], noise, axis=1)


def rank_rhat(values):
    """Rank-normalised split R-hat of one value by hand: the larger of bulk and folded (Vehtari et al., 2021, eq. 14)."""

    def split_rhat(halves):
        normal = stats.norm.ppf((stats.rankdata(halves).reshape(halves.shape) - 0.375) / (halves.size + 0.25))
        length = halves.shape[1]
        within = normal.var(axis=1, ddof=1).mean()
        between = length * normal.mean(axis=1).var(ddof=1)
        return np.sqrt(((length - 1) / length * within + between / length) / within)

    halves = values.reshape(2 * len(values), -1)
    return max(split_rhat(halves), split_rhat(np.abs(halves - np.median(halves))))


@pytest.mark.parametrize(
    ("shift", "stretch"), [(0, 1), (0.6, 1), (0, 2), (3, 1)], ids=["same", "shifted", "stretched", "apart"]
)
def test_rhat_is_the_rank_normalised_one(shift, stretch):
    """R-hat of chains, of which one is shifted or wider than the others, equals the formula written out."""
    values = independent()
    values[0] = shift + stretch * values[0]
    expected = rank_rhat(values[..., 0])
    assert summary(values)["rhat"] == pytest.approx(expected, abs=1e-6)
    assert (expected > 1.01) == ((shift, stretch) != (0, 1))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.3])
def test_ess_of_an_autoregression_is_known(rho):
    """Chains of n samples with autocorrelation ρ hold n (1 − ρ) / (1 + ρ) independent ones, here within a fifth."""
    expected = CHAINS * 10 * SAMPLES * (1 - rho) / (1 + rho)
    assert summary(autoregressive(rho))["ess"] == pytest.approx(expected, rel=0.2)


def test_the_worst_value_speaks():
    """Of many values the largest R-hat and the least ESS are told, and how many values there were."""
    values = independent(values=3)
    values[0, :, 1] += 1
    worst = summary(values[..., 1:2])
    assert summary(values) == worst | {"values": 3}
    assert worst["rhat"] > 1.1


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 1 / 3, 0.83289444, 1e-30])
def test_a_value_that_never_varies_is_left_out(constant):
    """A probability that is the same in every draw, whatever it is, has no R-hat and spoils none."""
    values = np.concatenate([independent(), np.full((CHAINS, SAMPLES, 1), constant)], axis=2).astype(np.float32)
    assert summary(values) == summary(values[..., :1])
    assert summary(values[..., 1:]) == {"rhat": None, "ess": None, "values": 0}


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_chains_that_are_stuck_apart_have_not_converged():
    """Chains that each stand still at a place of its own vary only between chains: R-hat must not look like none."""
    values = np.broadcast_to(np.arange(CHAINS, dtype=np.float32)[:, None, None], (CHAINS, SAMPLES, 1))
    assert summary(values)["rhat"] > 100


def network(likelihood):
    """A 1-4 network and chains of its parameters about one place, `[chains, samples, …]`."""
    classes = ("a", "b", "c") if likelihood == "categorical" else ()
    model = Model(
        network=MLPSpec(hidden=(4,), activation="tanh"), likelihood=likelihood, feature_shape=(1,), class_names=classes
    )
    rng = np.random.default_rng(2)
    chains = jax.tree.map(
        lambda leaf: np.float32(
            rng.normal(scale=2, size=leaf.shape) + 0.05 * rng.normal(size=(CHAINS, SAMPLES, *leaf.shape))
        ),
        model.parameter_shapes(),
    )
    return model, chains


@pytest.mark.parametrize("likelihood", ["categorical", "normal"])
def test_predictions_are_every_draws_own(likelihood):
    """What `predictions` maps over all at once is what the network says draw by draw: probabilities, or the mean."""
    model, chains = network(likelihood)
    chains = jax.tree.map(lambda leaf: leaf[:2, :3], chains)
    x = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    found = predictions(model, chains, jnp.asarray(x))
    for chain in range(2):
        for sample in range(3):
            layers = jax.tree.map(lambda leaf, at=(chain, sample): leaf[at].astype(np.float64), chains["network"])
            hidden = np.tanh(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
            outputs = hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
            if likelihood == "categorical":
                outputs = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(outputs.ravel(), found[chain, sample], rtol=1e-5, atol=1e-6)


def test_permuted_units_change_the_parameters_diagnostics_and_not_the_functions():
    """Chains that agree on every prediction but number their hidden units otherwise have converged where it counts."""
    model, chains = network("normal")
    monitor = Observations(jnp.linspace(-1, 1, 60)[:, None], jnp.zeros(60))
    before = chain_diagnostics(model, chains, monitor)
    order = np.array([2, 0, 3, 1])
    first, second = chains["network"]["Dense_0"], chains["network"]["Dense_1"]
    first["kernel"][2:], first["bias"][2:] = first["kernel"][2:, ..., order], first["bias"][2:, ..., order]
    second["kernel"][2:] = second["kernel"][2:, :, order]
    after = chain_diagnostics(model, chains, monitor)
    assert before["parameters"]["rhat"] < 1.02
    assert after["parameters"]["rhat"] > 1.5
    assert after["function"]["rhat"] == pytest.approx(before["function"]["rhat"], abs=1e-3)
    assert after["function"]["ess"] == pytest.approx(before["function"]["ess"], rel=0.02)
    assert (after["function"]["values"], after["parameters"]["values"]) == (FUNCTION_ROWS, 14)
