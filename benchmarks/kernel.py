"""`make bench`, one compiled call: an ensemble's answer for a batch, compared with what one would write and what the machine allows.

    python benchmarks/kernel.py [--cores 0,1] [--quick] [--only 784-64-64-10,lenet] [--rounds 15]

    ours    models.predictive.Predictor: padding, the pass, the summary (mean, standard deviations, entropies) and
            the ensemble's own scores (GEN, energy, variation ratio …), and the answer as numpy; no feature scores
    vmap    jax.vmap over draws stored sample-first, and the same summary, but no scores
    scan    lax.scan over draws, in one compiled call
    loop    one compiled network, a Python loop over draws
    numpy   matrix products of stored draws (convolutions as products of patches)

The floor is max(bytes of weights ÷ rate of reading memory, operations of the networks ÷ rate of a 2048³ product). Both
rates are measured by jax in the same rounds, with the same threads: of an array of 1 GiB, by the fastest of three ways to
read it, and also of an array as large as the weights, which a cache may hold: where that is faster, `× cached` tells
how far ours is from that floor. Calls are made in turns; printed are ratios, medians, and quartiles in brackets. Answers
are compared before anything is timed. What would need more than 2 GB or 20 s is left out (–).

Last, the cost of ours over the number of draws, as a line, and with more models loaded. With a GPU that jax
finds, everything but numpy runs there.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from servers import print_progress, restrict_to_cores, save_results

from abstain.models.networks.architectures import LeNetSpec, MLPSpec, NetworkSpec
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Predictor, predict_draw
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.prediction.summaries import summarise_classification

NETWORKS: dict[str, tuple[NetworkSpec, tuple[int, ...], int]] = {
    "784-64-64-10": (MLPSpec(hidden=(64, 64)), (784,), 10),
    "784-400-400-10": (MLPSpec(hidden=(400, 400)), (784,), 10),
    "lenet": (LeNetSpec(), (28, 28), 10),
    "13-50-2": (MLPSpec(hidden=(50,)), (13,), 2),
}
BATCHES = (1, 8, 32, 256)
DRAWS = (30, 100, 500)
LINE = (30, 50, 100, 200, 300, 500)
LOADED = (1, 8)
WAYS = ("ours", "vmap", "scan", "loop", "numpy")
PROMISED = {("784-64-64-10", 100), ("784-400-400-10", 100)}
FLOOR_BOUNDS = {1: 1.5, 8: 2.5, 32: 2.0, 256: 1.5}
VMAP_BOUND, VMAP_BATCHES = 3.0, (1, 8)
MOST_BYTES = 2e9
MOST_SECONDS = 20.0
LEAST_ROUNDS = 5
LARGE = 2**28
"""Numbers in the array that memory is read from, 1 GiB."""
SIDE = 2048

Call = Callable[[np.ndarray], Any]
"""Rows in, mean probabilities out, as numpy."""


def main() -> int:
    """Measures, prints, and writes `benchmarks/results/kernel.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0,1", help="to run on; empty: any")
    parser.add_argument("--quick", action="store_true", help="100 draws only, 5 rounds, no line over draws")
    parser.add_argument("--only", help=f"networks, with commas: some of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(NETWORKS)
    if unknown := set(names) - set(NETWORKS):
        sys.exit(f"--only: expected some of {', '.join(NETWORKS)}, found {', '.join(sorted(unknown))}")
    restrict_to_cores(options.cores)
    # XLA sizes its threads by it, as in a worker of the service.
    os.environ["NPROC"] = str(len(os.sched_getaffinity(0)))
    draws = (100,) if options.quick else DRAWS
    rounds = LEAST_ROUNDS if options.quick else options.rounds
    machine = Machine()
    results: list[dict[str, Any]] = []
    for name in names:
        for count in draws:
            posterior = random_posterior(name, count)
            results += [measure(machine, name, posterior, batch, rounds) for batch in BATCHES]
            print_progress(f"{name}, {count} draws")
    growth = [] if options.quick else [growth_of(name, batch, rounds) for name in names for batch in BATCHES[:3]]
    found = {"device": str(jax.devices()[0].platform), "cores": len(os.sched_getaffinity(0)), "cells": results}
    found["growth"] = [line for line in growth if line]
    report(found)
    save_results("kernel", found)
    return 0


class Machine:
    """The device's limits: reading a large array in several ways, and a large matrix product."""

    def __init__(self) -> None:
        self._large = jnp.ones((LARGE // 4096, 4096), jnp.float32)
        self._square = jnp.ones((SIDE, SIDE), jnp.float32)
        self._ways = [jax.jit(lambda x: x.sum(axis=0)), jax.jit(lambda x: x.max()), jax.jit(lambda x: x.sum(axis=1))]
        self._product = jax.jit(jnp.matmul)
        seconds = [self._timed(way, self._large) for _ in range(2) for way in self._ways]
        self._best = self._ways[int(np.argmin(seconds[3:]))]
        self._timed(self._product, self._square, self._square)

    def bytes_per_second(self, array: jax.Array | None = None) -> float:
        """The rate of reading the large array, or another one, in the fastest way."""
        array = self._large if array is None else array
        return array.nbytes / self._timed(self._best, array)

    def operations_per_second(self) -> float:
        """The rate of a product of two square matrices; a multiplication and an addition count as two."""
        return 2 * SIDE**3 / self._timed(self._product, self._square, self._square)

    @staticmethod
    def _timed(call: Callable[..., jax.Array], *arrays: jax.Array) -> float:
        started = time.perf_counter()
        call(*arrays).block_until_ready()
        return time.perf_counter() - started


def measure(machine: Machine, name: str, posterior: Posterior, batch: int, rounds: int) -> dict[str, Any]:
    """One line of the table."""
    rows = np.random.default_rng(1).random((batch, *posterior.model.feature_shape), np.float32)
    calls = {way: make() for way, make in ways_of(posterior, batch).items()}
    answers = {way: np.asarray(call(rows)) for way, call in calls.items()}
    differences = {way: float(np.abs(answer - answers["loop"]).max()) for way, answer in answers.items()}
    if max(differences.values()) > 1e-5:
        sys.exit(f"{name}, {posterior.size} draws, batch {batch}: expected answers within 1e-5, found {differences}")
    weights = weight_bytes(posterior)
    cached = jnp.ones((max(1, weights // 4 // 4096), 4096), jnp.float32)
    machine.bytes_per_second(cached)
    seconds: dict[str, list[float]] = {way: [] for way in calls}
    rates: dict[str, list[float]] = {"read": [], "read_cached": [], "operations": []}
    began = time.perf_counter()
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() - began > MOST_SECONDS:
            break
        if number < LEAST_ROUNDS:
            rates["read"].append(machine.bytes_per_second())
            rates["operations"].append(machine.operations_per_second())
        rates["read_cached"].append(machine.bytes_per_second(cached))
        for way, call in calls.items():
            started = time.perf_counter()
            call(rows)
            seconds[way].append(time.perf_counter() - started)
    middle = {of: float(np.median(found)) for of, found in rates.items()}
    computing = operations(name, posterior, batch) / middle["operations"]
    return {
        "network": name,
        "draws": posterior.size,
        "batch": batch,
        "rounds": len(seconds["ours"]),
        "quartiles_ms": {way: (1e3 * np.percentile(times, (25, 50, 75))).tolist() for way, times in seconds.items()},
        "floor_ms": 1e3 * max(weights / middle["read"], computing),
        "floor_cached_ms": 1e3 * max(weights / max(middle["read"], middle["read_cached"]), computing),
        "floor_is": "computing" if computing > weights / middle["read"] else "reading",
        "rates": middle,
        "difference": differences["ours"],
    }


def random_posterior(name: str, draws: int) -> Posterior:
    """Draws of the right shapes; no cost depends on their values."""
    network, shape, classes = NETWORKS[name]
    model = Model(
        network=network,
        likelihood="categorical",
        preprocessing=Preprocessing(),
        feature_shape=shape,
        class_names=tuple(map(str, range(classes))),
    )
    rng = np.random.default_rng(0)
    scale = np.float32(0.05)
    draw = lambda leaf: scale * rng.standard_normal((draws, *leaf.shape), np.float32)  # noqa: E731
    return Posterior(model, jax.tree.map(draw, model.parameter_shapes()))


def ways_of(posterior: Posterior, batch: int) -> dict[str, Callable[[], Call]]:
    """The measured cases, without those that need too much memory or time."""
    weights, numbers = weight_bytes(posterior), posterior.size * batch * widest(posterior) * 4
    all_at_once = 2 * weights + 2 * numbers <= MOST_BYTES
    makers: dict[str, tuple[bool, Callable[[], Call]]] = {
        "ours": (True, lambda: ours(posterior, batch)),
        "vmap": (all_at_once, lambda: vmapped(posterior)),
        "scan": (2 * weights <= MOST_BYTES, lambda: scanned(posterior)),
        "loop": (True, lambda: looped(posterior)),
        "numpy": (all_at_once, lambda: in_numpy(posterior)),
    }
    return {way: make for way, (possible, make) in makers.items() if possible}


def weight_bytes(posterior: Posterior) -> int:
    """Bytes of all draws in float32."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(posterior.draws))


def widest(posterior: Posterior) -> int:
    """Numbers of the widest layer of one network for one row; of a convolution in numpy, those of its patches."""
    network = posterior.model.network
    if isinstance(network, LeNetSpec):
        return max(28 * 28 * (network.channels[0] + 25), 10 * 10 * 25 * network.channels[0])
    return max(posterior.model.features, *getattr(network, "hidden", (0,)))


def operations(name: str, posterior: Posterior, batch: int) -> float:
    """Operations of all matrix products and convolutions; a multiplication and an addition count as two."""
    kernels = [leaf.shape[1:] for leaf in jax.tree.leaves(posterior.draws) if leaf.ndim > 2]
    places = {5: {1: 28 * 28, 6: 10 * 10}} if name == "lenet" else {}
    times = [places[shape[0]][shape[2]] if len(shape) == 4 else 1 for shape in kernels]
    one = sum(2 * count * math.prod(shape) for count, shape in zip(times, kernels, strict=True))
    return float(one * posterior.size * batch)


def ours(posterior: Posterior, batch: int) -> Call:
    """The served call, without feature scores."""
    predictor = Predictor(posterior, (batch,))
    return lambda rows: predictor(rows).summary.mean  # type: ignore[union-attr]


def vmapped(posterior: Posterior) -> Call:
    """Vmap over draws as they are stored."""
    over_rows = jax.vmap(lambda draw, x: predict_draw(posterior.model, draw, x), in_axes=(None, 0))
    call = jax.jit(lambda draws, rows: summarise_classification(jax.vmap(over_rows, in_axes=(0, None))(draws, rows)))
    draws = jax.device_put(posterior.draws)
    return lambda rows: jax.device_get(call(draws, rows)).mean


def scanned(posterior: Posterior) -> Call:
    """One draw after another, within one compiled call."""
    over_rows = jax.vmap(lambda draw, x: predict_draw(posterior.model, draw, x), in_axes=(None, 0))
    call = jax.jit(
        lambda draws, rows: summarise_classification(
            jax.lax.scan(lambda none, draw: (none, over_rows(draw, rows)), None, draws)[1]
        )
    )
    draws = jax.device_put(posterior.draws)
    return lambda rows: jax.device_get(call(draws, rows)).mean


def looped(posterior: Posterior) -> Call:
    """One network a call."""
    call = jax.jit(jax.vmap(lambda draw, x: predict_draw(posterior.model, draw, x), in_axes=(None, 0)))
    draws = [jax.device_put(jax.tree.map(lambda leaf, s=s: leaf[s], posterior.draws)) for s in range(posterior.size)]
    summarise = jax.jit(summarise_classification)
    return lambda rows: jax.device_get(summarise(jnp.stack([call(draw, rows) for draw in draws]))).mean


def in_numpy(posterior: Posterior) -> Call:
    """All draws at once, layer by layer."""
    network = posterior.draws["network"]
    dense = [(layer["kernel"], layer["bias"]) for name, layer in sorted(network.items()) if name.startswith("Dense")]
    convolutions = [
        (layer["kernel"], layer["bias"]) for name, layer in sorted(network.items()) if name.startswith("Conv")
    ]

    def call(rows: np.ndarray) -> np.ndarray:
        hidden = rows[None]
        for (kernel, bias), padding in zip(convolutions, (2, 0), strict=False):
            hidden = _pooled(_convolved(hidden if hidden.ndim == 5 else hidden[..., None], kernel, bias, padding))
        hidden = hidden.reshape(*hidden.shape[:2], -1)
        for kernel, bias in dense[:-1]:
            hidden = np.maximum(hidden @ kernel + bias[:, None], 0)
        return _summarised(hidden @ dense[-1][0] + dense[-1][1][:, None])

    return call


def _convolved(images: np.ndarray, kernel: np.ndarray, bias: np.ndarray, padding: int) -> np.ndarray:
    """ReLU of a 5×5 convolution; images `[draws, batch, height, width, channel]`, kernel `[draws, 5, 5, in, out]`."""
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1:3], axis=(2, 3))
    patches = np.moveaxis(patches, 4, -1)
    draws, batch, height, width = patches.shape[:4]
    product = patches.reshape(draws, batch * height * width, -1) @ kernel.reshape(len(kernel), -1, kernel.shape[-1])
    return np.maximum(product + bias[:, None], 0).reshape(-1, batch, height, width, kernel.shape[-1])


def _pooled(images: np.ndarray) -> np.ndarray:
    draws, batch, height, width, channels = images.shape
    return images.reshape(draws, batch, height // 2, 2, width // 2, 2, channels).max(axis=(3, 5))


def _summarised(logits: np.ndarray) -> np.ndarray:
    """Computes what the other summaries have; returns the mean."""
    logits = logits - logits.max(-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    probabilities = np.exp(log_probabilities)
    mean = probabilities.mean(0)
    probabilities.std(0)
    -(probabilities * log_probabilities).sum(-1).mean(0)
    (probabilities * (log_probabilities - np.log(mean))).sum(-1).mean(0)
    return mean


def growth_of(name: str, batch: int, rounds: int) -> dict[str, Any] | None:
    """A line through the medians of ours over the draws; and the same call with more models loaded."""
    counts = [
        count for count in LINE if 2 * count * weight_bytes(random_posterior(name, 1)) <= MOST_BYTES and count > 0
    ]
    rows = np.random.default_rng(1).random((batch, *NETWORKS[name][1]), np.float32)
    calls = {count: ours(random_posterior(name, count), batch) for count in counts}
    milliseconds = _in_turns(calls, rows, rounds)
    slope, start = np.polyfit(counts, list(milliseconds.values()), 1)
    fitted = start + slope * np.array(counts)
    measured = np.array(list(milliseconds.values()))
    other_models = [ours(random_posterior(name, LINE[0]), batch) for _ in range(LOADED[1] - 1)]
    for call in other_models:
        call(rows)
    more = _in_turns({LINE[0]: calls[LINE[0]]}, rows, 2 * rounds)[LINE[0]]
    del calls, other_models
    alone = _in_turns({LINE[0]: ours(random_posterior(name, LINE[0]), batch)}, rows, 2 * rounds)[LINE[0]]
    return {
        "network": name,
        "batch": batch,
        "milliseconds": {str(count): value for count, value in milliseconds.items()},
        "slope_ms": float(slope),
        "start_ms": float(start),
        "r_squared": float(1 - ((measured - fitted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()),
        "loaded": {str(LOADED[0]): alone, str(LOADED[1]): more},
    }


def _in_turns(calls: dict[int, Call], rows: np.ndarray, rounds: int) -> dict[int, float]:
    """Medians in milliseconds."""
    seconds: dict[int, list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, call in calls.items():
            started = time.perf_counter()
            call(rows)
            seconds[key].append(time.perf_counter() - started)
    return {key: 1e3 * float(np.median(times[1:])) for key, times in seconds.items()}


def report(found: dict[str, Any]) -> None:
    """Ratios first, then milliseconds, then how the cost grows."""
    cells = found["cells"]
    read, gigaflops = (float(np.median([cell["rates"][of] for cell in cells])) / 1e9 for of in ("read", "operations"))
    print(
        f"{found['device']}, {found['cores']} cores: memory read at {read:.1f} GB/s, products at {gigaflops:.0f} GFLOP/s"
    )
    print("medians (quartiles); × floor: ours ÷ floor; × vmap …: that ÷ ours\n")
    heads = "".join(f"{f'× {way}':>8}" for way in WAYS[1:])
    print(f"{'network':<15}{'draws':>5} {'batch':>5} {'× floor':>8} {'bound':>6} {'× cached':>9} {heads}   floor is")
    for cell in cells:
        print(_ratios(cell))
    heads = "".join(f"{f'{way} ms':<23}" for way in WAYS)
    print(f"\n{'network':<15}{'draws':>5} {'batch':>5} {'floor ms':>9}   {heads}")
    for cell in cells:
        quartiles = cell["quartiles_ms"]
        shown = "".join(
            (f"{_ms(q[1])} ({_ms(q[0])}–{_ms(q[2])})" if (q := quartiles.get(way)) else "–").ljust(23) for way in WAYS
        )
        print(f"{cell['network']:<15}{cell['draws']:>5} {cell['batch']:>5} {cell['floor_ms']:>9.3f}   {shown}")
    if found["growth"]:
        print(f"\ncost of ours over draws, and with {LOADED[1]} models loaded instead of 1 ({LINE[0]} draws)")
    for line in found["growth"]:
        flat = line["loaded"][str(LOADED[1])] / line["loaded"][str(LOADED[0])]
        most = max(map(int, line["milliseconds"]))
        print(
            f"{line['network']:<15} batch {line['batch']:>2}, {LINE[0]}–{most} draws: ms = {line['start_ms']:.3f} "
            f"+ {line['slope_ms']:.5f} × draws, R² = {line['r_squared']:.4f}; models loaded: × {flat:.2f}"
        )


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratios(cell: dict[str, Any]) -> str:
    middle = {way: q[1] for way, q in cell["quartiles_ms"].items()}
    over = middle["ours"] / cell["floor_ms"]
    bound = FLOOR_BOUNDS[cell["batch"]] if (cell["network"], cell["draws"]) in PROMISED else None
    slower = [middle[way] / middle["ours"] if way in middle else None for way in WAYS[1:]]
    missed = [f"floor ≤ {bound:g}"] if bound and over > bound else []
    if bound and cell["batch"] in VMAP_BATCHES and slower[0] is not None and slower[0] < VMAP_BOUND:
        missed.append(f"vmap ≥ {VMAP_BOUND:g}")
    ratios = "".join("       –" if ratio is None else f"{ratio:>8.1f}" for ratio in slower)
    return (
        f"{cell['network']:<15}{cell['draws']:>5} {cell['batch']:>5} {over:>8.2f} {f'≤ {bound}' if bound else '':>6} "
        f"{middle['ours'] / cell['floor_cached_ms']:>9.2f} {ratios}   {cell['floor_is']}"
        f"{'   MISSED ' + ', '.join(missed) if missed else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
