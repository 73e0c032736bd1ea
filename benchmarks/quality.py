"""`make bench-quality`: MNIST by mean-field VI, and its decisions on the letter B.

Fits `training/configs/mnist-vi.toml` once for each seed with `abstain fit`, and prints: the test accuracy; the share of the
test set above the threshold of each score, which is the 99th percentile of the calibration; the share of 800 letters B that
each score rejects; and one B with its predicted digit, its std and the threshold. Needs `mnist.npz` and
`emnist_letters_test.npz` (arrays x_train … y_test of 28×28 uint8) in one folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from abstain.models.bundles.bundle import load
from abstain.models.bundles.store import versions
from abstain.models.decisions.judging import judge

PROJECT = Path(__file__).resolve().parents[1]
RESULTS = PROJECT / "benchmarks" / "results"
ABSTAIN = Path(sys.executable).with_name("abstain")
LETTER_B = 1
BAND = (0.0066, 0.0134)
"""1 % ± two standard deviations of the share of a new test set above a threshold from 5,000 calibration rows."""


def main() -> int:
    """Fits, measures, prints, and writes `benchmarks/results/quality.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=PROJECT.parent / "shared" / "data", help="folder of the .npz files"
    )
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    mnist, letters = options.data / "mnist.npz", options.data / "emnist_letters_test.npz"
    missing = [path for path in (mnist, letters) if not path.is_file()]
    if missing:
        sys.exit(f"missing: {', '.join(map(str, missing))}; name their folder with --data")
    with np.load(letters) as file:
        b = file["x_test"][file["y_test"] == LETTER_B]
    with tempfile.TemporaryDirectory() as store:
        results = [measure(Path(store), seed, mnist, b) for seed in range(options.seeds)]
    print_results(results)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "quality.json").write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 0


def measure(store: Path, seed: int, mnist: Path, b: np.ndarray) -> dict[str, Any]:
    """Fits one seed and returns its figures."""
    start_time = time.perf_counter()
    command = [ABSTAIN, "fit", PROJECT / "training/configs/mnist-vi.toml", "--data", mnist, "--store", store]
    fitted = subprocess.run(
        [*command, "--set", f"seed={seed}", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    seconds = time.perf_counter() - start_time
    metrics = json.loads(fitted.stdout)["metrics"]
    bundle = load(store / "mnist" / str(max(versions(store, "mnist"))))
    prediction = bundle.predictor((256,))(b)
    judgement = judge(bundle.calibration, prediction)
    std = judgement.scores["std"]
    # The rejected B with the largest probability, like the B in the article.
    index = int(np.argmax(np.where(judgement.reject, np.asarray(prediction.summary.mean).max(axis=1), 0)))
    return {
        "seed": seed,
        "seconds": seconds,
        "metrics": metrics,
        "b_rejected": {name: float(score.above.mean()) for name, score in judgement.scores.items()},
        "thresholds": bundle.manifest.calibration.thresholds,
        "b_example": {
            "label": bundle.manifest.model.class_names[int(np.asarray(prediction.summary.mean)[index].argmax())],
            "probability": float(np.asarray(prediction.summary.mean)[index].max()),
            "std": float(std.value[index]),
            "threshold": float(std.threshold[index]),
            "picture": picture(b[index]),
        },
    }


def print_results(results: list[dict[str, Any]]) -> None:
    """Prints the tables."""
    accuracies = [result["metrics"]["accuracy"] for result in results]
    print("MNIST, 784-64-64-10, mean-field VI, 10,000 steps, 100 draws; the article: test accuracy .979\n")
    print("seed  accuracy   nll     ece    fit s   test set above the 99th percentile of std")
    for result in results:
        rate = result["metrics"]["reject_rate"]["std"]
        inside = "inside" if BAND[0] <= rate <= BAND[1] else "OUTSIDE"
        print(
            f"{result['seed']:>4}  {result['metrics']['accuracy']:.4f}  {result['metrics']['nll']:.4f}  "
            f"{result['metrics']['ece']:.4f}  {result['seconds']:5.1f}   {rate:.2%} ({inside} {BAND[0]:.2%} … {BAND[1]:.2%})"
        )
    print(f"mean  {np.mean(accuracies):.4f} ± {np.std(accuracies, ddof=1) if len(results) > 1 else 0:.4f}\n")
    print(f"{'score':<20} test set above   letters B above   (mean, then each seed)")
    for name in results[0]["b_rejected"]:
        test = [result["metrics"]["reject_rate"][name] for result in results]
        letters = [result["b_rejected"][name] for result in results]
        by_seed = " ".join(f"{share:.1%}" for share in letters)
        print(f"{name:<20} {np.mean(test):>13.2%} {np.mean(letters):>17.1%}   {by_seed}")
    example = results[0]["b_example"]
    print("\nA letter B like the article's:\n" + "\n".join(f"    {line}" for line in example["picture"]))
    print(
        f"predicted {example['label']} (probability {example['probability']:.2f}); "
        f"std {example['std']:.3f} above the threshold {example['threshold']:.3f}: rejected"
    )


def picture(image: np.ndarray) -> list[str]:
    """Renders a 28×28 image as characters, two rows in one line."""
    shades = np.array(list(" .:-=+*#%@"))
    rows = image.reshape(14, 2, 28).mean(axis=1)
    return ["".join(row).rstrip() for row in shades[(rows / 255 * 9).round().astype(int)]]


if __name__ == "__main__":
    sys.exit(main())
