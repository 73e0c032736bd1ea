"""Reject rates of the six laws in every batch size, and of one of them over HTTP: for `guarantees.py`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from laws import TRAIN_ROWS, Law, config_from_dict, fit_law, predictor_of, write_table
from scipy import stats
from servers import free_port, running, serve_ours

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
CALIBRATED_IN = 256
"""The batch size that calibration rows are scored in, as in a fit."""
SERVED_ROWS = 2_000
BAND = 0.99


def measure_law(law: Law, splits: int, pool_rows: int) -> dict[str, Any]:
    """Fits the law's model, scores a pool in every batch size, and measures rates over random splits."""
    fitted = fit_law(law, pool_rows)
    scored = {bucket: score_in(predictor_of(fitted, bucket), fitted.pool.x, bucket) for bucket in BUCKETS}
    reference = predictor_of(fitted, CALIBRATED_IN)(fitted.reference.x).scores
    twin = has_twin(fitted.pool.x)
    rates: dict[tuple[float, str, int], list[float]] = {}
    within: dict[float, list[bool]] = {}
    differ = {"answers to equal rows": [0, 0], "verdicts on all rows": [0, 0], "answers to all rows": [0, 0]}
    for seed in range(splits):
        places = np.random.default_rng(seed).permutation(pool_rows)
        for percentile in PERCENTILES:
            rows = law.calibration_rows.get(percentile, CALIBRATION_ROWS)
            known, fresh = places[:rows], places[rows:]
            calibration = calibrate(
                taken(scored[CALIBRATED_IN], known),
                fitted.pool.y[known],
                decision=DEFAULT_DECISIONS["tables"],
                percentile=percentile,
                reference=reference,
                sets="aps",
            )
            judged = {bucket: judge(calibration, taken(scored[bucket], fresh)) for bucket in BUCKETS}
            for bucket, judgement in judged.items():
                for name, score in judgement.scores.items():
                    rates.setdefault((percentile, name, bucket), []).append(float(score.above.mean()))
            within.setdefault(percentile, []).append(in_band(judged, percentile, rows))
            verdicts, answers = differing(list(judged.values()))
            own = twin[fresh]
            for changed, counts in zip((answers[own], verdicts, answers), differ.values(), strict=True):
                counts[0] += int(changed.sum())
                counts[1] += len(changed)
    return {
        "rates": [rate_row(key, values) for key, values in rates.items()],
        "within": {str(percentile): float(np.mean(inside)) for percentile, inside in within.items()},
        "differ": differ,
    }


def score_in(predictor: Any, x: Float[np.ndarray, "rows features"], bucket: int) -> Prediction:
    """The prediction of all rows, so many at a time."""
    parts = [predictor(x[start : start + bucket]) for start in range(0, len(x), bucket)]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def has_twin(x: Float[np.ndarray, "rows features"]) -> Bool[np.ndarray, " rows"]:
    """Which rows are equal to another one."""
    _, places, counts = np.unique(np.nan_to_num(x, nan=-1e9), axis=0, return_inverse=True, return_counts=True)
    return counts[places.ravel()] > 1


def differing(judged: list[Judgement]) -> tuple[Bool[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Which rows have another verdict in some batch size; and which another verdict, p-value or prediction set."""
    first, *others = judged
    p_values = first.scores[first.decision].p_value
    verdicts = np.logical_or.reduce([other.reject != first.reject for other in others])
    rest = [
        (other.scores[other.decision].p_value != p_values) | (other.members != first.members).any(axis=1)
        for other in others
    ]
    return verdicts, verdicts | np.logical_or.reduce(rest)


def in_band(judged: dict[int, Judgement], percentile: float, rows: int) -> bool:
    """Whether every batch size's rate of this split is at most the upper end of the beta-binomial band."""
    rejected = [int(judgement.reject.sum()) for judgement in judged.values()]
    fresh = len(next(iter(judged.values())).reject)
    rank = percentile_rank(percentile, rows)
    return max(rejected) <= stats.betabinom(fresh, rows + 1 - rank, rank).ppf(BAND)


def rate_row(key: tuple[float, str, int], values: list[float]) -> dict[str, Any]:
    """One line: the mean rate, its standard error over splits, and its distance above the stated rate in these."""
    percentile, name, bucket = key
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    stated = 1 - percentile / 100
    above = (mean - stated) / error if error else (np.inf if mean > stated else -np.inf)
    return {"percentile": percentile, "score": name, "bucket": bucket, "mean": mean, "error": error, "above": above}


def taken(prediction: Prediction, places: Int[np.ndarray, " taken"]) -> Prediction:
    """The prediction of some of the rows."""
    return jax.tree.map(lambda leaf: leaf[places], prediction)


def print_laws(found: dict[str, dict[str, Any]]) -> None:
    """A line for each law and percentile: the decision in the batch sizes, and the worst of the single scores."""
    print(
        f"{'law':<10} {'P':>3}  {'decision rejects, by batch size':<40} {'s.e.':>6} {'worst above':>12} "
        f"{'worst single score':>34} {'splits in 99 % band':>20}"
    )
    for law, result in found.items():
        for percentile in PERCENTILES:
            lines = [row for row in result["rates"] if row["percentile"] == percentile]
            own = [row for row in lines if row["score"] == "combined"]
            single = max((row for row in lines if row["score"] != "combined"), key=lambda row: row["above"])
            shares = " ".join(f"{row['mean']:.2%}" for row in own)
            print(
                f"{law:<10} {percentile:>3g}  {shares:<40} {own[0]['error']:>6.2%} "
                f"{max(row['above'] for row in own):>+7.1f} s.e. {single['score']:>20} {single['mean']:.2%} "
                f"{single['above']:>+5.1f} s.e. {result['within'][str(percentile)]:>14.1%}"
            )
        for what, (changed, rows) in result["differ"].items():
            print(
                f"{law:<10} {what} that differ between batch sizes: {changed:,} of {rows:,}, {changed / max(rows, 1):.1e}"
            )


def measure_served(law: Law) -> dict[str, str]:
    """Fits and serves the law's model; the rates over HTTP, one row at a time and together, by both protocols."""
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
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
            running("abstain", port, serve_ours(port, folder / "store"), folder) as server,
            httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client,
        ):
            rejections = {
                f"{route}, {size} a request": np.concatenate(
                    [ask(client, route, x[start : start + size]) for start in range(0, len(x), size)]
                )
                for route in ("/predict", "/v2")
                for size in (1, 7, 256)
            }
    first = next(iter(rejections.values()))
    rates = {f"ties at 90 over {way}": f"{verdict.mean():.2%} rejected" for way, verdict in rejections.items()}
    changed = max(int((verdict != first).sum()) for verdict in rejections.values())
    return rates | {"verdicts that differ between ways": f"{changed} of {len(first)}"}


def ask(client: httpx.Client, route: str, rows: Float[np.ndarray, "rows features"]) -> Bool[np.ndarray, " rows"]:
    """The verdicts on some rows."""
    if route == "/predict":
        answer = client.post(route, json={"inputs": rows.tolist(), "fields": ["reject"]})
        answer.raise_for_status()
        return np.array([row["reject"] for row in answer.json()["predictions"]])
    inputs = [{"name": "inputs", "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}]
    body = {"inputs": inputs, "outputs": [{"name": "reject"}]}
    answer = client.post("/v2/models/law/infer", json=body)
    answer.raise_for_status()
    return np.array(answer.json()["outputs"][0]["data"])
