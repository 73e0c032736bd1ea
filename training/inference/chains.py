"""Markov chains: runs a kernel over several chains, block by block, first the warm-up, then sampling.

A kernel is written for one chain; this module runs several: in lockstep in one compiled call (`vectorized`,
best for small networks, where the overhead of a step dominates), one after the other (`sequential`), or one thread or
device each (`parallel`, best if one gradient keeps a core busy).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from abstain.models.errors import FitError
from abstain.training.config.methods import ChainMethod, ChainSettings
from abstain.training.inference.target import Data, Target, Vector
from abstain.training.runs.journal import Journal, Traces

State = Any
Info = dict[str, Array]
"""Figures of one transition: `acceptance`, `diverging`, `leapfrogs`, `energy` (nats), `log_density` (nats)."""
Block = Callable[[State, Data], tuple[State, dict[str, Array]]]
"""A compiled block of steps of all chains; returns states and traces."""
BLOCK_BYTES = 16_000_000
"""The largest size of the positions in a block, which are in memory until they are written."""


class Kernel(NamedTuple):
    """The transitions of one chain or, if `lockstep` is true, of all chains (states then have a leading chain axis)."""

    init: Callable[[PRNGKeyArray, Vector, Data], State]
    warm: Callable[[State, Data], tuple[State, Info]]
    """A transition that adapts."""
    settle: Callable[[State], State]
    """Ends the warm-up: returns the state with the adapted settings fixed."""
    step: Callable[[State, Data], tuple[State, Info]]
    position: Callable[[State], Vector]
    tuning: Callable[[State], dict[str, Array]]
    """The settings that the warm-up found, for the report: `step_size`, …"""
    lockstep: bool = False
    split: Callable[[State], State] | None = None
    """Adds a leading group axis to the state; only for a lockstep kernel that can continue in groups of chains."""


class Chains(NamedTuple):
    """All samples after the warm-up.

    `traces` have the steps as axis 0 and the chains as axis 1. They hold `position` `[steps, chains, dim]`, `values` (the
    results of `watch`) and the kernel's figures; the energy of every transition, `energies` `[steps, chains, thin]`, if
    `thin` is above 1; and `seconds`, the time of each step without compilation. If `thin` is above 1, `leapfrogs` and
    `diverging` are sums over the transitions of a sample: `diverging` counts those that diverged.
    """

    state: State
    traces: Traces
    warmup_seconds: float
    compile_seconds: float

    def column(self, name: str) -> Shaped[np.ndarray, "chains steps ..."]:
        """Returns the values of one name, the chains as axis 0."""
        return self.traces.column(name).swapaxes(0, 1)

    def energies(self, thin: int) -> Float[np.ndarray, "chains transitions"]:
        """Returns the energy of every transition in nats, including those between samples."""
        energies = self.column("energies" if thin > 1 else "energy")
        return energies.reshape(len(energies), -1)

    @property
    def seconds(self) -> float:
        """Seconds of sampling."""
        return float(self.traces.column("seconds").sum())

    def thinned_positions(self, draws: int) -> Float[np.ndarray, "draws dim"]:
        """Returns `draws` evenly spaced positions over all chains, one chain after the other."""
        steps, chains = self.traces.column("log_density").shape
        chosen = np.linspace(0, steps * chains - 1, min(draws, steps * chains)).round().astype(int)
        chain, step = np.divmod(chosen, steps)
        needed = np.unique(step)
        rows = self.traces.rows("position", needed)
        return np.ascontiguousarray(rows[np.searchsorted(needed, step), chain])


@dataclass
class Runner:
    """Runs a kernel block by block; each block length is compiled once.

    Attributes:
        compile_seconds: seconds of compilation so far.
    """

    kernel: Kernel
    settings: ChainSettings
    data: Data
    watch: Callable[[Vector], Float[Array, " values"]] | None = None
    compile_seconds: float = 0.0
    _compiled: dict[tuple[bool, int], Block] = field(default_factory=dict[tuple[bool, int], Block])

    def warm_up(self, state: State, steps: int) -> tuple[State, dict[str, np.ndarray], dict[str, float]]:
        """Runs adapting transitions; returns the states, the traces, and figures for the progress report."""
        run = partial(_scan, self.kernel.warm, 1, steps, None)
        return self._run(run, state, steps, warming=True)

    def sample(self, state: State, steps: int) -> tuple[State, dict[str, np.ndarray], dict[str, float]]:
        """Takes samples, each after `thin` transitions; returns the same as `warm_up`."""
        run = partial(
            _scan, self.kernel.step, self.settings.thin, steps, partial(_recorded_values, self.kernel, self.watch)
        )
        return self._run(run, state, steps, warming=False)

    def _run(
        self, run: Block, state: State, steps: int, *, warming: bool
    ) -> tuple[State, dict[str, np.ndarray], dict[str, float]]:
        grouped = self.kernel.split is not None and not warming
        if (warming, steps) not in self._compiled:
            began = time.perf_counter()
            method = None if self.kernel.lockstep and not grouped else self.settings.chain_method
            self._compiled[warming, steps] = compile_over_chains(run, method, state, self.data)
            self.compile_seconds += time.perf_counter() - began
        began = time.perf_counter()
        state, trace = jax.block_until_ready(self._compiled[warming, steps](state, self.data))
        seconds = time.perf_counter() - began
        facts = {"acceptance": float(trace["acceptance"].mean()), "divergences": float(trace["diverging"].sum())}
        columns = {name: _step_axis_first(leaf, self.kernel, grouped) for name, leaf in trace.items()}
        return state, columns | {"seconds": np.full(steps, seconds / steps)}, facts


def sample_chains(
    key: PRNGKeyArray,
    kernel: Kernel,
    target: Target,
    data: Data,
    starts: Float[Array, "chains dim"],
    settings: ChainSettings,
    journal: Journal,
    watch: Callable[[Vector], Float[Array, " values"]] | None = None,
) -> Chains:
    """Runs a kernel from several starts.

    Args:
        watch: a function of the position, evaluated for every sample: predictions, for the diagnostics.

    Raises:
        FitError: the posterior density of a start is zero or not a number.
    """
    check_starts(target, data, starts)
    init = jax.jit(kernel.init if kernel.lockstep else jax.vmap(kernel.init, in_axes=(0, 0, None)))
    keys = jax.random.split(key, len(starts))
    runner = Runner(kernel, settings, data, watch)
    warmup_passage = journal.run(
        "warm-up", lambda: init(keys, starts, data), runner.warm_up, settings.warmup, settings.reports
    )
    settled_state = jax.jit(kernel.settle if kernel.lockstep else jax.vmap(kernel.settle))(warmup_passage.state)
    settled_state = kernel.split(settled_state) if kernel.split else settled_state
    blocks = max(settings.reports, math.ceil(settings.samples * starts.nbytes / BLOCK_BYTES))
    sampling_passage = journal.run("sampling", lambda: settled_state, runner.sample, settings.samples, blocks)
    warmup_seconds = float(warmup_passage.traces.column("seconds").sum())
    return Chains(sampling_passage.state, sampling_passage.traces, warmup_seconds, runner.compile_seconds)


def parameters(target: Target, chains: Chains) -> Any:
    """Returns all samples as the target's parameter tree, numpy leaves `[chains, steps, …]`."""
    positions = jnp.asarray(chains.column("position"))
    return jax.device_get(jax.jit(jax.vmap(jax.vmap(target.constrain)))(positions))


def check_starts(target: Target, data: Data, starts: Float[Array, "chains dim"]) -> None:
    """Refuses a start with zero density, which a chain cannot leave.

    Raises:
        FitError: the density of a start is zero or not a number; the text names the chain, and prior or likelihood.
    """

    @jax.jit
    def densities(starts: Array, data: Data) -> tuple[Array, Array]:
        return jax.lax.map(lambda z: (target.log_prior(z), target.log_density(z, data)), starts)

    priors, joint = jax.device_get(densities(starts, data))
    bad = np.flatnonzero(~np.isfinite(joint))
    if bad.size:
        which = "log-likelihood" if np.isfinite(priors[bad[0]]) else "log prior"
        raise FitError(
            f"chain {bad[0]} starts where the {which} is {joint[bad[0]]}",
            where="method.start",
            expected="a finite posterior density at every start",
            found=f"{bad.size} of {len(starts)} chains without one",
            fix='set start = "network" or "map", or check the scale of the data and of the prior',
        )


def compile_over_chains(
    function: Callable[[State, Data], Any], method: ChainMethod | None, states: State, data: Data
) -> Callable[[State, Data], Any]:
    """Compiles a function of one chain as a function of all chains: states and results have a leading chain axis.

    If `method` is None, the function is already one of all chains.
    """
    match method:
        case "vectorized":
            return jax.jit(jax.vmap(function, in_axes=(0, None))).lower(states, data).compile()
        case "sequential":
            over = lambda states, data: jax.lax.map(lambda state: function(state, data), states)  # noqa: E731
            return jax.jit(over).lower(states, data).compile()
        case "parallel":
            call: Callable[[State, Data], Any] = jax.jit(function)
            if len(jax.local_devices()) == 1:
                call = call.lower(jax.tree.map(lambda leaf: leaf[0], states), data).compile()  # pyright: ignore
            return partial(_in_threads, call)
        case None:
            return jax.jit(function).lower(states, data).compile()


def _in_threads(function: Callable[[State, Data], Any], states: State, data: Data) -> Any:
    """Runs one thread for each chain, distributed over the devices; XLA releases Python's lock while it computes."""
    devices = jax.local_devices()
    chains = jax.tree.leaves(states)[0].shape[0]

    def of_chain(chain: int) -> Any:
        state = jax.tree.map(lambda leaf: leaf[chain], states)
        if len(devices) > 1:
            state = jax.device_put(state, devices[chain % len(devices)])
        local_data = jax.device_put(data, devices[chain % len(devices)]) if len(devices) > 1 else data
        return jax.block_until_ready(function(state, local_data))

    with ThreadPoolExecutor(chains) as pool:
        results = list(pool.map(of_chain, range(chains)))
    if len(devices) > 1:
        results = jax.device_put(results, devices[0])
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)


def _scan(
    step: Block,
    thin: int,
    steps: int,
    keep: Callable[[State], dict[str, Array]] | None,
    state: State,
    data: Data,
) -> tuple[State, dict[str, Array]]:
    return jax.lax.scan(lambda state, _: _run_thinned(step, thin, keep, state, data), state, None, length=steps)


def _run_thinned(
    step: Block, thin: int, keep: Callable[[State], dict[str, Array]] | None, state: State, data: Data
) -> tuple[State, dict[str, Array]]:
    """Runs `thin` transitions; returns the state, its recorded values, and figures for all of them."""
    if thin == 1:
        state, info = step(state, data)
    else:
        state, infos = jax.lax.scan(lambda state, _: step(state, data), state, None, length=thin)
        info = {name: _REDUCTIONS.get(name, _last)(leaf) for name, leaf in infos.items()}
        # E-BFMI needs the energy of every transition, not only of every `thin`-th.
        info["energies"] = jnp.moveaxis(infos["energy"], 0, -1)
    return state, info | (keep(state) if keep else {})


def _last(leaf: Array) -> Array:
    return leaf[-1]


_REDUCTIONS: dict[str, Callable[[Array], Array]] = {
    "acceptance": lambda leaf: leaf.mean(axis=0),
    "diverging": lambda leaf: leaf.sum(axis=0),
    "leapfrogs": lambda leaf: leaf.sum(axis=0),
}
"""The functions that combine the figures of the transitions between two samples; other figures keep the last value."""


def _recorded_values(kernel: Kernel, watch: Callable[[Vector], Array] | None, state: State) -> dict[str, Array]:
    position = kernel.position(state)
    if watch is None:
        return {"position": position}
    return {"position": position, "values": jax.vmap(watch)(position) if kernel.lockstep else watch(position)}


def _step_axis_first(leaf: Array, kernel: Kernel, grouped: bool) -> np.ndarray:
    """Moves the step axis of a trace to the front; the chain axis is second."""
    values = np.asarray(leaf)
    if grouped:
        groups, steps, chains = values.shape[:3]
        return values.swapaxes(0, 1).reshape(steps, groups * chains, *values.shape[3:])
    return values if kernel.lockstep else values.swapaxes(0, 1)
