"""Measures the reject rates of the six laws in every batch size, and of one law over HTTP; `guarantees.py` runs it."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from laws import TRAIN_ROWS, Law, config_from_dict, fit_law, predictor_of, write_table
from scipy import stats
from servers import abstain_command, free_port, run_server

from abstain.models.bundles.bundle import load
from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.judging import judge
from abstain.models.decisions.ranks import percentile_rank
from abstain.models.decisions.records import Judgement
from abstain.models.prediction.predictive import BUCKETS, Prediction
from abstain.training.calibration.pipeline import DEFAULT_DECISIONS
from abstain.training.data.sources import read_source
from abstain.training.fit import fit

PERCENTILES = (90.0, 95.0, 99.0)
CALIBRATION_ROWS = 400
CALIBRATION_BUCKET = 256
"""The batch size that calibration rows are scored in, as in a fit."""
SERVED_ROWS = 2_000
BAND = 0.99
TWO_PARTS = "two parts"
"""The default decision with ambiguity, `max_probability`, and this share of the budget for novelty."""
NOVELTY_SHARE = 0.7


def measure_law(law: Law, splits: int, pool_rows: int) -> dict[str, Any]:
    """Fits the law's model, scores a pool in every batch size, and measures rates over random splits."""
    fitted = fit_law(law, pool_rows)
    scored = {bucket: predict_in(predictor_of(fitted, bucket), fitted.pool.x, bucket) for bucket in BUCKETS}
    reference = predictor_of(fitted, CALIBRATION_BUCKET)(fitted.reference.x).scores
    duplicated = is_duplicated(fitted.pool.x)
    rates: dict[tuple[float, str, int], list[float]] = {}
    within: dict[float, list[bool]] = {}
    differ = {
        "answers to equal rows": [0, 0],
        "verdicts on all rows": [0, 0],
        "answers to all rows": [0, 0],
        "verdicts of two parts": [0, 0],
    }
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(pool_rows)
        for percentile in PERCENTILES:
            rows = law.calibration_rows.get(percentile, CALIBRATION_ROWS)
            known, new = order[:rows], order[rows:]
            make = partial(
                calibrate,
                select_rows(scored[CALIBRATION_BUCKET], known),
                fitted.pool.y[known],
                decision=DEFAULT_DECISIONS["tables"],
                percentile=percentile,
                reference=reference,
                sets="aps",
            )
            calibration, parts = make(), make(ambiguity="max_probability", novelty_share=NOVELTY_SHARE)
            judgements = {bucket: judge(calibration, select_rows(scored[bucket], new)) for bucket in BUCKETS}
            of_parts = {bucket: judge(parts, select_rows(scored[bucket], new)) for bucket in BUCKETS}
            for bucket, judgement in of_parts.items():
                rates.setdefault((percentile, TWO_PARTS, bucket), []).append(float(judgement.reject.mean()))
            for bucket, judgement in judgements.items():
                for name, score in judgement.scores.items():
                    rates.setdefault((percentile, name, bucket), []).append(float(score.above.mean()))
            within.setdefault(percentile, []).append(is_in_band(judgements, percentile, rows))
            verdicts, answers = find_differences(list(judgements.values()))
            equal_rows = duplicated[new]
            changes = (answers[equal_rows], verdicts, answers, find_differences(list(of_parts.values()))[0])
            for changed, counts in zip(changes, differ.values(), strict=True):
                counts[0] += int(changed.sum())
                counts[1] += len(changed)
    return {
        "rates": [rate_row(key, values) for key, values in rates.items()],
        "within": {str(percentile): float(np.mean(inside)) for percentile, inside in within.items()},
        "differ": differ,
    }


def predict_in(predictor: Any, x: Float[np.ndarray, "rows features"], bucket: int) -> Prediction:
    """Predicts all rows, `bucket` rows at a time."""
    parts = [predictor(x[start : start + bucket]) for start in range(0, len(x), bucket)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def is_duplicated(x: Float[np.ndarray, "rows features"]) -> Bool[np.ndarray, " rows"]:
    """Returns which rows are equal to another row."""
    _, indices, counts = np.unique(np.nan_to_num(x, nan=-1e9), axis=0, return_inverse=True, return_counts=True)
    return counts[indices.ravel()] > 1


def find_differences(judgements: list[Judgement]) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Returns which rows have different verdicts in the batch sizes, and which differ in verdict, p-value or set."""
    first, *others = judgements
    p_values = first.scores[first.decision].p_value
    verdicts = np.logical_or.reduce([other.reject != first.reject for other in others])
    numbers = [
        (other.scores[other.decision].p_value != p_values) | (other.members != first.members).any(axis=1)
        for other in others
    ]
    return verdicts, verdicts | np.logical_or.reduce(numbers)


def is_in_band(judgements: dict[int, Judgement], percentile: float, rows: int) -> bool:
    """Whether the rate of this split is at most the upper end of the beta-binomial band in every batch size."""
    rejected = [int(judgement.reject.sum()) for judgement in judgements.values()]
    new_rows = len(next(iter(judgements.values())).reject)
    rank = percentile_rank(percentile, rows)
    return max(rejected) <= stats.betabinom(new_rows, rows + 1 - rank, rank).ppf(BAND)


def rate_row(key: tuple[float, str, int], values: list[float]) -> dict[str, Any]:
    """Returns the mean rate, its standard error over splits, and the excess over the stated rate in standard errors."""
    percentile, name, bucket = key
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    stated = 1 - percentile / 100
    above = (mean - stated) / error if error else (np.inf if mean > stated else -np.inf)
    return {"percentile": percentile, "score": name, "bucket": bucket, "mean": mean, "error": error, "above": above}


def select_rows(prediction: Prediction, indices: Int[np.ndarray, " selected"]) -> Prediction:
    """Selects the predictions of some rows."""
    return jax.tree.map(lambda leaf: leaf[indices], prediction)


def print_laws(results: dict[str, dict[str, Any]]) -> None:
    """Prints a line for each law and percentile: the decision in each batch size, and the worst single score."""
    print(
        f"{'law':<10} {'P':>3}  {'decision rejects, by batch size':<40} {'s.e.':>6} {'worst above':>12} "
        f"{'worst single score':>34} {'splits in 99 % band':>20}"
    )
    for law, result in results.items():
        for percentile in PERCENTILES:
            lines = [row for row in result["rates"] if row["percentile"] == percentile]
            combined = [row for row in lines if row["score"] == "combined"]
            parts = [row for row in lines if row["score"] == TWO_PARTS]
            alone = (row for row in lines if row["score"] not in {"combined", TWO_PARTS})
            single = max(alone, key=lambda row: row["above"])
            shares = " ".join(f"{row['mean']:.2%}" for row in combined)
            print(
                f"{law:<10} {percentile:>3g}  {shares:<40} {combined[0]['error']:>6.2%} "
                f"{max(row['above'] for row in combined):>+7.1f} s.e. {single['score']:>20} {single['mean']:.2%} "
                f"{single['above']:>+5.1f} s.e. {result['within'][str(percentile)]:>14.1%}"
            )
            rates_of_parts = " ".join(f"{row['mean']:.2%}" for row in parts)
            print(
                f"{TWO_PARTS:>14}  {rates_of_parts:<40} {parts[0]['error']:>6.2%} "
                f"{max(row['above'] for row in parts):>+7.1f} s.e."
            )
        for name, (changed, rows) in result["differ"].items():
            print(
                f"{law:<10} {name} that differ between batch sizes: {changed:,} of {rows:,}, {changed / max(rows, 1):.1e}"
            )


def measure_served(law: Law) -> dict[str, str]:
    """Fits and serves the law's model, and returns the rates over HTTP: several request sizes, both protocols."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = config_from_dict(law, percentile=90.0)
        write_table(law.draw(rng, TRAIN_ROWS + 400), folder / "table.csv")
        write_table(law.draw(rng, SERVED_ROWS), folder / "new.csv")
        fit(config, str(folder / "table.csv"), folder / "store", lambda *_, **__: None)
        bundle = load(folder / "store" / "law" / "1")
        source = read_source(str(folder / "new.csv"), config.data, bundle.manifest.model, classify=True)
        assert source.train is not None  # noqa: S101
        x = source.train.x.astype(np.float32)
        port = free_port()
        with (
            run_server("abstain", port, abstain_command(port, folder / "store"), folder) as server,
            httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client,
        ):
            rejections = {
                f"{route}, {size} rows per request": np.concatenate(
                    [request_verdicts(client, route, x[start : start + size]) for start in range(0, len(x), size)]
                )
                for route in ("/predict", "/v2")
                for size in (1, 7, 256)
            }
    first = next(iter(rejections.values()))
    rates = {f"ties at 90 over {case}": f"{verdicts.mean():.2%} rejected" for case, verdicts in rejections.items()}
    changed = max(int((verdicts != first).sum()) for verdicts in rejections.values())
    return rates | {"verdicts that differ between these": f"{changed} of {len(first)}"}


def request_verdicts(
    client: httpx.Client, route: str, rows: Float[np.ndarray, "rows features"]
) -> Bool[np.ndarray, " rows"]:
    """Requests the verdicts on some rows."""
    if route == "/predict":
        response = client.post(route, json={"inputs": rows.tolist(), "fields": ["reject"]})
        response.raise_for_status()
        return np.array([row["reject"] for row in response.json()["predictions"]])
    inputs = [{"name": "inputs", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}]
    body = {"inputs": inputs, "outputs": [{"name": "reject"}]}
    response = client.post("/v2/models/law/infer", json=body)
    response.raise_for_status()
    return np.array(response.json()["outputs"][0]["data"])
