"""A rare class from config to bundle: class weights undone, exported, resumed and lengthened; what notes and report say."""

import json
import re

import jax
import numpy as np
import pytest
import xarray
from scipy.special import expit

from abstain.models.bundles.bundle import load
from abstain.models.errors import ConfigError
from abstain.training.cli import headline_metrics, metric_lines
from abstain.training.config.reading import read_config
from abstain.training.fit import fit
from abstain.training.report.export import Exports
from abstain.training.runs.resume import digest
from tests.helpers.fits import draws_of_config, silent

ROWS = 3_000
CONFIG = """
name = "rare"
likelihood = "{likelihood}"
draws = 20
[data]
source = "{source}"
stratify = true
test_size = 0.4
class_weights = "balanced"
[network]
kind = "mlp"
hidden = []
[prior]
scale = 10.0
[calibration]
decision = "range"
[method]
reports = 4
{method}
"""
HMC = 'kind = "hmc"\nchains = 2\nwarmup = 60\nsamples = 20\n'
VI = 'kind = "vi"\nsteps = 800\nbatch_size = 200\nlearning_rate = 0.03\n'


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Logistic regression: 3 % of the rows are fraud."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 2))
    fraud = rng.random(ROWS) < expit(-4.0 + x @ [1.0, -0.8])
    path = tmp_path_factory.mktemp("rows") / "rare.npz"
    np.savez(path, x=x, y=fraud.astype(int), class_names=np.array(["fine", "fraud"]))
    return path


def config_of(folder, source, method=HMC, overrides=(), likelihood="bernoulli"):
    """The config of a fit to these rows."""
    path = folder / "rare.toml"
    path.write_text(CONFIG.format(source=source, method=method, likelihood=likelihood))
    return read_config(path, overrides)


def test_a_weighted_fit_publishes_the_probabilities_of_unweighted_rows(source, tmp_path):
    """The test part holds as many frauds as are predicted on average; the manifest names the weights."""
    fit(config_of(tmp_path, source, VI, likelihood="categorical"), None, tmp_path, silent)
    bundle = load(tmp_path / "rare" / "1")
    assert bundle.manifest.data.settings["class_weights"] == "balanced"
    x, y = (np.load(source)[name] for name in ("x", "y"))
    predicted = np.asarray(bundle.predictor()(x.astype(np.float32)).summary.mean)[:, 1]
    assert predicted.mean() == pytest.approx(y.mean(), abs=4 * np.sqrt(y.mean() / ROWS))
    report = (tmp_path / "rare" / "1" / "report.html").read_text()
    assert "class weights" in report
    # Almost every fraud is predicted as fine: by name in a note, and in the table, which is open.
    (note,) = [note for note in bundle.manifest.notes if note.startswith("hardly ever predicted")]
    assert re.search(r"on 1200 test rows: 'fraud' \(predicted \d, true \d\d\); instead of the label", note)
    assert "class_weights" not in note
    assert "<details open><summary>Class by class" in report
    metrics = bundle.manifest.metrics
    lines = metric_lines(headline_metrics(metrics), metrics["baseline"])
    line = next(line for line in lines if "accuracy" in line)
    assert re.fullmatch(r"accuracy +0\.9\d\d\d   baseline 0\.96\d\d", line)
    assert metrics["baseline"]["class"] == "fine"
    assert any(f"always predicts 'fine': accuracy {metrics['accuracy']:.4g}" in note for note in bundle.manifest.notes)
    reports = bundle.manifest.diagnostics["reports"]
    # Progress is that of the network that is served, so it counts rows alike.
    assert reports[-1]["train_log_likelihood"] == pytest.approx(-bundle.manifest.metrics["nll"], abs=0.05)


def test_an_unweighted_fit_says_nothing_of_weights(source, tmp_path):
    """Neither its journal nor its manifest: journals of earlier fits stay resumable."""
    config = config_of(tmp_path, source, "kind = 'map'\nsteps = 2\n", ("data={source='x', stratify=true}", "draws=1"))
    other = config_of(tmp_path, source, "kind = 'map'\nsteps = 2\n", ("draws=1",))
    assert digest(config, "", {}) != digest(other, "", {})
    fit(config, str(source), tmp_path, silent, report=False)
    manifest = json.loads((tmp_path / "rare" / "1" / "manifest.json").read_text())
    assert "class_weights" not in manifest["data"]["settings"]


class Stopped(Exception):
    """The exception that interrupts a fit."""


def test_a_resumed_and_lengthened_weighted_fit_has_the_same_draws(source, tmp_path):
    """Cut off while it samples, resumed, then lengthened: as uninterrupted; and exported as it is served."""

    def stopping(done, total, passage="", **facts):
        if passage == "sampling" and done >= 10:
            raise Stopped

    config = config_of(tmp_path, source)
    with pytest.raises(Stopped):
        fit(config, None, tmp_path, stopping, report=False)
    fit(config, None, tmp_path, silent, resume=True, report=False)
    longer = config_of(tmp_path, source, overrides=("method.samples=40", "draws=80"))
    fit(longer, None, tmp_path, silent, resume=True, exports=Exports(netcdf=tmp_path / "draws.nc"), report=False)
    for version, expected in ((1, config), (2, longer)):
        draws = load(tmp_path / "rare" / str(version)).posterior.draws
        jax.tree.map(np.testing.assert_array_equal, draws, draws_of_config(expected))
    exported = xarray.open_dataset(tmp_path / "draws.nc", group="posterior", engine="h5netcdf")
    bias = exported["network.Dense_0.bias"].to_numpy().reshape(-1)
    served = load(tmp_path / "rare" / "2").posterior.draws["network"]["Dense_0"]["bias"].reshape(-1)
    np.testing.assert_array_equal(np.sort(bias), np.sort(served))
    # A log odds of the weighted fit would be about 3.4 higher.
    assert np.median(bias) < -3.0
    later = config_of(tmp_path, source, f'{HMC}start = "run"\nstart_from = "rare:2"\n')
    fit(later, None, tmp_path, silent, report=False)
    again = load(tmp_path / "rare" / "3").posterior.draws["network"]["Dense_0"]["bias"]
    assert np.median(again) == pytest.approx(np.median(bias), abs=1.0)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("class_weights={fraut=10.0}",), "among fine, fraud, found 'fraut'; did you mean 'fraud'?"),
        (("class_weights={fine=1.0}",), "weights that differ, found 1 for every class"),
        (("likelihood=normal", "stratify=false"), "found a regression; leave out class_weights"),
    ],
)
def test_weights_that_cannot_be_used_are_refused_before_the_fit(source, tmp_path, overrides, text):
    """Unknown classes, weights without effect, and a target that is a number."""
    with pytest.raises(ConfigError) as error:
        fit(config_of(tmp_path, source, overrides=overrides), None, tmp_path, silent, report=False)
    assert "data.class_weights" in str(error.value)
    assert text in str(error.value)
