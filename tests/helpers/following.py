"""A server in this process: the main process's follower, and workers that are threads, each with its own versions."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from abstain.models.bundles.remote.mirror import Mirror
from abstain.models.errors import UnknownModel
from abstain.service.errors import HTTPError
from abstain.service.following.follower import Follower
from abstain.service.following.worker import WorkerFollower
from abstain.service.live_versions import LiveVersions
from abstain.service.plans import Failure, Key
from abstain.service.process import Process
from tests.helpers.processes import PATIENCE, until


class Worker:
    """A worker of the server: its versions, and a thread that follows the plans until the end of the test."""

    def __init__(self, root: Path, process: Process, **settings) -> None:
        self.versions = LiveVersions(root, **settings)
        self.follower = WorkerFollower(self.versions, process, lambda _live: None, lambda: None)
        self.paused = threading.Event()
        self.errors: list[Exception] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._end.wait(0.01):
            if not self.paused.is_set():
                try:
                    self.follower.step()
                except Exception as error:  # As the thread of a worker does.
                    self.errors.append(error)

    def version(self, reference: str = "golden") -> int | str:
        """The version that a request gets; the text of its error if there is none."""
        try:
            return self.versions.find(reference).version
        except (HTTPError, UnknownModel) as error:
            return str(error)

    def stop(self) -> None:
        """Ends the thread, as if the process had ended."""
        self._end.set()
        self._thread.join(PATIENCE)


class Server:
    """The main process's follower and its workers."""

    def __init__(self, root: Path, folder: Path, workers: int, mirror: Mirror | None = None, **settings) -> None:
        self.root, self.folder, self.settings = root, folder, settings
        self.failures: dict[str, Failure] = {}
        self.tried: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        self.follower = Follower(root, Process(None, workers, folder), self._try, mirror=mirror)
        self.workers = [self.start_worker(index) for index in range(1, workers + 1)]

    def ready(self) -> list[int]:
        """The workers that are ready."""
        return Process(None, 2, self.folder).ready_indices()

    def start_worker(self, index: int) -> Worker:
        """Starts a worker with this index."""
        return Worker(self.root, Process(index, 2, self.folder), **self.settings)

    def _try(self, key: Key, _served, _cancelled) -> Failure | None:
        name = f"{key.name}:{key.version}"
        self.tried.append(name)
        self.hold.wait(PATIENCE)
        return self.failures.get(name)

    def answers(self, reference: str = "golden") -> list[int | str]:
        """The answer of each worker."""
        return [worker.version(reference) for worker in self.workers]

    def state(self, version: int, name: str = "golden") -> tuple[str, str | None]:
        """State and reason of a version, in the first worker."""
        (found,) = [
            state
            for state in self.workers[0].versions.list_versions()
            if (state.name, state.version) == (name, version)
        ]
        return found.state, found.why


@contextmanager
def serve(tmp_path: Path, workers: int = 2, **settings) -> Iterator[Server]:
    """A server of the store in `tmp_path`, when all its workers are ready, or if it has nothing to serve."""
    folder = tmp_path / "run"
    folder.mkdir()
    server = Server(tmp_path / "store", folder, workers, **settings)
    try:
        assert until(lambda: all(worker.follower.accepting for worker in server.workers))
        yield server
    finally:
        for worker in server.workers:
            worker.stop()
