"""A real S3 server on loopback: moto's, in a process of its own, behind a door that can be closed.

    python -m tests.helpers.object_server PORT

moto compares `If-None-Match` and `If-Match` with the object, and then writes it, without a lock in between. A lock around such
requests makes it keep what S3 promises; `test_the_server_keeps_conditions` checks it.
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from abstain.models.bundles.remote.url import RemoteURL
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE


class Door:
    """Forwards connections of a port to another; closed, it ends them (`refuse`) or leaves them without an answer (`hang`)."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.mode = "open"
        self.cut_after: int | None = None
        """Ends the next answer after so many bytes."""
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self, mode: str = "refuse") -> None:
        """Closes the door for new and old connections."""
        self.mode = mode
        for connection in [*self._open]:
            if mode == "refuse":
                _end(connection)

    def open(self) -> None:
        """Opens the door; connections that were left without an answer end."""
        self.mode = "open"
        for connection in [*self._open]:
            _end(connection)

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self.mode == "refuse":
                _end(client)
                continue
            server = socket.create_connection(("127.0.0.1", self._target))
            self._open |= {client, server}
            for source, sink, answers in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._forward, args=(source, sink, answers), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while part := source.recv(65536):
                while self.mode == "hang":
                    time.sleep(0.05)
                if answers and self.cut_after is not None:
                    part, self.cut_after = part[: self.cut_after], None
                    sink.sendall(part)
                    break
                sink.sendall(part)
        for connection in (source, sink):
            _end(connection)
            self._open.discard(connection)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@dataclass(frozen=True)
class ObjectServer:
    """A running server, and the variables by which clients reach it through its door."""

    port: int
    door: Door
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(default_factory=dict)

    def make_store(self) -> RemoteURL:
        """Makes a bucket; returns a prefix in it."""
        bucket = f"models-{uuid.uuid4().hex[:8]}"
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{bucket}", method="PUT")
        urllib.request.urlopen(request, timeout=PATIENCE).close()
        return RemoteURL("s3", bucket, "our/store")


@contextmanager
def run_object_server() -> Iterator[ObjectServer]:
    """Starts a server, and ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tests.helpers.object_server", str(port)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=PATIENCE).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        door = Door(port)
        yield ObjectServer(
            port,
            door,
            process,
            {
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{door.port}",
                "AWS_ALLOW_HTTP": "true",
            },
        )
    finally:
        process.kill()
        process.wait()


def main() -> None:
    """Runs the server until it is ended."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    application, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def guarded(environ, start_response):
        if environ["REQUEST_METHOD"] == "PUT" and {"HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"} & {*environ}:
            with lock:
                return [*application(environ, start_response)]
        return application(environ, start_response)

    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    run_simple("127.0.0.1", int(sys.argv[1]), guarded, threaded=True)


if __name__ == "__main__":
    main()
