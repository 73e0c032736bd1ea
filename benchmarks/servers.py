"""Shared by the benchmarks of the service: cores, models of random networks, starting and stopping servers.

Servers listen on loopback, are started by their command as a user would, and ended by their process alone.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PYTHON = Path(sys.executable)
READY_SECONDS = 180.0
PIXELS, CLASSES = 784, 10
TRAINED, CALIBRATED = 12_000, 5_000


@dataclass(frozen=True)
class Server:
    """A running server, its address, and the seconds from its command to the first 200 of `/readyz`."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    ready_seconds: float

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"


def restrict_to_cores(cores: str) -> None:
    """Starts this program again on some cores, as `taskset` numbers them, and all that it will start with it.

    Again, since libraries count cores when they are imported. An empty string leaves all as it is.
    """
    wanted = {int(core) for core in cores.split(",") if core}
    if not wanted or wanted == os.sched_getaffinity(0):
        return
    os.sched_setaffinity(0, wanted)
    os.execv(PYTHON, [str(PYTHON), *sys.argv])


def environment(**more: str) -> dict[str, str]:
    """This process's, with the checkout that this file lies in before any that is installed."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "BENTOML_DO_NOT_TRACK": "True", **more}


def abstain_command(port: int, store: Path) -> list[str]:
    """The command of ours, one worker."""
    abstain = str(PYTHON.with_name("abstain"))
    return [abstain, "serve", "--port", str(port), "--store", str(store), "--workers", "1"]


def bentoml_command(port: int, service: str) -> list[str]:
    """The command of a BentoML service of `benchmarks/http_services.py`, one worker."""
    where = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(Path(__file__).parent)]
    return [str(PYTHON), "-m", "bentoml", "serve", f"http_services:{service}", *where]


def uvicorn_command(port: int) -> list[str]:
    """The command of plain uvicorn with the application that only decodes."""
    where = ["--host", "127.0.0.1", "--port", str(port), "--app-dir", str(Path(__file__).parent)]
    return [str(PYTHON), "-m", "uvicorn", "http_services:bare", *where, "--no-access-log", "--log-level", "warning"]


def free_port() -> int:
    """A free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def run_server(name: str, port: int, command: list[str], folder: Path, **more: str) -> Generator[Server]:
    """A server by its command, from ready until the block ends.

    Args:
        folder: for its log and BentoML's home.
        more: of its environment.
    """
    log = folder / f"{name.replace(' ', '-')}-{port}.log"
    # Nothing is read from what an earlier server has kept for its user, nor left there.
    home = {"BENTOML_HOME": str(folder / "bentoml"), "ABSTAIN_COMPILED": str(folder / "compiled")}
    with log.open("wb") as file:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=folder, env=environment(**(home | more))
        )
    try:
        _wait_until_ready(name, port, process, log)
        yield Server(name, port, process, log, time.perf_counter() - started)
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
        else:
            return
    sys.exit(f"{name} did not become ready:\n{log.read_text(errors='replace')[-3000:]}")


def random_rows(count: int, seed: int = 1) -> Any:
    """Float32 rows in [0, 1): their numbers have as many digits as float32 has."""
    import numpy as np  # noqa: PLC0415 - cores first

    return np.random.default_rng(seed).random((count, PIXELS), np.float32)


def publish_blobs(store: Path, name: str, hidden: tuple[int, ...] = (64, 64), draws: int = 100, seed: int = 0) -> None:
    """A version with every default score: random networks, feature scores and thresholds of blobs of pixels in [0, 1]."""
    import jax  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    from abstain.models.bundles.manifest import DataRecord, Manifest, MethodRecord  # noqa: PLC0415
    from abstain.models.networks.architectures import MLPSpec  # noqa: PLC0415
    from abstain.models.prediction.feature_scores import shapes_of  # noqa: PLC0415
    from abstain.models.prediction.posterior import Model, Posterior  # noqa: PLC0415
    from abstain.models.prediction.preprocessing import Preprocessing  # noqa: PLC0415
    from abstain.training.calibration.feature_scores import fit_feature_scores  # noqa: PLC0415
    from abstain.training.calibration.pipeline import build_record, calibrate_posterior  # noqa: PLC0415
    from abstain.training.calibration.reference import set_aside  # noqa: PLC0415
    from abstain.training.config.calibration import CalibrationConfig  # noqa: PLC0415
    from abstain.training.data.rows import Rows  # noqa: PLC0415
    from abstain.training.publish import installed_packages, now, publish_version  # noqa: PLC0415

    model = Model(
        network=MLPSpec(hidden=hidden),
        likelihood="categorical",
        preprocessing=Preprocessing(scale=(1.0,)),
        feature_shape=(PIXELS,),
        class_names=tuple(map(str, range(CLASSES))),
    )
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=TRAINED + CALIBRATED)
    centres = rng.random((CLASSES, PIXELS), np.float32)
    x = np.clip(centres[y] + 0.15 * rng.standard_normal((len(y), PIXELS), np.float32), 0, 1)
    start = jax.vmap(lambda key: model.module.init(key, jax.numpy.zeros(PIXELS))["params"])
    network = jax.device_get(start(jax.random.split(jax.random.key(seed), draws)))
    posterior = Posterior(model, {"network": network})
    reference, rest = set_aside(Rows(x[:TRAINED], y[:TRAINED]), seed)
    feature_scores = fit_feature_scores(posterior, rest, seed)
    terms = CalibrationConfig()
    calibrated = calibrate_posterior(terms, posterior, feature_scores, Rows(x[TRAINED:], y[TRAINED:]), reference, seed)
    manifest = Manifest(
        name=name,
        version=0,
        created=now(),
        model=model,
        draws=draws,
        method=MethodRecord(kind="random", settings={}),
        calibration=build_record(calibrated, terms, model),
        densities=shapes_of(calibrated.feature_scores),
        diagnostics={},
        metrics={},
        data=DataRecord(
            source="blobs", settings={}, fingerprint="", train_rows=TRAINED, calibration_rows=CALIBRATED, test_rows=0
        ),
        seed=seed,
        packages=installed_packages(),
        git_commit=None,
    )
    publish_version(store, manifest, posterior, calibrated)


def save_results(name: str, content: Any) -> None:
    """Writes `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))


def print_progress(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"· {text}\n")
