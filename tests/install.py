"""Installs the wheel as a user does, with pip into a fresh environment, and uses it: first for serving alone, then for fitting.

    .venv/bin/python tests/install.py [--python python3.13] [--folder build/install]

It prints a line for each thing that works, and ends with exit code 1 at the first that does not. pip chooses the newest
versions that `pyproject.toml` allows, so it needs a package index.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
READY_SECONDS = 300.0
ASK = """
import sys, abstain
client = abstain.Client(sys.argv[1])
(model,) = client.models()
rows = [[0.5] * 64] if model.name == "digits" else [[0.5]]
predictions = client.predict(rows, model=model.name)
print(type(predictions).__name__, predictions.reject)
assert "jax" not in sys.modules and "bentoml" not in sys.modules
"""


def main() -> int:
    """Builds, installs and uses the wheel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python of the environment")
    parser.add_argument("--folder", type=Path, default=PROJECT / "build" / "install")
    options = parser.parse_args()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wheel = build(folder)
    run([options.python, "-m", "venv", folder / "venv"], "a fresh environment")
    programs = folder / "venv" / "bin"
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]

    run([*install, wheel], "pip install abstain", folder)
    run([programs / "abstain", "--version"], "abstain --version", folder)
    run([programs / "abstain", "configs"], "abstain configs", folder)
    refused = run([programs / "abstain", "fit", "digits-vi"], "abstain fit is refused", folder, code=1)
    assert "pip install 'abstain[training]'" in refused, refused
    # A published version is all that a server needs; this one is of the tests.
    shutil.copytree(PROJECT / "tests" / "data" / "golden" / "2", folder / "store" / "golden" / "1")
    with serving(programs, folder / "store", folder) as url:
        run([programs / "python", "-c", ASK, url], "abstain serve, abstain.Client", folder)

    run([*install, f"abstain[training] @ {wheel.as_uri()}"], "pip install 'abstain[training]'", folder)
    own = folder / "fitted"
    run([programs / "abstain", "fit", "digits-vi", "--store", own], "abstain fit digits-vi", folder)
    with serving(programs, own, folder) as url:
        run([programs / "python", "-c", ASK, url], "abstain serve, abstain.Client", folder)
    return 0


def build(folder: Path) -> Path:
    """Builds the wheel of this checkout."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", PROJECT]
    run([*command, "--wheel-dir", folder], "the wheel")
    return next(folder.glob("*.whl"))


def run(command: list[object], what: str, folder: Path = PROJECT, code: int = 0) -> str:
    """Runs a program to its end, prints that it works, and returns its output; ends this program if it does not."""
    began = time.monotonic()
    done = subprocess.run(
        list(map(str, command)), cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    output = done.stdout + done.stderr
    if done.returncode != code:
        sys.exit(f"{what}: exit code {done.returncode}\n{output}")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    print(f"works: {what} ({time.monotonic() - began:.0f} s) {last}", flush=True)
    return output


@contextmanager
def serving(programs: Path, store: Path, folder: Path) -> Iterator[str]:
    """Serves a store, from the time that it is ready; the URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / f"server-{port}.log"
    with log.open("wb") as file:
        command = [programs / "abstain", "serve", "--port", str(port), "--store", store]
        server = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not answers(f"{url}/readyz"):
            if server.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the server did not become ready:\n{log.read_text()}")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=60)


def answers(url: str) -> bool:
    """Whether the URL is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


if __name__ == "__main__":
    raise SystemExit(main())
