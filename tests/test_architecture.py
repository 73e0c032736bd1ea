"""The direction of the imports, and what each stage may know."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

FORBIDDEN = {
    "models": {"training", "service", "bentoml", "starlette", "numpyro", "optax", "sklearn", "matplotlib"},
    "service": {"training", "numpyro", "optax", "sklearn", "matplotlib", "arviz_stats"},
    "training": {"service", "bentoml", "starlette"},
}


def imported(path: Path) -> Iterator[str]:
    """The top-level packages a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


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
for name in ("numpyro", "optax", "sklearn", "matplotlib", "arviz_stats", "training"):
    sys.modules[name] = None
import service.http, service.serving, service.offline, service.cli, models.bundle
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
