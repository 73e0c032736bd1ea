"""The speed of an answer in two checkouts of this repository, taken in turns: whether a change made it slower.

    python benchmarks/compare.py --before FOLDER [--rounds 40] [--only 784-64]

FOLDER is another checkout, for instance of `git worktree add FOLDER COMMIT`. Each checkout runs in a process of its own,
with its own modules and its own compiled programs; a process works only while the other waits. Printed are, for the
networks of `scoring.py` and every bucket, medians of milliseconds a call with every score and the judgement on the host,
and the median of the ratios of neighbouring turns, with its quartiles: what slows the machine for a while slows both. Which of the
two begins alternates. With FOLDER a checkout of the same commit the ratios show what the machine adds.
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
from servers import save

HERE = Path(__file__).resolve().parents[1]
CALLS = 20
"""Calls of one turn."""


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
    children = [start(folder) for folder in (options.before.resolve(), HERE)]
    cases = json.loads(answer_of(children[0], "cases"))
    assert cases == json.loads(answer_of(children[1], "cases"))  # noqa: S101
    found = {case: measured(children, case, options.rounds) for case in cases if case.startswith(options.only)}
    for child in children:
        child.communicate()
    save("compare", found)
    return 0


def measured(children: list[subprocess.Popen[str]], case: str, rounds: int) -> dict[str, float]:
    """Both medians of one case, and the ratio of after to before with its quartiles; printed, too."""
    for child in children:
        answer_of(child, case)
    turns = np.empty((rounds, 2))
    for number in range(rounds):
        for place in (0, 1) if number % 2 else (1, 0):
            turns[number, place] = float(answer_of(children[place], case))
    before, after = np.median(turns, axis=0).tolist()
    low, ratio, high = np.quantile(turns[:, 1] / turns[:, 0], [0.25, 0.5, 0.75]).tolist()
    print(
        f"{case:<36} before {before:8.3f} ms   after {after:8.3f} ms   ratio {ratio:.3f} [{low:.3f}, {high:.3f}]",
        flush=True,
    )
    return {"before": before, "after": after, "ratio": ratio, "low": low, "high": high}


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that answers with the code of a checkout."""
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", "--before", folder],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer_of(child: subprocess.Popen[str], line: str) -> str:
    """A child's answer to one line."""
    assert child.stdin is not None  # noqa: S101
    assert child.stdout is not None  # noqa: S101
    child.stdin.write(f"{line}\n")
    child.stdin.flush()
    return child.stdout.readline()


def serve(folder: Path) -> None:
    """In a child process: measures a call of each case that a line names, in milliseconds."""
    sys.path[:0] = [str(folder), str(folder / "benchmarks")]
    import scoring  # noqa: PLC0415 - of that checkout

    # What is compared must not be what an editable install happens to name.
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
        began = time.perf_counter()
        for _ in range(CALLS):
            calls[line]()
        print(1e3 * (time.perf_counter() - began) / CALLS, flush=True)


def prepare(scoring: Any, name: str) -> tuple[Any, ...]:
    """An example's posterior, feature scores, rows and calibration."""
    posterior, rows = scoring.example(**scoring.SHAPES[name])
    fit_feature_scores = getattr(scoring, "fit_feature_scores", None) or scoring.fit_densities
    feature_scores = fit_feature_scores(posterior, rows, seed=0)
    whole = make_predictor(scoring, posterior, 256, feature_scores)
    more = {}
    if "reference" in inspect.signature(scoring.calibrate).parameters:
        scores = whole(rows.x[5000:6000]).scores
        more["reference"] = {score: np.asarray(values) for score, values in scores.items()}
    decision = (getattr(scoring, "DEFAULT_DECISIONS", None) or scoring.DEFAULT)["images"]
    calibration = scoring.calibrate(whole(rows.x[:5000]), rows.y[:5000], decision=decision, **more)
    return posterior, feature_scores, rows, calibration


def make_predictor(scoring: Any, posterior: Any, batch: int, feature_scores: Any) -> Any:
    """Compiles a predictor; commits before the rename call its feature scores `densities`."""
    known = inspect.signature(scoring.Predictor).parameters
    keyword = "feature_scores" if "feature_scores" in known else "densities"
    return scoring.Predictor(posterior, (batch,), **{keyword: feature_scores})


def call_of(
    scoring: Any, posterior: Any, feature_scores: Any, rows: Any, calibration: Any, batch: int
) -> Callable[[], Any]:
    """A call from rows to judgement."""
    predictor, x = make_predictor(scoring, posterior, batch, feature_scores), rows.x[:batch]
    return lambda: scoring.judge(calibration, predictor(x))


if __name__ == "__main__":
    sys.exit(main())
