"""The direction of the imports, and what each stage may know."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.paths import PROJECT

FORBIDDEN = {
    "models": {"training", "service", "bentoml", "starlette", "numpyro", "optax", "sklearn", "matplotlib"},
    "service": {"training", "numpyro", "optax", "sklearn", "matplotlib", "arviz_stats"},
    "training": {"service", "bentoml", "starlette"},
}


def modules(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from abstain import models` names a part of ours, other names are of no interest here.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported(path: Path) -> Iterator[str]:
    """The top-level packages that a file imports, and the parts of ours by their own names."""
    for name in modules(path):
        yield name.removeprefix("abstain.").split(".")[0]


def test_ours_is_imported_as_abstain():
    """From a checkout's root `import models` would find a second copy of every class, and elsewhere somebody else's."""
    found = [
        (path.relative_to(PROJECT).as_posix(), name)
        for folder in (*FORBIDDEN, "abstain", "benchmarks", "deploy", "examples", "tests")
        for path in (PROJECT / folder).rglob("*.py")
        for name in modules(path)
        if name.split(".")[0] in FORBIDDEN
    ]
    assert found == []


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_run_one_way(package):
    """Training → models ← service, and no stage imports another's dependencies."""
    found = {
        (path.relative_to(PROJECT).as_posix(), name)
        for path in (PROJECT / package).rglob("*.py")
        for name in imported(path)
        if name in FORBIDDEN[package]
    }
    assert found == set()


def test_no_pickle_and_no_eval():
    """Nothing unpickles, evaluates or executes what comes from outside."""
    names = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    calls = {"eval", "exec"}
    found = []
    for package in FORBIDDEN:
        for path in (PROJECT / package).rglob("*.py"):
            tree = ast.parse(path.read_text("utf-8"))
            found += [(path.name, name) for name in imported(path) if name in names]
            found += [
                (path.name, node.func.id)
                for node in ast.walk(tree)
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls
            ]
    assert found == []


def test_serving_runs_without_trainings_packages():
    """The service imports, loads and predicts in a Python that cannot import any of training's packages."""
    code = """
import sys
for name in ("numpyro", "optax", "sklearn", "matplotlib", "arviz_stats", "abstain.training"):
    sys.modules[name] = None
from abstain.models.bundles import bundle
from abstain.service.commands import cli, predict_file
from abstain.service import http, live_versions
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def room_of(name: str) -> str:
    """The folder of a module, which is a room of its stage; a module that is in none is a room of its own."""
    if (PROJECT / name.replace(".", "/")).is_dir():
        return name
    stage, *inner = name.split(".")
    return ".".join([stage, *inner[:-1]]) if len(inner) > 1 else name


def rooms_imported() -> dict[str, set[str]]:
    """For each room, the rooms that its modules import."""
    imported: dict[str, set[str]] = {}
    for stage in (*FORBIDDEN, "abstain"):
        for path in (PROJECT / stage).rglob("*.py"):
            # The public interface lies in the package's own folder, and the stages next to that.
            place = path.relative_to(PROJECT / "abstain" if stage == "abstain" else PROJECT)
            own = room_of(".".join(place.with_suffix("").parts).removesuffix(".__init__"))
            found = imported.setdefault(own, set())
            for name in modules(path):
                if name.startswith("abstain."):
                    ours = name.removeprefix("abstain.")
                    paths = [folder / ours.replace(".", "/") for folder in (PROJECT, PROJECT / "abstain")]
                    is_module = any(path.is_dir() or path.with_suffix(".py").is_file() for path in paths)
                    found.add(room_of(ours if is_module else ours.rpartition(".")[0]))
            found -= {own, ""}
    return imported


def test_the_type_checker_finds_the_public_interface():
    """`typings/abstain` links to the package's own modules and to the stages, as an installation has them together."""
    expected = {path.name: path for path in (PROJECT / "abstain").glob("*.py")} | {
        stage: PROJECT / stage for stage in FORBIDDEN
    }
    links = {path.name: path.resolve() for path in (PROJECT / "typings" / "abstain").iterdir()}
    assert links == expected


def test_no_room_runs_back():
    """The graph of the rooms' imports has no cycle: each room can be read after those that it imports."""
    rooms = rooms_imported()
    assert {*TopologicalSorter(rooms).static_order()} >= {*rooms}
