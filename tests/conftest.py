"""What the tests share: shape checking, small models fitted once, and one real server."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from jaxtyping import install_import_hook
from threadpoolctl import threadpool_limits

import tests.helpers.typecheck  # noqa: F401 - the hook looks for it

# A hundred processes import these modules. Checked annotations make their compilation several times longer.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Most matrices of the tests are small: with more threads, linear algebra waits for the other processes longer than it
# computes. numpy is loaded already, what is loaded later and processes that tests start read the environment.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
threadpool_limits(1)

# What servers compile is kept for the tests' other servers, and apart from what this user's own have compiled.
os.environ["ABSTAIN_COMPILED"] = f"{tempfile.gettempdir()}/abstain-tests-compiled-{os.getuid()}"

KEPT_SECONDS = 7 * 24 * 3600


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """The name of a parameter of bytes is its argument's, as the processes of one run must find the same names.

    Compressed bytes hold the time at which they were written.
    """
    return argname if isinstance(val, bytes) else None


def keep_programs() -> Path:
    """A folder of compiled programs, for all processes of this run and for the next run; what no run has read in a week goes.

    Programs depend on the processor and on the number of threads, of which JAX's names for them say nothing.
    """
    about = Path("/proc/cpuinfo")
    facts = about.read_text().partition("\n\n")[0].splitlines() if about.exists() else [*platform.uname()]
    machine = sorted(fact for fact in facts if fact.startswith(("model", "flags", "Features")) or not about.exists())
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()
    own = f"{machine} {cores} {os.environ.get('XLA_FLAGS')} {sys.version}"
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
CHECKED = ["abstain.models", "abstain.training", "abstain.service", "abstain.predictions"]
install_import_hook(CHECKED, "tests.helpers.typecheck.check")

from abstain.models.bundles.bundle import Bundle, load  # noqa: E402
from abstain.models.bundles.remote.url import RemoteURL  # noqa: E402
from abstain.training.config.reading import read_config  # noqa: E402
from abstain.training.fit import fit  # noqa: E402
from tests.helpers.crew import fit_crew, serving  # noqa: E402
from tests.helpers.fits import made_once, silent  # noqa: E402
from tests.helpers.object_server import ObjectServer, run_object_server  # noqa: E402
from tests.helpers.paths import CONFIGS  # noqa: E402
from tests.helpers.servers import Server, start_server, stop_server  # noqa: E402

SLOWEST = (
    "feature_scores",
    "samplers",
    "resume",
    "cli",
    "console_browser",
    "laplace",
    "augmentation",
    "mile",
    "process",
    "page",
    "hostile_serving",
)
"""Files that take longest, which begin first, so that no process is left with one at the end. The first three need no
server and no store: the process that comes to `cli` makes those while the others have work to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the files by `SLOWEST`; all others follow in their order."""
    places = {f"test_{name}": place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


FIRST_BYTES, MORE_BYTES = 1_600_000_000, 150_000_000
"""Memory of a test process at which compiled programs are dropped for the first time, and its growth until the next time:
they pile up over thousands of tests. Dropping them takes a second, and does not return all memory."""
next_drop = FIRST_BYTES


def pytest_collection_finish() -> None:
    """Leaves the modules imported so far out of garbage collections: they are most objects, and stay to the end."""
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Drops compiled programs where the process has grown large; later tests read theirs from the folder of programs."""
    global next_drop  # noqa: PLW0603
    process = psutil.Process()
    if nextitem is None or process.memory_info().rss < next_drop:
        return
    import jax

    jax.clear_caches()
    gc.collect()
    with suppress(AttributeError, OSError):  # The C library is another than glibc.
        ctypes.CDLL(None).malloc_trim(0)
    next_drop = max(FIRST_BYTES, process.memory_info().rss + MORE_BYTES)


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


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs what the console command runs, in this process: exit code, stdout, stderr in one line."""
    from abstain.service.commands.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["abstain", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "300")
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())

    return run


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `digits` (VI, quickly fitted, two versions, the first `stable`) and `wave` (NUTS regression)."""

    def make(root: Path) -> None:
        from abstain.models.bundles.store import set_label

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


@pytest.fixture(scope="session")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """One real server, two workers, for all tests that only ask."""
    running = start_server(store, tmp_path_factory.mktemp("server"), workers=2)
    yield running
    stop_server(running)


@pytest.fixture(scope="session")
def crew_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `crew` (VI, quickly fitted), a classifier of a table with numbers, gaps, categories and dates."""
    return made_once(tmp_path_factory, "crew", fit_crew)


@pytest.fixture(scope="session")
def crew_url(crew_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A server of `crew` in this process, for all tests that only ask."""
    with serving(crew_store, tmp_path_factory.mktemp("crew-server")) as url:
        yield url


@pytest.fixture(scope="session")
def object_server() -> Generator[ObjectServer]:
    """A real S3 server."""
    with run_object_server() as running:
        yield running


@pytest.fixture
def store_url(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> RemoteURL:
    """An empty store on the S3 server, whose credentials are in the environment; the server's door is open."""
    for name, value in object_server.environment.items():
        monkeypatch.setenv(name, value)
    object_server.door.open()
    return object_server.make_store()
