"""Tries a new version in a process of its own, before the workers load it.

The process reads, verifies and compiles the version, and so fills the cache of compiled programs, from which the workers then
load. A version that makes it crash or that takes all memory does not harm a worker. It runs at a low priority, because
compiling takes every core for seconds.

    echo '{"new": "digits:3", "served": ["digits:2"], "parent": 123}' | python -m abstain.service.following.preparing

It prints one line of JSON: the failure, or null.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import orjson

from abstain.models.errors import AbstainError
from abstain.service.plans import Failure, Key

if TYPE_CHECKING:
    from abstain.models.bundles.manifest import Manifest
    from abstain.service.loading import Loader

log = logging.getLogger("abstain.following")

NICE = 10
"""How much lower the priority is than that of the workers."""
MOST_SECONDS = 900
"""The longest time that a version may take, in seconds."""
_LOOK_SECONDS = 0.5
"""The time between two looks whether the trial was cancelled, in seconds."""
_LOG_BYTES = 2_000
"""The last bytes of the process's messages that the log shows if the process ends badly."""


def try_version(
    key: Key, served: Iterable[Key], cancelled: threading.Event, environment: dict[str, str]
) -> Failure | None:
    """Tries a version in another process; returns why it cannot be served, None if it can.

    Args:
        served: the versions that workers hold already, beside which the new one must fit into memory.
        cancelled: ends the process when it is set.
        environment: that of a worker, on which the keys of compiled programs depend.
    """
    held = [f"{each.name}:{each.version}" for each in sorted(served)]
    task = orjson.dumps({"new": f"{key.name}:{key.version}", "served": held, "parent": os.getpid()})
    own = environment | {
        # A GPU has most of its memory taken by the workers.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # The code of this process, which need not be installed: `bentoml serve` adds folders to the path by itself.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    own.pop("PROMETHEUS_MULTIPROC_DIR", None)
    command = [sys.executable, "-P", "-m", "abstain.service.following.preparing"]
    process = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, messages = _communicate(process, task, cancelled)
    lines = output.splitlines()
    if process.returncode == 0 and lines:
        failure = orjson.loads(lines[-1])
        return None if failure is None else Failure.model_validate(failure)
    if not cancelled.is_set():
        log.error("the process that tried %s:%d: %s", key.name, key.version, messages)
    return Failure(state="failed", why=_describe_end(process.returncode, cancelled))


def _communicate(process: subprocess.Popen[bytes], task: bytes, cancelled: threading.Event) -> tuple[bytes, str]:
    """Returns the output of the process and its last messages; ends it if it takes too long or is cancelled."""
    deadline = time.monotonic() + MOST_SECONDS
    content: bytes | None = task
    while True:
        try:
            output, messages = process.communicate(content, timeout=_LOOK_SECONDS)
            return output, messages[-_LOG_BYTES:].decode(errors="replace").strip()
        except subprocess.TimeoutExpired:
            content = None
            if cancelled.is_set() or time.monotonic() > deadline:
                process.kill()


def _describe_end(code: int, cancelled: threading.Event) -> str:
    if cancelled.is_set():
        return "the store does not ask for it any more"
    if code == -9:
        return f"the process that read and compiled it was killed, for want of memory or after {MOST_SECONDS} seconds"
    reason = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
    return f"the process that read and compiled it {reason}; the log of the server has its last messages"


def main() -> None:
    """Tries the version that the standard input names."""
    task = orjson.loads(sys.stdin.buffer.read())
    _end_with(task["parent"])
    # Networks of a user may print: their lines go where messages go.
    results = os.dup(1)
    os.dup2(2, 1)
    # jax is imported here, after the environment is set, and never in the main process of a server.
    from abstain.models.bundles.signatures import read_trusted  # noqa: PLC0415
    from abstain.service.compilation import keep_compiled  # noqa: PLC0415
    from abstain.service.loading import Loader  # noqa: PLC0415
    from abstain.service.settings import read_settings  # noqa: PLC0415

    os.nice(NICE)
    settings = read_settings(os.environ)
    keep_compiled(settings.compiled)
    loader = Loader(
        settings.folder,
        settings.devices,
        settings.require_sound,
        read_trusted(settings.trusted_keys),
        settings.memory_bytes,
    )
    name, version = _parts(task["new"])
    failure = None
    try:
        loader.check_room(name, version, _manifests(loader, task["served"]))
        loader.compile(name, version, loader.read(name, version))
    except Exception as error:
        failure = loader.failure(error).model_dump()
    os.write(results, orjson.dumps(failure, option=orjson.OPT_APPEND_NEWLINE))


def _parts(reference: str) -> tuple[str, int]:
    name, _, version = reference.rpartition(":")
    return name, int(version)


def _manifests(loader: Loader, references: list[str]) -> list[Manifest]:
    """Returns the manifests of the versions that workers hold, except of those whose files are gone."""
    from abstain.models.bundles.bundle import read_published  # noqa: PLC0415 - as above

    manifests: list[Manifest] = []
    for reference in references if loader.memory_bytes else ():
        name, version = _parts(reference)
        with suppress(AbstainError, OSError):
            manifests.append(read_published(loader.root, name, version))
    return manifests


def _end_with(parent: int) -> None:
    """Ends this process soon after the one that started it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    main()
