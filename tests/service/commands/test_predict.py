"""`abstain predict --fdr`: the rows of a file that are unlike the calibration rows, in every format."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from abstain.models.bundles.bundle import load
from abstain.models.decisions.decision import COMBINED, NOVELTY, Decision
from abstain.models.errors import InputError
from abstain.service.commands import predict_file
from abstain.service.commands.predict_file import PredictedFile, describe_discoveries
from abstain.service.commands.rejected_rows import RejectedRows, count_rejected
from tests.helpers.prediction_files import read_predictions

STRANGE = 60
ROWS = np.concatenate([load_digits().images[:140], 16 * np.random.default_rng(0).random((STRANGE, 8, 8))])
"""Digits, of which some are training rows, and then noise."""
RATE = 0.0432
"""No p-value of 500 calibration rows is at a boundary of this rate, so SciPy's rounding does not matter."""


@pytest.fixture
def data(tmp_path):
    """The rows as a file."""
    np.savez(tmp_path / "rows.npz", x=ROWS)
    return tmp_path / "rows.npz"


def expected_flags(p_values, rate):
    """Which rows SciPy flags."""
    return (stats.false_discovery_control(np.asarray(p_values, float), method="bh") <= rate).tolist()


@pytest.mark.parametrize("end", [".csv", ".npz", ".parquet", ".jsonl"])
def test_a_field_is_added_and_the_others_are_unchanged(run, store, tmp_path, data, end):
    """The flags are those of SciPy for the p-values of the whole file; a line on stderr has their number."""
    paths = [tmp_path / f"plain{end}", tmp_path / f"flagged{end}"]
    for out, options in zip(paths, ([], ["--fdr", RATE]), strict=True):
        code, printed, err = run("predict", "digits", "--data", data, "--out", out, "--store", store, *options)
        assert (code, printed) == (0, f"digits:1 predicted 200 rows into {out}\n")
    plain, flagged = map(read_predictions, paths)
    flags = flagged.pop("fdr_reject")
    assert flagged == plain
    assert {type(value) for value in flags} == {bool}
    assert flags == expected_flags(flagged["scores.mutual_information.p_value"], RATE)
    rejected = f"rejected: {sum(plain['reject'])} of 200 rows"
    assert err == f"{rejected} fdr {RATE}: {sum(flags)} of 200 rows are unlike the calibration rows"
    assert 0 <= np.mean(flags[:-STRANGE]) < np.mean(flags[-STRANGE:])


@pytest.mark.parametrize(
    ("decision", "ambiguity", "name"),
    [
        (Decision(scores=("range", "mutual_information")), None, COMBINED),
        (Decision(scores=("mutual_information",)), "max_probability", "mutual_information"),
        (Decision(scores=("range", "mutual_information")), "max_probability", NOVELTY),
    ],
)
def test_the_novelty_of_a_row_is_what_counts(store, tmp_path, data, decision, ambiguity, name):
    """In a decision of two parts, the p-values are those of its novelty part; ambiguous rows are familiar."""
    bundle = load(store / "digits" / "1")
    bundle = replace(bundle, calibration=replace(bundle.calibration, decision=decision, ambiguity=ambiguity))
    out = tmp_path / "out.npz"
    written = predict_file.predict_file(bundle, data, out, fdr=RATE)
    found = read_predictions(out)
    assert found["fdr_reject"] == expected_flags(found[f"scores.{name}.p_value"], RATE)
    parts = [sum(found[part]) if ambiguity else None for part in ("novel", "ambiguous")]
    rejected = RejectedRows(sum(found["reject"]), 200, *parts, 0)
    assert written == PredictedFile(200, sum(found["fdr_reject"]), rejected)
    assert written.discoveries > 0


def test_the_rule_sees_the_whole_file(store, tmp_path, data, monkeypatch):
    """Not each of the chunks that it is computed in: those of noise alone would flag more rows."""
    monkeypatch.setattr(predict_file, "CHUNK_ROWS", 64)
    predict_file.predict_file(load(store / "digits" / "1"), data, tmp_path / "out.npz", fdr=RATE)
    found = read_predictions(tmp_path / "out.npz")
    assert found["fdr_reject"] == expected_flags(found["scores.mutual_information.p_value"], RATE)


def test_a_regression_and_one_row(run, store, tmp_path):
    """A row far outside is flagged, and one inside is not; with --json, stdout is one document as before."""
    for number, line in ((1e6, "1 of 1 rows is unlike"), (0.0, "0 of 1 rows are unlike")):
        np.savez(tmp_path / "row.npz", x=np.array([[number]]))
        out = tmp_path / "out.parquet"
        arguments = ["--data", tmp_path / "row.npz", "--out", out, "--fdr", "0.05", "--store", store, "--json"]
        code, printed, err = run("predict", "wave", *arguments)
        assert code == 0, err
        assert json.loads(printed) == {"model": "wave", "version": 1, "rows": 1, "out": str(out)}
        rejected = f"rejected: {int(number > 0)} of 1 rows"
        assert err == f"{rejected} fdr 0.05: {line} the calibration rows"
        assert read_predictions(out)["fdr_reject"] == [number > 0]


def test_the_rejected_rows_are_counted_by_part():
    """A row may count in several parts; the line names a part only where there is one."""
    reasons = [
        ["town: 'Rom' was not in training"],
        ["std above its 99th percentile"],
        [],
        ["town: a category that was not in training"],
    ]
    one = {"reject": [True, True, False, True], "reasons": reasons}
    assert str(count_rejected(one)) == "rejected: 3 of 4 rows (2 with an unseen category)"
    two = {**one, "novel": [True, False, False, True], "ambiguous": [True, True, False, False]}
    assert str(count_rejected(two)) == "rejected: 3 of 4 rows (2 novel, 2 ambiguous, 2 with an unseen category)"
    none = {"reject": [False], "reasons": [[]], "novel": [False], "ambiguous": [False]}
    assert str(count_rejected(none)) == "rejected: 0 of 1 rows"
    assert str(count_rejected({"reject": [True], "reasons": [reasons[1]]})) == "rejected: 1 of 1 rows"


def test_too_few_calibration_rows_are_said(run, store, tmp_path, data):
    """No row can be flagged; the line says how many calibration rows there must be, and the file is written."""
    out = tmp_path / "out.npz"
    code, _, err = run("predict", "digits", "--data", data, "--out", out, "--fdr", "0.001", "--store", store)
    assert code == 0
    assert err.partition(" fdr ")[1:] == (
        " fdr ",
        "0.001: 0 of 200 rows are unlike the calibration rows; none can be flagged: expected at least 999 "
        "calibration rows, found 500; choose a larger --fdr, or calibrate with more rows",
    )
    assert not any(read_predictions(out)["fdr_reject"])


@pytest.mark.parametrize(("n", "said"), [(18, True), (19, False)])
def test_the_least_calibration_part_is_not_too_small(n, said):
    """1/(n + 1) ≤ 0.05 from 19 rows."""
    assert (
        "expected at least 19" in describe_discoveries(PredictedFile(5, 0, RejectedRows(0, 5, None, None, 0)), 0.05, n)
    ) == said


def test_a_calibration_per_class_is_refused(run, store, tmp_path, data, monkeypatch):
    """Before anything is compiled or written: each class has its own number of calibration rows."""
    bundle = load(store / "digits" / "1")
    bundle = replace(bundle, calibration=replace(bundle.calibration, per_class=True))
    monkeypatch.setattr("abstain.models.bundles.bundle.load_published", lambda *_: bundle)
    monkeypatch.setattr("abstain.models.bundles.bundle.Predictor", lambda *_, **__: pytest.fail("compiled"))
    out = tmp_path / "out.csv"
    code, printed, err = run("predict", "digits", "--data", data, "--out", out, "--fdr", "0.05", "--store", store)
    assert (code, printed, out.exists()) == (1, "", False)
    assert err == (
        "abstain: --fdr: expected a version that ranks each row among all calibration rows, found per_class = true, "
        "which ranks it among those of its predicted class; leave out --fdr, or make such a version: abstain calibrate "
        "MODEL --data PATH --set per_class=false"
    )
    with pytest.raises(InputError):
        predict_file.predict_file(bundle, data, out, fdr=0.05)


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        ("0", "above 0 and below 1, such as 0.05, found 0"),
        ("1", "above 0 and below 1, such as 0.05, found 1"),
        ("5", "above 0 and below 1, such as 0.05, found 5"),
        ("-0.05", "above 0 and below 1, such as 0.05, found -0.05"),
        ("nan", "above 0 and below 1, such as 0.05, found nan"),
        ("low", "value for '--fdr': "),
    ],
)
def test_a_wrong_rate_is_wrong_usage(run, rate, text):
    """Exit code 2, like a wrong percentile."""
    code, out, err = run("predict", "digits", "--data", "a.csv", "--out", "b.csv", "--fdr", rate)
    assert (code, out) == (2, "")
    assert text in err
