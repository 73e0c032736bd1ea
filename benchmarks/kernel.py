"""`make bench`, one compiled call: an ensemble's predictions for a batch, compared with simple code and the machine's limits.

    python benchmarks/kernel.py [--cores 0,1] [--quick] [--only 784-64-64-10,lenet] [--rounds 15]

    ours    `Predictor` of models/prediction/predictive.py: padding, the networks, the summary (mean, standard deviations,
            entropies), the scores of the ensemble (GEN, energy, variation ratio …), results as numpy; no feature scores
    vmap    jax.vmap over draws stored sample-first, and the same summary, but no scores
    scan    lax.scan over draws, in one compiled call
    loop    one compiled network, a Python loop over draws
    numpy   matrix products of stored draws (convolutions as products of patches)

The floor is max(bytes of weights ÷ rate of reading memory, operations of the networks ÷ rate of a 2048³ product). Both
rates are measured by jax in the same rounds with the same threads. Reading is measured on an array of 1 GiB, by the fastest
of three ways, and on an array as large as the weights, which may fit into a cache; `× cached` is the ratio to the floor with
the faster of the two rates. The calls take turns; it prints ratios, medians, and quartiles in brackets. Results are compared
before the timing. Cases that need more than 2 GB or 20 s are left out (–).

At the end it prints the cost of ours as a line over the number of draws, and with more models loaded. If jax has a GPU,
everything but numpy runs on it.
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
GROWTH_DRAWS = (30, 50, 100, 200, 300, 500)
LOADED = (1, 8)
CASES = ("ours", "vmap", "scan", "loop", "numpy")
REQUIRED = {("784-64-64-10", 100), ("784-400-400-10", 100)}
FLOOR_BOUNDS = {1: 1.5, 8: 2.5, 32: 2.0, 256: 1.5}
VMAP_BOUND, VMAP_BATCHES = 3.0, (1, 8)
MAX_BYTES = 2e9
MAX_SECONDS = 20.0
MIN_ROUNDS = 5
LARGE = 2**28
"""The number of float32 values in the array of 1 GiB that is read."""
SIDE = 2048
"""Rows and columns of the matrices in the product."""

Call = Callable[[np.ndarray], Any]
"""Computes the mean probabilities of rows, as numpy."""


def main() -> int:
    """Measures, prints, and writes `benchmarks/results/kernel.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", default="0,1", help="cores to run on; empty: any")
    parser.add_argument("--quick", action="store_true", help="100 draws only, 5 rounds, no line over draws")
    parser.add_argument("--only", help=f"networks, separated by commas: some of {', '.join(NETWORKS)}")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(NETWORKS)
    if unknown := set(names) - set(NETWORKS):
        sys.exit(f"--only: expected some of {', '.join(NETWORKS)}, found {', '.join(sorted(unknown))}")
    restrict_to_cores(options.cores)
    # XLA reads the number of its threads from NPROC, as in a worker of the service.
    os.environ["NPROC"] = str(len(os.sched_getaffinity(0)))
    draws = (100,) if options.quick else DRAWS
    rounds = MIN_ROUNDS if options.quick else options.rounds
    machine = Machine()
    results: list[dict[str, Any]] = []
    for name in names:
        for count in draws:
            posterior = random_posterior(name, count)
            results += [measure(machine, name, posterior, batch, rounds) for batch in BATCHES]
            print_progress(f"{name}, {count} draws")
    growth = [] if options.quick else [growth_of(name, batch, rounds) for name in names for batch in BATCHES[:3]]
    content = {"device": str(jax.devices()[0].platform), "cores": len(os.sched_getaffinity(0)), "cells": results}
    content["growth"] = [line for line in growth if line]
    print_results(content)
    save_results("kernel", content)
    return 0


class Machine:
    """The device's limits: the rates of reading memory and of a large matrix product."""

    def __init__(self) -> None:
        self._large = jnp.ones((LARGE // 4096, 4096), jnp.float32)
        self._square = jnp.ones((SIDE, SIDE), jnp.float32)
        readers = [jax.jit(lambda x: x.sum(axis=0)), jax.jit(lambda x: x.max()), jax.jit(lambda x: x.sum(axis=1))]
        self._product = jax.jit(jnp.matmul)
        # The first call of each compiles.
        seconds = [self._time(reader, self._large) for _ in range(2) for reader in readers]
        self._fastest_reader = readers[int(np.argmin(seconds[3:]))]
        self._time(self._product, self._square, self._square)

    def bytes_per_second(self, array: jax.Array | None = None) -> float:
        """Measures the rate of reading the large array, or another one, in the fastest way."""
        array = self._large if array is None else array
        return array.nbytes / self._time(self._fastest_reader, array)

    def operations_per_second(self) -> float:
        """Measures the rate of a product of two square matrices; a multiplication and an addition count as two."""
        return 2 * SIDE**3 / self._time(self._product, self._square, self._square)

    @staticmethod
    def _time(call: Callable[..., jax.Array], *arrays: jax.Array) -> float:
        started = time.perf_counter()
        call(*arrays).block_until_ready()
        return time.perf_counter() - started


def measure(machine: Machine, name: str, posterior: Posterior, batch: int, rounds: int) -> dict[str, Any]:
    """Measures one line of the table."""
    rows = np.random.default_rng(1).random((batch, *posterior.model.feature_shape), np.float32)
    calls = {case: make() for case, make in cases_of(posterior, batch).items()}
    means = {case: np.asarray(call(rows)) for case, call in calls.items()}
    differences = {case: float(np.abs(mean - means["loop"]).max()) for case, mean in means.items()}
    if max(differences.values()) > 1e-5:
        sys.exit(f"{name}, {posterior.size} draws, batch {batch}: expected results within 1e-5, found {differences}")
    weights = weight_bytes(posterior)
    cached = jnp.ones((max(1, weights // 4 // 4096), 4096), jnp.float32)
    machine.bytes_per_second(cached)
    seconds: dict[str, list[float]] = {case: [] for case in calls}
    rates: dict[str, list[float]] = {"read": [], "read_cached": [], "operations": []}
    start_time = time.perf_counter()
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - start_time > MAX_SECONDS:
            break
        if number < MIN_ROUNDS:
            rates["read"].append(machine.bytes_per_second())
            rates["operations"].append(machine.operations_per_second())
        rates["read_cached"].append(machine.bytes_per_second(cached))
        for case, call in calls.items():
            call_start = time.perf_counter()
            call(rows)
            seconds[case].append(time.perf_counter() - call_start)
    median_rates = {name: float(np.median(values)) for name, values in rates.items()}
    computing = operations(name, posterior, batch) / median_rates["operations"]
    return {
        "network": name,
        "draws": posterior.size,
        "batch": batch,
        "rounds": len(seconds["ours"]),
        "quartiles_ms": {case: (1e3 * np.percentile(times, (25, 50, 75))).tolist() for case, times in seconds.items()},
        "floor_ms": 1e3 * max(weights / median_rates["read"], computing),
        "floor_cached_ms": 1e3 * max(weights / max(median_rates["read"], median_rates["read_cached"]), computing),
        "floor_is": "computing" if computing > weights / median_rates["read"] else "reading",
        "rates": median_rates,
        "difference": differences["ours"],
    }


def random_posterior(name: str, draws: int) -> Posterior:
    """Makes random draws with the shapes of a network; no cost depends on their values."""
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


def cases_of(posterior: Posterior, batch: int) -> dict[str, Callable[[], Call]]:
    """Returns functions that make the measured calls, without those that need too much memory."""
    weights, numbers = weight_bytes(posterior), posterior.size * batch * widest(posterior) * 4
    all_at_once = 2 * weights + 2 * numbers <= MAX_BYTES
    makers: dict[str, tuple[bool, Callable[[], Call]]] = {
        "ours": (True, lambda: make_ours(posterior, batch)),
        "vmap": (all_at_once, lambda: make_vmap(posterior)),
        "scan": (2 * weights <= MAX_BYTES, lambda: make_scan(posterior)),
        "loop": (True, lambda: make_loop(posterior)),
        "numpy": (all_at_once, lambda: make_numpy(posterior)),
    }
    return {case: make for case, (possible, make) in makers.items() if possible}


def weight_bytes(posterior: Posterior) -> int:
    """Returns the bytes of all draws in float32."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(posterior.draws))


def widest(posterior: Posterior) -> int:
    """Returns the values of the widest layer for one row; for a convolution in numpy, those of its patches."""
    network = posterior.model.network
    if isinstance(network, LeNetSpec):
        return max(28 * 28 * (network.channels[0] + 25), 10 * 10 * 25 * network.channels[0])
    return max(posterior.model.features, *getattr(network, "hidden", (0,)))


def operations(name: str, posterior: Posterior, batch: int) -> float:
    """Returns the operations of all matrix products and convolutions; a multiplication and an addition count as two."""
    kernels = [leaf.shape[1:] for leaf in jax.tree.leaves(posterior.draws) if leaf.ndim > 2]
    # A kernel of a convolution is applied at each of its output positions; the key is its number of input channels.
    positions = {1: 28 * 28, 6: 10 * 10} if name == "lenet" else {}
    times = [positions[shape[2]] if len(shape) == 4 else 1 for shape in kernels]
    per_network = sum(2 * count * math.prod(shape) for count, shape in zip(times, kernels, strict=True))
    return float(per_network * posterior.size * batch)


def make_ours(posterior: Posterior, batch: int) -> Call:
    """Makes the call that the service uses, without feature scores."""
    predictor = Predictor(posterior, (batch,))
    return lambda rows: predictor(rows).summary.mean  # type: ignore[union-attr]


def make_vmap(posterior: Posterior) -> Call:
    """Makes a call with `vmap` over draws as they are stored."""
    over_rows = jax.vmap(lambda draw, x: predict_draw(posterior.model, draw, x), in_axes=(None, 0))
    call = jax.jit(lambda draws, rows: summarise_classification(jax.vmap(over_rows, in_axes=(0, None))(draws, rows)))
    draws = jax.device_put(posterior.draws)
    return lambda rows: jax.device_get(call(draws, rows)).mean


def make_scan(posterior: Posterior) -> Call:
    """Makes a compiled call that computes one draw after another."""
    over_rows = jax.vmap(lambda draw, x: predict_draw(posterior.model, draw, x), in_axes=(None, 0))
    call = jax.jit(
        lambda draws, rows: summarise_classification(
            jax.lax.scan(lambda none, draw: (none, over_rows(draw, rows)), None, draws)[1]
        )
    )
    draws = jax.device_put(posterior.draws)
    return lambda rows: jax.device_get(call(draws, rows)).mean


def make_loop(posterior: Posterior) -> Call:
    """Makes a Python loop over calls of one network."""
    call = jax.jit(jax.vmap(lambda draw, x: predict_draw(posterior.model, draw, x), in_axes=(None, 0)))
    draws = [jax.device_put(jax.tree.map(lambda leaf, s=s: leaf[s], posterior.draws)) for s in range(posterior.size)]
    summarise = jax.jit(summarise_classification)
    return lambda rows: jax.device_get(summarise(jnp.stack([call(draw, rows) for draw in draws]))).mean


def make_numpy(posterior: Posterior) -> Call:
    """Makes a numpy function that computes all draws at once, layer by layer."""
    network = posterior.draws["network"]
    dense = [(layer["kernel"], layer["bias"]) for name, layer in sorted(network.items()) if name.startswith("Dense")]
    convolutions = [
        (layer["kernel"], layer["bias"]) for name, layer in sorted(network.items()) if name.startswith("Conv")
    ]

    def call(rows: np.ndarray) -> np.ndarray:
        """Returns the outputs of all draws for some rows."""
        hidden = rows[None]
        for (kernel, bias), padding in zip(convolutions, (2, 0), strict=False):
            hidden = _max_pool(_convolve(hidden if hidden.ndim == 5 else hidden[..., None], kernel, bias, padding))
        hidden = hidden.reshape(*hidden.shape[:2], -1)
        for kernel, bias in dense[:-1]:
            hidden = np.maximum(hidden @ kernel + bias[:, None], 0)
        return _summarise(hidden @ dense[-1][0] + dense[-1][1][:, None])

    return call


def _convolve(images: np.ndarray, kernel: np.ndarray, bias: np.ndarray, padding: int) -> np.ndarray:
    """Computes the ReLU of a 5×5 convolution; images `[draws, batch, height, width, channel]`, kernel `[draws, 5, 5, in, out]`."""
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, kernel.shape[1:3], axis=(2, 3))
    patches = np.moveaxis(patches, 4, -1)
    draws, batch, height, width = patches.shape[:4]
    product = patches.reshape(draws, batch * height * width, -1) @ kernel.reshape(len(kernel), -1, kernel.shape[-1])
    return np.maximum(product + bias[:, None], 0).reshape(-1, batch, height, width, kernel.shape[-1])


def _max_pool(images: np.ndarray) -> np.ndarray:
    draws, batch, height, width, channels = images.shape
    return images.reshape(draws, batch, height // 2, 2, width // 2, 2, channels).max(axis=(3, 5))


def _summarise(logits: np.ndarray) -> np.ndarray:
    """Computes the same figures as the other summaries; returns the mean."""
    logits = logits - logits.max(-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    probabilities = np.exp(log_probabilities)
    mean = probabilities.mean(0)
    probabilities.std(0)
    -(probabilities * log_probabilities).sum(-1).mean(0)
    (probabilities * (log_probabilities - np.log(mean))).sum(-1).mean(0)
    return mean


def growth_of(name: str, batch: int, rounds: int) -> dict[str, Any] | None:
    """Fits a line to the medians of ours over the number of draws, and measures a call with more models loaded."""
    counts = [count for count in GROWTH_DRAWS if 2 * count * weight_bytes(random_posterior(name, 1)) <= MAX_BYTES]
    rows = np.random.default_rng(1).random((batch, *NETWORKS[name][1]), np.float32)
    calls = {count: make_ours(random_posterior(name, count), batch) for count in counts}
    milliseconds = _measure_in_turns(calls, rows, rounds)
    slope, start = np.polyfit(counts, list(milliseconds.values()), 1)
    fitted = start + slope * np.array(counts)
    measured = np.array(list(milliseconds.values()))
    fewest = GROWTH_DRAWS[0]
    other_models = [make_ours(random_posterior(name, fewest), batch) for _ in range(LOADED[1] - 1)]
    for call in other_models:
        call(rows)
    with_others = _measure_in_turns({fewest: calls[fewest]}, rows, 2 * rounds)[fewest]
    del calls, other_models
    alone = _measure_in_turns({fewest: make_ours(random_posterior(name, fewest), batch)}, rows, 2 * rounds)[fewest]
    return {
        "network": name,
        "batch": batch,
        "milliseconds": {str(count): value for count, value in milliseconds.items()},
        "slope_ms": float(slope),
        "start_ms": float(start),
        "r_squared": float(1 - ((measured - fitted) ** 2).sum() / ((measured - measured.mean()) ** 2).sum()),
        "loaded": {str(LOADED[0]): alone, str(LOADED[1]): with_others},
    }


def _measure_in_turns(calls: dict[int, Call], rows: np.ndarray, rounds: int) -> dict[int, float]:
    """Returns the median milliseconds of each call; the calls take turns, and the first round is not counted."""
    seconds: dict[int, list[float]] = {key: [] for key in calls}
    for _ in range(rounds + 1):
        for key, call in calls.items():
            started = time.perf_counter()
            call(rows)
            seconds[key].append(time.perf_counter() - started)
    return {key: 1e3 * float(np.median(times[1:])) for key, times in seconds.items()}


def print_results(results: dict[str, Any]) -> None:
    """Prints the ratios, then the milliseconds, then the growth of the cost."""
    cells = results["cells"]
    read, gigaflops = (
        float(np.median([cell["rates"][name] for cell in cells])) / 1e9 for name in ("read", "operations")
    )
    print(
        f"{results['device']}, {results['cores']} cores: memory read at {read:.1f} GB/s, products at {gigaflops:.0f} GFLOP/s"
    )
    print("medians (quartiles); × floor: ours ÷ floor; × vmap …: vmap … ÷ ours\n")
    heads = "".join(f"{f'× {case}':>8}" for case in CASES[1:])
    print(f"{'network':<15}{'draws':>5} {'batch':>5} {'× floor':>8} {'bound':>6} {'× cached':>9} {heads}   floor is")
    for cell in cells:
        print(_ratios(cell))
    heads = "".join(f"{f'{case} ms':<23}" for case in CASES)
    print(f"\n{'network':<15}{'draws':>5} {'batch':>5} {'floor ms':>9}   {heads}")
    for cell in cells:
        quartiles = cell["quartiles_ms"]
        shown = "".join(
            (f"{_ms(q[1])} ({_ms(q[0])}–{_ms(q[2])})" if (q := quartiles.get(case)) else "–").ljust(23)
            for case in CASES
        )
        print(f"{cell['network']:<15}{cell['draws']:>5} {cell['batch']:>5} {cell['floor_ms']:>9.3f}   {shown}")
    if results["growth"]:
        print(f"\ncost of ours over draws, and with {LOADED[1]} models loaded instead of 1 ({GROWTH_DRAWS[0]} draws)")
    for line in results["growth"]:
        flat = line["loaded"][str(LOADED[1])] / line["loaded"][str(LOADED[0])]
        most = max(map(int, line["milliseconds"]))
        print(
            f"{line['network']:<15} batch {line['batch']:>2}, {GROWTH_DRAWS[0]}–{most} draws: ms = {line['start_ms']:.3f} "
            f"+ {line['slope_ms']:.5f} × draws, R² = {line['r_squared']:.4f}; models loaded: × {flat:.2f}"
        )


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _ratios(cell: dict[str, Any]) -> str:
    medians = {case: q[1] for case, q in cell["quartiles_ms"].items()}
    over = medians["ours"] / cell["floor_ms"]
    bound = FLOOR_BOUNDS[cell["batch"]] if (cell["network"], cell["draws"]) in REQUIRED else None
    slower = [medians[case] / medians["ours"] if case in medians else None for case in CASES[1:]]
    missed = [f"floor ≤ {bound:g}"] if bound and over > bound else []
    if bound and cell["batch"] in VMAP_BATCHES and slower[0] is not None and slower[0] < VMAP_BOUND:
        missed.append(f"vmap ≥ {VMAP_BOUND:g}")
    ratios = "".join("       –" if ratio is None else f"{ratio:>8.1f}" for ratio in slower)
    return (
        f"{cell['network']:<15}{cell['draws']:>5} {cell['batch']:>5} {over:>8.2f} {f'≤ {bound}' if bound else '':>6} "
        f"{medians['ours'] / cell['floor_cached_ms']:>9.2f} {ratios}   {cell['floor_is']}"
        f"{'   MISSED ' + ', '.join(missed) if missed else ''}"
    )


if __name__ == "__main__":
    sys.exit(main())
