"""Tries new versions in a process of their own, before a worker loads them.

The process reads, verifies and compiles each version, and so fills the cache of compiled programs, from which the workers then
load. A version that makes it crash or that takes all memory does not harm a worker. It runs at a low priority, because
compiling takes every core for seconds.

    python -m abstain.service.following.preparing '{"new": ["digits:3"], "served": ["digits:2"]}'

It prints one line of JSON for each new version: the reference, and the failure or null.
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
from abstain.service.following.plans import Failure, Key

if TYPE_CHECKING:
    from abstain.models.bundles.manifest import Manifest
    from abstain.service.loading import Loader

log = logging.getLogger("abstain.following")

NICE = 10
"""How much lower the priority is than that of the workers."""
MOST_SECONDS = 1_800
"""The longest time that the versions of one plan may take, in seconds."""
_LOG_BYTES = 2_000
"""The last bytes of the process's messages that the log shows if the process ends badly."""


def try_versions(new: Iterable[Key], served: Iterable[Key], environment: dict[str, str]) -> dict[Key, Failure]:
    """Tries versions in another process; returns why some of them cannot be served.

    Args:
        served: the versions that workers hold already, beside which the new ones must fit into memory.
        environment: that of a worker, on which the keys of compiled programs depend.
    """
    waiting = {f"{key.name}:{key.version}": key for key in sorted(new)}
    held = [f"{key.name}:{key.version}" for key in sorted(served)]
    failures: dict[Key, Failure] = {}
    while waiting:
        found, end = _run([*waiting], held, environment)
        for reference, failure in found.items():
            key = waiting.pop(reference)
            if failure is not None:
                failures[key] = Failure.model_validate(failure)
        if waiting and end is not None:
            # The process ended at the first version without a line; the others are tried again without it.
            failures[waiting.pop(next(iter(waiting)))] = Failure(state="failed", why=end)
    return failures


def _run(
    references: list[str], held: list[str], environment: dict[str, str]
) -> tuple[dict[str, dict[str, object] | None], str | None]:
    """Runs the process; returns its lines by reference, and why it ended early (None if it did not)."""
    task = orjson.dumps({"new": references, "served": held}).decode()
    command = [sys.executable, "-P", "-m", "abstain.service.following.preparing", task]
    # A GPU has most of its memory taken by the workers.
    own = environment | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    own.pop("PROMETHEUS_MULTIPROC_DIR", None)
    try:
        done = subprocess.run(command, env=own, capture_output=True, timeout=MOST_SECONDS, check=False)
        output, code, messages = done.stdout, done.returncode, done.stderr
    except subprocess.TimeoutExpired as error:
        output, code, messages = error.stdout or b"", None, error.stderr or b""
    found: dict[str, dict[str, object] | None] = {}
    for line in output.splitlines():
        content = orjson.loads(line)
        found[content["version"]] = content["failure"]
    if len(found) == len(references):
        return found, None
    log.error("the process that tries new versions: %s", messages[-_LOG_BYTES:].decode(errors="replace").strip())
    if code is None:
        return found, f"reading and compiling it took more than {MOST_SECONDS} seconds"
    reason = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
    return found, f"the process that read and compiled it {reason}; the log of the server has its last messages"


def main() -> None:
    """Tries the new versions that the argument names."""
    # jax is imported here, after the environment is set, and never in the main process of a server.
    from abstain.models.bundles.signatures import read_trusted  # noqa: PLC0415
    from abstain.service.compilation import keep_compiled  # noqa: PLC0415
    from abstain.service.loading import Loader  # noqa: PLC0415
    from abstain.service.settings import read_settings  # noqa: PLC0415

    os.nice(NICE)
    settings = read_settings(os.environ)
    keep_compiled(settings.compiled)
    _end_with_parent()
    loader = Loader(
        settings.store,
        settings.devices,
        settings.require_sound,
        read_trusted(settings.trusted_keys),
        settings.memory_bytes,
    )
    task = orjson.loads(sys.argv[1])
    held = _manifests(loader, task["served"])
    for reference in task["new"]:
        name, version = _parts(reference)
        failure = None
        try:
            loader.check_room(name, version, held)
            bundle = loader.read(name, version)
            loader.compile(name, version, bundle)
            held.append(bundle.manifest)
        except Exception as error:
            failure = loader.failure(error).model_dump()
        line = orjson.dumps({"version": reference, "failure": failure}, option=orjson.OPT_APPEND_NEWLINE)
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


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


def _end_with_parent() -> None:
    """Ends this process soon after the one that started it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    main()
