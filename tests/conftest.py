"""What the tests share: shape checking, small models fitted once, and one real server."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# What servers compile is kept for the tests' other servers, and apart from what this user's own have compiled.
os.environ["ABSTAIN_COMPILED"] = f"{tempfile.gettempdir()}/abstain-tests-compiled-{os.getuid()}"

KEPT_SECONDS = 7 * 24 * 3600


def keep_programs() -> Path:
    """A folder of compiled programs, for all processes of this run and for the next run; what no run has read in a week goes.

    Programs depend on the processor and on the number of threads, of which JAX's names for them say nothing.
    """
    facts = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    machine = sorted(fact for fact in facts if fact.startswith(("model", "flags", "Features")))
    own = f"{machine} {sorted(os.sched_getaffinity(0))} {os.environ.get('XLA_FLAGS')} {sys.version}"
    name = hashlib.sha256(own.encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"abstain-tests-programs-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        return Path(tempfile.mkdtemp(prefix="abstain-tests-programs-"))
    for program in folder.iterdir():
        with suppress(OSError):
            if time.time() - max(program.stat().st_atime, program.stat().st_mtime) > KEPT_SECONDS:
                program.unlink()
    return folder


# Compilation is most of the tests' time: the processes of a run, the commands they start, and the next run compile a
# program once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(keep_programs())
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Shapes in annotations are checked wherever the tests go; before anything of ours is imported.
install_import_hook(
    [
        "abstain.models",
        "abstain.training.adaptation",
        "abstain.training.augment",
        "abstain.training.bnn",
        "abstain.training.bootstrap",
        "abstain.training.chains",
        "abstain.training.calibrate",
        "abstain.training.coverage",
        "abstain.training.confidence_plots",
        "abstain.training.data",
        "abstain.training.densities",
        "abstain.training.diagnostics",
        "abstain.training.evaluate",
        "abstain.training.export",
        "abstain.training.failures",
        "abstain.training.fit",
        "abstain.training.fit_plots",
        "abstain.training.galleries",
        "abstain.training.gate",
        "abstain.training.grouping",
        "abstain.training.guides",
        "abstain.training.hints",
        "abstain.training.journal",
        "abstain.training.keys",
        "abstain.training.methods",
        "abstain.training.metrics",
        "abstain.training.mixtures",
        "abstain.training.monitor",
        "abstain.training.optimise",
        "abstain.training.pictures",
        "abstain.training.plots",
        "abstain.training.precision",
        "abstain.training.priors",
        "abstain.training.quality",
        "abstain.training.regression_plots",
        "abstain.training.report",
        "abstain.training.resume",
        "abstain.training.rows",
        "abstain.training.sampling",
        "abstain.training.separation_plots",
        "abstain.training.showing",
        "abstain.training.sources",
        "abstain.training.splitting",
        "abstain.training.starts",
        "abstain.training.strange",
        "abstain.training.tables",
        "abstain.training.target",
    ],
    "beartype.beartype",
)

from abstain.models.bundle import Bundle, load  # noqa: E402
from abstain.models.posterior import Draws  # noqa: E402
from abstain.training.config import Config, read_config  # noqa: E402
from abstain.training.fit import build_model, fit, infer, load_dataset, pose  # noqa: E402
from abstain.training.journal import Journal  # noqa: E402

PROJECT = Path(__file__).resolve().parents[1]
CONFIGS = PROJECT / "training" / "configs"
SHARED = PROJECT.parent / "shared" / "data"


SLOWEST = (
    "densities",
    "samplers",
    "resume",
    "cli",
    "console_browser",
    "laplace",
    "augment",
    "mile",
    "workers",
    "report",
    "hostile_serving",
)
"""Files that take longest, which begin first, so that no process is left with one at the end. The first three need no
server and no store: the process that comes to `cli` makes those while the others have work to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the files by `SLOWEST`; all others follow in their order."""
    places = {f"test_{name}": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


KEYS = int(os.environ.get("ABSTAIN_TEST_KEYS", "1"))
"""Over how many keys the stochastic tests run, those that ask for `key`."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeats a stochastic test over its keys; a test with a parameter of that name has its own."""
    marks = metafunc.definition.iter_markers("parametrize")
    names = [
        mark.args[0].replace(",", " ").split() if isinstance(mark.args[0], str) else mark.args[0] for mark in marks
    ]
    if "key" in metafunc.fixturenames and not any("key" in own for own in names):
        metafunc.parametrize("key", range(KEYS), ids=lambda key: f"key{key}", indirect=True, scope="session")


@pytest.fixture(scope="session")
def key(request: pytest.FixtureRequest) -> int:
    """Of what is random in a test."""
    return request.param


def silent(done: int, total: int, passage: str = "", **facts: float) -> None:
    """No progress shown."""


def draws_of_config(config: Config) -> Draws:
    """The draws that a fit of the config publishes, without the stages that follow inference."""
    dataset = load_dataset(config, None)
    problem = pose(config, build_model(config, dataset), dataset, Path("no store"))
    return infer(config, problem, Journal()).posterior.draws


def abstain(*arguments: str | Path, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the console command as a user would."""
    return subprocess.run(
        [Path(sys.executable).with_name("abstain"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=PROJECT,
        env={**os.environ, **environment},
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs what the console command runs, in this process: exit code, stdout, stderr in one line."""
    from abstain.service.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["abstain", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())

    return run


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A copy of a folder that `make` fills: by the first of the run's processes that needs it, the others wait."""
    own = tmp_path_factory.getbasetemp()
    # Each process of pytest-xdist has its folder in the run's.
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    made = shared / f"{name}-made-once"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            draft = shared / f"{name}-{os.getpid()}"
            make(draft)
            draft.rename(made)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp(name) / name))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `digits` (VI, quickly fitted, two versions, the first `stable`) and `wave` (NUTS regression)."""

    def make(root: Path) -> None:
        from abstain.models.store import set_label

        digits = read_config(CONFIGS / "digits-vi.toml", ("steps=400", "draws=20", "reports=2"))
        wave = read_config(
            CONFIGS / "wave-nuts.toml", ("warmup=100", "samples=100", "draws=30", "hidden=[4]", "chains=2", "reports=2")
        )
        for config in (digits, digits.model_copy(update={"seed": 1}), wave):
            fit(config, None, root, silent)
        set_label(root, "digits", 1, "stable")

    return made_once(tmp_path_factory, "store", make)


@pytest.fixture(scope="session")
def digits(store: Path) -> Bundle:
    """A classifier of 8×8 digits."""
    return load(store / "digits" / "1")


@pytest.fixture(scope="session")
def wave(store: Path) -> Bundle:
    """A regression of one feature."""
    return load(store / "wave" / "1")


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, for raw sockets."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)


def start_server(store: Path, folder: Path, *, workers: int = 1, wait: bool = True, **environment: str) -> Server:
    """`abstain serve` on a free port of loopback; returns when it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"server-{port}.log"
    # What anyone could leave in a folder that is shared: no server may run it for it is started there.
    (folder / "grp.py").write_text("raise SystemExit('a file of the working folder was imported')\n")
    command = [Path(sys.executable).with_name("abstain"), "serve", "--port", str(port), "--workers", str(workers)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--store", str(store)],
            stdout=file,
            stderr=file,
            cwd=folder,
            env={**os.environ, "BENTOML_HOME": str(folder / "bentoml"), **environment},
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    if wait:
        wait_until_ready(server)
    return server


def wait_until_ready(server: Server, seconds: float = 120) -> None:
    """Returns once `/readyz` is 200; fails with the server's log if that takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/readyz", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    stop_server(server)
    pytest.fail(f"the server did not become ready:\n{server.log.read_text()}")


def stop_server(server: Server) -> None:
    """Ends the server and waits for it."""
    if server.process.poll() is None:
        server.process.terminate()
    try:
        server.process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """One real server, two workers, for all tests that only ask."""
    running = start_server(store, tmp_path_factory.mktemp("server"), workers=2)
    yield running
    stop_server(running)
