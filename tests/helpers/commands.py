"""Runs the `abstain` command as a user does."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE


def abstain(
    *arguments: str | Path, timeout: float = 3 * PATIENCE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the installed command in the project's folder."""
    return subprocess.run(
        [Path(sys.executable).with_name("abstain"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=PROJECT,
        env={**os.environ, **environment},
    )
