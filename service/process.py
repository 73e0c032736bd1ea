"""The processes of one server: BentoML's main process and its workers.

The main process makes a folder for the run and puts its path into the environment, which workers inherit. The folder holds a
file for each worker that is ready, and the workers' metrics. Call `join_run` before jax and prometheus_client are imported,
because both read the environment at import.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from abstain.service.errors import UnreadBody

RUN_FOLDER = "ABSTAIN_RUN_FOLDER"
MAIN_NOTE = "main"
_ADDRESS_NOTE = "address"
_ANNOUNCED_NOTE = "announced"
_LAST_SECONDS = 2.0
"""Time that a worker may take to end after its last request, or after the grace time."""
_GONE = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


@dataclass(frozen=True)
class Process:
    """This process: its index among the workers (from 1; None in the main process), and the folder of the run."""

    index: int | None
    workers: int
    folder: Path

    def mark_ready(self) -> None:
        """Tells all workers that this one has loaded, verified and compiled every served model."""
        own = self.folder / f"ready-{self.index}"
        draft = own.with_suffix(".draft")
        _leave_note(draft)
        draft.rename(own)

    def mark_unready(self) -> None:
        """Tells all workers that this one is no longer ready."""
        (self.folder / f"ready-{self.index}").unlink(missing_ok=True)

    def ready_workers(self) -> int:
        """Returns the number of workers that are ready and alive."""
        return len(self.ready_indices())

    def ready_indices(self) -> list[int]:
        """Returns the indices of the workers that are ready and alive."""
        notes = [note for note in self.folder.glob("ready-?*") if not note.suffix]
        return sorted(int(note.name.removeprefix("ready-")) for note in notes if _alive(note))

    def mark_accepting(self) -> None:
        """Tells the main process that this worker answers requests, so that it must take part in every change."""
        _leave_note(self.folder / f"accepting-{self.index}")

    def accepting_indices(self) -> list[int]:
        """Returns the indices of the workers that answer requests and are alive."""
        notes = self.folder.glob("accepting-?*")
        return sorted(int(note.name.removeprefix("accepting-")) for note in notes if _alive(note))

    def replaces_a_worker(self) -> bool:
        """Whether this worker starts in a server that has answered requests before."""
        return any(self.folder.glob("accepting-?*"))

    def announce_ready(self) -> bool:
        """Whether all workers are ready for the first time, and this one is to say so: true in one worker, once."""
        if self.ready_workers() < self.workers:
            return False
        try:
            (self.folder / _ANNOUNCED_NOTE).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def address(self) -> str | None:
        """Returns the address of the server; None if it was not started by `abstain serve`."""
        try:
            return (self.folder / _ADDRESS_NOTE).read_text()
        except FileNotFoundError:
            return None


def make_run_folder() -> Path:
    """Makes the folder of a run whose main process is this one, and puts its path into the environment."""
    folder = Path(tempfile.mkdtemp(prefix="abstain-run-"))
    os.environ[RUN_FOLDER] = str(folder)
    _leave_note(folder / MAIN_NOTE)
    return folder


def leave_address(folder: Path, address: str) -> None:
    """Writes the address of the server into the folder of the run, for the workers' messages."""
    (folder / _ADDRESS_NOTE).write_text(address)


def join_run(workers: int, index: int | None) -> Process:
    """Registers this process in the run, and sets the environment variables that libraries read when they are imported."""
    if index is None:
        folder, owner = _own_run_folder() or make_run_folder(), os.getpid()
        atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
        return Process(None, workers, folder)
    folder = Path(os.environ[RUN_FOLDER])
    metrics = folder / "metrics"
    metrics.mkdir(exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    # uvicorn would trust forwarded headers from every user of the machine; service/access/proxies.py decides instead.
    os.environ["FORWARDED_ALLOW_IPS"] = ""
    os.environ |= worker_environment(workers)
    return Process(index, workers, folder)


def worker_environment(workers: int) -> dict[str, str]:
    """Returns the variables of a worker on which the programs that XLA compiles for it depend."""
    # XLA sizes its thread pool by NPROC; without it every worker would take every core.
    return {"NPROC": os.environ.get("NPROC") or str(max(1, cores() // workers))}


class Traffic:
    """The number of requests that a worker is handling, and whether it is about to stop."""

    def __init__(self) -> None:
        self.under_way = 0
        self.draining = False

    def refuse_if_draining(self) -> None:
        """Refuses a prediction, whose body is not read, if this worker is about to stop.

        Raises:
            UnreadBody: 503; the client can try again over a new connection.
        """
        if self.draining:
            # The response to an unread body closes the connection.
            raise UnreadBody(503, "draining: this server is about to stop", {"Retry-After": "1"}, code="draining")


def drain_on_stop(process: Process, traffic: Traffic, grace_seconds: float) -> None:
    """Makes a worker finish its requests when it is stopped, for at most the grace time; new requests get 503.

    Only then the server's own handler of the signal runs. That handler would close the listening socket at once, while
    BentoML's main process still holds it open: new clients would wait without an answer.
    """

    def handle(previous: object) -> Callable[[int, object], None]:
        def handler(number: int, frame: object) -> None:
            if traffic.draining:
                if callable(previous):
                    previous(number, frame)
                return
            traffic.draining = True
            process.mark_unready()
            threading.Thread(target=drain, args=(number,), name="drain", daemon=True).start()

        return handler

    def drain(number: int) -> None:
        deadline = time.monotonic() + grace_seconds
        while traffic.under_way and time.monotonic() < deadline:
            time.sleep(0.02)
        # The same signal again, now for the handler of the server.
        os.kill(os.getpid(), number)
        time.sleep(_LAST_SECONDS)
        os._exit(0)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle(signal.getsignal(number)))


def end_with_main(process: Process) -> None:
    """Ends this worker when the main process has ended; otherwise it would keep the port and answer for ever."""

    def watch() -> None:
        while _alive(process.folder / MAIN_NOTE):
            time.sleep(1)
        shutil.rmtree(process.folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="main-watch", daemon=True).start()


def _own_run_folder() -> Path | None:
    """Returns the folder that this process made before it replaced itself with BentoML; not that of a parent server."""
    folder = os.environ.get(RUN_FOLDER)
    note = f"{os.getpid()} {_started(os.getpid())}"
    try:
        return Path(folder) if folder and (Path(folder) / MAIN_NOTE).read_text("ascii") == note else None
    except (OSError, ValueError):
        return None


def _leave_note(path: Path) -> None:
    """Writes the identity of this process, so that others can check whether it still runs."""
    path.write_text(f"{os.getpid()} {_started(os.getpid())}", "ascii")


def _alive(note: Path) -> bool:
    try:
        pid, started = note.read_text("ascii").split()
        return _started(int(pid)) == started
    except (OSError, ValueError):
        return False


def _started(pid: int) -> str | None:
    """Returns the start time of a process, by a clock that cannot be set; None if it has ended, also if not yet reaped.

    Linux has the kernel's ticks since boot. psutil adds the time of boot to them, which changes when the clock is set: a
    worker would then count as dead.
    """
    try:
        process = psutil.Process(pid)
        if process.status() in _GONE:
            return None
        if psutil.LINUX:
            return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rsplit(")", 1)[1].split()[19]
        return repr(process.create_time())
    except (psutil.Error, OSError, IndexError):
        return None


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1
