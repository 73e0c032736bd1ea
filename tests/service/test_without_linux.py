"""A real server without what only Linux has, played by `helpers/without_linux`: no /proc, no files in memory, no epoll.

So that a server also runs on macOS, where these tests have not run.
"""

import os
import shutil
import ssl
import subprocess
import sys
from dataclasses import replace

import httpx
import pytest

import abstain
from abstain.service.access.tls import PemFiles
from abstain.service.compat import bentoml
from tests.helpers.certificates import write_certificate
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE, alive, children, kill_all, until
from tests.helpers.servers import start_server, stop_server

WITHOUT_LINUX = {"PYTHONPATH": str(PROJECT / "tests" / "helpers" / "without_linux")}
GOLDEN = PROJECT / "tests" / "data" / "golden" / "2"
ROWS = [[0.5], [3.0]]


def python(code: str) -> str:
    """What a program prints on a system without what only Linux has."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env={**os.environ, **WITHOUT_LINUX}, cwd=PROJECT, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr.strip().rpartition("\n")[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with TLS, whose workers and main process miss what only Linux has; with a client that trusts it."""
    folder = tmp_path_factory.mktemp("without-linux")
    shutil.copytree(GOLDEN, folder / "store" / "golden" / "1")
    pem = PemFiles(*write_certificate(folder))
    tls = {"ABSTAIN_TLS_CERT": str(pem.certificate), "ABSTAIN_TLS_KEY": str(pem.key)}
    started = start_server(folder / "store", folder, wait=False, TMPDIR=str(folder), **tls, **WITHOUT_LINUX)
    running = replace(started, url=started.url.replace("http:", "https:"))
    trusted = ssl.create_default_context(cafile=pem.certificate)
    client = httpx.Client(base_url=running.url, verify=trusted, timeout=PATIENCE)
    workers: set[int] = set()

    def ready() -> bool:
        try:
            return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return running.process.poll() is not None

    try:
        assert until(ready)
        assert running.process.poll() is None, running.log.read_text()
        workers = children(running.process.pid)
        yield running, client
    finally:
        client.close()
        stop_server(running)
        kill_all(workers)


def test_what_only_linux_has_is_missing():
    """The two ways to a file, and a call; psutil still answers."""
    for code in ("open('/proc/self/stat')", "import pathlib; pathlib.Path('/proc/self/stat').read_text()"):
        assert python(code) == "FileNotFoundError: [Errno 2] No such file or directory: '/proc/self/stat'"
    assert python("import os; os.memfd_create('x')").startswith("AttributeError: module 'os' has no attribute")
    facts = python("import os, psutil; print(psutil.Process().pid == os.getpid(), psutil.Process().create_time() > 0)")
    assert facts == "True True\n"


def test_a_server_predicts_and_measures(server):
    """It is ready, so it knows which workers live; its response is that of this process, and it measures its memory."""
    running, client = server
    assert client.get("/readyz").json()["workers_ready"] == 1
    answer = client.post("/predict", json={"inputs": ROWS, "model": "golden", "fields": ["mean", "reject"]}).json()
    expected = abstain.load("golden", store=running.log.parent / "store").predict(ROWS)
    assert [row["reject"] for row in answer["predictions"]] == expected.reject.tolist() == [False, True]
    assert [row["mean"] for row in answer["predictions"]] == pytest.approx(expected.mean, abs=1e-6)
    used = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("abstain_worker_memory_bytes{")
    ]
    assert len(used) == 1
    assert float(used[0].split()[-1]) > 10_000_000
    assert "Traceback" not in running.log.read_text()


def test_a_worker_ends_with_its_main_process(server):
    """The worker notices the end of a killed main process without /proc."""
    running, _ = server
    workers = children(running.process.pid)
    assert len(workers) == 1
    running.process.kill()
    running.process.wait()
    assert until(lambda: not alive(workers))


def test_the_longest_path_of_a_socket_is_the_systems(monkeypatch, tmp_path):
    """104 bytes on macOS, four less than on Linux; both include the zero at its end."""
    for linux, most in ((True, 107), (False, 103)):
        monkeypatch.setattr("psutil.LINUX", linux)
        longest = tmp_path / ("s" * (most - len(bytes(tmp_path)) - 1))
        assert bentoml._check_socket_path(longest) == longest
        with pytest.raises(abstain.ConfigError, match=f"of at most {most} bytes"):
            bentoml._check_socket_path(longest.with_name(longest.name + "s"))
