"""The package: one import name, in a wheel next to a project that has folders of the same names as ours."""

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE
from tests.helpers.servers import Server, stop_server, wait_until_ready

NET = """
import flax.linen as nn

class Net(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.outputs)(nn.tanh(nn.Dense(8)(x.ravel())))
"""
CONFIG = """
name = "own"
draws = 4

[data]
source = "digits"
inputs = "range"

[network]
kind = "module"
module = "models.mynet:Net"

[method]
kind = "vi"
steps = 100
"""

FOLDERS = ("abstain", "models", "service", "training")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what is in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "source"
    for name in FOLDERS:
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(copy)], check=True, timeout=300, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A virtual environment with the wheel; what it depends on is that of this one."""
    home = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=300)
    python = home / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(command, check=True, timeout=300, cwd=home)
    own = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    # A path file is read for the folders that it names, not for their path files: the editable install here is not found.
    paths = {sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))}
    (own / "dependencies.pth").write_text("\n".join(sorted(paths)))
    script = "import sys; from bentoml_cli.cli import cli; sys.exit(cli())"
    (home / "bin" / "bentoml").write_text(f"#!{python}\n{script}\n")
    (home / "bin" / "bentoml").chmod(0o755)
    return home / "bin"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Somebody's project, whose folders have the names of ours."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("models", "service", "training"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("OWNER = 'somebody else'\n")
    (folder / "models" / "mynet.py").write_text(NET)
    (folder / "own.toml").write_text(CONFIG)
    return folder


def environment(project, **more):
    """A user's, whose project is on the path; nothing of this checkout is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ABSTAIN_", "PYTHON"))}
    return kept | {"PYTHONPATH": str(project), "BENTOML_HOME": str(project / "bentoml"), **more}


def test_the_wheel_has_one_top_level_name(wheel):
    """Nothing else reaches site-packages, and every file of the four folders does: pages, templates, example configs."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"abstain"}
    folders = {folder: "" if folder == "abstain" else f"{folder}/" for folder in FOLDERS}
    source = {
        f"abstain/{inside}{path.relative_to(PROJECT / folder).as_posix()}"
        for folder, inside in folders.items()
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for part in ("py.typed", "training/configs/digits-vi.toml", "service/console/index.html"):
        assert f"abstain/{part}" in source
    assert source == {name for name in names if ".dist-info/" not in name}


SERVING_ALONE = """
import importlib.machinery
from abstain.training.extra import NEEDED
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *more: None if name.split(".")[0] in NEEDED else find(name, *more)
"""
ALL_COMMANDS = """
import contextlib, io, json, sys
from abstain.service.commands.cli import main
found = []
for words in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        sys.argv = ["abstain", *words.split()]
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""
WITHOUT_EXTRA = {"--version": "abstain 0.", "configs": "digits-vi", "configs digits-vi": 'name = "digits"'}
"""Commands that work without the extra, and what they print."""
WITH_EXTRA = (
    "fit digits-vi",
    "init rows.csv --target y",
    "import a.npz --config own.toml",
    "calibrate digits --data rows.csv",
    "evaluate digits --data rows.csv",
)


def test_without_the_extra_the_package_serves_and_says_what_fitting_needs(installed, project, tmp_path):
    """The client, the commands for a store, the examples and the settings; each command of training names the extra."""
    (tmp_path / "sitecustomize.py").write_text(SERVING_ALONE)
    alone = environment(tmp_path) | {"COLUMNS": "200"}

    client = [installed / "python", "-c", "import abstain, sys; abstain.Client; print('jax' in sys.modules)"]
    done = subprocess.run(client, cwd=project, env=alone, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
    commands = [installed / "python", "-c", ALL_COMMANDS, *WITHOUT_EXTRA, *WITH_EXTRA]
    done = subprocess.run(commands, cwd=project, env=alone, capture_output=True, text=True, check=True)
    codes, outputs, errors = zip(*json.loads(done.stdout), strict=True)
    assert codes == (0,) * len(WITHOUT_EXTRA) + (1,) * len(WITH_EXTRA), errors
    for output, expected in zip(outputs, WITHOUT_EXTRA.values(), strict=False):
        assert expected in output
    for error in errors[len(WITHOUT_EXTRA) :]:
        assert error.startswith("abstain: this command needs packages that are not installed: found arviz_base, ")
        assert error.endswith("; pip install 'abstain[training]'\n")


def test_names_like_ours_are_the_users_own(installed, project):
    """Beside the project they are its modules, elsewhere there are none; ours are in the installed package."""
    look = (
        "import abstain.models.errors, models, service, training; print(models.OWNER, abstain.models.errors.__file__)"
    )
    done = subprocess.run(
        [installed / "python", "-c", look],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    owner, place = done.stdout.rsplit(" ", 1)
    assert (owner, Path(place).is_relative_to(installed.parent)) == ("somebody else", True)
    for name in ("models", "service", "training"):
        command = [installed / "python", "-P", "-c", f"import {name}"]
        absent = subprocess.run(
            command, cwd="/", env=environment(Path("/nowhere")), capture_output=True, text=True, check=False
        )
        assert f"No module named '{name}'" in absent.stderr


def test_the_version_is_the_packages(installed, project):
    """It is read at the first use, and importing the package imports none of its parts."""
    code = (
        "import sys, abstain; print(abstain.__version__, any(n.startswith(('abstain.', 'jax')) for n in sys.modules))"
    )
    done = subprocess.run([installed / "python", "-c", code], cwd="/", capture_output=True, text=True, check=True)
    (line,) = [row for row in (PROJECT / "pyproject.toml").read_text().splitlines() if row.startswith("version = ")]
    assert done.stdout.split() == [line.split('"')[1], "False"]


def test_a_network_in_a_folder_of_the_same_name_is_fitted_and_served(installed, project):
    """`abstain fit`, `abstain serve` and `bentoml serve` in the project's folder, with the project's own `models.mynet`."""
    fit = subprocess.run(
        [installed / "abstain", "fit", "own.toml"],
        cwd=project,
        env=environment(project),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert fit.returncode == 0, fit.stderr
    row = {"inputs": [[16.0] * 64], "model": "own"}
    more = environment(project, ABSTAIN_MODULES="models.mynet")
    answers = []
    for command in (["abstain", "serve"], ["bentoml", "serve", "abstain.service.app:Abstain", "--host", "127.0.0.1"]):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        log = project / f"server-{port}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [installed / command[0], *command[1:], "--port", str(port)],
                cwd=project,
                env=more,
                stdout=file,
                stderr=file,
            )
        server = Server(f"http://127.0.0.1:{port}", process, log)
        wait_until_ready(server)
        try:
            answers.append(httpx.post(f"{server.url}/predict", json=row, timeout=PATIENCE).json()["predictions"])
        finally:
            stop_server(server)
    assert answers[0] == answers[1]
    assert len(answers[0]) == 1
