"""The processes of one server: BentoML's main process and its workers, and what they must agree on.

The main process makes a folder for the server's run and names it in the environment, which workers inherit. Each
worker says there when it is ready, and keeps its metrics there. Must be called before jax and prometheus_client are
imported, since both read the environment when they are.
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

from abstain.service.errors import HTTPError

RUN_FOLDER = "ABSTAIN_RUN_FOLDER"
MAIN_NOTE = "main"
# How long a worker may take to end once nothing is under way, or the grace is over.
_LAST_SECONDS = 2.0
_GONE = {psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


@dataclass(frozen=True)
class Process:
    """This process: its place among the workers (from 1; None in the main process), and the run's folder."""

    index: int | None
    workers: int
    folder: Path

    def say_ready(self) -> None:
        """Lets all workers know that this one has loaded, verified and compiled every served model."""
        own = self.folder / f"ready-{self.index}"
        draft = own.with_suffix(".draft")
        _leave_note(draft)
        draft.rename(own)

    def say_unready(self) -> None:
        """Takes that back."""
        (self.folder / f"ready-{self.index}").unlink(missing_ok=True)

    def ready_workers(self) -> int:
        """How many workers are ready and alive."""
        return sum(_alive(note) for note in self.folder.glob("ready-?*") if not note.suffix)


def make_run_folder() -> Path:
    """Makes the folder of a run that this process is the main process of, and names it in the environment."""
    folder = Path(tempfile.mkdtemp(prefix="abstain-run-"))
    os.environ[RUN_FOLDER] = str(folder)
    _leave_note(folder / MAIN_NOTE)
    return folder


def arrange(workers: int, index: int | None) -> Process:
    """Gives this process its place in the run; changes the environment accordingly."""
    if index is None:
        folder, owner = _own_run_folder() or make_run_folder(), os.getpid()
        atexit.register(lambda: os.getpid() == owner and shutil.rmtree(folder, ignore_errors=True))
        return Process(None, workers, folder)
    folder = Path(os.environ[RUN_FOLDER])
    metrics = folder / "metrics"
    metrics.mkdir(exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    # uvicorn believes what comes from loopback, where everybody on this machine is: service/access/proxies.py decides.
    os.environ["FORWARDED_ALLOW_IPS"] = ""
    # XLA sizes its thread pool by NPROC; without it every worker would take every core.
    os.environ.setdefault("NPROC", str(max(1, cores() // workers)))
    return Process(index, workers, folder)


class Traffic:
    """The requests that one worker has under way, and whether it is about to stop."""

    def __init__(self) -> None:
        self.under_way = 0
        self.draining = False

    def refuse_if_draining(self) -> None:
        """Refuses a prediction where this worker is about to stop.

        Raises:
            HTTPError: 503, for the client to try again over a new connection.
        """
        if self.draining:
            headers = {"Retry-After": "1", "Connection": "close"}
            raise HTTPError(503, "draining: this server is about to stop", headers, code="draining")


def drain_on_stop(process: Process, traffic: Traffic, grace_seconds: float) -> None:
    """On the signal to stop, a worker first says so, answers what is under way, and only then lets the server's handler stop it.

    The server's own handler would close the socket's door at once, while BentoML's main process still holds it open:
    whoever knocks in the meantime would be left waiting. Past the grace the worker ends whatever is under way.
    """

    def handle(previous: object) -> Callable[[int, object], None]:
        def handler(number: int, frame: object) -> None:
            if traffic.draining:
                if callable(previous):
                    previous(number, frame)
                return
            traffic.draining = True
            process.say_unready()
            threading.Thread(target=drain, args=(number,), name="drain", daemon=True).start()

        return handler

    def drain(number: int) -> None:
        deadline = time.monotonic() + grace_seconds
        while traffic.under_way and time.monotonic() < deadline:
            time.sleep(0.02)
        # The same signal once more: now it is the server's.
        os.kill(os.getpid(), number)
        time.sleep(_LAST_SECONDS)
        os._exit(0)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handle(signal.getsignal(number)))


def end_with_main(process: Process) -> None:
    """Ends this worker when the main process is gone: an orphan would keep the port and answer for ever."""

    def watch() -> None:
        while _alive(process.folder / MAIN_NOTE):
            time.sleep(1)
        shutil.rmtree(process.folder, ignore_errors=True)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="main-watch", daemon=True).start()


def _own_run_folder() -> Path | None:
    """The folder that `abstain serve` has made before it became this process; not that of a server around it."""
    given = os.environ.get(RUN_FOLDER)
    mine = f"{os.getpid()} {_started(os.getpid())}"
    try:
        return Path(given) if given and (Path(given) / MAIN_NOTE).read_text("ascii") == mine else None
    except (OSError, ValueError):
        return None


def _leave_note(path: Path) -> None:
    """Writes which process this is, so that another can tell whether it still runs."""
    path.write_text(f"{os.getpid()} {_started(os.getpid())}", "ascii")


def _alive(note: Path) -> bool:
    try:
        pid, started = note.read_text("ascii").split()
    except (OSError, ValueError):
        return False
    return _started(int(pid)) == started


def _started(pid: int) -> str | None:
    """When a process started, on a clock that nobody sets; None if it is gone or only waits to be reaped.

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
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return psutil.cpu_count() or 1
