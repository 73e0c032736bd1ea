"""BentoML's interfaces: `bentoml serve`, `bentoml build`, its client, and a call within Python."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import bentoml
import httpx
import numpy as np
import pytest
from bentoml.exceptions import InvalidArgument, NotFound

from tests.helpers.doors import check_closed
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE
from tests.helpers.servers import Server, stop_server, wait_until_ready

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # BentoML's, of its own

BENTOML = Path(sys.executable).with_name("bentoml")
IMAGES = np.random.default_rng(0).integers(0, 17, (3, 64)).tolist()
POINTS = [[0.25], [-1.5]]


def environment(home: Path, **more: str) -> dict[str, str]:
    """A user's environment, with BentoML's home in a folder of the test and no other settings of abstain."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("ABSTAIN_", "BENTOML_"))}
    return {**plain, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", **more}


def bentoml_serve(*arguments: str, cwd: Path, folder: Path, **more: str) -> Server:
    """Starts `bentoml serve` on a free port and waits until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"bentoml-{port}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [BENTOML, "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)],
            stdout=file,
            stderr=file,
            cwd=cwd,
            env=environment(folder / "home", **more),
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    wait_until_ready(server, 180)
    return server


def predictions(server: Server, inputs: list, model: str) -> list[dict]:
    """The predictions over HTTP."""
    response = httpx.post(f"{server.url}/predict", json={"inputs": inputs, "model": model}, timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


@pytest.fixture
def client(server):
    """BentoML's client."""
    with bentoml.SyncHTTPClient(server.url) as client:
        yield client


def test_bentomls_client_predicts(server, client):
    """It reads `predict` from the server, sends arguments by name or position, and returns the whole response."""
    assert client.is_ready()
    answer = client.predict(inputs=IMAGES, model="digits")
    assert answer["predictions"] == predictions(server, IMAGES, "digits")
    assert answer["model"]["name"] == "digits"
    by_place = client.predict(IMAGES, "digits", 95.0, 0.5, ["label", "reject"])
    assert (by_place["percentile"], by_place["coverage"]) == (95.0, 0.5)
    assert [list(row) for row in by_place["predictions"]] == [["label", "reject"]] * 3


def test_bentomls_client_sends_arrays(client):
    """A numpy array is a batch."""
    for rows, model in ((np.array(IMAGES, np.float64), "digits"), (np.array(POINTS), "wave")):
        found = client.predict(inputs=rows, model=model)["predictions"]
        assert found == client.predict(inputs=rows.tolist(), model=model)["predictions"]


def test_bentomls_client_raises_the_servers_errors(client):
    """400 and 404 become its exceptions, with the text of the error."""
    with pytest.raises(InvalidArgument, match=r"inputs\[0\]: expected 64 numbers, found 1"):
        client.predict(inputs=[[1]], model="digits")
    with pytest.raises(NotFound, match="expected one of digits, wave, found 'nope'"):
        client.predict(inputs=IMAGES, model="nope")
    with pytest.raises(InvalidArgument, match="model: expected one of digits, wave, found no key 'model'"):
        client.predict(inputs=IMAGES)


def test_bentoml_serve_in_the_projects_root_is_the_same_server(server, store, tmp_path):
    """It needs no argument except the store, and gives the same numbers as `abstain serve`."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        to_proxy = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        more = {"ABSTAIN_STORE": str(store), "BENTOML_DO_NOT_TRACK": "False", "HTTPS_PROXY": to_proxy}
        running = bentoml_serve(cwd=PROJECT, folder=tmp_path, **more)
        # Usage reports are sent when a server starts: the proxy would have received them.
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):
            proxy.accept()
    try:
        check_closed(running)
        for inputs, model in ((IMAGES, "digits"), (POINTS, "wave")):
            assert predictions(running, inputs, model) == predictions(server, inputs, model)
        refused = httpx.post(f"{running.url}/predict", json={"inputs": [["1"]], "model": "wave"}, timeout=PATIENCE)
        assert refused.status_code == 400
        assert refused.json()["error"] == "inputs[0][0]: expected a number, found the string '1'"
        assert (
            httpx.get(f"{running.url}/models", timeout=PATIENCE).json()
            == httpx.get(f"{server.url}/models", timeout=PATIENCE).json()
        )
    finally:
        stop_server(running)
    assert running.process.returncode == 0


def test_bentoml_serve_does_not_listen_beyond_loopback_without_keys(store, tmp_path):
    """Its default is every address: it ends with one line, and does not listen."""
    ended = subprocess.run(
        [BENTOML, "serve", "--port", "1"],
        cwd=PROJECT,
        env=environment(tmp_path, ABSTAIN_STORE=str(store)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("abstain: --host 0.0.0.0: other machines could use this server without a key: exp")
    assert "Traceback" not in ended.stderr


def test_a_built_bento_contains_code_and_models(server, store, tmp_path):
    """`bentoml build`, then `bentoml serve` by tag from an empty folder: the Bento's code serves the Bento's models."""
    project, empty = tmp_path / "project", tmp_path / "empty"
    empty.mkdir()
    for name in ("abstain", "models", "service", "training"):
        shutil.copytree(PROJECT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("bentofile.yaml", "pyproject.toml", "requirements-serving.lock", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, project / name)
    shutil.copytree(store / "wave", project / "artifacts" / "wave")
    module = project / "service" / "responses.py"
    module.write_text(module.read_text("utf-8").replace("no such route", "no such road"), "utf-8")

    built = subprocess.run(
        [BENTOML, "build", "--output", "tag"],
        cwd=project,
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    tag = built.stdout.split("__tag__:")[1].strip()
    assert tag.startswith("abstain-server:")
    name, version = tag.split(":")
    source = tmp_path / "home" / "bentos" / name / version / "src"
    packed = {path.relative_to(source).parts[0] for path in source.rglob("*") if path.is_file()}
    assert packed == {"abstain", "models", "service", "artifacts", "bentofile.yaml"}
    requirements = source.parent / "env" / "python" / "requirements.txt"
    packages = requirements.read_text("utf-8")
    assert "bentoml==" in packages
    assert [name for name in ("numpyro", "scikit-learn", "matplotlib", "pytest") if f"{name}==" in packages] == []
    shutil.rmtree(project)

    running = bentoml_serve(tag, cwd=empty, folder=tmp_path)
    try:
        check_closed(running)
        assert predictions(running, POINTS, "wave") == predictions(server, POINTS, "wave")
        assert [model["name"] for model in httpx.get(f"{running.url}/models", timeout=PATIENCE).json()["models"]] == [
            "wave"
        ]
        error = httpx.get(f"{running.url}/nope", timeout=PATIENCE).json()["error"]
        assert error.startswith("no such road: /nope; ")
        for page in ("", "console/app.js", "console/uPlot.esm.js"):
            assert httpx.get(f"{running.url}/{page}", timeout=PATIENCE).status_code == 200
    finally:
        stop_server(running)
    assert list(empty.iterdir()) == []


def test_a_call_within_python_equals_http(server, store, tmp_path):
    """`Abstain().predict(...)` without a server gives the same predictions and errors."""
    code = f"""
import json, sys
from abstain.service.app import Abstain
from abstain.models.errors import InputError
service = Abstain()
full = [service.predict(inputs={IMAGES!r}, model="digits"), service.predict(inputs={POINTS!r}, model="wave")]
some = service.predict(inputs={IMAGES!r}, model="digits:1", percentile=50, coverage=0.5, fields=["label"])
try:
    service.predict(inputs=[[1.0, 2.0]], model="wave")
except InputError as error:
    refused = str(error)
json.dump([full, some, refused], sys.stdout)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env=environment(tmp_path, ABSTAIN_STORE=str(store), TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    (digits, wave), some, refused = json.loads(finished.stdout)
    assert digits["predictions"] == predictions(server, IMAGES, "digits")
    assert wave["predictions"] == predictions(server, POINTS, "wave")
    assert len({digits["id"], wave["id"], some["id"]}) == 3
    assert (some["percentile"], some["coverage"]) == (50.0, 0.5)
    assert [list(row) for row in some["predictions"]] == [["label"]] * 3
    assert refused == "inputs[0]: expected 1 number, found 2"
    assert not list(tmp_path.glob("abstain-run-*"))
