"""`make demo`: fits a posterior to handwritten digits, serves it, and predicts a test digit and the letter B.

It uses only commands and HTTP, like a user. A second run uses the fitted model again.
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
READY_SECONDS = 600

# Drawn like the digits of the data set: a stroke on 32×32 dots, counted in blocks of 4×4, 0 to 16.
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
    """Fits, serves, predicts and prints; returns 0 if the digit is accepted and right, and the B is rejected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=PROJECT / "artifacts", help="the folder of models")
    store = parser.parse_args().store.resolve()
    fit_once(store)
    digit, truth = test_digit()
    with run_server(store) as url:
        predictions = predict(url, [digit, LETTER_B])
    print_predictions([digit, LETTER_B], predictions, truth)
    if predictions[0]["reject"] or predictions[0]["label"] != truth or not predictions[1]["reject"]:
        print_progress("unexpected: the digit should be accepted and right, and the B rejected")
        return 1
    return 0


def fit_once(store: Path) -> None:
    """Runs `abstain fit`, unless the store has the model."""
    models = json.loads(run("models", "--store", store, "--json"))["models"]
    if any(model["name"] == "digits" for model in models):
        print_progress(f"using the model digits in {store}")
        return
    print_progress("fitting a Bayesian neural network to handwritten digits")
    run("fit", CONFIG, "--store", store)


def test_digit() -> tuple[list[list[float]], str]:
    """Returns the first digit of the test part, which neither fit nor calibration uses, and its class."""
    from abstain.training.config.reading import read_config  # noqa: PLC0415
    from abstain.training.fit import load_dataset  # noqa: PLC0415

    test = load_dataset(read_config(CONFIG), None).test
    return test.x[0].tolist(), str(test.y[0])


@contextmanager
def run_server(store: Path) -> Generator[str]:
    """Runs `abstain serve` on a free port of this machine; yields its URL, and stops it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    print_progress(f"serving it with BentoML on port {port}")
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
    """Waits until `/readyz` responds with 200; exits if the server ends or takes too long."""
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
    log.seek(0)
    sys.exit(
        f"the server was not ready within {READY_SECONDS} s; run the demo again, the fitted model is kept\n"
        f"{log.read().decode()}"
    )


def predict(url: str, images: list[list[list[float]]]) -> list[dict[str, Any]]:
    """Sends the images to `POST /predict` and returns the predictions."""
    body = json.dumps({"inputs": images, "model": "digits"}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)["predictions"]


def print_predictions(images: list[list[list[float]]], predictions: list[dict[str, Any]], truth: str) -> None:
    """Prints the images, then a line for each prediction."""
    console = Console(width=max(92, Console().width))
    pictures = [picture(image) for image in images]
    for left, right in zip(*pictures, strict=True):
        console.print(f"    {left}        {right}", highlight=False, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("image", "predicted", "probability", "disagreement", "threshold", "verdict"):
        table.add_column(head, no_wrap=True)
    for name, prediction in zip((f"the digit {truth}", "the letter B"), predictions, strict=True):
        score = prediction["scores"]["mutual_information"]
        table.add_row(
            name,
            prediction["label"],
            f"{max(prediction['probabilities']):.2f}",
            f"{score['value']:.3f} nats",
            f"{score['threshold']:.3f} nats",
            "rejected: I don't know" if prediction["reject"] else "accepted",
        )
    console.print(table)
    console.print(
        "\nThe network was fitted to digits only, so its prediction for a letter is a digit. But its posterior"
        "\ndraws disagree about it more than on 99 of 100 digits outside the training data."
        "\nThis disagreement shows that the prediction cannot be trusted.",
        highlight=False,
    )


def picture(image: list[list[float]]) -> list[str]:
    """Renders an 8×8 image with values from 0 to 16 as characters, two for each pixel."""
    shades = " ░▒▓█"
    steps = (np.asarray(image) / 16 * (len(shades) - 1)).round().astype(int)
    return ["".join(shades[step] * 2 for step in row) for row in steps]


def run(*arguments: object) -> str:
    """Runs an `abstain` command and returns its output; its progress goes to the terminal."""
    process = subprocess.run(
        [ABSTAIN, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=False, env=os.environ
    )
    if process.returncode:
        sys.exit(process.returncode)
    return process.stdout


def print_progress(text: str) -> None:
    """Prints a line on stderr."""
    sys.stderr.write(f"· {text}\n")


if __name__ == "__main__":
    sys.exit(main())
