"""Starts real servers on loopback, waits for them and stops them."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.processes import PATIENCE


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


def start_server(store: Path | str, folder: Path, *, workers: int = 1, wait: bool = True, **environment: str) -> Server:
    """Starts `abstain serve` on a free port of loopback, and waits until it is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"server-{port}.log"
    # Anybody could leave such a file in a shared folder: a server that is started there must not run it.
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


def wait_until_ready(server: Server, seconds: float = PATIENCE) -> None:
    """Waits until `/readyz` is 200; fails with the server's log if that takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.url}/readyz", timeout=PATIENCE):
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
        server.process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
