"""Checks that the accelerator exists that the environment asks for; jax itself says so by a traceback, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from abstain.models.errors import ConfigError, clip_repr

PLATFORMS = "JAX_PLATFORMS"
_SECONDS = 120.0


def check_platforms(environ: Mapping[str, str]) -> None:
    """Checks that jax finds a device of the platforms in `JAX_PLATFORMS`; takes no time if that is not set, or `cpu`.

    The check runs in another process, because whoever finds a GPU takes most of its memory.

    Raises:
        ConfigError: there is no such platform or device.
    """
    wanted = environ.get(PLATFORMS, "")
    if wanted in {"", "cpu"}:
        return
    command = [sys.executable, "-P", "-c", "import jax; print(jax.default_backend())"]
    own = {**os.environ, **environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        result = subprocess.run(command, env=own, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        found = f"no answer within {_SECONDS:g} s"
    else:
        if result.returncode == 0:
            return
        lines = [
            line.strip() for line in result.stderr.splitlines() if line.startswith(("RuntimeError", "ImportError"))
        ]
        found = lines[-1] if lines else "no such device"
    raise ConfigError(
        f"{PLATFORMS}={clip_repr(wanted)[1:-1]} asks for an accelerator that jax does not find",
        where="environment",
        expected="a platform with a device, such as cpu",
        found=found,
        fix=f"install jax for this accelerator and its driver, or unset {PLATFORMS}",
    )
