"""Our folders are the import names: somebody else's `models` in the way is told at start, wherever one starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.shadowing import check_models_is_ours
from tests.conftest import PROJECT, abstain

OURS = PROJECT / "models" / "__init__.py"
PLAIN_INSTALL = """
import sys
# An editable install would still find ours below a foreign `models`; a plain one would not.
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", str(finder))]
sys.path.append({project!r})
sys.argv = ["abstain", "models", "--store", {store!r}]
from service.cli import main
main()
"""


@pytest.fixture
def foreign(tmp_path) -> Path:
    """A folder with a package `models` of somebody else."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("class User: ...\n")
    return tmp_path


def says_so(text: str, foreign: Path) -> bool:
    """Whether a message names both packages and what to do."""
    return all(
        part in text
        for part in (
            f"abstain's package 'models' is hidden by another: expected {OURS}",
            f"found {foreign / 'models' / '__init__.py'}",
            "start abstain from another folder, or take that folder off PYTHONPATH",
        )
    )


def python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python of ours, in some folder."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", [("models",), ("serve", "--port", "1"), ("show", "digits")])
def test_the_command_refuses_to_start(foreign, store, command):
    """Code 1 and one sentence; nothing on stdout."""
    result = abstain(*command, "--store", store, PYTHONPATH=str(foreign), timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    assert says_so(result.stderr, foreign)
    assert result.stderr.count("\n") == 1


def test_the_command_refuses_to_start_where_it_is_plainly_installed(foreign, store):
    """Without the help of an editable install too, which would hide half of the fault."""
    code = PLAIN_INSTALL.format(project=str(PROJECT), store=str(store))
    result = python(code, foreign, PYTHONPATH=str(foreign))
    assert result.returncode == 1
    assert says_so(result.stderr, foreign)
    assert "Traceback" not in result.stderr


def test_the_service_refuses_to_start(foreign):
    """Importing it, as BentoML does, says which package is in the way."""
    result = python("import service.app", foreign, PYTHONPATH=f"{foreign}{os.pathsep}{PROJECT}")
    assert result.returncode == 1
    assert says_so(result.stderr, foreign)
    assert "ModuleNotFoundError" not in result.stderr


def test_bentoml_serve_refuses_to_start(foreign, store):
    """`bentoml serve service.app:Abstain` in a project with its own `models` ends, and says so."""
    result = subprocess.run(
        [Path(sys.executable).with_name("bentoml"), "serve", "service.app:Abstain", "--port", "1"],
        cwd=foreign,
        env={**os.environ, "ABSTAIN_STORE": str(store), "BENTOML_HOME": str(foreign / "home")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert says_so(result.stderr + result.stdout, foreign)


def test_the_command_works_in_a_folder_with_a_foreign_models(foreign, store):
    """The current folder is not on the command's path, so a package there is in nobody's way."""
    result = subprocess.run(
        [Path(sys.executable).with_name("abstain"), "models", "--store", store],
        cwd=foreign,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "digits:1" in result.stdout


def test_our_own_package_is_no_foreign_one():
    """Where all is well nothing is said."""
    check_models_is_ours()


def test_a_folder_of_models_that_is_no_package_is_no_foreign_one(tmp_path, store):
    """People keep models in folders called `models`; Python prefers a real package to them."""
    (tmp_path / "models" / "big.bin").mkdir(parents=True)
    code = PLAIN_INSTALL.format(project=str(PROJECT), store=str(store))
    result = python(code, tmp_path, PYTHONPATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "digits:1" in result.stdout


def test_where_such_a_folder_hides_ours_it_is_named(tmp_path, store):
    """An editable install comes after every folder on the path: then the folder in the way is told."""
    (tmp_path / "models" / "big.bin").mkdir(parents=True)
    result = abstain("models", "--store", store, PYTHONPATH=str(tmp_path), timeout=60)
    assert result.returncode == 0 or str(tmp_path / "models") in result.stderr
