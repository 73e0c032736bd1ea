"""The private interfaces of BentoML, circus and uvicorn that abstain uses, and what it changes there; checked at start.

BentoML's main process runs its workers with circus. Whoever reaches circus's command socket may add a "watcher": a program
that the main process then starts as its own user. BentoML binds that socket, and one for events, to TCP ports of loopback
without a key, so that every user of the machine can reach them. Here both become Unix sockets in the run's folder, which
only the server's user may enter.

BentoML starts uvicorn in each worker without a bound on the heads of requests. Here uvicorn gets one, and a certificate.

BentoML sends usage reports to its makers by default. They are off here, for every way of starting a server.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, cast

import uvicorn
from _bentoml_sdk.service.factory import Service
from bentoml._internal.context import server_context
from bentoml._internal.utils.analytics import usage_stats
from circus.arbiter import Arbiter

from abstain.models.errors import ConfigError
from abstain.service.access.request_heads import BoundedHeads
from abstain.service.access.tls import Encrypted, PemFiles

__all__ = [
    "Service",
    "check_process_manager",
    "close_process_manager",
    "set_up_uvicorn",
    "stop_usage_reports",
    "worker_index",
]

COMMANDS = "commands"
EVENTS = "events"
LONGEST_SOCKET_PATH = 107
"""Bytes; `sun_path` of Linux holds 108, with the zero at its end."""
_MOVED = ("endpoint", "pubsub_endpoint")
_OFF = ("stats_endpoint", "multicast_endpoint", "statsd", "httpd", "ssh_server")
"""Further ways that circus can be reached by, which BentoML does not use."""


def worker_index() -> int | None:
    """The index of this worker, from 1; None in the main process."""
    return server_context.worker_index


def close_process_manager(folder: Path, check_address: Callable[[str], None]) -> None:
    """Has every circus arbiter of this process take commands by a Unix socket in `folder` alone.

    The arbiter also opens the sockets that workers answer at: the one place that every way of starting passes.

    The class is changed, not BentoML's call of it: BentoML has the ports in its code, and has imported the function that
    makes the arbiter by the time that it imports a service.

    Args:
        folder: this user's alone (mode 0700), for the folder's mode is what keeps others out.
        check_address: raises ConfigError for an address that must not be listened on; the process then ends.

    Raises:
        ConfigError: circus is not as it was; or, when the arbiter is made, the sockets' paths are too long or a further way
            to reach it is asked for.
    """
    make = cast("Callable[..., None]", Arbiter.__init__)
    signature = inspect.signature(make)
    absent = [name for name in (*_MOVED, *_OFF) if name not in signature.parameters]
    if absent:
        raise ConfigError(
            "the process manager cannot be closed",
            where="circus.arbiter.Arbiter",
            expected=f"the parameters {', '.join((*_MOVED, *_OFF))}",
            found=f"no {', '.join(absent)}",
            fix="install the versions in requirements-serving.lock",
        )

    @wraps(make)
    def closed(self: Arbiter, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        refused = [name for name in _OFF if given.arguments.get(name)]
        if refused:
            raise ConfigError("the process manager", expected="no further way to reach it", found=", ".join(refused))
        try:
            for socket in given.arguments.get("sockets") or ():
                if not socket.is_unix:
                    check_address(socket.host)
        except ConfigError as error:
            # What is raised here, BentoML shows with forty lines of its own.
            sys.exit(f"abstain: {error}")
        for name, file in zip(_MOVED, (COMMANDS, EVENTS), strict=True):
            given.arguments[name] = f"ipc://{_socket_path(folder / file)}"
        make(*given.args, **given.kwargs)

    Arbiter.__init__ = closed


def check_process_manager(folder: Path) -> None:
    """Refuses to be a worker of a process manager that is not closed.

    Raises:
        ConfigError: the main process takes no commands in `folder`: it then takes them elsewhere.
    """
    if not (folder / COMMANDS).is_socket():
        raise ConfigError(
            "the process manager is not closed",
            where=str(folder / COMMANDS),
            expected="the socket that BentoML's main process takes commands by",
            found="none, so it may take them from every user of this machine",
            fix="install the versions in requirements-serving.lock",
        )


def set_up_uvicorn(files: PemFiles | None) -> list[Encrypted]:
    """Makes the server of this process bound the heads of requests, and encrypt, whatever command has started it.

    The class of uvicorn's configuration is changed: BentoML makes the configuration, after it has imported the service.

    Args:
        files: None leaves to the server whether and with what it encrypts (`bentoml serve --ssl-certfile`).

    Returns:
        the context, once the server has made it: what `follow_changes` keeps up to date.
    """
    contexts: list[Encrypted] = []
    load: Callable[[uvicorn.Config], None] = uvicorn.Config.load

    @wraps(load)
    def load_ours(self: uvicorn.Config) -> None:
        self.http = BoundedHeads
        if files:
            self.ssl_certfile, self.ssl_keyfile = str(files.certificate), str(files.key)
        load(self)
        if self.ssl and self.ssl_certfile:
            own = PemFiles(Path(self.ssl_certfile), Path(self.ssl_keyfile or self.ssl_certfile))
            contexts.append(Encrypted(self.ssl, own))

    uvicorn.Config.load = load_ours
    return contexts


def stop_usage_reports() -> None:
    """Has BentoML report nothing, whatever the environment says.

    Raises:
        ConfigError: BentoML ignores the variable that turns its reports off.
    """
    os.environ[usage_stats.BENTOML_DO_NOT_TRACK] = "True"
    # `bentoml serve` has asked already, and keeps the answer.
    usage_stats.do_not_track.cache_clear()
    if not usage_stats.do_not_track():
        raise ConfigError(
            "BentoML's reports of its use cannot be stopped",
            where=usage_stats.BENTOML_DO_NOT_TRACK,
            fix="install the versions in requirements-serving.lock",
        )


def _socket_path(path: Path) -> Path:
    """The path of a socket to be.

    Raises:
        ConfigError: the kernel takes no path so long.
    """
    length = len(bytes(path))
    if length > LONGEST_SOCKET_PATH:
        raise ConfigError(
            "TMPDIR",
            where="environment",
            expected=f"a folder whose sockets have paths of at most {LONGEST_SOCKET_PATH} bytes",
            found=f"{path}, {length} bytes",
            fix="set TMPDIR to a folder with a shorter path",
        )
    return path
