"""The command: exit codes, stdout, JSON documents, and input and output files."""

import json
import re
import shutil
from importlib import metadata

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from sklearn.datasets import load_digits

from abstain.models.bundles.bundle import load
from abstain.models.bundles.guarantees import RiskRecord
from abstain.models.bundles.manifest import read_manifest
from abstain.models.bundles.shortfalls import texts
from abstain.models.decisions.judging import judge
from abstain.models.prediction.predictive import buckets_for
from abstain.models.prediction.preprocessing import Column
from abstain.service.commands.manifest_rows import manifest_rows
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import split
from abstain.training.data.sources import read_source
from abstain.training.evaluate import evaluate_version
from tests.helpers.commands import abstain
from tests.helpers.paths import CONFIGS
from tests.helpers.prediction_files import read_predictions

COMMANDS = ("fit", "configs", "settings", "evaluate", "models", "show", "label", "rollback", "predict", "serve")
IMAGES = load_digits().images[:300]


@pytest.fixture(scope="module")
def own(store, tmp_path_factory):
    """A copy of the store, to move labels in."""
    return shutil.copytree(store, tmp_path_factory.mktemp("own") / "store")


def table_of(rows):
    """Flat rows as a table, with a column for each feature."""
    flat = rows.reshape(len(rows), -1)
    return pa.table({f"pixel {index}": flat[:, index] for index in range(flat.shape[1])})


# ---- usage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(run, command):
    """-h and --help exit 0 and print, on stdout, an example of the command."""
    for flag in ("-h", "--help"):
        code, out, err = run(command, flag)
        assert (code, err) == (0, "")
        assert f"Example: abstain {command}" in " ".join(out.replace("`", "").split())


def test_the_version_is_that_of_the_package(run):
    """`abstain --version`."""
    assert run("--version") == (0, f"abstain {metadata.version('abstain')}\n", "")


def test_the_example_configs_are_listed_and_printed(run):
    """With a line about each; an unknown one is refused with the nearest."""
    code, out, _ = run("configs", "--json")
    listed = {config["name"]: config["about"] for config in json.loads(out)["configs"]}
    assert (code, [*listed]) == (0, sorted(path.stem for path in CONFIGS.glob("*.toml")))
    assert listed["digits-ensemble"].endswith("a deep ensemble: ten networks from ten starts, one draw each")
    assert "digits-vi" in run("configs")[1]
    assert run("configs", "digits-vi") == (0, (CONFIGS / "digits-vi.toml").read_text(), "")
    code, out, err = run("configs", "digitsvi")
    assert (code, out) == (1, "")
    assert "no example 'digitsvi'" in err
    assert "did you mean 'digits-vi'?" in err


def test_the_installed_command_lists_all_commands():
    """`abstain -h` as a process prints every command."""
    result = abstain("-h")
    assert (result.returncode, result.stderr) == (0, "")
    assert [command for command in COMMANDS if not re.search(rf"\b{command}\b", result.stdout)] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["models", "--nonsense"], "No such option: --nonsense"),
        (["show"], "Missing argument 'MODEL'"),
        (["fit"], "Missing argument 'CONFIG.toml'"),
        (["evaluate", "digits"], "Missing option '--data'"),
        (["evaluate", "digits", "--data", "digits", "--ood", "letters"], "--ood: expected NAME=PATH, found 'letters'"),
        (
            ["evaluate", "digits", "--data", "digits", "--percentile", ".99"],
            "above 1 and below 100, such as 99, found 0.99",
        ),
        (["calibrate", "digits", "--data", "digits", "--percentile", ".99"], "such as 99, found 0.99"),
        (["evaluate", "digits", "--data", "digits", "--percentile", "0"], "above 1 and below 100, such as 99, found 0"),
        (
            ["evaluate", "digits", "--data", "digits", "--percentile", "nan"],
            "above 1 and below 100, such as 99, found nan",
        ),
        (
            ["predict", "digits", "--data", "a.csv", "--out", "b.csv", "--percentile", "100"],
            "below 100, such as 99, found 100",
        ),
        (
            ["predict", "digits", "--data", "a.csv", "--out", "b.csv", "--percentile", "high"],
            "value for '--percentile': ",
        ),
    ],
)
def test_wrong_usage_exits_2(run, arguments, text):
    """The error of the command line is on stderr, and stdout stays empty."""
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert text in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "letters"], "no model named 'letters': expected digits, wave, found 'letters'"),
        (["show", "digits:7"], "digits has no version 7: expected 1, 2, found 7"),
        (["show", "digits@canary"], "digits has no label 'canary': expected stable, found canary"),
        (["show", "digits:one"], "no such model: expected name, name:version or name@label, found 'digits:one'"),
        (["label", "digits:7", "canary"], "digits has no version 7"),
        (["label", "digits:1", "7th"], "label: expected 1 to 32 letters, digits, dashes or underscores"),
        (["rollback", "letters"], "no model named 'letters'"),
        (["rollback", "wave"], "wave has no previous stable version; set the label yourself: abstain label wave:"),
        (["fit", "none.toml"], "none.toml: cannot be read: found No such file or directory"),
        (["fit", CONFIGS / "wave-nuts.toml", "--set", "stpes=1"], "--set stpes: expected a key of the config"),
        (
            ["fit", CONFIGS / "wave-nuts.toml", "--set", "calibration_size=50"],
            "expected at least 99 rows, found 50 rows",
        ),
        (["fit", CONFIGS / "mnist-vi.toml"], "data.source: expected a path or an embedded set, found nothing; set it"),
        (["evaluate", "digits", "--data", "none.npz"], "none.npz: no such file: expected a path, or one of digits, "),
        (["evaluate", "digits", "--data", "digits", "--percentile", "99.9"], "expected at least 999 rows, found 500"),
        (["predict", "digits", "--data", "none.npz", "--out", "o.csv"], "none.npz: no such file"),
        (
            ["predict", "digits", "--data", "rows.xls", "--out", "o.csv"],
            "--data: expected a file ending in .npz, .csv, .tsv",
        ),
        (
            ["predict", "digits", "--data", "none.npz", "--out", "o.txt"],
            "--out: expected a file ending in .csv, .parquet",
        ),
    ],
)
def test_failed_work_exits_1(run, store, arguments, text):
    """The error is one line on stderr that begins with the program's name; stdout stays empty."""
    code, out, err = run(*arguments, "--store", store)
    assert (code, out) == (1, "")
    assert err.startswith("abstain: ")
    assert text in err


# ---- the store -------------------------------------------------------------------------------------------------------


VERSIONS = (("digits", "1"), ("digits", "2"), ("wave", "1"))


def test_models_lists_versions_and_labels(store):
    """`abstain models --json` as a process, with the store from the environment."""
    result = abstain("models", "--json", ABSTAIN_STORE=str(store))
    listed = {model["name"]: model["versions"] for model in json.loads(result.stdout)["models"]}
    assert (result.returncode, result.stderr) == (0, "")
    assert [entry["version"] for entry in listed["digits"]] == [1, 2]
    assert [entry["labels"] for entry in listed["digits"]] == [["stable"], []]
    assert [(entry["method"], entry["draws"]) for entry in listed["wave"]] == [("nuts", 30)]
    for entry in listed["digits"]:
        shortfalls = texts(read_manifest(store / "digits" / str(entry["version"])).shortfalls)
        assert (entry["sound"], entry["shortfalls"]) == (not shortfalls, list(shortfalls))


def test_models_as_a_table_and_of_an_empty_store(run, store, tmp_path):
    """A line for each version; no line for an empty store, and a hint on stderr."""
    code, out, _ = run("models", "--store", store)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["model", "digits:1", "digits:2", "wave:1"]
    assert "stable" in out.splitlines()[1]
    assert "sound" in out.splitlines()[0].split()
    sound = [not read_manifest(store / name / version).shortfalls for name, version in VERSIONS]
    assert [{"yes", "no"} & {*line.split()} for line in out.splitlines()[1:]] == [
        {"yes" if good else "no"} for good in sound
    ]
    code, out, err = run("models", "--store", tmp_path / "none")
    assert (code, out) == (0, "")
    assert err.endswith("publish one with abstain fit")
    code, out, _ = run("models", "--store", tmp_path / "none", "--json")
    assert (code, json.loads(out)) == (0, {"models": []})


def test_show_prints_the_manifest_of_the_named_version(run, store, digits):
    """A name alone is the stable version; JSON is the manifest on disk, text has its values."""
    for reference, version in (("digits", 1), ("digits:2", 2), ("digits@stable", 1)):
        code, out, _ = run("show", reference, "--store", store, "--json")
        assert code == 0
        assert json.loads(out) == json.loads((store / "digits" / str(version) / "manifest.json").read_text())
    code, out, _ = run("show", "digits", "--store", store)
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    assert code == 0
    assert lines["metrics.accuracy"].strip() == f"{digits.manifest.metrics['accuracy']:.6g}"
    assert lines["digest"].strip() == digits.manifest.digest


def test_show_prints_what_a_person_reads(run, store):
    """No lists or objects as Python writes them, no empty facts, and many numbers are summarised."""
    code, out, _ = run("show", "digits", "--store", store)
    assert code == 0
    text = " ".join(out.split())
    assert not set("[]{}") & set(text)
    assert "None" not in text
    assert "shortfalls none" in text
    assert "model.class_names 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in text
    assert re.search(r"data\.class_rows 10 numbers, \d+ to \d+", text)
    assert re.search(r"metrics\.classes\.3 \d+ rows, \d+ predicted, recall [\d.]+%, precision [\d.]+%", text)


def test_show_shortens_limits_of_the_error_and_columns(digits):
    """The limits that requests can choose are one line, a column says its codes, and long lists say what is left out."""
    manifest = digits.manifest
    limit = RiskRecord(
        max_error=0.1, confidence=0.9, threshold=0.5, accepted_rows=9, errors=0, familiar_rows=9, p_value=0.1, level=0.1
    )
    others = tuple(limit.model_copy(update={"max_error": error}) for error in (0.02, 0.2, 0.05))
    columns = (
        Column(name="city", categories=tuple(f"c{code}" for code in range(33)), missing=2),
        Column(name="age", missing=41.5),
    )
    preprocessing = manifest.model.preprocessing.model_copy(update={"columns": columns, "shift": (0.5,) * 64})
    metrics = manifest.metrics | {"classes": {"rows": "hostile"}}
    changed = manifest.model_copy(
        update={
            "calibration": manifest.calibration.model_copy(update={"risk": limit, "other_limits": others}),
            "model": manifest.model.model_copy(update={"preprocessing": preprocessing}),
            "metrics": metrics,
        }
    )
    rows = dict(manifest_rows(changed, ["stable", "canary"]))
    assert rows["labels"] == "stable, canary"
    assert rows["calibration.other_limits"] == "3, for a max_error of 0.02 to 0.2"
    assert rows["calibration.risk.max_error"] == "0.1"
    assert rows["model.preprocessing.shift"] == "64 numbers, 0.5 to 0.5"
    assert rows["model.preprocessing.columns.age"] == "number; a gap is 41.5"
    city = rows["model.preprocessing.columns.city"]
    assert city.startswith("0 c0, 1 c1, ")
    assert city.endswith(", 29 c29, … (3 more, with --json); a gap is 2")
    assert not any(name.startswith("metrics.classes") for name in rows)


def test_show_refuses_a_changed_file(run, own):
    """The error names the file."""
    report = own / "digits" / "2" / "report.html"
    whole = report.read_bytes()
    report.write_bytes(whole + b" ")
    code, out, err = run("show", "digits:2", "--store", own)
    report.write_bytes(whole)
    assert (code, out) == (1, "")
    assert err.startswith(f"abstain: {report}: is damaged or was altered: expected sha256 ")


def test_labels_move_and_roll_back(run, own):
    """`label` points a label at a version, `rollback` makes the previous stable version stable again, once per change."""
    assert run("label", "digits:2", "stable", "--store", own)[:2] == (0, "digits@stable is digits:2\n")
    code, out, err = run("label", "digits", "stable", "--store", own)
    assert (code, out) == (0, "digits@stable is digits:2\n")
    assert "digits@stable was digits:2 before; name another version to change it" in err
    assert json.loads(run("show", "digits", "--store", own, "--json")[1])["version"] == 2
    code, out, _ = run("label", "digits@stable", "canary", "--store", own, "--json")
    assert (code, json.loads(out)) == (0, {"name": "digits", "label": "canary", "version": 2})
    assert run("rollback", "digits", "--store", own)[:2] == (0, "digits@stable is digits:1\n")
    assert json.loads(run("show", "digits@canary", "--store", own, "--json")[1])["version"] == 2
    assert run("rollback", "digits", "--store", own)[0] == 1


# ---- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_prints_one_json_document(store, tmp_path):
    """As a process: the keys of the contract and the values of the function, on stdout."""
    np.savez(tmp_path / "noise.npz", x=16 * np.random.default_rng(0).random((40, 8, 8)))
    options = ["--percentile", "90", "--ood", f"noise={tmp_path / 'noise.npz'}", "--store", store, "--json"]
    result = abstain("evaluate", "digits", "--data", "digits", *options)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    expected = evaluate_version(store, "digits", "digits", 90.0, {"noise": str(tmp_path / "noise.npz")})
    assert found == expected.to_json()
    assert {"accuracy", "nll", "brier", "ece", "aurc", "percentile", "reject_rate", "ood"} <= set(found)
    assert set(found["ood"]["noise"]) == set(found["reject_rate"])
    assert {"auroc", "aupr", "fpr95", "detection", "detection_interval"} <= set(found["ood"]["noise"]["reject"])
    assert found["percentile"] == 90


def test_evaluate_prints_tables(run, store, wave):
    """Without --json, names and values in lines that fit a terminal, also for a regression."""
    code, out, _ = run("evaluate", "wave", "--data", "wave", "--store", store)
    lines = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    assert code == 0
    assert out.startswith("wave:1 on 500 test rows; std decides at the 99th percentile\n")
    rmse = next(cells for cells in lines if cells[0] == "rmse")
    assert rmse[1] == f"{wave.manifest.metrics['rmse']:.4f}"
    assert re.fullmatch(r"0\.\d{4} … 0\.\d{4}", rmse[2])
    decided = next(cells for cells in lines if cells[0] == "decision (std)")
    assert decided[1] == f"{wave.manifest.metrics['reject_rate']['reject']:.2%}"


def test_evaluate_prints_ood_sets_decision_first_and_draws_plots(run, store, tmp_path):
    """A block for each OOD set and its variant; a twin from the store; the plots in the JSON exist."""
    np.savez(tmp_path / "noise.npz", x=16 * np.random.default_rng(0).random((40, 8, 8)))
    arguments = ["evaluate", "digits", "--data", "digits", "--ood", f"noise={tmp_path / 'noise.npz'}", "--store", store]
    code, out, _ = run(*arguments, "--twin", "digits:2")
    assert code == 0
    assert "twin: digits:2" in out
    assert max(map(len, out.splitlines())) <= 120
    for title in ("noise, 40 rows", "noise at the test rows' intensity, 40 rows"):
        block = out.partition(f" {title} ")[2].splitlines()
        assert block[0].split() == ["AUROC", "AUPR", "FPR95", "detection", "95", "%", "interval"]
        assert block[1].startswith(" decision (mutual information) ")
        assert re.search(r"\d\.\d{4} … \d\.\d{4}$", block[1])
        assert any(line.startswith("  twin, entropy: AUROC 0.") for line in block)
    code, out, err = run(*arguments, "--plots", tmp_path / "plots", "--json")
    assert code == 0
    assert "noise: 40/40" in err
    assert sorted(json.loads(out)["plots"]) == sorted(path.name for path in (tmp_path / "plots").iterdir())


# ---- predict ---------------------------------------------------------------------------------------------------------


WRITERS = {
    ".npz": lambda rows, path: np.savez(path, x=rows),
    ".csv": lambda rows, path: csv.write_csv(table_of(rows), path),
    ".parquet": lambda rows, path: parquet.write_table(table_of(rows), path),
}


@pytest.fixture(scope="module")
def expected(digits):
    """The predictions and decisions of the served code for the images, at the 90th percentile."""
    prediction = digits.predictor(buckets_for(len(IMAGES)))(IMAGES)
    return prediction, judge(digits.calibration, prediction, 90.0)


@pytest.mark.parametrize(
    ("source", "end"), [(".npz", ".npz"), (".csv", ".csv"), (".parquet", ".parquet"), (".npz", ".jsonl")]
)
def test_predict_gives_the_served_numbers(run, store, tmp_path, expected, source, end):
    """For all input and output formats, every number is exactly that of the Predictor."""
    WRITERS[source](IMAGES, tmp_path / f"rows{source}")
    out_path = tmp_path / "new folder" / f"answers{end}"
    arguments = ["--data", tmp_path / f"rows{source}", "--out", out_path, "--percentile", "90", "--store", store]
    code, out, _ = run("predict", "digits", *arguments)
    assert (code, out) == (0, f"digits:1 predicted 300 rows into {out_path}\n")
    assert list(out_path.parent.iterdir()) == [out_path]
    found = read_predictions(out_path)
    prediction, judgement = expected
    for index in range(10):
        np.testing.assert_array_equal(prediction.summary.mean[:, index], np.float32(found[f"probabilities.{index}"]))
        np.testing.assert_array_equal(prediction.summary.std[:, index], np.float32(found[f"std.{index}"]))
    for field in ("entropy", "aleatoric_entropy", "mutual_information"):
        np.testing.assert_array_equal(getattr(prediction.summary, field), np.float32(found[field]))
    for name, score in judgement.scores.items():
        np.testing.assert_array_equal(score.value, np.float32(found[f"scores.{name}.value"]))
        np.testing.assert_array_equal(score.p_value, found[f"scores.{name}.p_value"])
        np.testing.assert_array_equal(score.threshold, np.float32(found[f"scores.{name}.threshold"]))
    assert found["reject"] == judgement.reject.tolist()
    assert found["index"] == prediction.summary.mean.argmax(axis=1).tolist()
    assert found["label"] == [str(index) for index in found["index"]]
    reason = "mutual_information above its 90th percentile"
    assert [text or "" for text in found["reasons"]] == [reason if rejected else "" for rejected in judgement.reject]
    members = [sorted(set(np.flatnonzero(row).astype(str))) for row in judgement.members]
    assert [sorted(filter(None, (text or "").split("|"))) for text in found["prediction_set"]] == members
    assert 0 < np.mean(found["reject"]) < 0.3


def test_predict_reads_the_rows_before_it_compiles(run, store, tmp_path, monkeypatch):
    """A missing file or a wrong column is an error at once."""
    monkeypatch.setattr(
        "abstain.models.bundles.bundle.Predictor", lambda *_, **__: pytest.fail("something was compiled")
    )
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for name, text in (("absent.csv", "absent.csv"), ("other.csv", "expected shape (8, 8), found shape (2,)")):
        arguments = ["--data", tmp_path / name, "--out", tmp_path / "out.csv", "--store", store]
        code, _, err = run("predict", "digits", *arguments)
        assert (code, text in err) == (1, True), err


def test_predict_of_a_regression(run, store, tmp_path, wave):
    """Mean, standard deviations, quantiles and interval of every row, and one JSON document on stdout."""
    rows = np.linspace(-3, 3, 7)[:, None]
    csv.write_csv(table_of(rows), tmp_path / "rows.csv")
    out_path = tmp_path / "answers.parquet"
    code, out, _ = run(
        "predict", "wave:1", "--data", tmp_path / "rows.csv", "--out", out_path, "--store", store, "--json"
    )
    assert code == 0
    assert json.loads(out) == {"model": "wave", "version": 1, "rows": 7, "out": str(out_path)}
    found = read_predictions(out_path)
    prediction = wave.predictor((8,))(rows)
    judgement = judge(wave.calibration, prediction)
    np.testing.assert_array_equal(prediction.summary.mean, np.float32(found["mean"]))
    np.testing.assert_allclose(np.hypot(found["aleatoric_std"], found["epistemic_std"]), found["std"], rtol=1e-6)
    np.testing.assert_array_equal(prediction.summary.quantiles[:, 0], np.float32(found["quantiles.0.025"]))
    np.testing.assert_allclose(judgement.interval[:, 1], found["interval.1"], rtol=1e-6)
    assert found["reject"] == judgement.reject.tolist()
    assert found["reject"][0]
    assert found["reject"][-1]


# ---- a table, from fit to predict ------------------------------------------------------------------------------------

FLATS = """
name = "flats"
likelihood = "normal"
draws = 30
[data]
target = "rent"
categorical = ["heating", "floor"]
drop = ["id"]
calibration_size = 120
test_size = 120
[network]
kind = "mlp"
hidden = [8]
[method]
kind = "vi"
steps = 600
learning_rate = 2e-2
reports = 1
"""


def flats(rows=500):
    """Rents that depend on size, heating and floor, with missing values in all three; the last two are categories."""
    rng = np.random.default_rng(0)
    size = rng.uniform(20, 120, rows)
    heating, floor = rng.integers(0, 3, rows), rng.integers(0, 3, rows)
    rent = 8 * size + 100 * heating - 50 * floor + rng.normal(0, 20, rows)
    gaps = rng.random((3, rows)) < 0.03
    return pa.table(
        {
            "id": np.arange(rows),
            "size": pa.array(size, mask=gaps[0]),
            "heating": pa.array(np.array(["coal", "gas", "heat pump"])[heating], mask=gaps[1]),
            "floor": pa.array(np.array([1, 2, 10])[floor], mask=gaps[2]),
            "rent": rent,
        }
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with the table, the config and the store, and the finished process `abstain fit --data`."""
    folder = tmp_path_factory.mktemp("flats")
    csv.write_csv(flats(), folder / "flats.csv")
    (folder / "flats.toml").write_text(FLATS)
    options = ["--data", folder / "flats.csv", "--store", folder / "store", "--set", "seed=5", "--no-report"]
    return folder, abstain("fit", folder / "flats.toml", *options)


def test_fit_prints_only_the_version(fitted):
    """Stdout is `name:version`; progress and metrics are on stderr."""
    folder, result = fitted
    assert (result.returncode, result.stdout) == (0, "flats:1\n"), result.stderr
    assert "flats by vi, vi: 600/600" in result.stderr
    assert re.search(r"rmse +\d+\.\d{4} +baseline \d+\.\d{4}\n", result.stderr)
    manifest = load(folder / "store" / "flats" / "1").manifest
    assert (manifest.seed, manifest.data.source, manifest.data.settings["source"]) == (5, "flats.csv", None)
    assert manifest.model.feature_names == ("size", "heating", "floor")
    assert [column.categories for column in manifest.model.preprocessing.columns][1:] == [
        ("coal", "gas", "heat pump"),
        ("1", "10", "2"),
    ]
    assert manifest.model.target_name == "rent"
    assert manifest.metrics["rmse"] < 80


@pytest.fixture(scope="module")
def predict_table(fitted):
    """A function that predicts a table with the model of flats; it returns the predictions or the error."""
    folder, _ = fitted

    def predict(run, table, end=".parquet"):
        writer = csv.write_csv if end == ".csv" else parquet.write_table
        writer(table, folder / f"in{end}")
        arguments = ["--data", folder / f"in{end}", "--out", folder / "answers.parquet", "--store", folder / "store"]
        code, _, err = run("predict", "flats", *arguments)
        return read_predictions(folder / "answers.parquet") if code == 0 else err

    return predict


def test_evaluate_and_predict_agree_on_a_table(run, fitted, predict_table):
    """The RMSE of `evaluate` on the test part equals that of `predict`'s means for the same rows, found by their target."""
    folder, _ = fitted
    code, out, _ = run("evaluate", "flats", "--data", folder / "flats.csv", "--store", folder / "store", "--json")
    evaluated = json.loads(out)
    table = csv.read_csv(folder / "flats.csv")
    manifest = load(folder / "store" / "flats" / "1").manifest
    config = DataConfig.model_validate(manifest.data.settings)
    source = read_source(str(folder / "flats.csv"), config, manifest.model, classify=False)
    test = np.isin(table["rent"].to_numpy(), split(source, config, 5).test.y)
    error = np.array(predict_table(run, table)["mean"])[test] - table["rent"].to_numpy()[test]
    assert (code, evaluated["rows"], test.sum()) == (0, 120, 120)
    assert evaluated["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-5)
    assert evaluated["rmse"] == pytest.approx(manifest.metrics["rmse"], rel=1e-9)


def test_the_columns_of_a_table_are_found_by_name(run, predict_table):
    """Another order, no target, additional columns, CSV or Parquet: exactly the same predictions."""
    few = flats().slice(0, 40)
    assert predict_table(run, few.select(["floor", "id", "size", "heating"])) == predict_table(run, few, ".csv")


def test_a_missing_value_equals_its_replacement(run, fitted, predict_table):
    """A row with a missing number or category has the prediction of the row with the model's replacement."""
    folder, _ = fitted
    columns = load(folder / "store" / "flats" / "1").manifest.model.preprocessing.columns
    replacements = [columns[0].missing, *(column.categories[int(column.missing)] for column in columns[1:])]
    pairs = pa.table({column.name: [None, value] for column, value in zip(columns, replacements, strict=True)})
    answers = predict_table(run, pairs)
    assert len(answers["mean"]) == 2
    assert [name for name, values in answers.items() if values[0] != values[1]] == []


@pytest.mark.parametrize(
    ("column", "values", "text"),
    [
        (
            "size",
            ["50", "large"],
            "row 1: column 'size' must be numeric: expected a number, or an empty cell, found 'large'; correct",
        ),
        ("size", None, "columns are missing: expected size, found heating, floor"),
    ],
)
def test_errors_in_a_table_name_row_and_column(run, predict_table, column, values, text):
    """The error for text in place of a number or for a missing column says what the model expects."""
    table = pa.table({"size": [50.0, 60.0], "heating": ["gas", "coal"], "floor": [1, 2]})
    index = table.column_names.index(column)
    table = table.remove_column(index) if values is None else table.set_column(index, column, pa.array(values))
    err = predict_table(run, table)
    assert isinstance(err, str)
    assert re.search(text, err)
