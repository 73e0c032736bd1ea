"""The private interfaces of BentoML, circus and uvicorn that abstain uses, and its changes to them; checked at start.

BentoML's main process runs its workers with circus. A client of circus's command socket can add a "watcher": a program that
the main process then starts as its own user. BentoML binds this socket, and one for events, to TCP ports of loopback
without a key, so that every user of the machine can connect to them. This module replaces both by Unix sockets in the run's
folder, which only the server's user may enter.

BentoML starts uvicorn in each worker without a limit for the heads of requests. This module adds a limit, and a certificate.

BentoML sends usage reports to its makers by default. This module turns them off, however the server is started.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, cast

import psutil
import uvicorn
from _bentoml_sdk.service.factory import Service
from bentoml._internal.context import server_context
from bentoml._internal.utils.analytics import usage_stats
from circus.arbiter import Arbiter

from abstain.models.errors import ConfigError
from abstain.service.access.tls import Encrypted, PemFiles
from abstain.service.compat.uvicorn import BoundedHeads

__all__ = [
    "Service",
    "check_process_manager",
    "restrict_process_manager",
    "set_up_uvicorn",
    "stop_usage_reports",
    "worker_index",
]

COMMANDS = "commands"
EVENTS = "events"
_REPLACED = ("endpoint", "pubsub_endpoint")
"""circus's parameters for the addresses that Unix sockets replace."""
_REFUSED = ("stats_endpoint", "multicast_endpoint", "statsd", "httpd", "ssh_server")
"""circus's parameters for other ways to reach it, which BentoML does not use."""


def worker_index() -> int | None:
    """Returns the index of this worker, from 1; None in the main process."""
    return server_context.worker_index


def restrict_process_manager(folder: Path, check_address: Callable[[str], None], on_start: Callable[[], None]) -> None:
    """Makes every circus arbiter of this process accept commands only through a Unix socket in `folder`.

    The arbiter also opens the sockets of the workers, however the server is started. So their addresses are checked here.

    The class is changed, not BentoML's call: the ports are fixed in BentoML's code, and when BentoML imports a service, it
    has already imported the function that makes the arbiter.

    Args:
        folder: only this user may enter it (mode 0700); this alone protects the sockets from other users.
        check_address: raises ConfigError for an address that the server must not listen on; the process then ends.
        on_start: is called before the arbiter starts the workers.

    Raises:
        ConfigError: this version of circus has other parameters; or, when an arbiter is made, the path of a socket is too
            long, or an argument opens another way to reach it.
    """
    original = cast("Callable[..., None]", Arbiter.__init__)
    signature = inspect.signature(original)
    missing = [name for name in (*_REPLACED, *_REFUSED) if name not in signature.parameters]
    if missing:
        raise ConfigError(
            "the process manager cannot be restricted to this user",
            where="circus.arbiter.Arbiter",
            expected=f"the parameters {', '.join((*_REPLACED, *_REFUSED))}",
            found=f"no {', '.join(missing)}",
            fix="install the versions in requirements-serving.lock",
        )

    @wraps(original)
    def restricted(self: Arbiter, *args: Any, **kwargs: Any) -> None:
        """Builds the process manager with sockets in the run folder."""
        bound = signature.bind(self, *args, **kwargs)
        refused = [name for name in _REFUSED if bound.arguments.get(name)]
        if refused:
            raise ConfigError("the process manager", expected="no further way to reach it", found=", ".join(refused))
        try:
            for socket in bound.arguments.get("sockets") or ():
                if not socket.is_unix:
                    check_address(socket.host)
        except ConfigError as error:
            # BentoML would add forty lines to an exception.
            sys.exit(f"abstain: {error}")
        for name, file in zip(_REPLACED, (COMMANDS, EVENTS), strict=True):
            bound.arguments[name] = f"ipc://{_check_socket_path(folder / file)}"
        on_start()
        original(*bound.args, **bound.kwargs)

    Arbiter.__init__ = restricted


def check_process_manager(folder: Path) -> None:
    """Refuses to run as a worker of a process manager that other users can reach.

    Raises:
        ConfigError: the main process has no socket for commands in `folder`, so it has one elsewhere.
    """
    if not (folder / COMMANDS).is_socket():
        raise ConfigError(
            "the process manager is not restricted to this user",
            where=str(folder / COMMANDS),
            expected="the socket for commands of BentoML's main process",
            found="none, so every user of this machine may be able to send it commands",
            fix="install the versions in requirements-serving.lock",
        )


def set_up_uvicorn(files: PemFiles | None) -> list[Encrypted]:
    """Makes the server of this process limit the heads of requests, and use TLS, however it is started.

    The class of uvicorn's configuration is changed, because BentoML makes the configuration after it has imported the
    service.

    Args:
        files: the certificate and its key; if None, the server's own options apply (`bentoml serve --ssl-certfile`).

    Returns:
        A list, to which the server adds its TLS context when it starts; `follow_changes` reloads the certificate in it.
    """
    contexts: list[Encrypted] = []
    load: Callable[[uvicorn.Config], None] = uvicorn.Config.load

    @wraps(load)
    def load_with_limits(self: uvicorn.Config) -> None:
        """Loads the configuration with the limits and the certificate."""
        self.http = BoundedHeads
        if files:
            self.ssl_certfile, self.ssl_keyfile = str(files.certificate), str(files.key)
        load(self)
        if self.ssl and self.ssl_certfile:
            loaded_files = PemFiles(Path(self.ssl_certfile), Path(self.ssl_keyfile or self.ssl_certfile))
            contexts.append(Encrypted(self.ssl, loaded_files))

    uvicorn.Config.load = load_with_limits
    return contexts


def stop_usage_reports() -> None:
    """Turns BentoML's usage reports off, also if the environment turns them on.

    Raises:
        ConfigError: BentoML ignores the variable that turns the reports off.
    """
    os.environ[usage_stats.BENTOML_DO_NOT_TRACK] = "True"
    # `bentoml serve` has already read the variable and cached its value.
    usage_stats.do_not_track.cache_clear()
    if not usage_stats.do_not_track():
        raise ConfigError(
            "BentoML's usage reports cannot be turned off",
            where=usage_stats.BENTOML_DO_NOT_TRACK,
            fix="install the versions in requirements-serving.lock",
        )


def _check_socket_path(path: Path) -> Path:
    """Returns the path of a new socket.

    Raises:
        ConfigError: the path is too long for the kernel.
    """
    # `sun_path` of Linux has 108 bytes, that of macOS 104, including the zero at its end.
    longest = 107 if psutil.LINUX else 103
    length = len(bytes(path))
    if length > longest:
        raise ConfigError(
            "TMPDIR",
            where="environment",
            expected=f"a folder whose sockets have paths of at most {longest} bytes",
            found=f"{path}, {length} bytes",
            fix="set TMPDIR to a folder with a shorter path",
        )
    return path
