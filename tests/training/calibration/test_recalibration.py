"""Choosing a recalibration: its rows, its test, and the radius from the other rows."""

from collections import Counter

import numpy as np
import pytest

from abstain.models.decisions.judging import judge
from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.temperature import Recalibration, RecalibrationChoice
from abstain.training.calibration import recalibration
from abstain.training.calibration.pipeline import build_record, calibrate_posterior
from abstain.training.calibration.recalibration import choose_recalibration, least_gain_of, set_aside
from abstain.training.calibration.temperature import Candidate, choose_temperature, fit_variance, variance_gain
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.reading import read_config
from abstain.training.data.rows import Rows
from abstain.training.fit import load_dataset
from abstain.training.report.quality_section import describe_recalibration
from tests.helpers.paths import CONFIGS
from tests.training.calibration.test_pipeline import model_of

CLASSES, NUMBERS = model_of("categorical"), model_of("normal", (6,))


def settings_of(**settings):
    """A config's table [calibration], with a recalibration."""
    return CalibrationConfig.model_validate({"recalibrate": "auto", **settings})


@pytest.fixture(scope="module")
def held_out():
    """The calibration rows of the digits."""
    return load_dataset(read_config(CONFIGS / "digits-vi.toml"), None).calibration


# ---- the rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "expected"), [(99, 0), (149, 0), (150, 50), (250, 50), (500, 100), (5_000, 1_000), (50_000, 1_000)]
)
def test_about_a_fifth_of_the_rows_choose(rows, expected):
    """At least 50 rows, at most 1,000, and never more than a third; the others set the radius."""
    own, others = set_aside(settings_of(), CLASSES, np.zeros(rows), 0)
    assert len(own) == expected
    if not expected:
        assert others is None
        return
    assert sorted([*own, *others]) == list(range(rows))
    assert (np.diff(own) > 0).all()
    assert (np.diff(others) > 0).all()


def test_the_rows_depend_on_the_seed_alone():
    """Every row is chosen about equally often over seeds: 400 · 1/5 times, within five standard deviations."""
    chosen = [set_aside(settings_of(), CLASSES, np.zeros(500), seed)[0] for seed in range(400)]
    np.testing.assert_array_equal(chosen[3], set_aside(settings_of(sets="aps"), CLASSES, np.zeros(500), 3)[0])
    counts = np.bincount(np.concatenate(chosen), minlength=500)
    assert np.abs(counts - 80).max() < 5 * np.sqrt(400 * 0.2 * 0.8)


def test_no_rows_are_set_aside_that_the_coverage_needs():
    """At coverage 0.998 a radius needs 499 rows: 500 are enough, but not for a recalibration too."""
    assert not len(set_aside(settings_of(coverage=0.998), CLASSES, np.zeros(500), 0)[0])
    assert len(set_aside(settings_of(coverage=0.998), CLASSES, np.zeros(624), 0)[1]) == 499
    assert not len(set_aside(settings_of(coverage=0.998), CLASSES, np.zeros(623), 0)[0])


def test_normalised_intervals_use_all_rows_for_both():
    """The factor on the standard deviations and the radius cancel out; of other intervals they do not."""
    own, others = set_aside(settings_of(), NUMBERS, np.zeros(100), 0)
    assert (len(own), others) == (100, None)
    assert not len(set_aside(settings_of(), NUMBERS, np.zeros(49), 0)[0])
    own, others = set_aside(settings_of(intervals="quantiles"), NUMBERS, np.zeros(500), 0)
    assert (len(own), len(others)) == (100, 400)


def test_normalised_intervals_are_the_same_with_every_factor(wave):
    """Calibrated with and without a factor far from 1: equal up to rounding, and other standard deviations."""
    rows = load_dataset(read_config(CONFIGS / "wave-nuts.toml"), None).calibration
    rows = Rows(rows.x, rows.y + 5 * np.random.default_rng(0).normal(size=len(rows)).astype(rows.y.dtype))
    plain, scaled = (
        calibrate_posterior(
            settings_of(decision="std", percentile=90.0, recalibrate=kind),
            wave.posterior,
            wave.feature_scores,
            rows,
            wave.calibration.reference,
            0,
        )
        for kind in ("none", "auto")
    )
    assert scaled.recalibration.factor > 2
    assert scaled.choice.rows == len(rows)
    grid = np.linspace(-2, 2, 9)[:, None].astype(np.float32)
    before, after = (judge(found.calibration, found.predictor(grid)) for found in (plain, scaled))
    np.testing.assert_allclose(before.interval, after.interval, rtol=1e-4)
    np.testing.assert_array_equal(before.reject, after.reject)


# ---- the test --------------------------------------------------------------------------------------------------------


def test_the_least_gains_are_those_of_chi_squared():
    """Half the 95 % quantile of χ² with one degree of freedom; the 97.5 % quantile for two candidates."""
    assert least_gain_of(NUMBERS) == pytest.approx(1.9207, abs=1e-4)
    assert least_gain_of(CLASSES) == pytest.approx(2.5119, abs=1e-4)


def test_a_right_model_is_rarely_recalibrated():
    """Of 1,000 parts of 100 rows about 5 % pass the test: within four standard deviations, and of classes no more."""
    rng, rows = np.random.default_rng(0), 100
    passed = Counter[str]()
    for _ in range(1_000):
        mean, targets = np.zeros(rows), rng.normal(size=rows)
        factor = fit_variance(mean, np.ones(rows), targets)
        passed["numbers"] += variance_gain(mean, np.ones(rows), targets, factor) >= least_gain_of(NUMBERS)
    for _ in range(200):
        logs = np.log(rng.dirichlet([1.0, 1.0, 1.0], rows))[None] + 0.3 * rng.normal(size=(3, rows, 3))
        logs -= np.log(np.exp(logs).sum(axis=2, keepdims=True))
        mean = np.exp(logs).mean(axis=0)
        labels = (rng.random((rows, 1)) > mean.cumsum(axis=1)).sum(axis=1).clip(max=2)
        passed["classes"] += choose_temperature(logs, labels).gain >= least_gain_of(CLASSES)
    assert abs(passed["numbers"] - 50) < 4 * np.sqrt(1_000 * 0.05 * 0.95)
    assert passed["classes"] < 10 + 4 * np.sqrt(200 * 0.05 * 0.95)


@pytest.mark.parametrize(
    ("gain", "deviation", "applied"),
    [(2.4, 9.0, False), (2.6, 1.9, False), (2.6, -1.9, False), (2.6, 2.0, True), (2.6, -2.0, True)],
)
def test_a_recalibration_is_applied_if_it_gains_enough(digits, held_out, monkeypatch, gain, deviation, applied):
    """The manifest says which was the likeliest and what it gained, applied or not; its rows never set the radius."""
    best = Recalibration(kind="pooled", factor=1.5)
    monkeypatch.setattr(recalibration, "fit_recalibration", lambda *_: Candidate(best, gain, deviation))
    found = choose_recalibration(settings_of(), digits.posterior, held_out, 0)
    assert found.recalibration == (best if applied else recalibration.NONE)
    choice = found.choice
    assert (choice.best, choice.gain, choice.deviation, choice.rows) == (best, gain, deviation, 100)
    assert len(found.radius_rows) == 400


def test_without_rows_or_a_request_nothing_is_chosen(digits, held_out):
    """Too few rows are recorded; `recalibrate = "none"` has no record."""
    few = choose_recalibration(settings_of(percentile=90.0), digits.posterior, held_out.take(np.arange(149)), 0)
    assert (few.recalibration.kind, few.choice.rows, few.choice.gain, few.radius_rows) == ("none", 0, 0.0, None)
    assert choose_recalibration(settings_of(recalibrate="none"), digits.posterior, held_out, 0) == (
        recalibration.NONE,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("kind", "gain", "text"),
    [
        (
            "pooled",
            12.345,
            "Recalibrated: a temperature of 1.5 on the mean probabilities fits 1,000 calibration rows best. ",
        ),
        (
            "draws",
            2.4,
            "Not recalibrated: a temperature of 1.5 on the probabilities of each draw fits 1,000 calibration ",
        ),
        (
            "variance",
            12.345,
            "12.35 nats higher than without; at least 2.51 are needed. Without it their error is 3.14 standard errors below ",
        ),
        ("none", 0.0, "Not recalibrated: no temperature raises the log-likelihood of 1,000 calibration rows."),
    ],
)
def test_the_report_says_what_was_chosen_and_why(digits, kind, gain, text):
    """Which recalibration, by how many rows, what it gains, and what it must gain."""
    best = Recalibration(kind=kind, factor=1.0 if kind == "none" else 1.5)
    choice = RecalibrationChoice(
        rows=1_000, best=best, gain=gain, least_gain=2.51194, deviation=-3.14159, least_deviation=1.95996
    )
    applied = best if gain >= 2.51194 else Recalibration()
    record = digits.manifest.calibration.model_copy(update={"recalibration": applied, "recalibration_choice": choice})
    assert text in describe_recalibration(record)
    few = record.model_copy(
        update={"recalibration_choice": RecalibrationChoice(rows=0, least_gain=2.5, least_deviation=2.0)}
    )
    assert describe_recalibration(few) == "Not recalibrated: there are too few calibration rows."
    assert not describe_recalibration(record.model_copy(update={"recalibration_choice": None}))


# ---- the radius ------------------------------------------------------------------------------------------------------


def test_the_rows_that_choose_set_no_radius(digits, held_out, monkeypatch):
    """Other labels of these rows change the recalibration only, those of the others the radius only."""
    monkeypatch.setattr(recalibration, "is_significant", lambda *_: True)

    def calibrated(labels):
        found = calibrate_posterior(
            settings_of(decision="std"),
            Posterior(digits.posterior.model, digits.posterior.draws),
            digits.feature_scores,
            Rows(held_out.x, labels),
            digits.calibration.reference,
            0,
        )
        return found, build_record(found, settings_of(decision="std"), digits.posterior.model)

    own, others = set_aside(settings_of(), CLASSES, np.zeros(len(held_out)), 0)
    shifted = {name: held_out.y.copy() for name in ("own", "others")}
    shifted["own"][own[:30]] = (shifted["own"][own[:30]] + 1) % 10
    shifted["others"][others[:100]] = (shifted["others"][others[:100]] + 1) % 10
    (before, record), (own_changed, _), (others_changed, _) = map(
        calibrated, (held_out.y, shifted["own"], shifted["others"])
    )
    np.testing.assert_array_equal(before.calibration.radius_rows, others)
    choice = record.recalibration_choice
    assert (record.rows, choice.radius_rows, choice.rows) == (500, 400, 100)
    assert own_changed.recalibration.factor != before.recalibration.factor
    assert others_changed.recalibration == before.recalibration
    judged = judge(before.calibration, before.predictor(held_out.x))
    # The same predictions, another radius: only the other rows have a say in it.
    same = others_changed.calibration.nonconformity[own]
    np.testing.assert_array_equal(same, before.calibration.nonconformity[own])
    radius = np.sort(before.calibration.nonconformity[others])[int(np.ceil(401 * 0.9)) - 1]
    mean = before.predictor(held_out.x).summary.mean
    np.testing.assert_array_equal(judged.members, 1 - mean.astype(np.float64) <= radius + 1e-5 * mean + 1e-7)
    for found in (own_changed, others_changed):
        for name, values in before.calibration.scores.items():
            np.testing.assert_array_equal(found.calibration.scores[name], values, err_msg=name)


def test_no_rows_are_set_aside_where_the_coverage_of_a_group_needs_them():
    """Nine rows of each class at coverage 0.9; of accepted rows, at percentile 80, as if all of the others were accepted."""
    classes = len(CLASSES.class_names)
    even = np.arange(500) % classes
    y = np.minimum(np.arange(500) // 10, classes - 1)
    own, others = set_aside(settings_of(coverage_per_class=True), CLASSES, even, 0)
    assert (len(own), len(others)) == (100, 400)
    assert not len(set_aside(settings_of(coverage_per_class=True, coverage=0.95), CLASSES, y, 0)[0])
    assert len(set_aside(settings_of(coverage_among="accepted", percentile=80.0), CLASSES, y, 0)[0]) == 100
    assert not len(set_aside(settings_of(coverage_among="accepted", percentile=21.0), CLASSES, y, 0)[0])
