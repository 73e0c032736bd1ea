"""Stochastic gradients: the descent that `map`, `ensemble`, `laplace`, `vi` and every warm start share.

Several members descend side by side, each from its own start and through its own order of the rows: epochs, each in a
new order. All steps between two reports are one compiled scan.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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
from abstain.training.inference.tracking import Views
from abstain.training.runs.journal import Journal, Traces

Scalar = Float[Array, ""]
Loss = Callable[[Any, PRNGKeyArray, Observations], Scalar]
"""(parameters, key, batch) -> loss, per row in nats."""


AUGMENT = 2**31 - 1
"""Folded into a member's key for its augmentation; steps and reports fold in other numbers."""


class Descent(NamedTuple):
    """One member on its way; a descent of several has a leading member axis."""

    parameters: Any
    optimiser: Any
    key: PRNGKeyArray
    step: Int[Array, ""]
    best: Any
    best_score: Scalar


def descend(
    name: str,
    key: PRNGKeyArray,
    parameters: Any,
    loss: Loss,
    data: Observations,
    settings: Optimisation,
    journal: Journal,
    *,
    report: Callable[[Any, PRNGKeyArray, Views], dict[str, Array]],
    seen: Views,
    score: Callable[[Any, Views], Scalar] | None = None,
    chosen: Int[np.ndarray, " rows"] | None = None,
    augment: Augment | None = None,
    chain_method: ChainMethod = "sequential",
) -> tuple[Any, Traces]:
    """Descends from `parameters` (with a leading member axis) to where the loss is low.

    Args:
        name: of the passage in the journal.
        report: figures of one member's parameters, taken between blocks.
        seen: the rows that `report` and `score` look at.
        score: higher is better; of the parameters at every report, the best are returned. Without it, the last.
        chosen: which rows of the data are learned from; all, if left out.
        augment: changes the rows of every step, anew each time they come.

    Returns:
        The members' parameters, and the traces: `loss` `[steps, members]`, and the reports `[reports, members]`.

    Raises:
        FitError: the loss is not finite; it says at which step, the last good loss, and what to lower.
    """
    members = jax.tree.leaves(parameters)[0].shape[0]
    chosen = np.arange(len(data.y), dtype=np.int32) if chosen is None else chosen
    rows, size = len(chosen), min(settings.batch_size, len(chosen))
    gathered = size < len(data.y)
    rule = optimiser(settings)
    seeds = np.asarray(jax.random.key_data(jax.random.split(jax.random.fold_in(key, 1), members)))
    keys = jax.random.split(key, members)

    def start() -> Descent:
        zeros = jnp.zeros(members, jnp.int32)
        lowest = jnp.full(members, -jnp.inf)
        return Descent(parameters, jax.vmap(rule.init)(parameters), keys, zeros, parameters, lowest)

    def steps(state: tuple[Descent, Int[Array, "steps batch"]], data: Observations) -> tuple[Descent, Array]:
        def step(descent: Descent, places: Array) -> tuple[Descent, Array]:
            batch = data.take(places) if gathered else data
            if augment is not None:
                key_rows = jax.random.fold_in(jax.random.fold_in(descent.key, AUGMENT), descent.step)
                batch = batch._replace(x=augment(key_rows, batch.x))
            key_loss = jax.random.fold_in(descent.key, descent.step)
            value, gradient = jax.value_and_grad(loss)(descent.parameters, key_loss, batch)
            updates, memory = rule.update(gradient, descent.optimiser, descent.parameters)
            moved = optax.apply_updates(descent.parameters, updates)
            return descent._replace(parameters=moved, optimiser=memory, step=descent.step + 1), value

        return jax.lax.scan(step, *state)

    @cache
    def compiled(count: int) -> Callable[[Any, Observations], tuple[Descent, Array]]:
        places = jnp.zeros((members, count, size if gathered else 0), jnp.int32)
        return compile_over_chains(steps, chain_method, (start(), places), data)

    @jax.jit
    def look(descent: Descent, seen: Views) -> tuple[Descent, dict[str, Array]]:
        def of_member(member: Descent) -> tuple[Descent, dict[str, Array]]:
            facts = report(member.parameters, jax.random.fold_in(member.key, -member.step), seen)
            if score is None:
                return member._replace(best=member.parameters), facts
            value = score(member.parameters, seen)
            better = value > member.best_score
            best = jax.tree.map(lambda new, old: jnp.where(better, new, old), member.parameters, member.best)
            return member._replace(best=best, best_score=jnp.where(better, value, member.best_score)), facts

        return jax.lax.map(of_member, descent)

    before: list[np.ndarray] = []

    def block(descent: Descent, count: int) -> tuple[Descent, dict[str, np.ndarray], dict[str, float]]:
        done = int(descent.step[0])
        places = np.zeros((members, count, 0), np.int32)
        if gathered:
            places = np.stack([chosen[batch_rows(seed, rows, size, done, count)] for seed in seeds])
        descent, losses = compiled(count)((descent, jnp.asarray(places)), data)
        losses = np.asarray(losses).T
        check_losses(np.concatenate([*before, losses]), done - len(before), settings)
        before[:] = [losses[-1:]]
        descent, facts = look(descent, seen)
        reports = {f"report_{key}": np.asarray(value)[None] for key, value in facts.items()}
        trace = {"loss": losses, "report_step": np.array([done + count])} | reports
        return descent, trace, {"loss": float(losses.mean())} | _shown(facts)

    end = journal.run(name, start, block, settings.steps, settings.reports)
    return end.state.best, end.traces


def optimiser(settings: Optimisation) -> optax.GradientTransformation:
    """Adam (Kingma & Ba, 2015), its rate constant or falling along a cosine, its gradient clipped where asked for."""
    rate = settings.learning_rate
    if settings.schedule == "cosine":
        rate = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    clip = [optax.clip_by_global_norm(settings.clip)] if settings.clip else []
    return optax.chain(*clip, optax.adam(rate))


def batch_rows(
    seed: UInt[np.ndarray, " words"], rows: int, size: int, first: int, steps: int
) -> Int[np.ndarray, "steps batch"]:
    """Row numbers of the minibatches of some steps, cut from an endless run of epochs, each in a new order.

    A function of the step alone, so that a resumed fit sees what the uninterrupted one would have seen.
    """
    begin, end = first * size, (first + steps) * size
    epochs = [
        np.random.default_rng([*seed.tolist(), epoch]).permutation(rows).astype(np.int32)
        for epoch in range(begin // rows, -(-end // rows))
    ]
    skipped = begin - begin // rows * rows
    return np.concatenate(epochs)[skipped : skipped + steps * size].reshape(steps, size)


def check_losses(losses: Float[np.ndarray, "steps members"], first: int, settings: Optimisation) -> None:
    """Refuses to go on after a loss that is no number.

    Raises:
        FitError: naming the step, the last good loss, and what to lower.
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
        found=f"last good loss: {last}",
        fix=f"lower method.learning_rate (now {settings.learning_rate:g}) or set method.clip; check the data's scale",
    )


def described(traces: Traces) -> dict[str, Any]:
    """A descent's loss curve and reports, averaged over members, as plain JSON."""
    curve = traces.column("loss").mean(axis=1)
    steps = traces.column("report_step")
    blocks = [{name: values for name, values in trace.items() if name.startswith("report_")} for trace in traces]
    names = [name for name in blocks[0] if name != "report_step"]
    return {
        "loss_unit": "per training row, nats",
        "loss": [float(part.mean()) for part in np.array_split(curve, min(200, len(curve)))],
        "reports": [
            {"step": int(step)} | {name.removeprefix("report_"): float(block[name].mean()) for name in names}
            for step, block in zip(steps, blocks, strict=True)
        ],
    }


def _shown(facts: dict[str, Array]) -> dict[str, float]:
    """Accuracy or RMSE on held-out rows, or else on training rows; under its own name, which says which."""
    names = (f"{part}_{figure}" for part in ("held_out", "train") for figure in ("accuracy", "rmse"))
    name = next((name for name in names if name in facts), None)
    return {name: float(facts[name].mean())} if name else {}
