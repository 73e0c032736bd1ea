"""Plots: the right ones for what was evaluated, valid, small, and drawn from the numbers that are reported."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from abstain.models.bundles.bundle import load
from abstain.models.decisions.judging import judge
from abstain.models.prediction.predictive import Predictor
from abstain.training.config.data import DataConfig
from abstain.training.data.rows import Rows
from abstain.training.data.sources import read_source
from abstain.training.evaluate import evaluate_version, one_draw
from abstain.training.evaluation.metrics import reliability_bins
from abstain.training.evaluation.quality import confidence
from abstain.training.evaluation.records import JudgedRows, ReportData, ReportView, Twin
from abstain.training.report.confidence_plots import draw_reliability, draw_risk_coverage, row_losses
from abstain.training.report.galleries import draw_mistakes
from abstain.training.report.ood_plots import clip_far_values, draw_detection, draw_ecdf, draw_roc
from abstain.training.report.page import write_report
from abstain.training.report.plots import MOST_BYTES, plots_for, save_small
from abstain.training.report.regression_plots import draw_pit
from tests.helpers.reports import diagram_points

IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES, LABELS = IMAGES.reshape(-1, 8, 8)[:300].copy(), LABELS[:300]
IMAGES[::3, :4] = 0
ALWAYS = {"risk_coverage.png", "ecdf.png"}
OOD = {"roc.png", "detection.png"}
OF_CLASSES = {"reliability.png"}
OF_IMAGES = {"mistakes.png", "accepted.png"}
OF_NUMBERS = {"predicted.png", "width_error.png", "pit.png"}


def view_of(bundle, rows, sets):
    """The view that evaluation passes to the plots."""
    predictor, alone = bundle.predictor((256,)), Predictor(one_draw(bundle.posterior, 0), (256,))

    def see(x):
        return JudgedRows(x, predictor(x), judge(bundle.calibration, predictor(x), 90.0))

    twin = Twin("one", alone_posterior(bundle), alone(rows.x), {name: alone(x) for name, x in sets.items()})
    return ReportView("it", bundle.posterior, rows, see(rows.x), {name: see(x) for name, x in sets.items()}, twin)


def alone_posterior(bundle):
    """The first network of the posterior."""
    return one_draw(bundle.posterior, 0)


@pytest.fixture(scope="module")
def view(digits):
    """Digits, some of them hidden in part, and noise."""
    noise = 16 * np.random.default_rng(0).random((80, 8, 8))
    return view_of(digits, Rows(IMAGES, LABELS), {"noise": noise, "noise_same_intensity": noise / 2})


def png_size(path):
    """Width and height from the header of a whole PNG."""
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[-8:-4] == b"IEND"
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize("ood", [False, True])
@pytest.mark.parametrize(("name", "own"), [("digits", OF_CLASSES | OF_IMAGES), ("wave", OF_NUMBERS)])
def test_the_plots_are_those_of_the_task_and_valid(store, tmp_path, name, own, ood):
    """Images have galleries, numbers intervals, OOD sets ROC and detection; each is a PNG below 400 KB."""
    folder = tmp_path / "a" / "b"
    sets = {"same": name} if ood else {}
    found = evaluate_version(store, name, name, None, sets, plots=folder).plots
    assert set(found) == ALWAYS | own | (OOD if ood else set())
    assert sorted(found) == sorted(path.name for path in folder.iterdir())
    for path in folder.iterdir():
        width, height = png_size(path)
        assert min(width, height) > 100
        assert path.stat().st_size < MOST_BYTES == 400_000


def test_flat_rows_have_no_gallery(view, store):
    """Pictures are drawn of inputs [height, width] or [height, width, channels], and of nothing else."""
    assert {"mistakes", "accepted"} <= set(plots_for(view))
    wave = load(store / "wave" / "1")
    rows = read_source("wave", DataConfig(test_size=40), classify=False).test
    assert not {"mistakes", "accepted"} & set(plots_for(view_of(wave, rows, {})))


def test_a_large_picture_is_written_more_coarsely(tmp_path):
    """Noise at full size is more than 400 KB; it is written at a resolution that is not."""
    figure = Figure(figsize=(8, 8))
    figure.subplots().imshow(np.random.default_rng(0).random((900, 900)), interpolation="nearest")
    save_small(figure, tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size < MOST_BYTES
    assert png_size(tmp_path / "noise.png")[0] < 880


def test_the_roc_passes_through_the_decisions_rates(view):
    """The dot of each set lies at the reject rates of the test rows and of the set, and on the decision's curve."""
    axes = draw_roc(view).axes
    assert [axis.get_title() for axis in axes[:2]] == ["noise", "noise, same intensity"]
    for axis, seen in zip(axes, view.strange.values(), strict=True):
        dot = next(line for line in axis.lines if line.get_marker() == "o")
        expected = [view.familiar.judgement.reject.mean(), seen.judgement.reject.mean()]
        assert np.ravel(dot.get_data()) == pytest.approx(expected)
        curve = next(line for line in axis.lines if str(line.get_label()).startswith("decision"))
        false, true = curve.get_data()
        assert np.interp(expected[0], false, true) == pytest.approx(expected[1], abs=0.1)


def test_the_threshold_stands_where_the_decision_is_made(view):
    """The line of the distribution plot is at the threshold; each legend entry says the set's share above it."""
    axis = draw_ecdf(view).axes[0]
    limit = float(view.familiar.decision.threshold[0])
    assert any(set(line.get_xdata()) == {limit} for line in axis.lines)
    texts = [text.get_text() for text in axis.get_legend().get_texts()]
    for text, seen in zip(texts, [view.familiar, *view.strange.values()], strict=True):
        assert text.endswith(f": {seen.judgement.reject.mean():.1%} rejected")


@pytest.mark.parametrize("far", [1e6, -1e6])
def test_a_few_far_values_do_not_stretch_the_axis(far):
    """The axis shows the limit and the central 98 % of each group, and the number of rows beyond it."""
    rng = np.random.default_rng(0)
    near, other = rng.normal(size=500), rng.normal(2, 1, size=300)
    axis = Figure().subplots()
    clip_far_values(axis, [np.append(near, [far, 2 * far]), other], [4.0], "{} beyond")
    low, high = axis.get_xlim()
    assert -12 < low < np.quantile(near, 0.01)
    assert 4 < high < 12
    assert [text.get_text() for text in axis.texts] == ["2 beyond →" if far > 0 else "← 2 beyond"]


def test_an_axis_without_far_values_shows_all_rows():
    """Nothing is clipped, also if most rows are equal."""
    for values in (np.arange(100.0), np.append(np.zeros(200), 5.0), np.zeros(5)):
        axis = Figure().subplots()
        axis.plot(values, values)
        before = axis.get_xlim()
        clip_far_values(axis, [values], [float(values[0])], "{} beyond")
        assert (axis.get_xlim(), len(axis.texts)) == (before, 0)


def test_the_detection_table_shows_the_reported_shares(view):
    """A cell for each score and set; the decision's row is first."""
    axis = draw_detection(view).axes[0]
    shown = [float(text.get_text()) for text in axis.texts]
    columns = 1 + len(view.strange)
    assert len(shown) == columns * (1 + len(view.familiar.judgement.scores))
    rates = [100 * seen.judgement.reject.mean() for seen in (view.familiar, *view.strange.values())]
    assert shown[:columns] == pytest.approx(rates, abs=0.051)


def test_reliability_shows_the_twin_and_every_row(view):
    """Three panels for each of two models; the histogram counts all rows."""
    axes = draw_reliability(view).axes
    assert len(axes) == 6
    for axis in axes[2:4]:
        assert sum(bar.get_height() for bar in axis.patches) == len(view.rows)


def test_the_report_draws_the_bins_of_the_manifest(digits, view, tmp_path):
    """Not bins of its own: the given rows are others than those the manifest was made with, and the bins stay."""
    bins = digits.manifest.metrics["reliability"]
    recomputed = reliability_bins(confidence(view.familiar.prediction), row_losses(view.familiar.prediction, view) == 0)
    assert tuple(bins["accuracy"]) != recomputed.accuracy
    write_report(tmp_path / "report.html", digits.manifest, digits.calibration, ReportData(replace(view, strange={})))
    page = (tmp_path / "report.html").read_text("utf-8")
    expected = zip(bins["confidence"], bins["accuracy"], strict=True)
    assert diagram_points(page) == [pytest.approx(point, abs=1e-3) for point in expected]
    assert f"Reliability diagram of {sum(bins['rows'])} test rows in 15 bins" in page
    assert f"ECE {digits.manifest.metrics['ece']:.4f}" in page


def test_risk_coverage_ends_at_the_error_of_all_rows(view):
    """The last point of each curve is the error with every row answered."""
    lines = draw_risk_coverage(view).axes[0].lines[:3]
    for line, prediction in zip(lines, (view.familiar.prediction,) * 2 + (view.twin.familiar,), strict=True):
        wrong = np.asarray(prediction.summary.mean).argmax(axis=1) != LABELS
        assert line.get_xdata()[-1] == 100
        assert line.get_ydata()[-1] == pytest.approx(100 * wrong.mean())


def test_mistakes_are_shown_most_confident_first(view):
    """Each caption is the true class, the predicted one and its probability; without a mistake there is no gallery."""
    mean = np.asarray(view.familiar.prediction.summary.mean)
    predicted = mean.argmax(axis=1)
    wrong = sorted(np.flatnonzero(predicted != LABELS), key=lambda row: -mean[row].max())
    captions = [text.get_text() for axis in draw_mistakes(view).axes for text in axis.texts]
    assert captions == [f"{LABELS[row]} → {predicted[row]}\n{mean[row].max():.3f}" for row in wrong[:30]]
    right = ReportView(view.name, view.posterior, Rows(IMAGES, predicted), view.familiar, {}, None)
    assert draw_mistakes(right) is None


def test_the_pit_histogram_counts_every_target(store):
    """Twenty bins that hold all rows."""
    rows = read_source("wave", DataConfig(test_size=40), classify=False).test
    view = view_of(load(store / "wave" / "1"), rows, {})
    bars = [bar for bar in draw_pit(view).axes[0].patches if getattr(bar, "get_height", None)]
    assert sum(bar.get_height() for bar in bars[:20]) == 40
