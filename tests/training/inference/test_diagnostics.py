"""Diagnostics: R-hat, ESS and MCSE of chains whose answers are known, of predictions and of parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal, stats

from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.methods import NUTSConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.inference.bnn import BNN
from abstain.training.inference.chains import Chains
from abstain.training.inference.diagnostics import (
    FUNCTION_ROWS,
    Convergence,
    agreement,
    chain_diagnostics,
    chain_shortfalls,
    ebfmi,
    function_values,
    parameter_names,
    summary,
    table,
)
from abstain.training.report.fit_plots import draw_agreement
from abstain.training.runs.journal import Traces
from tests.helpers.chain_diagnostics import GOOD

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
    assert summary(values, 1.0).rhat == pytest.approx(expected, abs=1e-6)
    assert (expected > 1.01) == ((shift, stretch) != (0, 1))


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, -0.3])
def test_ess_of_an_autoregression_is_known(rho):
    """Chains of n samples with autocorrelation ρ hold n (1 − ρ) / (1 + ρ) independent ones, here within a fifth."""
    expected = CHAINS * 10 * SAMPLES * (1 - rho) / (1 + rho)
    found = summary(autoregressive(rho), 4.0)
    assert found.ess_bulk == pytest.approx(expected, rel=0.2)
    assert found.ess_per_second == found.ess_bulk / 4
    assert found.mcse == pytest.approx(1 / np.sqrt(expected), rel=0.15)


def test_tail_ess_is_of_the_tails():
    """It is the lesser of the ESS of the indicators that lie below the 5 % and the 95 % quantile."""
    values = autoregressive(0.9)
    indicators = [values <= np.quantile(values, share) for share in (0.05, 0.95)]
    expected = min(summary(indicator.astype(float) + 1e-9 * values, 1.0).ess_bulk for indicator in indicators)
    found = summary(values, 1.0)
    assert found.ess_tail == pytest.approx(expected, rel=0.25)
    assert found.ess_tail != found.ess_bulk


def test_the_worst_value_speaks():
    """The largest R-hat and the smallest ESS of many values are reported, and the number of values."""
    values = independent(values=3)
    values[0, :, 1] += 1
    worst = summary(values[..., 1:2], 1.0)
    assert summary(values, 1.0) == dataclasses.replace(worst, values=3)
    assert worst.rhat > 1.1


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1, 1 / 3, 0.83289444, 1e-30])
def test_a_value_that_never_varies_is_left_out(constant):
    """A probability that is the same in every draw, whatever it is, has no R-hat and spoils none."""
    values = np.concatenate([independent(), np.full((CHAINS, SAMPLES, 1), constant)], axis=2).astype(np.float32)
    assert summary(values, 1.0) == summary(values[..., :1], 1.0)
    assert summary(values[..., 1:], 1.0) == Convergence(None, None, None, None, None, values=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("standing", [1, CHAINS])
def test_r_hat_is_infinite_where_a_chain_never_moves(standing):
    """One chain, or all, at places of their own: not converged, without a warning, and in words."""
    values = independent(values=2)
    values[:standing] = np.arange(standing)[:, None, None]
    found = summary(values, 1.0)
    assert found.rhat == np.inf
    assert found.mcse == np.inf
    assert 0 <= found.ess_bulk < 4000
    (agreed, good) = agreement(values), agreement(independent(values=2))
    assert (agreed.rhat == np.inf).all()
    assert (good.rhat < 1.1).all()
    figure = draw_agreement(agreed)
    assert figure.axes[0].get_xlabel() == "R-hat (last bar: 3 or more)"
    assert draw_agreement(good).axes[0].get_xlabel() == "R-hat"
    assert chain_shortfalls(dataclasses.replace(GOOD, function=found))[0].text.startswith(
        "the chains disagree about predictions: R-hat is infinite, above 1.01"
    )


@pytest.mark.filterwarnings("error")
def test_a_saturated_value_of_a_moving_chain_is_not_called_stuck():
    """A probability that one chain holds at 1 throughout, while its others vary, has an R-hat of its own."""
    values = independent(values=2)
    values[:, :, 0] = np.maximum(values[:, :, 0], 3.0)
    values[0, :, 0] = 3.0
    assert summary(values, 1.0).rhat < 1.1


@pytest.mark.filterwarnings("error")
def test_e_bfmi_is_of_all_transitions():
    """A slow chain reads slow however much it is thinned; one whose energy never changes reads 0."""
    slow = np.cumsum(np.random.default_rng(0).normal(size=(2, 1000)), axis=1)
    slow[1] = 7.0
    by_hand = (np.diff(slow[0]) ** 2).mean() / slow[0].var()
    assert ebfmi(slow) == pytest.approx([by_hand, 0.0], rel=0.01)
    kept = {"energies": slow.reshape(2, 100, 10).swapaxes(0, 1), "energy": slow.reshape(2, 100, 10)[..., -1].T}
    chains = Chains(None, Traces([kept]), 0.0, 0.0)
    np.testing.assert_array_equal(chains.energies(10), slow)
    assert ebfmi(chains.energies(1))[0] > 3 * ebfmi(chains.energies(10))[0]


def network(likelihood):
    """A 1-4 network and chains of its parameters about one place, `[chains, samples, …]`."""
    classes = ("a", "b", "c") if likelihood == "categorical" else ()
    model = Model(
        network=MLPSpec(hidden=(4,), activation="tanh"), likelihood=likelihood, feature_shape=(1,), class_names=classes
    )
    rng = np.random.default_rng(2)
    draws = jax.tree.map(
        lambda leaf: np.float32(
            rng.normal(scale=2, size=leaf.shape) + 0.05 * rng.normal(size=(CHAINS, SAMPLES, *leaf.shape))
        ),
        model.parameter_shapes(),
    )
    if "noise" in draws:
        draws["noise"] = np.exp(draws["noise"])
    return BNN(model, PriorConfig()), draws


def chains_of(bnn, draws, x, **columns):
    """Chains of these draws, as a sampler leaves them, in two blocks; `columns` replace what it says of itself."""
    unconstrain = jax.jit(jax.vmap(jax.vmap(bnn.target.unconstrain)))
    positions = unconstrain(jax.tree.map(jnp.asarray, draws))
    predict = jax.jit(jax.vmap(jax.vmap(lambda z: function_values(bnn, z, x))))
    size, rng = positions.shape[:2], np.random.default_rng(3)
    facts = {
        "position": positions,
        "values": predict(positions),
        "acceptance": np.full(size, 0.8),
        "diverging": np.zeros(size, bool),
        "leapfrogs": np.full(size, 7),
        "energy": rng.normal(size=size),
        "log_density": np.arange(size[0] * size[1], dtype=float).reshape(size),
    } | columns
    whole = {name: np.asarray(leaf).swapaxes(0, 1) for name, leaf in facts.items()} | {
        "seconds": np.full(size[1], 0.002)
    }
    blocks = [{name: leaf[part] for name, leaf in whole.items()} for part in (slice(None, 300), slice(300, None))]
    return Chains(None, Traces(blocks), 3.0, 1.5)


@pytest.mark.parametrize("likelihood", ["categorical", "normal"])
def test_predictions_are_every_draws_own(likelihood):
    """The recorded values are the network's predictions of each draw: probabilities, or the mean."""
    bnn, draws = network(likelihood)
    draws = jax.tree.map(lambda leaf: leaf[:2, :3], draws)
    x = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    found = chains_of(bnn, draws, jnp.asarray(x)).column("values")
    for chain in range(2):
        for sample in range(3):
            layers = jax.tree.map(lambda leaf, at=(chain, sample): leaf[at].astype(np.float64), draws["network"])
            hidden = np.tanh(x @ layers["Dense_0"]["kernel"] + layers["Dense_0"]["bias"])
            outputs = hidden @ layers["Dense_1"]["kernel"] + layers["Dense_1"]["bias"]
            if likelihood == "categorical":
                outputs = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(outputs.ravel(), found[chain, sample], rtol=1e-5, atol=1e-6)


def test_permuted_units_change_the_parameters_diagnostics_and_not_the_functions():
    """Chains that agree on every prediction but number their hidden units otherwise have converged where it counts."""
    bnn, draws = network("normal")
    x, settings = jnp.linspace(-1, 1, FUNCTION_ROWS)[:, None], NUTSConfig()
    before = chain_diagnostics(bnn.target, chains_of(bnn, draws, x), settings)
    order = np.array([2, 0, 3, 1])
    first, second = draws["network"]["Dense_0"], draws["network"]["Dense_1"]
    first["kernel"][2:], first["bias"][2:] = first["kernel"][2:, ..., order], first["bias"][2:, ..., order]
    second["kernel"][2:] = second["kernel"][2:, :, order]
    after = chain_diagnostics(bnn.target, chains_of(bnn, draws, x), settings)
    assert before.parameters.rhat < 1.02
    assert after.parameters.rhat > 1.5
    assert after.function.rhat == pytest.approx(before.function.rhat, abs=1e-3)
    assert after.function.ess_bulk == pytest.approx(before.function.ess_bulk, rel=0.02)
    assert after.function.ess_tail == pytest.approx(before.function.ess_tail, rel=0.02)
    assert (after.function.values, after.parameters.values) == (FUNCTION_ROWS, 14)
    assert chain_shortfalls(after) == chain_shortfalls(before) == ()


def test_the_samplers_statistics_are_reported_by_chain():
    """Divergences and depth hits are counted over all samples; acceptance and E-BFMI stand chain by chain."""
    bnn, draws = network("normal")
    diverging, leapfrogs, acceptance = np.zeros((3, CHAINS, SAMPLES))
    diverging[1, 5:8] = 1
    leapfrogs[:], leapfrogs[2, :10] = 3, 1023
    acceptance[:] = np.arange(CHAINS)[:, None] / 10
    energy = np.random.default_rng(0).normal(size=(CHAINS, SAMPLES))
    energy[3] = np.cumsum(energy[3])
    columns = {"diverging": diverging > 0, "leapfrogs": leapfrogs, "acceptance": acceptance, "energy": energy}
    chains = chains_of(bnn, draws, jnp.linspace(-1, 1, 5)[:, None], **columns)
    facts = chain_diagnostics(bnn.target, chains, NUTSConfig(max_tree_depth=10))
    assert (facts.chains, facts.samples, facts.divergences, facts.tree_depth.hits) == (4, 4000, 3, 10)
    assert facts.acceptance == pytest.approx((0.0, 0.1, 0.2, 0.3))
    by_hand = (np.diff(energy, axis=1) ** 2).mean(axis=1) / energy.var(axis=1)
    np.testing.assert_allclose(by_hand, facts.ebfmi, rtol=0.01)
    assert facts.ebfmi[3] < 0.3 < min(facts.ebfmi[:3])
    assert facts.leapfrogs_per_sample == pytest.approx(3 + 10 * 1020 / 4000)
    assert facts.tree_depth.mean == pytest.approx(2 + 10 * 8 / 4000)
    assert (facts.warmup_seconds, facts.compile_seconds) == (3.0, 1.5)
    assert facts.sampling_seconds == pytest.approx(2.0)
    ends = np.array(facts.trace)[:, [0, -1]]
    np.testing.assert_array_equal(ends, [[1000 * chain, 1000 * chain + 999] for chain in range(4)])


def test_divergences_of_thinned_chains_are_counted_by_transition():
    """Seven divergent transitions in two samples are seven, of `thin` times as many transitions as samples."""
    bnn, draws = network("normal")
    diverging = np.zeros((CHAINS, SAMPLES), np.int32)
    diverging[1, 5:7] = 3, 4
    energies = np.random.default_rng(0).normal(size=(CHAINS, SAMPLES, 5))
    chains = chains_of(bnn, draws, jnp.zeros((1, 1)), diverging=diverging, energies=energies)
    facts = chain_diagnostics(bnn.target, chains, NUTSConfig(thin=5))
    assert (facts.samples, facts.transitions, facts.divergences) == (4000, 20_000, 7)


def test_a_table_tells_every_parameter_by_name():
    """Mean, spread and quantiles of each number are numpy's own, under the name of its place in the tree."""
    bnn, draws = network("normal")
    names = parameter_names(bnn.target)
    assert (len(names), names[0], names[4], names[-1]) == (
        14,
        "network.Dense_0.bias[0]",
        "network.Dense_0.kernel[0,0]",
        "noise",
    )
    positions = chains_of(bnn, draws, jnp.zeros((1, 1))).column("position")
    rows = table(names, positions, 2.0)
    assert [row["name"] for row in rows] == names
    kernel = draws["network"]["Dense_0"]["kernel"][..., 0, 0].astype(np.float64)
    assert rows[4]["mean"] == pytest.approx(kernel.mean(), rel=1e-6)
    assert rows[4]["std"] == pytest.approx(kernel.std(ddof=1), rel=1e-6)
    assert rows[4]["97.5%"] == pytest.approx(np.quantile(kernel, 0.975), rel=1e-6)
    assert rows[4]["rhat"] == pytest.approx(rank_rhat(kernel), abs=1e-6)
    assert rows[4]["ess_per_second"] == rows[4]["ess_bulk"] / 2
