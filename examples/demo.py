"""`make demo`: fit a posterior on handwritten digits, serve it, and ask about a held-out digit and about the letter B.

Everything happens by the commands and the HTTP that a user has; run again, it reuses the model that it has fitted.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).resolve().parents[1]
CONFIG = PROJECT / "training" / "configs" / "digits-vi.toml"
ABSTAIN = Path(sys.executable).with_name("abstain")
READY_SECONDS = 120

# Drawn as the digits were: a pen's stroke on 32×32 dots, counted in blocks of 4×4, 0 to 16.
LETTER_B = [
    [0, 3, 16, 13, 10, 2, 0, 0],
    [0, 7, 8, 1, 7, 14, 0, 0],
    [0, 8, 6, 0, 4, 14, 0, 0],
    [0, 11, 13, 14, 15, 3, 0, 0],
    [0, 12, 6, 5, 11, 12, 0, 0],
    [0, 14, 0, 0, 0, 13, 2, 0],
    [0, 15, 0, 3, 9, 13, 0, 0],
    [0, 15, 15, 12, 7, 1, 0, 0],
]


def main() -> int:
    """Fit, serve, ask, show; 0 if the digit was accepted and right and the B rejected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=PROJECT / "artifacts", help="the folder of models")
    store = parser.parse_args().store.resolve()
    fit_once(store)
    digit, truth = held_out_digit()
    with serving(store) as url:
        answers = ask(url, [digit, LETTER_B])
    show([digit, LETTER_B], answers, truth)
    if answers[0]["reject"] or answers[0]["label"] != truth or not answers[1]["reject"]:
        say("not as hoped: the digit should be accepted and right, and the B rejected")
        return 1
    return 0


def fit_once(store: Path) -> None:
    """`abstain fit`, unless the store has the model."""
    models = json.loads(run("models", "--store", store, "--json"))["models"]
    if any(model["name"] == "digits" for model in models):
        say(f"reusing the model digits in {store}")
        return
    say("fitting a Bayesian neural network to handwritten digits")
    run("fit", CONFIG, "--store", store)


def held_out_digit() -> tuple[list[list[float]], str]:
    """The first digit of the test part, which neither fit nor calibration has seen, and what it is."""
    from abstain.training.config.reading import read_config  # noqa: PLC0415
    from abstain.training.fit import load_dataset  # noqa: PLC0415

    test = load_dataset(read_config(CONFIG), None).test
    return test.x[0].tolist(), str(test.y[0])


@contextmanager
def serving(store: Path) -> Generator[str]:
    """`abstain serve` on a free port of this machine, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    say(f"serving it with BentoML on port {port}")
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        command = [ABSTAIN, "serve", "--port", str(port), "--store", store]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until_ready(url, server, log)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=60)


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Returns when `/readyz` answers 200."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            log.seek(0)
            sys.exit(f"the server ended with code {server.returncode}:\n{log.read().decode()}")
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    sys.exit(f"the server was not ready within {READY_SECONDS} s")


def ask(url: str, images: list[list[list[float]]]) -> list[dict[str, Any]]:
    """Sends the images to `POST /predict` and returns the answers."""
    body = json.dumps({"inputs": images, "model": "digits"}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["predictions"]


def show(images: list[list[list[float]]], answers: list[dict[str, Any]], truth: str) -> None:
    """The images, then a line for each answer."""
    console = Console(width=max(92, Console().width))
    drawn = [picture(image) for image in images]
    for left, right in zip(*drawn, strict=True):
        console.print(f"    {left}        {right}", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("shown", "taken for", "probability", "disagreement", "limit", "verdict"):
        table.add_column(head, no_wrap=True)
    for name, answer in zip((f"the digit {truth}", "the letter B"), answers, strict=True):
        score = answer["scores"]["mutual_information"]
        table.add_row(
            name,
            answer["label"],
            f"{max(answer['probabilities']):.2f}",
            f"{score['value']:.3f} nats",
            f"{score['threshold']:.3f} nats",
            "rejected: I don't know" if answer["reject"] else "accepted",
        )
    console.print(table)
    console.print(
        "\nThe network has never seen a letter, and must call it some digit. Its posterior draws"
        "\ndisagree about which: more than they do on 99 of 100 digits they were not trained on."
        "\nThat is how it knows that it does not know.",
        highlight=False,
    )


def picture(image: list[list[float]]) -> list[str]:
    """An 8×8 image of 0 to 16 in characters, two for each pixel."""
    shades = " ░▒▓█"
    steps = (np.asarray(image) / 16 * (len(shades) - 1)).round().astype(int)
    return ["".join(shades[step] * 2 for step in row) for row in steps]


def run(*arguments: object) -> str:
    """The output of an `abstain` command; its progress goes to the terminal."""
    finished = subprocess.run(
        [ABSTAIN, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=False, env=os.environ
    )
    if finished.returncode:
        sys.exit(finished.returncode)
    return finished.stdout


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"· {text}\n")


if __name__ == "__main__":
    sys.exit(main())
