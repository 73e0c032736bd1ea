"""Stochastic gradients: minibatches, learning rates, clipping, what is returned, and a loss that is no number."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from scipy.special import log_softmax

from abstain.models.errors import FitError
from abstain.training.config.methods import EnsembleConfig, MAPConfig, Optimisation
from abstain.training.inference.bnn import Observations
from abstain.training.inference.methods import ensemble
from abstain.training.inference.methods import map as mode
from abstain.training.inference.mode_search import hold_out
from abstain.training.inference.optimization import (
    DescentRows,
    Objective,
    batch_rows,
    check_losses,
    descend,
    optimiser,
    summarize_descent,
)
from abstain.training.inference.problem import Problem
from abstain.training.inference.tracking import TrackedRows
from abstain.training.runs.journal import Journal
from tests.helpers.linear_models import ROWS, classifier

SEED = np.array([7, 11], np.uint32)


@pytest.mark.parametrize(("rows", "size"), [(30, 5), (30, 7), (30, 29), (3, 2)])
def test_minibatches_are_reshuffled_epochs(rows, size):
    """Laid end to end, minibatches are permutations of all rows, each another; another seed has another order."""
    batches = batch_rows(SEED, rows, size, 0, 210)
    assert batches.shape == (210, size)
    order = batches.ravel()
    epochs = order[: len(order) // rows * rows].reshape(-1, rows)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(rows), (len(epochs), 1)))
    assert len(np.unique(epochs, axis=0)) > min(len(epochs) // 2, 3)
    assert (batch_rows(SEED + 1, rows, size, 0, 210) != batches).any()


@pytest.mark.parametrize("size", [5, 7, 29])
def test_minibatches_are_the_same_whatever_the_pieces(size):
    """A step's rows depend on the step alone: cut anywhere, a fit sees the rows it would have seen."""
    whole = batch_rows(SEED, 30, size, 0, 100)
    for cuts in ([50], [1, 2, 3], [6, 13, 97], list(range(1, 100))):
        edges = [0, *cuts, 100]
        pieces = [batch_rows(SEED, 30, size, first, last - first) for first, last in itertools.pairwise(edges)]
        np.testing.assert_array_equal(whole, np.concatenate(pieces))


def rates(settings):
    """The learning rate of every step, read off Adam's updates under a gradient that is always 1."""
    rule = optimiser(settings)
    memory, sizes = rule.init(jnp.zeros(())), []
    for _ in range(settings.steps):
        update, memory = rule.update(jnp.ones(()), memory)
        sizes.append(-float(update))
    return sizes


def test_the_learning_rate_stands_or_falls_along_a_cosine():
    """Constant, or ½ (1 + cos πt/T) of the configured rate: from all of it to none."""
    settings = Optimisation(steps=20, learning_rate=0.3, schedule="constant")
    np.testing.assert_allclose(rates(settings), 0.3, rtol=1e-4)
    expected = 0.3 * (1 + np.cos(np.pi * np.arange(20) / 20)) / 2
    np.testing.assert_allclose(rates(settings.model_copy(update={"schedule": "cosine"})), expected, rtol=1e-3)


def test_a_gradient_is_clipped_to_the_configured_norm():
    """The whole gradient's norm, before Adam sees it; shorter ones stay as they are."""
    rule = optimiser(Optimisation(steps=3, schedule="constant", learning_rate=0.1, clip=1.0))
    plain = optax.adam(0.1)
    start = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    memory, plain_memory = rule.init(start), plain.init(start)
    for a, b in (([30.0, 0.0], 40.0), ([0.1, 0.2], -0.3)):
        gradient = {"a": jnp.array(a), "b": jnp.float32(b)}
        shorter = jax.tree.map(lambda leaf, b=b: leaf / (50 if b == 40 else 1), gradient)
        update, memory = rule.update(gradient, memory)
        expected, plain_memory = plain.update(shorter, plain_memory)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), expected, update)


DATA = Observations(jnp.arange(12.0)[:, None], jnp.arange(12.0))


def squares(z, key, batch):
    """The squared distance of a number to each row's target: its best is the mean of the rows."""
    return ((z - batch.y) ** 2).mean()


def go(loss, settings, starts=(0.0, 9.0), journal=None, chain_method="sequential", chosen=None, **options):
    """A descent of a number from some starts."""
    functions = {"report": lambda z, *_: {"held_out_rmse": jnp.abs(z)}} | options
    rows, begin = DescentRows(DATA, TrackedRows(DATA, DATA), chosen), jnp.array(starts)
    objective, journal = Objective(loss, **functions), journal or Journal()
    return descend("d", jax.random.key(0), begin, objective, rows, settings, journal, chain_method)


@pytest.mark.parametrize("chain_method", ["sequential", "vectorized", "parallel"])
@pytest.mark.parametrize("reports", [1, 4, 7])
def test_members_go_the_same_way_in_blocks_of_any_size_and_however_they_are_run(chain_method, reports):
    """One block or several, sequential, in lockstep or in threads give the same members and losses."""
    settings = Optimisation(steps=50, batch_size=5, learning_rate=0.1)
    expected, traces = go(squares, settings.model_copy(update={"reports": 1}))
    found, others = go(squares, settings.model_copy(update={"reports": reports}), chain_method=chain_method)
    np.testing.assert_allclose(expected, found, rtol=1e-6)
    np.testing.assert_allclose(traces.column("loss"), others.column("loss"), rtol=1e-6)
    assert others.column("report_step").tolist() == [
        min(-(-50 // reports) * k, 50) for k in range(1, len(list(others)) + 1)
    ]
    assert traces.column("loss").shape == (50, 2)
    assert traces.column("loss")[0, 0] != traces.column("loss")[0, 1]


def test_a_batch_is_never_larger_than_the_rows():
    """Asked for more, every step sees each row once: the loss is that of all rows, and the descent ends at their mean."""
    settings = Optimisation(steps=400, batch_size=128, learning_rate=0.1)
    end, traces = go(squares, settings, starts=(0.0,))
    assert float(traces.column("loss")[0, 0]) == pytest.approx((np.arange(12.0) ** 2).mean())
    assert float(end[0]) == pytest.approx(5.5, abs=1e-2)


def test_of_the_iterates_at_the_reports_the_best_by_score_is_returned():
    """Member by member; without a score the last."""
    settings = Optimisation(steps=40, batch_size=12, learning_rate=1.0, schedule="constant", reports=40)
    options = {"report": lambda z, *_: {"place": z}}
    end, traces = go(squares, settings, score=lambda z, rows: -jnp.abs(z - rows.held_out.y[2]), **options)
    reported = traces.column("report_place")
    np.testing.assert_array_equal(end, [column[np.abs(column - 2).argmin()] for column in reported.T])
    last, _ = go(squares, settings, **options)
    np.testing.assert_array_equal(last, reported[-1])
    assert (last != end).all()


def test_a_description_averages_over_members():
    """Loss curve of at most 200 parts, and each report's figures, plain JSON."""
    settings = Optimisation(steps=300, batch_size=12, learning_rate=0.1, reports=3)
    _, traces = go(squares, settings)
    facts = summarize_descent(traces).to_json()
    assert len(facts["loss"]) == 200
    assert facts["loss"][0] == pytest.approx(traces.column("loss")[:2].mean())
    assert [report["step"] for report in facts["reports"]] == [100, 200, 300]
    assert facts["reports"][-1]["held_out_rmse"] == pytest.approx(
        float(traces.column("report_held_out_rmse")[-1].mean())
    )


def falling(z, key, batch):
    """A loss with a slope of 1, that is no number below 0: Adam goes down its learning rate a step."""
    return jnp.where(z > 0, z, jnp.nan)


@pytest.mark.parametrize("reports", [1, 2, 10])
def test_a_loss_that_is_no_number_names_the_step_the_last_good_loss_and_the_learning_rate(reports):
    """Whether the step lies within a block or begins one; of the member that went astray."""
    settings = Optimisation(steps=10, batch_size=12, learning_rate=0.1, schedule="constant", reports=reports)
    message = (
        r"method: the loss is nan at step 5: expected a finite loss, found last finite loss: 0.05 at step 4; "
        r"lower method.learning_rate \(now 0.1\) or set method.clip"
    )
    with pytest.raises(FitError, match=message):
        go(falling, settings, starts=(7.0, 0.35))


def test_a_loss_that_never_was_a_number_says_so():
    """There is no last good loss then; infinity is no number either."""
    settings = Optimisation(steps=4, batch_size=12, learning_rate=0.1)
    with pytest.raises(FitError, match=r"the loss is nan at step 1: .*last finite loss: none"):
        go(falling, settings, starts=(-1.0,))
    with pytest.raises(FitError, match=r"the loss is inf at step 3: .*last finite loss: 2 at step 2"):
        check_losses(np.array([[1.0, 5], [2, 6], [np.inf, 7]]), 0, settings)
    check_losses(np.array([[1.0, -5]]), 0, settings)


STILL = {"steps": 6, "batch_size": 5, "learning_rate": 1e-30, "held_out": 0.0, "reports": 2}
"""Under these a mode stays where it starts, over one epoch of the classifier's rows."""


def test_the_loss_of_a_mode_is_the_log_posterior_by_row():
    """Over one epoch its mean is −(mean log likelihood) − log prior / N of all rows: a minibatch stands for all."""
    bnn, train, x, y = classifier()
    fitted = mode.fit(jax.random.key(0), Problem(bnn, train, train), MAPConfig(**STILL), 50, Journal())
    assert fitted.posterior.size == 1
    layer = jax.tree.map(lambda leaf: leaf[0].astype(np.float64), fitted.posterior.draws["network"]["Dense_0"])
    log_likelihood = log_softmax(x @ layer["kernel"] + layer["bias"], axis=1)[np.arange(ROWS), y].mean()
    prior = sum(stats.norm.logpdf(leaf, scale=2.0).sum() for leaf in layer.values())
    assert np.mean(fitted.diagnostics.to_json()["loss"]) == pytest.approx(-log_likelihood - prior / ROWS, rel=1e-5)
    assert fitted.diagnostics.to_json()["reports"][-1]["train_log_likelihood"] == pytest.approx(
        log_likelihood, rel=1e-5
    )


def test_a_mode_is_the_mode():
    """The gradient of the log posterior of all rows is next to nothing there."""
    bnn, train, *_ = classifier()
    settings = MAPConfig(steps=2000, batch_size=ROWS, learning_rate=0.05, held_out=0.0, reports=1)
    fitted = mode.fit(jax.random.key(0), Problem(bnn, train, train), settings, 1, Journal())
    z = bnn.vector(jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), fitted.posterior.draws))
    assert float(jnp.abs(jax.grad(bnn.target.log_density)(z, train)).max()) < 1e-2


def test_rows_held_out_to_choose_an_iterate_by_are_not_learned_from():
    """The places are parted in two; a descent sees every chosen row once an epoch and no other."""
    learned, held_out = hold_out(jax.random.key(1), 30, 0.2)
    assert (len(learned), len(held_out)) == (24, 6)
    np.testing.assert_array_equal(np.sort(np.concatenate([learned, held_out])), np.arange(30))
    whole, nothing = hold_out(jax.random.key(1), 30, 0.0)
    assert (len(whole), len(nothing)) == (30, 0)
    assert [len(part) for part in hold_out(jax.random.key(1), 2, 0.9)] == [1, 1]
    assert (hold_out(jax.random.key(2), 30, 0.2)[1] != held_out).any()

    chosen = np.array([1, 4, 5, 9, 10, 11], np.int32)
    for size in (2, 128):
        settings = Optimisation(steps=3, batch_size=size, learning_rate=1e-30)
        _, traces = go(squares, settings, starts=(0.0,), chosen=chosen)
        assert traces.column("loss").mean() == pytest.approx((chosen.astype(float) ** 2).mean())


def test_an_ensembles_members_are_modes_of_their_own():
    """There are as many draws as members, each from another start."""
    bnn, train, *_ = classifier()
    settings = EnsembleConfig(**STILL, members=3)
    fitted = ensemble.fit(jax.random.key(0), Problem(bnn, train, train), settings, 1, Journal())
    kernels = fitted.posterior.draws["network"]["Dense_0"]["kernel"]
    assert kernels.shape == (3, 2, 3)
    assert len(np.unique(kernels.reshape(3, 6), axis=0)) == 3
    assert fitted.diagnostics.to_json()["members"] == 3
