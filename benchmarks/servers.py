"""Functions that the benchmarks of the service share: cores, models of random networks, starting and stopping servers.

Servers listen on loopback, are started by the command that users run, and stopped by a signal to their process.
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
READY_SECONDS = 600.0
PIXELS, CLASSES = 784, 10
TRAINING_ROWS, CALIBRATION_ROWS = 12_000, 5_000


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
        """The URL of the server, without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"


def restrict_to_cores(cores: str) -> None:
    """Restricts this program, and all that it starts, to some cores, with the numbers of `taskset`; "" changes nothing.

    Starts the program again, because libraries count cores when they are imported.
    """
    wanted = {int(core) for core in cores.split(",") if core}
    if not wanted or wanted == os.sched_getaffinity(0):
        return
    os.sched_setaffinity(0, wanted)
    os.execv(PYTHON, [str(PYTHON), *sys.argv])


def environment(**variables: str) -> dict[str, str]:
    """Returns this process's environment with more variables, and with this checkout before an installed one."""
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "BENTOML_DO_NOT_TRACK": "True", **variables}


def abstain_command(port: int, store: Path) -> list[str]:
    """Returns the command of abstain with one worker."""
    abstain = str(PYTHON.with_name("abstain"))
    return [abstain, "serve", "--port", str(port), "--store", str(store), "--workers", "1"]


def bentoml_command(port: int, service: str) -> list[str]:
    """Returns the command of a BentoML service of `benchmarks/http_services.py` with one worker."""
    options = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(Path(__file__).parent)]
    return [str(PYTHON), "-m", "bentoml", "serve", f"http_services:{service}", *options]


def uvicorn_command(port: int) -> list[str]:
    """Returns the command of uvicorn with the application that only decodes."""
    options = ["--host", "127.0.0.1", "--port", str(port), "--app-dir", str(Path(__file__).parent)]
    return [str(PYTHON), "-m", "uvicorn", "http_services:bare", *options, "--no-access-log", "--log-level", "warning"]


def free_port() -> int:
    """Returns a free port on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def run_server(name: str, port: int, command: list[str], folder: Path, **variables: str) -> Generator[Server]:
    """Starts a server, yields it when it is ready, and stops it.

    Args:
        folder: a folder for its log and for BentoML's home.
        variables: environment variables of the server.
    """
    log = folder / f"{name.replace(' ', '-')}-{port}.log"
    # Separate folders: the server neither reads nor changes the files in the user's own.
    home = {"BENTOML_HOME": str(folder / "bentoml"), "ABSTAIN_COMPILED": str(folder / "compiled")}
    with log.open("wb") as file:
        start_time = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=folder,
            env=environment(**(home | variables)),
        )
    try:
        _wait_until_ready(name, port, process, log)
        yield Server(name, port, process, log, time.perf_counter() - start_time)
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
    """Draws float32 rows in [0, 1); as text, their numbers have all digits of float32."""
    import numpy as np  # noqa: PLC0415 - after `restrict_to_cores`

    return np.random.default_rng(seed).random((count, PIXELS), np.float32)


def publish_blobs(store: Path, name: str, hidden: tuple[int, ...] = (64, 64), draws: int = 100, seed: int = 0) -> None:
    """Publishes random networks with every default score, feature scores and thresholds of clusters of pixels in [0, 1]."""
    import numpy as np  # noqa: PLC0415

    from abstain.models.networks.architectures import MLPSpec  # noqa: PLC0415
    from abstain.models.prediction.posterior import Model  # noqa: PLC0415
    from abstain.models.prediction.preprocessing import Preprocessing  # noqa: PLC0415

    model = Model(
        network=MLPSpec(hidden=hidden),
        likelihood="categorical",
        preprocessing=Preprocessing(scale=(1.0,)),
        feature_shape=(PIXELS,),
        class_names=tuple(map(str, range(CLASSES))),
    )
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=TRAINING_ROWS + CALIBRATION_ROWS)
    centres = rng.random((CLASSES, PIXELS), np.float32)
    x = np.clip(centres[y] + 0.15 * rng.standard_normal((len(y), PIXELS), np.float32), 0, 1)
    publish_random(store, name, model, x, y, CALIBRATION_ROWS, draws, seed)


def publish_random(
    store: Path, name: str, model: Any, x: Any, y: Any, calibration_rows: int, draws: int, seed: int = 0
) -> None:
    """Publishes random draws of a network; its scores and thresholds are those of the rows given.

    Args:
        model: a `Model`.
        x, y: rows as a source has them; the last `calibration_rows` are the calibration part.
    """
    import jax  # noqa: PLC0415

    from abstain.models.bundles.manifest import DataRecord, Manifest, MethodRecord  # noqa: PLC0415
    from abstain.models.prediction.feature_scores import shapes_of  # noqa: PLC0415
    from abstain.models.prediction.posterior import Posterior  # noqa: PLC0415
    from abstain.models.prediction.preprocessing import transformed_shape  # noqa: PLC0415
    from abstain.training.calibration.feature_scores import fit_feature_scores  # noqa: PLC0415
    from abstain.training.calibration.pipeline import build_record, calibrate_posterior  # noqa: PLC0415
    from abstain.training.calibration.reference import set_aside  # noqa: PLC0415
    from abstain.training.config.calibration import CalibrationConfig  # noqa: PLC0415
    from abstain.training.data.rows import Rows  # noqa: PLC0415
    from abstain.training.publish import installed_packages, now, publish_version  # noqa: PLC0415

    training_rows = len(x) - calibration_rows
    shape = transformed_shape(model.preprocessing, model.feature_shape)
    start = jax.vmap(lambda key: model.module.init(key, jax.numpy.zeros(shape))["params"])
    network = jax.device_get(start(jax.random.split(jax.random.key(seed), draws)))
    posterior = Posterior(model, {"network": network})
    reference, rest = set_aside(Rows(x[:training_rows], y[:training_rows]), seed)
    feature_scores = fit_feature_scores(posterior, rest, seed)
    settings = CalibrationConfig()
    calibrated = calibrate_posterior(
        settings, posterior, feature_scores, Rows(x[training_rows:], y[training_rows:]), reference, seed
    )
    manifest = Manifest(
        name=name,
        version=0,
        created=now(),
        model=model,
        draws=draws,
        method=MethodRecord(kind="random", settings={}),
        calibration=build_record(calibrated, settings, model),
        densities=shapes_of(calibrated.feature_scores),
        diagnostics={},
        metrics={},
        data=DataRecord(
            source="random",
            settings={},
            fingerprint="",
            train_rows=training_rows,
            calibration_rows=calibration_rows,
            test_rows=0,
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
    """Prints a line on stderr."""
    sys.stderr.write(f"· {text}\n")
