"""Imports each kind of source, serves all of them with one server, and compares what it responds with the original's predictions.

    python -m benchmarks.imports [--torch-python PYTHON] [--only chains,guide,checkpoints,states,torch]

The originals predict by themselves: Flax's `apply`, NumPyro's `Predictive`, PyTorch. For each kind it prints the number of draws,
the largest difference of 200 familiar and 20 far rows, and how many of each the server rejects. `--torch-python` names a Python
with torch and safetensors, which trains the ensemble; without it, that line is left out.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import arviz_base
import httpx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import orbax.checkpoint as ocp
from flax import nnx
from numpyro.contrib.module import random_flax_module, random_nnx_module
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, autoguide

import abstain
from benchmarks.imported_networks import Dense, Graph, Normalised, Small
from benchmarks.servers import abstain_command, free_port, print_progress, run_server, save_results

MODULE = "benchmarks.imported_networks"
FAMILIAR, FAR = 200, 20
BOUND = 1e-5
"""The largest difference from the original's predictions that is accepted."""
NUMBERS = {"likelihood": "normal", "posterior": {"noise": "sigma"}, "calibration": {"percentile": 95}}
WITH_MEANS = {**NUMBERS, "posterior": {"noise": "sigma", "ignore": ["mu"]}}
CLASSES = {"likelihood": "categorical", "calibration": {"percentile": 95}}


class Imported(NamedTuple):
    """A published import: what it was read from, its version, and the original's predictions by field of the response."""

    kind: str
    result: abstain.FitResult
    expected: dict[str, np.ndarray]


def rows_of(count: int, seed: int, classes: bool) -> dict[str, np.ndarray]:
    """Returns labelled rows of two features."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 2)).astype(np.float32)
    y = np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] + 0.3 * rng.normal(size=count)
    return {"x": x, "y": np.digitize(y, [-0.5, 0.5]) if classes else y}


def asked_rows() -> np.ndarray:
    """Returns new rows like the training rows, and rows far from them."""
    rng = np.random.default_rng(7)
    far = rng.choice([-1.0, 1.0], (FAR, 2)) * rng.uniform(20, 60, (FAR, 2))
    return np.concatenate([rng.normal(size=(FAMILIAR, 2)), far]).astype(np.float32)


X = asked_rows()


def softmax(logits: Any) -> np.ndarray:
    """Returns probabilities in float64."""
    shifted = np.exp(np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def bayesian(module: Callable[[], Any]) -> Callable[..., None]:
    """Returns a model of NumPyro with a random network and an unknown noise; the site `mu` has its means."""

    def model(x: Any, y: Any = None) -> None:
        sigma = numpyro.sample("sigma", dist.HalfNormal(1))
        mu = numpyro.deterministic("mu", module()(x)[:, 0])
        numpyro.sample("obs", dist.Normal(mu, sigma), obs=y)

    return model


def linen_site() -> Any:
    """Registers a random network of Linen."""
    return random_flax_module("net", Dense(), dist.Normal(0, 1), input_shape=(1, 2))


def nnx_site() -> Any:
    """Registers a random network of NNX."""
    return random_nnx_module("net", Small(rngs=nnx.Rngs(0)), dist.Normal(0, 1))


def sampled(model: Callable[..., None], folder: Path) -> MCMC:
    """Runs two chains."""
    rows = np.load(folder / "numbers_train.npz")
    mcmc = MCMC(
        NUTS(model, max_tree_depth=6),
        num_warmup=150,
        num_samples=50,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), rows["x"], rows["y"])
    return mcmc


def moments(model: Callable[..., None], samples: dict[str, Any]) -> dict[str, np.ndarray]:
    """Returns mean and standard deviation over the draws, as NumPyro computes them."""
    latent = {name: value for name, value in samples.items() if name not in {"obs", "mu"}}
    mu = np.asarray(Predictive(model, latent)(jax.random.key(0), X)["mu"], np.float64)
    return {"mean": mu.mean(axis=0), "epistemic_std": mu.std(axis=0)}


def chains(options: dict[str, Any], folder: Path) -> Iterator[Imported]:
    """MCMC of Linen and of NNX, and the same draws through ArviZ's file and an .npz."""
    more = {"data": folder / "numbers.npz", "train": folder / "numbers_train.npz", **options}
    model = bayesian(nnx_site)
    mcmc = sampled(model, folder)
    result = abstain.from_numpyro(mcmc, Small, {"name": "mcmc-nnx", **WITH_MEANS}, **more)
    yield Imported("NumPyro MCMC, `random_nnx_module`", result, moments(model, mcmc.get_samples()))

    model = bayesian(linen_site)
    mcmc = sampled(model, folder)
    expected = moments(model, mcmc.get_samples())
    result = abstain.from_numpyro(mcmc, Dense(), {"name": "mcmc", **WITH_MEANS}, **more)
    yield Imported("NumPyro MCMC, `random_flax_module`", result, expected)

    grouped = {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items() if name != "mu"}
    arviz_base.from_dict({"posterior": {name.replace("/", "."): value for name, value in grouped.items()}}).to_netcdf(
        folder / "draws.nc", engine="h5netcdf"
    )
    np.savez(folder / "draws.npz", **grouped)
    network = {"network": {"kind": "module", "module": f"{MODULE}:Dense"}}
    for kind, file in (("ArviZ, netCDF", "draws.nc"), (".npz of chains", "draws.npz")):
        config = {"name": file.replace(".", "-"), **NUMBERS, **network}
        yield Imported(kind, abstain.import_posterior(folder / file, config, **more), expected)


def guide(options: dict[str, Any], folder: Path) -> Iterator[Imported]:
    """SVI with an automatic guide."""
    rows = np.load(folder / "numbers_train.npz")
    model = bayesian(linen_site)
    own = autoguide.AutoNormal(model)
    svi = SVI(model, own, numpyro.optim.Adam(1e-2), Trace_ELBO()).run(
        jax.random.key(1), 2000, rows["x"], rows["y"], progress_bar=False
    )
    more = {"data": folder / "numbers.npz", "train": folder / "numbers_train.npz", **options}
    config = {"name": "svi", "draws": 100, **WITH_MEANS}
    result = abstain.from_numpyro(svi, Dense(), config, guide=own, **more)
    samples = own.sample_posterior(jax.random.key(0), svi.params, sample_shape=(100,))
    yield Imported("NumPyro SVI", result, moments(model, samples))


def trained_linen(folder: Path, seed: int) -> dict[str, Any]:
    """Trains a network of Linen with batch normalisation, and returns its variables."""
    rows = np.load(folder / "classes_train.npz")
    x, y, network = rows["x"], rows["y"], Normalised()
    variables = network.init(jax.random.key(seed), x)
    optimiser = optax.adam(1e-2)

    @jax.jit
    def step(params: Any, stats: Any, state: Any, key: Any) -> tuple[Any, Any, Any]:
        def loss(params: Any) -> tuple[Any, Any]:
            logits, updates = network.apply(
                {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"], rngs={"dropout": key}
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(y)).mean(), updates

        gradient, updates = jax.grad(loss, has_aux=True)(params)
        change, state = optimiser.update(gradient, state)
        return optax.apply_updates(params, change), updates["batch_stats"], state

    params, stats = variables["params"], variables["batch_stats"]
    state = optimiser.init(params)
    for key in jax.random.split(jax.random.key(seed), 300):
        params, stats, state = step(params, stats, state, key)
    return {"params": params, "batch_stats": stats}


def checkpoints(options: dict[str, Any], folder: Path) -> Iterator[Imported]:
    """An ensemble of Linen with batch normalisation, by Orbax's checkpoints."""
    members = [trained_linen(folder, seed) for seed in range(4)]
    with ocp.StandardCheckpointer() as checkpointer:
        for index, member in enumerate(members):
            checkpointer.save(folder / f"checkpoint-{index}", member)
    config = {"name": "orbax", **CLASSES, "network": {"kind": "module", "module": f"{MODULE}:Normalised"}}
    more = {"data": folder / "classes.npz", "train": folder / "classes_train.npz", **options}
    result = abstain.import_posterior([folder / f"checkpoint-{index}" for index in range(4)], config, **more)
    logits = [Normalised().apply(member, X) for member in members]
    yield Imported("Orbax, batch normalisation", result, {"probabilities": softmax(np.stack(logits)).mean(axis=0)})


def trained_nnx(folder: Path, seed: int) -> Graph:
    """Trains a network of NNX with batch normalisation."""
    rows = np.load(folder / "classes_train.npz")
    network = Graph(rngs=nnx.Rngs(seed))
    optimiser = nnx.Optimizer(network, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(network: Graph, optimiser: Any) -> None:
        def loss(network: Graph) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(network(rows["x"]), jnp.asarray(rows["y"])).mean()

        optimiser.update(network, nnx.grad(loss)(network))

    for _ in range(300):
        step(network, optimiser)
    network.eval()
    return network


def states(options: dict[str, Any], folder: Path) -> Iterator[Imported]:
    """An ensemble of NNX with batch normalisation, by its states."""
    networks = [trained_nnx(folder, seed) for seed in range(4)]
    found = [nnx.to_pure_dict(nnx.state(network, (nnx.Param, nnx.BatchStat))) for network in networks]
    more = {"data": folder / "classes.npz", "train": folder / "classes_train.npz", **options}
    result = abstain.from_numpyro(found, Graph, {"name": "nnx", **CLASSES}, **more)
    expected = softmax(np.stack([network(X) for network in networks])).mean(axis=0)
    yield Imported("NNX states, batch normalisation", result, {"probabilities": expected})


def torch(options: dict[str, Any], folder: Path, python: str) -> Iterator[Imported]:
    """An ensemble of PyTorch."""
    script = Path(__file__).with_name("torch_ensemble.py")
    subprocess.run([python, script, folder], check=True)
    original = np.load(folder / "torch.npz")
    config = {"name": "torch", **CLASSES, "network": {"kind": "mlp", "hidden": [16, 16], "activation": "relu"}}
    more = {"data": folder / "classes.npz", "train": folder / "classes_train.npz", **options}
    result = abstain.import_posterior(sorted(folder.glob("torch-*.safetensors")), config, **more)
    yield Imported(f"PyTorch {original['version']}", result, {"probabilities": original["probabilities"]})


def measure(imported: Imported, url: str) -> dict[str, Any]:
    """Returns how far the response of a server is from the original, and how many rows it rejects."""
    body = {"model": imported.result.name, "inputs": X.tolist(), "fields": [*imported.expected, "reject"]}
    response = httpx.post(f"{url}/predict", json=body, timeout=60)
    response.raise_for_status()
    rows = response.json()["predictions"]
    difference = max(
        float(np.abs(np.asarray([row[field] for row in rows]) - values).max())
        for field, values in imported.expected.items()
    )
    rejected = [row["reject"] for row in rows]
    return {
        "kind": imported.kind,
        "draws": response.json()["draws"],
        "difference": difference,
        "familiar_rejected": sum(rejected[:FAMILIAR]),
        "far_rejected": sum(rejected[FAMILIAR:]),
    }


def main() -> int:
    """Imports, serves, compares, prints; 1 if a difference is above the bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", help="a Python with torch and safetensors")
    parser.add_argument("--only", default="chains,guide,checkpoints,states,torch")
    options = parser.parse_args()
    wanted = options.only.split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, classes in (("numbers", False), ("classes", True)):
            np.savez(folder / f"{kind}.npz", **rows_of(600, 0, classes))
            np.savez(folder / f"{kind}_train.npz", **rows_of(600, 1, classes))
        np.savez(folder / "asked.npz", x=X)
        store: dict[str, Any] = {"store": folder / "store", "progress": False}
        found: list[Imported] = []
        for kind in (chains, guide, checkpoints, states):
            if kind.__name__ in wanted:
                print_progress(kind.__name__)
                found += kind(store, folder)
        if options.torch_python and "torch" in wanted:
            found += torch(store, folder, options.torch_python)
        port = free_port()
        command = abstain_command(port, folder / "store")
        with run_server("imports", port, command, folder, ABSTAIN_MODULES=MODULE) as server:
            results = [measure(imported, server.url) for imported in found]
    sys.stdout.write(f"{'source':36} {'draws':>5} {'difference':>11} {'rejected of 200':>16} {'of 20 far':>10}\n")
    for row in results:
        missed = "" if row["difference"] <= BOUND else f"  MISSED: at most {BOUND}"
        sys.stdout.write(
            f"{row['kind']:36} {row['draws']:5} {row['difference']:11.1e} {row['familiar_rejected']:16} "
            f"{row['far_rejected']:10}{missed}\n"
        )
    save_results("imports", results)
    return int(any(row["difference"] > BOUND for row in results))


if __name__ == "__main__":
    raise SystemExit(main())
