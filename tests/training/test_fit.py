"""The story of training: a whole fit and its bundle, refusals before any work, and a fit killed at any moment."""

import hashlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jax
import numpy as np
import pytest

from abstain.fitting import FitResult
from abstain.models.bundles.bundle import load
from abstain.models.bundles.shortfalls import recognise
from abstain.models.bundles.store import LOCK, model_names, read_labels, set_label, versions
from abstain.models.decisions.ranks import threshold
from abstain.models.errors import AbstainError, CalibrationError, ConfigError, FitError, StoreError
from abstain.models.prediction.feature_scores import FEATURE_SCORES_BY_TASK
from abstain.models.prediction.scores import SCORES
from abstain.service.commands.manifest_rows import manifest_rows
from abstain.training.cli import _print_published, describe_fit, format_figure, headline_metrics, metric_lines
from abstain.training.config.data import DataConfig
from abstain.training.config.methods import NUTSConfig, VIConfig
from abstain.training.config.reading import read_config
from abstain.training.fit import METHODS, fit, load_dataset
from abstain.training.inference.diagnostics import ESS_LIMIT, RHAT_LIMIT
from abstain.training.inference.methods.vi import k_hat_note
from abstain.training.runs.resume import FOLDER
from tests.helpers.commands import abstain
from tests.helpers.fits import silent
from tests.helpers.paths import CONFIGS, PROJECT

DIGITS = read_config(CONFIGS / "digits-vi.toml", ("steps=400", "draws=20", "reports=2"))
TINY = """
name = "tiny"
likelihood = "normal"
draws = 10
[data]
source = "sine"
calibration_size = 200
test_size = 100
[network]
kind = "mlp"
hidden = [4]
[method]
kind = "vi"
steps = 20
reports = 1
"""


@pytest.fixture
def tiny(tmp_path):
    """A config that fits in a second."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


# ---- what a fit leaves -----------------------------------------------------------------------------------------------


def test_a_fit_tells_digits_apart(store, digits):
    """The whole story on real data: most digits are right, and about one in a hundred is rejected."""
    metrics = digits.manifest.metrics
    assert metrics["accuracy"] > 0.93
    assert metrics["nll"] < 0.3
    assert set(metrics) == {
        "accuracy",
        "nll",
        "brier",
        "ece",
        "aurc",
        "baseline",
        "reject_rate",
        "reliability",
        "classes",
    }
    assert set(metrics["reject_rate"]) == {
        *SCORES["classification"],
        *FEATURE_SCORES_BY_TASK["classification"],
        "reject",
    }
    assert metrics["reject_rate"]["reject"] < 0.04
    assert versions(store, "digits") == [1, 2]


def test_the_manifest_says_all_there_is_to_know(store, digits):
    """manifest.json has everything that the contract lists, with the right values."""
    manifest = json.loads((store / "digits" / "1" / "manifest.json").read_text())
    assert (manifest["schema_version"], manifest["name"], manifest["version"]) == (2, "digits", 1)
    assert datetime.now(UTC) - datetime.fromisoformat(manifest["created"]) < timedelta(hours=1)
    assert manifest["model"]["network"] == {"kind": "mlp", "hidden": [64, 64], "activation": "relu"}
    assert manifest["model"]["likelihood"] == "categorical"
    assert manifest["model"]["class_names"] == list("0123456789")
    assert (manifest["model"]["feature_shape"], manifest["model"]["feature_names"]) == ([8, 8], [])
    assert manifest["model"]["preprocessing"]["scale"] == [16.0]
    settings = manifest["method"]["settings"]
    assert manifest["method"]["kind"] == "vi"
    assert VIConfig.model_validate({key: settings[key] for key in VIConfig.model_fields}) == DIGITS.method
    assert settings["prior"] == DIGITS.prior.model_dump()
    assert (manifest["draws"], manifest["seed"]) == (20, 0)
    assert [report["step"] for report in manifest["diagnostics"]["reports"]] == [200, 400]
    assert len(manifest["diagnostics"]["loss"]) == 200
    assert DataConfig.model_validate(manifest["data"]["settings"]) == DIGITS.data
    assert manifest["data"]["source"] == "digits"
    dataset = load_dataset(DIGITS, None)
    assert manifest["data"]["fingerprint"] == dataset.fingerprint
    sizes = {part: manifest["data"][f"{part}_rows"] for part in ("train", "calibration", "test")}
    assert sizes == {"train": 938, "calibration": 500, "test": 359}
    for package in ("abstain", "jax", "flax", "numpyro", "numpy"):
        assert manifest["packages"][package] == importlib.metadata.version(package)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (manifest["git_commit"] or "").removesuffix("-dirty") == head.stdout.strip()
    assert manifest["calibration"]["thresholds"] == {
        name: threshold(np.sort(values), 99.0) for name, values in digits.calibration.scores.items()
    }


def test_a_sampler_leaves_its_diagnostics(wave):
    """A NUTS bundle keeps its settings, and R-hat and ESS of functions and of parameters."""
    manifest = wave.manifest
    settings = {key: manifest.method.settings[key] for key in NUTSConfig.model_fields}
    assert NUTSConfig.model_validate(settings) == NUTSConfig(chains=2, warmup=100, samples=100, reports=2)
    for space in ("function", "parameters"):
        figures = {"rhat", "ess_bulk", "ess_tail", "mcse", "ess_per_second", "values"}
        assert set(manifest.diagnostics[space]) == figures
    assert {"divergences", "acceptance", "ebfmi", "max_tree_depth_hits", "trace"} <= set(manifest.diagnostics)
    function, lacking = manifest.diagnostics["function"], {lack.code for lack in manifest.shortfalls}
    assert ("r_hat" in lacking) == (function["rhat"] > RHAT_LIMIT)
    assert ("ess" in lacking) == (min(function["ess_bulk"], function["ess_tail"]) < ESS_LIMIT)
    assert lacking <= {"r_hat", "ess", "divergences", "e_bfmi", "acceptance"}
    assert set(manifest.metrics) == {"rmse", "nll", "crps", "coverage_95", "interval_width", "baseline", "reject_rate"}
    assert manifest.metrics["rmse"] < 0.5
    assert (manifest.model.class_names, manifest.draws) == ((), 30)


def test_every_file_is_in_the_manifest_by_its_hash(store):
    """The manifest lists exactly the files there are, each with its sha256, and none of them is a pickle."""
    folder = store / "digits" / "1"
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    found = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert listed == found
    assert {name.split("/")[0] for name in found} == {"draws", "calibration", "densities", "rows", "report.html"}
    assert not [name for name in found if name.endswith((".pkl", ".pickle", ".joblib"))]


def test_seeds_move_the_split_and_the_draws(store, digits):
    """Another seed trains on other rows and comes to other draws."""
    other = load(store / "digits" / "2")
    assert other.manifest.data.fingerprint != digits.manifest.data.fingerprint
    pairs = zip(jax.tree.leaves(digits.posterior.draws), jax.tree.leaves(other.posterior.draws), strict=True)
    assert all((mine != its).all() for mine, its in pairs)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("calibration_size=50",), CalibrationError, "99th percentile .*: expected at least 99 rows, found 50 rows"),
        (("percentile=99.9",), CalibrationError, "99.9th percentile .*: expected at least 999 rows, found 500 rows"),
        (("coverage=0.999",), CalibrationError, "coverage 0.999 .*: expected at least 999 rows, found 500 rows"),
        (
            ("decision=surprise",),
            ConfigError,
            "calibration.decision: expected some of std, entropy, .*, found surprise",
        ),
        (("likelihood=bernoulli",), ConfigError, 'expected two classes for bernoulli, found 10; use "categorical"'),
        (("network.kind=lenet",), AbstainError, r"LeNet .* an example of shape \(8, 8\)"),
        (("test_size=1297",), AbstainError, "data.calibration_size: expected between 1 and 499 of 500 rows, found 500"),
    ],
)
def test_what_cannot_be_is_refused_before_the_fit(tmp_path, monkeypatch, overrides, error, message):
    """A calibration part too small, or terms that do not go together, cost no fitting, and leave no version."""

    def never(*_):
        pytest.fail("the fit was begun")

    monkeypatch.setitem(METHODS, "vi", never)
    with pytest.raises(error, match=message):
        fit(read_config(CONFIGS / "digits-vi.toml", overrides), None, tmp_path, silent, report=False)
    assert model_names(tmp_path) == []


def test_a_store_that_cannot_be_written_is_refused_before_the_fit(tmp_path, monkeypatch):
    """A store's path that is a file is refused before hours are spent, not when the draws are written."""

    def never(*_):
        pytest.fail("the fit was begun")

    monkeypatch.setitem(METHODS, "vi", never)
    (tmp_path / "store").write_text("no folder")
    with pytest.raises(StoreError, match=r"store/digits: cannot be written: found .*Not a directory"):
        fit(DIGITS, None, tmp_path / "store", silent, report=False)


def test_a_config_without_a_source_needs_data(tmp_path):
    """`data.source` or --data: one of them must be there."""
    with pytest.raises(ConfigError, match=r"data.source: expected a path or an embedded set, .* pass --data"):
        fit(read_config(CONFIGS / "mnist-vi.toml"), None, tmp_path, silent, report=False)


def test_a_network_that_cannot_take_the_inputs_is_refused(tmp_path, tiny):
    """LeNet wants images; a row of one number is refused by the network's name and the shape."""
    tiny.write_text(TINY.replace('kind = "mlp"\nhidden = [4]', 'kind = "lenet"'))
    with pytest.raises(AbstainError, match=r"network: LeNet cannot take an example of shape \(1,\)"):
        fit(read_config(tiny), None, tmp_path / "store", silent, report=False)


def test_a_fit_that_diverged_is_not_published(tmp_path, tiny):
    """Draws that are not finite make no version: it could never be loaded, and would be the newest."""
    with pytest.raises(FitError, match=r"the loss is \w+ at step \d+: expected a finite loss, .* \(now 1e\+30\)"):
        fit(read_config(tiny, ("learning_rate=1e30",)), None, tmp_path / "store", silent, report=False)
    assert model_names(tmp_path / "store") == []


# ---- killed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A folder with a config and a published, labelled version."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "tiny.toml").write_text(TINY)
    result = abstain("fit", folder / "tiny.toml", "--store", folder / "store", "--no-report")
    assert (result.returncode, result.stdout) == (0, "tiny:1\n"), result.stderr
    set_label(folder / "store", "tiny", 1, "stable")
    return folder


def test_the_figures_of_a_fit_are_those_of_its_predictions(digits):
    """`reject rate` is that of the flag, the last line; the rates of single scores are in `abstain show`."""
    metrics = digits.manifest.metrics
    lines = metric_lines(headline_metrics(metrics), {})
    assert lines[-1].split() == ["reject", "rate", format_figure(metrics["reject_rate"]["reject"])]
    assert sum(line.startswith("reject rate") for line in lines) == 1
    rows = dict(manifest_rows(digits.manifest, []))
    assert float(rows["metrics.reject_rate.entropy"]) == pytest.approx(metrics["reject_rate"]["entropy"], rel=1e-5)


def tiny_result(path, **facts) -> FitResult:
    """The result of a fit that was never made."""
    plain = {"name": "tiny", "version": 1, "path": path, "metrics": {}, "shortfalls": (), "notes": ()}
    return FitResult(**{**plain, **facts})


def test_one_line_says_whether_a_fit_is_good(tmp_path):
    """Whether it passed the checks, and where the diagnostics are, which the output does not show."""

    def line(shortfalls=(), notes=0):
        return describe_fit(tiny_result(tmp_path, version=3, shortfalls=shortfalls), notes)

    assert line() == "OK: tiny:3 passed all publication checks; all figures: abstain show tiny:3"
    assert line(notes=1).startswith("OK: tiny:3 passed all publication checks; read the note above; all figures")
    assert "; read the 2 notes above; " in line(notes=2)
    bad = 'look at "falls short" above: tiny:3 failed a publication check and cannot become stable; all figures: '
    assert line(("it has learned nothing",)).startswith(bad)
    assert "failed 2 publication checks and" in line(("a", "b"))
    (tmp_path / "report.html").touch()
    assert line().endswith(f"abstain show tiny:3, or {tmp_path / 'report.html'}")


def test_diagnostics_of_the_method_are_not_printed_but_kept(tmp_path, capsys):
    """k-hat, which says nothing about predictions: the notes of the result, and of the manifest, have it."""
    (k_hat,) = k_hat_note(5.6)
    published = tiny_result(tmp_path, metrics={"reject_rate": {"reject": 0.0}}, notes=(k_hat, "split by time"))
    _print_published(published, as_json=False)
    out, err = capsys.readouterr()
    assert out == "tiny:1\n"
    assert "k-hat" not in err
    assert err.startswith("note: split by time\n")
    assert "read the note above" in err
    _print_published(published, as_json=True)
    assert json.loads(capsys.readouterr().out)["notes"] == [k_hat, "split by time"]


def test_a_fit_without_a_report_publishes_all_else(quick):
    """`--no-report`: the version is whole, and its manifest lists no report."""
    files = load(quick / "store" / "tiny" / "1").manifest.files
    assert {name.split("/")[0] for name in files} == {"draws", "calibration", "densities", "rows"}
    assert not (quick / "store" / "tiny" / "1" / "report.html").exists()


def kill_when(moment, folder):
    """Starts `abstain fit` and kills it as soon as `moment(seconds)` is true, or lets it end."""
    command = [Path(sys.executable).with_name("abstain"), "fit", folder / "tiny.toml", "--store", folder / "store"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=PROJECT)
    start = time.monotonic()
    while process.poll() is None and not moment(time.monotonic() - start):
        time.sleep(0.0005)
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    return process.wait()


def test_a_killed_fit_leaves_no_half_version_and_the_next_one_sweeps_up(quick):
    """Killed with -9 as it begins to write, as it publishes, and at a random time, a fit leaves whole versions only.

    The earlier version stays loadable and labelled, the next fit succeeds, comes to the same draws bit for bit, and
    removes what the killed ones left.
    """
    folder = quick
    home = folder / "store" / "tiny"
    code = kill_when(lambda _: any(home.glob(".writing-*")), folder)
    assert code == -signal.SIGKILL
    left = set(home.glob(".writing-*"))
    assert left
    assert versions(folder / "store", "tiny") == [1]
    # This one may leave an empty draft of its own, if the kill comes right after the rename.
    kill_when(lambda _: versions(folder / "store", "tiny") != [1], folder)
    assert not left & set(home.glob(".writing-*"))
    moment = np.random.default_rng().uniform(1, 5)
    kill_when(lambda seconds: seconds > moment, folder)
    whole = versions(folder / "store", "tiny")
    for version in whole:
        assert load(home / str(version)).manifest.version == version
    listed = json.loads(abstain("models", "--store", folder / "store", "--json").stdout)["models"]
    assert [entry["version"] for entry in listed[0]["versions"]] == whole
    assert {entry["why"] for entry in listed[0]["versions"]} == {None}
    assert read_labels(folder / "store", "tiny").labels == {"stable": 1}

    result = abstain("fit", folder / "tiny.toml", "--store", folder / "store", "--no-report")
    assert (result.returncode, result.stdout) == (0, f"tiny:{whole[-1] + 1}\n"), result.stderr
    assert {entry.name for entry in home.iterdir()} == {*map(str, [*whole, whole[-1] + 1]), "labels.json", FOLDER, LOCK}
    assert not list((home / FOLDER).iterdir())
    first, last = load(home / "1"), load(home / str(whole[-1] + 1))
    jax.tree.map(np.testing.assert_array_equal, first.posterior.draws, last.posterior.draws)
    assert first.manifest.metrics == last.manifest.metrics


# ---- what fails after inference --------------------------------------------------------------------------------------

STUCK = """
name = "stuck"
draws = 5
likelihood = "categorical"
[data]
source = "spirals"
[network]
kind = "mlp"
hidden = [4]
[method]
kind = "hmc"
chains = 2
warmup = 10
samples = 60
step_size = 5.0
leapfrogs = 5
adaptation = "none"
reports = 2
[calibration]
percentile = 90.0
"""


def test_stuck_chains_are_published_and_say_so(tmp_path, monkeypatch):
    """Chains that accept nothing; then, resumed, with diagnostics and ranks that fail: never a traceback."""
    path = tmp_path / "stuck.toml"
    path.write_text(STUCK)
    config = read_config(path)
    first = fit(config, None, tmp_path, silent, report=False)
    assert any("R-hat is infinite" in lack.text for lack in first.shortfalls)
    assert any("chain 0 hardly moves: it accepts 0.0%" in lack.text for lack in first.shortfalls)
    assert not any("could not be made" in note for note in first.notes)

    def broken(*_):
        raise FloatingPointError("no variance")

    monkeypatch.setattr("abstain.training.inference.sampling.chain_diagnostics", broken)
    monkeypatch.setattr("abstain.training.fit.agreement", broken)
    second = fit(config, None, tmp_path, silent, resume=True, report=False)
    assert (first.version, second.version) == (1, 2)
    assert second.shortfalls[0].code == "unchecked_chains"
    assert recognise(second.shortfalls[0].text) == second.shortfalls[0]
    assert second.shortfalls[0].text.startswith(
        "The diagnostics of the chains could not be made: FloatingPointError: no variance"
    )
    manifest = load(tmp_path / "stuck" / "2").manifest
    assert manifest.notes == second.notes
    assert any(note.startswith("The ranks could not be made: FloatingPointError") for note in manifest.notes)
    np.testing.assert_array_equal(
        jax.tree.leaves(load(tmp_path / "stuck" / "1").posterior.draws)[0],
        jax.tree.leaves(load(tmp_path / "stuck" / "2").posterior.draws)[0],
    )
