"""Calibration: a config's settings, recalibration, and the same answers from disk, command and HTTP."""

import json
from dataclasses import replace

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from abstain.models.bundles.bundle import load, without_stale_vim
from abstain.models.decisions import drift
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.decisions.ranks import threshold
from abstain.models.errors import BundleError, CalibrationError, ConfigError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.feature_scores import FEATURE_SCORES_BY_TASK
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import uniform_of
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.prediction.scores import SCORES
from abstain.models.prediction.temperature import Recalibration
from abstain.service.commands.predict_file import predict_file
from abstain.service.predict.response import make_columns, make_rows
from abstain.training.calibration import recalibration
from abstain.training.calibration.pipeline import (
    DEFAULT_DECISIONS,
    build_record,
    calibrate_posterior,
    check_calibration_settings,
    choose_decision,
)
from abstain.training.calibration.record import beta_bounds, reject_rate_bounds, threshold_bounds
from abstain.training.calibration.temperature import Candidate
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.data import AugmentConfig
from abstain.training.config.reading import read_config
from abstain.training.fit import fit, load_dataset
from tests.helpers.fits import silent
from tests.helpers.paths import CONFIGS
from tests.helpers.processes import PATIENCE
from tests.helpers.servers import start_server, stop_server

DIGITS = read_config(CONFIGS / "digits-vi.toml")
NAMES = ["vim", "gen", "mutual_information"]
NEEDED = Candidate(Recalibration(kind="draws", factor=1.5), gain=9.0, deviation=4.0)
"""A recalibration that passes both tests: the models here are fitted too well to need one."""

# ---- what a config may ask for ---------------------------------------------------------------------------------------


def settings_of(**settings):
    """A config's table [calibration]."""
    return CalibrationConfig.model_validate(settings)


def model_of(likelihood, shape=(8, 8)):
    """A model of ten classes, or of numbers, on images, or on tables of standardised features."""
    classes = () if likelihood == "normal" else tuple(map(str, range(2 if likelihood == "bernoulli" else 10)))
    table = Preprocessing(shift=(0.0,) * shape[0], scale=(1.0,) * shape[0]) if len(shape) == 1 else Preprocessing()
    return Model(
        network=MLPSpec(), likelihood=likelihood, preprocessing=table, feature_shape=shape, class_names=classes
    )


def test_a_decision_is_what_the_config_names():
    """One score, several with their weights in their order, or the default."""
    images = model_of("categorical")
    assert choose_decision(settings_of(decision="entropy"), images) == Decision(scores=("entropy",))
    several = settings_of(decision=NAMES, combine="weighted", weights={"gen": 2.0})
    assert choose_decision(several, images) == Decision(scores=tuple(NAMES), rule="weighted", weights=(1.0, 2.0, 1.0))
    assert choose_decision(settings_of(decision=NAMES), images).rule == "min"
    assert choose_decision(settings_of(), images) == DEFAULT_DECISIONS["images"]
    assert choose_decision(settings_of(), model_of("bernoulli", (6,))) == DEFAULT_DECISIONS["tables"]
    numbers = DEFAULT_DECISIONS["regression"].model_copy(update={"rule": "harmonic"})
    assert choose_decision(settings_of(combine="harmonic"), model_of("normal", (6,))) == numbers


@pytest.mark.parametrize("kind", DEFAULT_DECISIONS)
def test_the_default_decides_by_scores_that_there_are(kind):
    """Scores of the ensemble and densities of the task, each once."""
    task = "regression" if kind == "regression" else "classification"
    assert set(DEFAULT_DECISIONS[kind].scores) <= {*SCORES[task], *FEATURE_SCORES_BY_TASK[task]}


@pytest.mark.parametrize(
    ("settings", "likelihood", "message"),
    [
        ({"decision": "surprise"}, "categorical", r"decision: expected some of std, .*, range, found surprise"),
        ({"decision": "entrpy"}, "categorical", r"decision: .*, found entrpy; did you mean 'entropy'\?$"),
        ({"decision": ["std", "vim"]}, "normal", r"decision: expected some of std, total_std, .*, found vim"),
        ({"decision": ["gen", "std", "gen"]}, "categorical", r"decision: expected at least one score, each once"),
        ({"decision": []}, "categorical", r"decision: expected at least one score, each once, found \[\]"),
        ({"weights": {"gen": 1.0}}, "categorical", r"weights: expected weights of vim, .*, range, found gen"),
        ({"decision": "std", "weights": {"vim": 1.0}}, "categorical", r"weights: expected weights of std, found vim"),
        ({"per_class": True}, "normal", r"per_class: expected a likelihood of classes, found normal"),
        (
            {"per_class": True},
            "categorical",
            r"per_class: expected at least 99 .* each class at percentile 99, found 98 of class 7",
        ),
    ],
)
def test_terms_that_cannot_be_are_refused(settings, likelihood, message):
    """An unknown score, one of another task, one twice, a weight for none, too few rows: the key, what may be."""
    with pytest.raises(ConfigError, match=rf"^calibration\.{message}"):
        check_calibration_settings(
            settings_of(**settings), model_of(likelihood), np.delete(np.arange(1000) % 10, [7, 17])
        )


def test_terms_that_can_be_are_not_refused():
    """The number of rows that the error names is enough."""
    check_calibration_settings(settings_of(per_class=True), model_of("categorical"), np.arange(990) % 10)
    check_calibration_settings(settings_of(percentile=99.9, coverage=0.999), model_of("normal"), np.zeros(999))
    with pytest.raises(CalibrationError, match="at least 999 rows, found 998"):
        check_calibration_settings(settings_of(percentile=99.9), model_of("normal"), np.zeros(998))


# ---- bundles of schema 1 ---------------------------------------------------------------------------------------------


def test_vim_of_two_classes_by_one_logit_is_left_out_of_schema_1(digits):
    """A score, a feature score or a combination decides; other models keep their decision."""
    model = digits.manifest.model.model_copy(update={"likelihood": "bernoulli"})
    old = replace(digits, manifest=digits.manifest.model_copy(update={"model": model}))
    both = Decision(scores=("vim", "knn", "std"), rule="weighted", weights=(5.0, 2.0, 1.0))
    old = replace(old, calibration=replace(old.calibration, decision=both))
    found = without_stale_vim(old, "here")
    assert "vim" not in {**found.calibration.scores, **found.feature_scores.records}
    assert found.calibration.decision == Decision(scores=("knn", "std"), rule="weighted", weights=(2.0, 1.0))
    alone = replace(old, calibration=replace(old.calibration, decision=Decision(scores=("vim",))))
    with pytest.raises(BundleError, match=r"^here: decision: expected a score other than vim.*; fit the model again$"):
        without_stale_vim(alone, "here")
    assert without_stale_vim(digits, "here") is digits


# ---- calibrating a posterior -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held_out():
    """The digits' calibration and test rows."""
    dataset = load_dataset(DIGITS, None)
    return dataset.calibration, dataset.test


@pytest.fixture(scope="module")
def recalibrate(digits, held_out):
    """Calibrates the digits' posterior with settings."""

    def calibrated(**settings):
        known = digits.calibration.reference
        return calibrate_posterior(
            settings_of(**settings), digits.posterior, digits.feature_scores, held_out[0], known, 0
        )

    return calibrated


def test_recalibration_changes_probabilities_and_nothing_that_decides(recalibrate, held_out, monkeypatch):
    """Labels, scores, thresholds and rejections are the bits they were; probabilities are not."""
    test = held_out[1]
    monkeypatch.setattr(recalibration, "fit_recalibration", lambda *_: NEEDED)
    plain, mended = recalibrate(decision=NAMES), recalibrate(decision=NAMES, recalibrate="auto")
    assert (plain.recalibration.kind, mended.recalibration.kind != "none") == ("none", True)
    before, after = plain.predictor(test.x), mended.predictor(test.x)
    np.testing.assert_array_equal(before.summary.mean.argmax(axis=1), after.summary.mean.argmax(axis=1))
    assert before.scores.keys() == after.scores.keys()
    for name, values in before.scores.items():
        np.testing.assert_allclose(values, after.scores[name], rtol=1e-5, atol=1e-6, err_msg=name)
    judgement, again = judge(plain.calibration, before, 90.0), judge(mended.calibration, after, 90.0)
    np.testing.assert_array_equal(judgement.reject, again.reject)
    assert 0 < judgement.reject.sum() < len(test)
    assert np.abs(before.summary.mean - after.summary.mean).max() > 0.05


def test_augmented_calibration_rows_move_thresholds(recalibrate):
    """Shifted digits are stranger to a network that never saw any: what they calibrate lets more pass."""
    plain, shifted = recalibrate(decision="subspace"), recalibrate(decision="subspace", augment={"shift": 1})
    limits = [threshold(found.calibration.ascending["subspace"], 99.0) for found in (plain, shifted)]
    assert limits[0] < limits[1]
    assert settings_of(augment={"shift": 1}).augment == AugmentConfig(shift=1)
    assert plain.calibration.rows == shifted.calibration.rows


def test_augmented_calibration_keeps_the_rows_as_they_came(recalibrate, held_out, tmp_path):
    """Both reject rates are recorded; drift is watched against plain scores, and natural rows raise no alarm."""
    settings = {"decision": ["subspace", "knn"], "percentile": 90.0, "augment": {"shift": 1}}
    found = recalibrate(**settings)
    calibration, natural = found.calibration, judge(found.calibration, found.predictor(held_out[0].x))
    assert found.reject_rates.augmented == pytest.approx(0.1, abs=0.01)
    assert found.reject_rates.plain == natural.reject.mean() < 0.05
    for name, values in calibration.plain_all_scores.items():
        np.testing.assert_allclose(values, natural.scores[name].value, rtol=1e-6, err_msg=name)
    assert calibration.plain_all_scores.keys() == calibration.all_scores.keys()
    record = build_record(found, settings_of(**settings), model_of("categorical"))
    assert (record.augmented_reject_rate, record.plain_reject_rate) == found.reject_rates
    assert recalibrate(decision="subspace").calibration.plain_scores is None

    def peak(ranked):
        names = list(ranked)
        rounding = drift.absolute_rounding(tuple(names), np.ones(len(names)))
        random = np.random.default_rng(0)
        test = judge(calibration, found.predictor(held_out[1].x)).scores
        known, stream = (
            drift.dither(values, rounding, random.random(values.shape))
            for values in (np.stack(list(ranked.values())), np.stack([test[name].value for name in names]))
        )
        watch = drift.start_epoch(known)
        for start in range(0, stream.shape[1] - 100, 100):
            part = stream[:, start : start + 100]
            watch = drift.observe(watch, part, random.random(part.shape))
        return drift.log_martingale(watch).max()

    level = drift.alarm_level(0.01, len(calibration.all_scores), 1)
    assert peak(calibration.all_scores) > level > peak(calibration.plain_all_scores)


# ---- from disk, by command, over HTTP --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def combined(tmp_path_factory):
    """A store whose one model decides by three weighed scores, per class, with every term other than by default."""
    root = tmp_path_factory.mktemp("combined")
    settings = DIGITS.calibration.model_validate(
        {
            "decision": NAMES,
            "combine": "weighted",
            "weights": {"gen": 2.0},
            "per_class": True,
            "percentile": 90.0,
            "coverage": 0.8,
            "sets": "aps",
            "recalibrate": "auto",
        }
    )
    config = read_config(CONFIGS / "digits-vi.toml", ("steps=400", "draws=20", "reports=2"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recalibration, "fit_recalibration", lambda *_: NEEDED)
        fit(config.model_copy(update={"calibration": settings}), None, root, silent, report=False)
    return root


@pytest.fixture(scope="module")
def bundle(combined):
    """The model's one version."""
    return load(combined / "digits" / "1")


def test_every_term_is_in_the_bundle(bundle):
    """The combination, its settings, and exact bounds of what the split came to."""
    record, calibration = bundle.manifest.calibration, bundle.calibration
    assert record.decision == "combined"
    assert record.combination == Decision(scores=tuple(NAMES), rule="weighted", weights=(1.0, 2.0, 1.0))
    assert calibration.decision == record.combination
    settings_record = (
        calibration.percentile,
        calibration.coverage,
        calibration.per_class,
        calibration.sets,
        calibration.intervals,
    )
    assert settings_record == (90.0, 0.8, True, "aps", "normalised")
    assert set(record.thresholds) == {*SCORES["classification"], *FEATURE_SCORES_BY_TASK["classification"], "combined"}
    assert record.thresholds["combined"] == threshold(calibration.ascending["combined"], 90.0)
    assert (record.threshold_bounds, record.reject_rate_bounds) == ({}, None)
    choice = record.recalibration_choice
    assert (choice.rows, choice.radius_rows, len(calibration.radius_rows)) == (100, 400, 400)
    assert record.recalibration == choice.best == NEEDED.recalibration
    assert (choice.gain, choice.deviation) == (NEEDED.gain, NEEDED.deviation)
    assert record.coverage_bounds == beta_bounds(0.8, 400)
    assert list(record.class_thresholds) == list("0123456789")
    by_class = calibration.all_scores["combined"][calibration.labels == 3]
    assert record.class_thresholds["3"] == threshold(np.sort(by_class), 90.0)
    assert record.class_threshold_bounds["3"] == threshold_bounds(np.sort(by_class), 90.0)
    assert record.class_reject_rate_bounds["3"] == reject_rate_bounds(90.0, len(by_class))
    assert list(record.class_threshold_bounds) == list(record.class_reject_rate_bounds) == list("0123456789")


def test_a_calibration_of_all_rows_has_bounds_of_all_rows(digits):
    """Bounds exist for every score's threshold and the reject rate; per class there are none."""
    record, calibration = digits.manifest.calibration, digits.calibration
    assert record.threshold_bounds["vim"] == threshold_bounds(calibration.ascending["vim"], record.percentile)
    assert record.reject_rate_bounds == reject_rate_bounds(record.percentile, calibration.rows)
    assert (record.class_threshold_bounds, record.class_reject_rate_bounds) == ({}, {})


@pytest.fixture(scope="module")
def strange(held_out):
    """Twenty digits, and twenty that turn into noise."""
    noise = np.random.default_rng(0).integers(0, 17, (20, 8, 8))
    share = np.linspace(0, 1, 20)[:, None, None]
    return np.concatenate([held_out[1].x[:20], (1 - share) * held_out[1].x[20:40] + share * noise]).astype(np.float64)


def naive_rejections(bundle, prediction):
    """Rejections by a plain loop: a row's combined evidence exceeds that rank of its predicted class's calibration rows."""
    calibration, shares = bundle.calibration, np.array([0.25, 0.5, 0.25])

    def share_at_least(others, value):
        known = np.unique(others)
        at_least = [(others >= step).sum() for step in known]
        tail = np.sort(others)[int(0.975 * len(others)) :]
        p = (1 + np.interp(value, known, at_least, left=len(others))) / (len(others) + 1)
        return -np.log(p) + max(value - known[-1], 0) / (tail - tail[0]).mean()

    columns = [calibration.scores[name].astype(np.float64) for name in NAMES]
    own = [
        sum(
            share * share_at_least(np.delete(column, row), column[row])
            for share, column in zip(shares, columns, strict=True)
        )
        for row in range(calibration.rows)
    ]
    found = []
    for row, label in enumerate(prediction.summary.mean.argmax(axis=1)):
        alike = sorted(np.array(own)[calibration.labels == label])
        parts = [share_at_least(c, float(prediction.scores[name][row])) for c, name in zip(columns, NAMES, strict=True)]
        found.append(shares @ parts > alike[int(np.ceil((len(alike) + 1) * 0.9 - 1e-9)) - 1])
    return found


def test_the_combined_decision_is_the_plain_rules(bundle, strange):
    """Evidence, weighted sum, leave-one-out and the class's own rank, in loops from the bundle's arrays."""
    prediction = bundle.predictor((32,))(strange)
    judgement = judge(bundle.calibration, prediction)
    assert judgement.reject.tolist() == naive_rejections(bundle, prediction)
    assert 0 < judgement.reject.sum() < 40


def test_an_answer_says_which_score_spoke_and_by_how_much(bundle, strange):
    """Each score of the combination with its evidence, the combination itself, and reasons, the loudest first."""
    prediction = bundle.predictor((32,))(strange)
    judgement = judge(bundle.calibration, prediction)
    model = bundle.manifest.model
    answers = make_rows(make_columns(model, prediction, judgement), ("reject", "reasons", "scores"))
    for place, answer in enumerate(answers):
        scores = answer["scores"]
        assert {name for name, score in scores.items() if "evidence" in score} == set(NAMES)
        weighed = 0.25 * scores["vim"]["evidence"] + 0.5 * scores["gen"]["evidence"]
        weighed += 0.25 * scores["mutual_information"]["evidence"]
        assert scores["combined"]["value"] == pytest.approx(weighed, rel=1e-9)
        assert answer["reject"] is (scores["combined"]["value"] > scores["combined"]["threshold"])
        above = [name for name in NAMES if scores[name]["value"] > scores[name]["threshold"]]
        above.sort(key=lambda name: -(2 if name == "gen" else 1) * scores[name]["evidence"])
        if not answer["reject"]:
            assert answer["reasons"] == []
        elif above:
            assert answer["reasons"] == [f"{name} above its 90th percentile" for name in above]
        else:
            loud = judgement.main_scores[place]
            message = f"combined above its 90th percentile, loudest {loud}: {scores[loud]['percentile']:.2f} of 100"
            assert answer["reasons"] == [message]


def test_a_combination_answers_the_same_from_disk_by_command_and_over_http(combined, bundle, strange, tmp_path):
    """The Predictor's scores, `abstain predict`'s file and the server's JSON: equal words, and numbers to rounding."""
    prediction = bundle.predictor((256,))(strange)
    model = bundle.manifest.model
    fields = ("label", "reject", "reasons", "prediction_set", "scores")
    expected = make_rows(make_columns(model, prediction, judge(bundle.calibration, prediction)), fields)
    np.savez(tmp_path / "rows.npz", x=strange)
    predict_file(bundle, tmp_path / "rows.npz", tmp_path / "offline.jsonl")
    offline = [json.loads(line) for line in (tmp_path / "offline.jsonl").read_text().splitlines()]
    server = start_server(combined, tmp_path)
    try:
        online = httpx.post(f"{server.url}/predict", json={"inputs": strange.tolist()}, timeout=PATIENCE).json()[
            "predictions"
        ]
    finally:
        stop_server(server)
    for row, offline_row, answer in zip(expected, offline, online, strict=True):
        for field in ("label", "reject", "prediction_set"):
            assert row[field] == offline_row[field] == answer[field]
        assert row["reasons"] == offline_row["reasons"] == answer["reasons"]
        for name, score in row["scores"].items():
            assert score == pytest.approx(offline_row["scores"][name], rel=1e-5, abs=1e-5)
            assert score == pytest.approx(answer["scores"][name], rel=1e-5, abs=1e-5)


def test_the_settings_of_a_regression_are_restored(wave, monkeypatch):
    """Intervals from quantiles, and a factor on standard deviations that makes the squared errors what is stated."""
    monkeypatch.setattr(recalibration, "is_significant", lambda *_: True)
    settings = settings_of(decision=["std", "range"], recalibrate="auto", intervals="quantiles", percentile=90.0)
    dataset = load_dataset(read_config(CONFIGS / "wave-nuts.toml"), None)
    known = wave.calibration.reference
    found = calibrate_posterior(settings, wave.posterior, wave.feature_scores, dataset.calibration, known, 0)
    assert (found.calibration.intervals, found.recalibration.kind) == ("quantiles", "variance")
    own = np.setdiff1d(np.arange(len(dataset.calibration)), found.calibration.radius_rows)
    rows = dataset.calibration.take(own)
    summary = found.predictor(rows.x).summary
    total = summary.aleatoric_variance + summary.epistemic_variance
    assert np.mean((rows.y - summary.mean) ** 2 / total) == pytest.approx(1, rel=1e-3)
    judgement = judge(found.calibration, found.predictor(np.array([[-30.0], [0.0], [30.0]])))
    assert judgement.reject.tolist() == [True, False, True]
    assert replace(found.calibration, labels=None) == found.calibration or found.calibration.labels is None


# ---- the number that a row's bits decide -----------------------------------------------------------------------------


def uniforms(x):
    """One number a row, as the served call has it."""
    return np.asarray(jax.jit(jax.vmap(uniform_of))(jnp.asarray(x, jnp.float32)))


def test_the_uniform_number_is_a_function_of_the_row():
    """The same in any batch, nested or flat, of any dtype; another for another row, or the same pixels elsewhere."""
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8)).astype(np.uint8)
    found = uniforms(images)
    np.testing.assert_array_equal(found[10:13], uniforms(images[10:13].astype(np.float64)))
    np.testing.assert_array_equal(found, uniforms(images.reshape(64, 64)))
    np.testing.assert_array_equal(found[::-1], uniforms(images[::-1]))
    assert len(set(found.tolist())) == 64
    assert not np.any(found == uniforms(images.transpose(0, 2, 1)))
    np.testing.assert_array_equal(uniforms([[0.0, np.nan]]), uniforms([[-0.0, -np.nan]]))


@pytest.mark.parametrize("kind", ["normal", "pixels", "one pixel", "counting"])
def test_the_uniform_number_is_as_good_as_uniform(kind):
    """Numbers are uniform in [0, 1) by the Kolmogorov–Smirnov test, also for rows that differ in one pixel."""
    rng = np.random.default_rng(1)
    rows_of = {
        "normal": lambda: rng.normal(size=(5000, 3)),
        "pixels": lambda: rng.integers(0, 17, (5000, 64)),
        "one pixel": lambda: np.eye(64)[rng.integers(0, 64, 5000)] * rng.random((5000, 1)),
        "counting": lambda: np.arange(5000.0)[:, None],
    }
    found = uniforms(rows_of[kind]())
    assert 0 <= found.min() <= found.max() < 1
    assert stats.kstest(found, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.06
