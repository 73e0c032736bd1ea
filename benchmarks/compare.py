"""Compares the speed of a prediction in two checkouts of this repository: whether a change made it slower.

    python benchmarks/compare.py --before FOLDER [--rounds 40] [--only 784-64]

FOLDER is another checkout, for example from `git worktree add FOLDER COMMIT`. Each checkout runs in a separate process, with
its own modules and compiled programs; a process works only while the other one waits. The two take turns, and alternate in
which of them is first.

For the networks of `scoring.py` and every bucket, it prints the median milliseconds of a call with every score and the
decision on the host, and the median and quartiles of the ratio of neighbouring turns: if the machine is slow for a while,
both are slow. If FOLDER has the same commit, the ratios show the noise of the machine.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from servers import save_results

PROJECT = Path(__file__).resolve().parents[1]
CALLS = 20
"""The number of calls in one turn."""


def main() -> int:
    """Measures, prints, and writes `benchmarks/results/compare.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--only", default="", help="only networks with this prefix")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.before)
        return 0
    children = [start(folder) for folder in (options.before.resolve(), PROJECT)]
    cases = json.loads(answer_of(children[0], "cases"))
    assert cases == json.loads(answer_of(children[1], "cases"))  # noqa: S101
    results = {case: measure(children, case, options.rounds) for case in cases if case.startswith(options.only)}
    for child in children:
        child.communicate()
    save_results("compare", results)
    return 0


def measure(children: list[subprocess.Popen[str]], case: str, rounds: int) -> dict[str, float]:
    """Measures and prints both medians of one case, and the ratio of after to before with its quartiles."""
    for child in children:
        answer_of(child, case)
    turns = np.empty((rounds, 2))
    for number in range(rounds):
        for index in (0, 1) if number % 2 else (1, 0):
            turns[number, index] = float(answer_of(children[index], case))
    before, after = np.median(turns, axis=0).tolist()
    low, ratio, high = np.quantile(turns[:, 1] / turns[:, 0], [0.25, 0.5, 0.75]).tolist()
    print(
        f"{case:<36} before {before:8.3f} ms   after {after:8.3f} ms   ratio {ratio:.3f} [{low:.3f}, {high:.3f}]",
        flush=True,
    )
    return {"before": before, "after": after, "ratio": ratio, "low": low, "high": high}


def start(folder: Path) -> subprocess.Popen[str]:
    """Starts a process that runs the code of a checkout."""
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", "--before", folder],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer_of(child: subprocess.Popen[str], line: str) -> str:
    """Sends one line to a child process and returns its answer."""
    assert child.stdin is not None  # noqa: S101
    assert child.stdout is not None  # noqa: S101
    child.stdin.write(f"{line}\n")
    child.stdin.flush()
    return child.stdout.readline()


def serve(folder: Path) -> None:
    """Runs in a child process: for each line with the name of a case, prints the milliseconds of a call."""
    sys.path[:0] = [str(folder), str(folder / "benchmarks")]
    import scoring  # noqa: PLC0415 - the module of that checkout

    # An editable install could name another checkout.
    assert Path(scoring.__file__).is_relative_to(folder)  # noqa: S101
    assert Path(inspect.getfile(scoring.judge)).is_relative_to(folder)  # noqa: S101
    cases = {f"{name}, {batch} rows": (name, batch) for name in scoring.SHAPES for batch in scoring.BATCHES}
    prepared: dict[str, Any] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for line in map(str.strip, sys.stdin):
        if line == "cases":
            print(json.dumps(list(cases)), flush=True)
            continue
        name, batch = cases[line]
        if name not in prepared:
            prepared = {name: prepare(scoring, name)}
        if line not in calls:
            calls = {line: call_of(scoring, *prepared[name], batch)}
            calls[line]()
        start_time = time.perf_counter()
        for _ in range(CALLS):
            calls[line]()
        print(1e3 * (time.perf_counter() - start_time) / CALLS, flush=True)


def prepare(scoring: Any, name: str) -> tuple[Any, ...]:
    """Makes an example: a posterior, feature scores, rows and a calibration."""
    posterior, rows = scoring.example(**scoring.SHAPES[name])
    fit_feature_scores = getattr(scoring, "fit_feature_scores", None) or scoring.fit_densities
    feature_scores = fit_feature_scores(posterior, rows, seed=0)
    predictor = make_predictor(scoring, posterior, 256, feature_scores)
    options = {}
    if "reference" in inspect.signature(scoring.calibrate).parameters:
        scores = predictor(rows.x[5000:6000]).scores
        options["reference"] = {score: np.asarray(values) for score, values in scores.items()}
    decision = (getattr(scoring, "DEFAULT_DECISIONS", None) or scoring.DEFAULT)["images"]
    calibration = scoring.calibrate(predictor(rows.x[:5000]), rows.y[:5000], decision=decision, **options)
    return posterior, feature_scores, rows, calibration


def make_predictor(scoring: Any, posterior: Any, batch: int, feature_scores: Any) -> Any:
    """Compiles a predictor; older commits have the parameter `densities` instead of `feature_scores`."""
    parameters = inspect.signature(scoring.Predictor).parameters
    keyword = "feature_scores" if "feature_scores" in parameters else "densities"
    return scoring.Predictor(posterior, (batch,), **{keyword: feature_scores})


def call_of(
    scoring: Any, posterior: Any, feature_scores: Any, rows: Any, calibration: Any, batch: int
) -> Callable[[], Any]:
    """Returns a function that makes predictions and decisions for `batch` rows."""
    predictor, x = make_predictor(scoring, posterior, batch, feature_scores), rows.x[:batch]
    return lambda: scoring.judge(calibration, predictor(x))


if __name__ == "__main__":
    sys.exit(main())
