"""Stochastic gradient descent, for `map`, `ensemble`, `laplace`, `vi` and every warm start.

Several members descend in parallel, each from its own start and with its own order of the rows, new in each epoch. All
steps between two reports are one compiled scan.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt

from abstain.models.errors import FitError
from abstain.training.config.methods import ChainMethod, Optimisation
from abstain.training.data.augmentation import Augment
from abstain.training.inference.bnn import Observations
from abstain.training.inference.chains import compile_over_chains
from abstain.training.inference.records import DescentDiagnostics, Report
from abstain.training.inference.tracking import TrackedRows
from abstain.training.runs.journal import Journal, Traces

Scalar = Float[Array, ""]
Loss = Callable[[Any, PRNGKeyArray, Observations], Scalar]
"""(parameters, key, batch) -> loss, per row in nats."""


AUGMENT = 2**31 - 1
"""The number that `fold_in` adds to a member's key for augmentation; steps and reports use other numbers."""


class Descent(NamedTuple):
    """The state of one member's descent; for several members with a leading member axis."""

    parameters: Any
    optimiser: Any
    key: PRNGKeyArray
    step: Int[Array, ""]
    best: Any
    best_score: Scalar


class Objective(NamedTuple):
    """The functions of a descent.

    Attributes:
        loss: the function to minimise.
        report: figures of one member's parameters, taken between blocks.
        score: higher is better; the best parameters of all reports are returned. If None, the last parameters are.
        augment: changes the rows of every step at random.
    """

    loss: Loss
    report: Callable[[Any, PRNGKeyArray, TrackedRows], dict[str, Array]]
    score: Callable[[Any, TrackedRows], Scalar] | None = None
    augment: Augment | None = None


class DescentRows(NamedTuple):
    """The rows of a descent.

    Attributes:
        data: the rows of the minibatches.
        tracked: the rows for `report` and `score`.
        chosen: indices of the rows of `data` to learn from; all rows if None.
    """

    data: Observations
    tracked: TrackedRows
    chosen: Int[np.ndarray, " rows"] | None = None


def descend(
    name: str,
    key: PRNGKeyArray,
    parameters: Any,
    objective: Objective,
    rows: DescentRows,
    settings: Optimisation,
    journal: Journal,
    chain_method: ChainMethod = "sequential",
) -> tuple[Any, Traces]:
    """Minimises the loss, starting from `parameters` (with a leading member axis).

    Args:
        name: name of the passage in the journal.

    Returns:
        The members' parameters, and the traces: `loss` `[steps, members]`, and the reports `[reports, members]`.

    Raises:
        FitError: the loss is not finite; the text names the step, the last finite loss, and the settings to lower.
    """
    runner = DescentRunner(key, parameters, objective, rows, settings, chain_method)
    end = journal.run(name, runner.start, runner.run_block, settings.steps, settings.reports)
    return end.state.best, end.traces


class DescentRunner:
    """Runs a descent block by block; each block length is compiled once.

    Args:
        key: the key of all members.
        parameters: the members' parameters at the start, with a leading member axis.
    """

    def __init__(
        self,
        key: PRNGKeyArray,
        parameters: Any,
        objective: Objective,
        rows: DescentRows,
        settings: Optimisation,
        chain_method: ChainMethod,
    ) -> None:
        self._parameters, self._settings = parameters, settings
        self._chain_method: ChainMethod = chain_method
        self._data, self._tracked = rows.data, rows.tracked
        self._members: int = jax.tree.leaves(parameters)[0].shape[0]
        self._chosen = np.arange(len(rows.data.y), dtype=np.int32) if rows.chosen is None else rows.chosen
        self._batch_size = min(settings.batch_size, len(self._chosen))
        self._uses_batches = self._batch_size < len(rows.data.y)
        self._rule = optimiser(settings)
        self._keys = jax.random.split(key, self._members)
        # This key equals `_keys[1]`. It only seeds numpy's generator, whose numbers are unrelated to those of JAX.
        key_batches = jax.random.fold_in(key, 1)
        self._seeds = np.asarray(jax.random.key_data(jax.random.split(key_batches, self._members)))
        self._steps = partial(run_steps, objective, self._rule, self._uses_batches)
        self._report_members = jax.jit(partial(report_members, objective))
        self._compiled: dict[int, Callable[[Any, Observations], tuple[Descent, Array]]] = {}
        self._last_losses: list[np.ndarray] = []

    def start(self) -> Descent:
        """Returns the members' state before the first step."""
        zeros = jnp.zeros(self._members, jnp.int32)
        lowest = jnp.full(self._members, -jnp.inf)
        memory = jax.vmap(self._rule.init)(self._parameters)
        return Descent(self._parameters, memory, self._keys, zeros, self._parameters, lowest)

    def run_block(self, descent: Descent, count: int) -> tuple[Descent, dict[str, np.ndarray], dict[str, float]]:
        """Runs `count` steps and reports; returns the state, the trace, and figures for the progress report.

        Raises:
            FitError: the loss is not finite.
        """
        done = int(descent.step[0])
        row_indices = jnp.asarray(self._row_indices(done, count))
        descent, values = self._compile(count)((descent, row_indices), self._data)
        losses = np.asarray(values).T
        check_losses(np.concatenate([*self._last_losses, losses]), done - len(self._last_losses), self._settings)
        self._last_losses = [losses[-1:]]
        descent, facts = self._report_members(descent, self._tracked)
        reports = {f"report_{key}": np.asarray(value)[None] for key, value in facts.items()}
        trace = {"loss": losses, "report_step": np.array([done + count])} | reports
        return descent, trace, {"loss": float(losses.mean())} | _progress_figures(facts)

    def _row_indices(self, done: int, count: int) -> Int[np.ndarray, "members steps batch"]:
        """The rows of each member's next minibatches; none if every step takes all rows."""
        if not self._uses_batches:
            return np.zeros((self._members, count, 0), np.int32)
        size, rows = self._batch_size, len(self._chosen)
        return np.stack([self._chosen[batch_rows(seed, rows, size, done, count)] for seed in self._seeds])

    def _compile(self, count: int) -> Callable[[Any, Observations], tuple[Descent, Array]]:
        if count not in self._compiled:
            width = self._batch_size if self._uses_batches else 0
            row_indices = jnp.zeros((self._members, count, width), jnp.int32)
            states = (self.start(), row_indices)
            self._compiled[count] = compile_over_chains(self._steps, self._chain_method, states, self._data)
        return self._compiled[count]


def run_steps(
    objective: Objective,
    rule: optax.GradientTransformation,
    uses_batches: bool,
    state: tuple[Descent, Int[Array, "steps batch"]],
    data: Observations,
) -> tuple[Descent, Float[Array, " steps"]]:
    """Runs one member's steps; returns its state and the loss of each step.

    Args:
        uses_batches: whether a step takes the rows that its indices name; otherwise it takes all rows.
        state: the member's state, and the row indices of each step.
    """

    def step(descent: Descent, row_indices: Array) -> tuple[Descent, Array]:
        batch = data.take(row_indices) if uses_batches else data
        if objective.augment is not None:
            key_rows = jax.random.fold_in(jax.random.fold_in(descent.key, AUGMENT), descent.step)
            batch = batch._replace(x=objective.augment(key_rows, batch.x))
        key_loss = jax.random.fold_in(descent.key, descent.step)
        value, gradient = jax.value_and_grad(objective.loss)(descent.parameters, key_loss, batch)
        updates, memory = rule.update(gradient, descent.optimiser, descent.parameters)
        updated = optax.apply_updates(descent.parameters, updates)
        return descent._replace(parameters=updated, optimiser=memory, step=descent.step + 1), value

    return jax.lax.scan(step, *state)


def report_members(
    objective: Objective, descent: Descent, tracked: TrackedRows
) -> tuple[Descent, dict[str, Float[Array, "members ..."]]]:
    """Computes each member's figures, and keeps its parameters if they are the best so far."""

    def report_member(member: Descent) -> tuple[Descent, dict[str, Array]]:
        facts = objective.report(member.parameters, jax.random.fold_in(member.key, -member.step), tracked)
        if objective.score is None:
            return member._replace(best=member.parameters), facts
        value = objective.score(member.parameters, tracked)
        better = value > member.best_score
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), member.parameters, member.best)
        return member._replace(best=best, best_score=jnp.where(better, value, member.best_score)), facts

    return jax.lax.map(report_member, descent)


def optimiser(settings: Optimisation) -> optax.GradientTransformation:
    """Returns Adam (Kingma & Ba, 2015), with a constant or cosine learning rate and optional gradient clipping."""
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    clip = [optax.clip_by_global_norm(settings.clip)] if settings.clip else []
    return optax.chain(*clip, optax.adam(rate))


def batch_rows(
    seed: UInt[np.ndarray, " words"], rows: int, size: int, first: int, steps: int
) -> Int[np.ndarray, "steps batch"]:
    """Returns the row indices of the minibatches of some steps, from an endless sequence of epochs, each in a new order.

    They depend only on seed and step, so a resumed fit has the same minibatches as an uninterrupted one.
    """
    begin, end = first * size, (first + steps) * size
    epochs = [
        np.random.default_rng([*seed.tolist(), epoch]).permutation(rows).astype(np.int32)
        for epoch in range(begin // rows, -(-end // rows))
    ]
    skipped = begin - begin // rows * rows
    return np.concatenate(epochs)[skipped : skipped + steps * size].reshape(steps, size)


def check_losses(losses: Float[np.ndarray, "steps members"], first: int, settings: Optimisation) -> None:
    """Refuses a loss that is not finite.

    Raises:
        FitError: the loss is not finite; the text names the step, the last finite loss, and the settings to lower.
    """
    bad = np.flatnonzero(~np.isfinite(losses).all(axis=1))
    if not bad.size:
        return
    good = losses[: bad[0]][:, ~np.isfinite(losses[bad[0]])]
    last = f"{good[-1, 0]:.4g} at step {first + bad[0]}" if good.size else f"none since step {first}"
    raise FitError(
        f"the loss is {losses[bad[0]][~np.isfinite(losses[bad[0]])][0]} at step {first + bad[0] + 1}",
        where="method",
        expected="a finite loss",
        found=f"last finite loss: {last}",
        fix=f"lower method.learning_rate (now {settings.learning_rate:g}) or set method.clip; check the data's scale",
    )


def summarize_descent(traces: Traces, loss_unit: str = "per training row, nats") -> DescentDiagnostics:
    """Summarises a descent: loss curve and reports, averaged over members."""
    curve = traces.column("loss").mean(axis=1)
    steps = traces.column("report_step")
    blocks = [{name: values for name, values in trace.items() if name.startswith("report_")} for trace in traces]
    names = [name for name in blocks[0] if name != "report_step"]
    return DescentDiagnostics(
        loss=tuple(float(part.mean()) for part in np.array_split(curve, min(200, len(curve)))),
        reports=tuple(
            Report(int(step), {name.removeprefix("report_"): float(block[name].mean()) for name in names})
            for step, block in zip(steps, blocks, strict=True)
        ),
        loss_unit=loss_unit,
    )


def _progress_figures(facts: dict[str, Array]) -> dict[str, float]:
    """Returns accuracy or RMSE by name, on held-out rows or, if there are none, on training rows."""
    names = (f"{part}_{figure}" for part in ("held_out", "train") for figure in ("accuracy", "rmse"))
    name = next((name for name in names if name in facts), None)
    return {name: float(facts[name].mean())} if name else {}
