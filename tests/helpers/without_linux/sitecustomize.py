"""Plays a system without what only Linux has, such as macOS, in processes whose PYTHONPATH has this folder.

Python imports this module when it starts. Files under /proc and /sys are absent, except for psutil, which has other ways to
the same facts on other systems. Calls that only Linux has are removed, before any library looks for them.
"""

import errno
import os
import select
import signal
import sys

FOLDERS = ("/proc", "/sys")
CALLS = {
    os: ("eventfd", "getrandom", "memfd_create", "pidfd_open", "sched_getaffinity", "sched_setaffinity", "splice"),
    select: ("epoll",),
    signal: ("pidfd_send_signal",),
}


def refuse(event: str, arguments: tuple[object, ...]) -> None:
    """Raises FileNotFoundError where a file or folder of Linux is opened by other code than psutil's."""
    if event not in {"open", "os.listdir", "os.scandir"} or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = os.fsdecode(arguments[0])
    if not any(path == folder or path.startswith(f"{folder}/") for folder in FOLDERS):
        return
    frame = sys._getframe(1)
    while frame is not None:
        if f"{os.sep}psutil{os.sep}" in frame.f_code.co_filename:
            return
        frame = frame.f_back
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


for module, names in CALLS.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
if hasattr(os, "process_cpu_count"):  # Python 3.13 defines it by sched_getaffinity where there is one.
    os.process_cpu_count = os.cpu_count

import psutil  # noqa: E402 - it asks the system for its facts as it is imported

psutil.LINUX = False
sys.addaudithook(refuse)
