"""Checks which users and ports can reach the processes of a server."""

import os
import subprocess
from pathlib import Path

from circus.client import CircusClient

from tests.helpers.processes import PATIENCE
from tests.helpers.servers import Server

NOBODY = 65534
LISTENING = "0A"


def processes_of(server: Server) -> list[int]:
    """The server's main process, its workers, and all processes that they have started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text("ascii", "replace").rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # the process has ended
    found = [server.process.pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def listening_ports(server: Server) -> set[int]:
    """The TCP ports that a process of the server listens on, at any address."""
    sockets = set()
    for process in processes_of(server):
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            try:
                sockets.add(os.readlink(descriptor))
            except OSError:
                continue  # closed meanwhile
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {
        int(line[1].rsplit(":", 1)[1], 16)
        for line in lines
        if line[3] == LISTENING and f"socket:[{line[9]}]" in sockets
    }


def run_folder_of(server: Server) -> Path:
    """The folder that the server's processes share."""
    for process in processes_of(server):
        for variable in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"ABSTAIN_RUN_FOLDER="):
                return Path(os.fsdecode(variable.partition(b"=")[2]))
    raise AssertionError("no process of the server knows its run folder")


def check_closed(server: Server) -> None:
    """Checks that the server listens only on its own port, and that only its user reaches the process manager."""
    assert listening_ports(server) == {server.address[1]}
    folder = run_folder_of(server)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert CircusClient(endpoint=f"ipc://{folder}/commands", timeout=PATIENCE).send_message("list")["status"] == "ok"
    if os.getuid() == 0:
        attempt = subprocess.run(
            ["/bin/sh", "-c", f"test -e '{folder}/commands' || ls '{folder}'"],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Permission denied" in attempt.stderr
