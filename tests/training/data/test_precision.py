"""Features and targets that float32 cannot hold: standardised on the host in float64, or refused before the fit."""

import json

import jax
import numpy as np
import pytest

from abstain.models.bundles.bundle import load
from abstain.models.bundles.shortfalls import Shortfall, recognise
from abstain.models.decisions.judging import judge
from abstain.models.errors import DataError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Predictor
from abstain.models.prediction.preprocessing import Preprocessing, on_host, transform
from abstain.models.tables.columns import Column
from abstain.service.open_inference.outputs import input_of, outputs_of
from abstain.service.predict.request import parse_predict
from abstain.service.rows import check_rows
from abstain.training.config.config import Config
from abstain.training.config.data import DataConfig
from abstain.training.config.methods import MAPConfig
from abstain.training.data.dataset import fit_preprocessing
from abstain.training.data.precision import COARSE, target_needs_float64, too_coarse
from abstain.training.data.rows import Rows
from abstain.training.evaluation.checks import metric_shortfalls
from abstain.training.evaluation.mixtures import pooled_log_likelihood
from abstain.training.fit import fit

RNG = np.random.default_rng(0)
N = 400
Z = RNG.normal(size=(N, 2))


def preprocessing_of(x, y=None, **terms):
    """Fits a preprocessing to these rows."""
    names = tuple(f"f{place}" for place in range(x.shape[-1]))
    rows = Rows(x, np.arange(len(x)) % 2 if y is None else y)
    return fit_preprocessing(rows, DataConfig(**terms), (), names, classify=y is None)


def seen(terms, x):
    """Preprocesses rows through float32, as the compiled program does."""
    return np.asarray(jax.vmap(lambda row: transform(terms, row))(on_host(terms, x).astype(np.float32)))


@pytest.mark.parametrize(
    ("offset", "scale"), [(1.7e9, 23.0), (1.7e12, 2e4), (-4e7, 1.0), (0, 1e-40), (0, 1e33), (1e-20, 1e-33)]
)
def test_a_feature_float32_cannot_hold_is_standardised_on_the_host(offset, scale):
    """To what float64 gives, and its neighbour, an ordinary feature, is given to the program as it is."""
    x = Z * [scale, 1.0] + [offset, 3.0]
    terms = preprocessing_of(x)
    expected = (x - x.mean(axis=0)) / x.std(axis=0)
    np.testing.assert_allclose(seen(terms, x), expected, atol=1e-4)
    assert (terms.origin[1], terms.unit[1]) == (0, 1)
    np.testing.assert_array_equal(on_host(terms, x)[:, 1], x[:, 1].astype(np.float32))


@pytest.mark.parametrize(("offset", "scale"), [(1e9, 1e-5), (1.7e18, 6e4)])
def test_a_spread_far_smaller_than_its_offset_is_standardised(offset, scale):
    """The scale equals that of exact differences, up to rounding of the float64 mean; the feature is no constant."""
    x = Z * [scale, 1.0] + [offset, 3.0]
    differences = x[:, 0] - x[0, 0]
    expected = (differences - differences.mean()) / differences.std()
    found = seen(preprocessing_of(x), x)[:, 0]
    np.testing.assert_allclose(found, expected, atol=max(1e-4, np.spacing(offset) / scale))


def test_a_constant_but_for_rounding_is_a_constant():
    """Its rounding is not made a feature of standard deviation 1."""
    x = np.stack([np.where(Z[:, 0] > 0, 0.3, 0.1 + 0.2), Z[:, 1]], axis=1)
    terms = preprocessing_of(x)
    assert (terms.unit or terms.scale)[0] == 1


@pytest.mark.parametrize("inputs", ["standardize", "range", "none"])
def test_ordinary_features_and_targets_stay_as_they_were(inputs):
    """No origin, and the very array comes back; years, pixels, ids up to thousands and measured numbers are ordinary."""
    x = np.stack([2000 + 10 * Z[:, 0], RNG.integers(0, 256, N), RNG.integers(0, 5000, N), 1 + 0.003 * Z[:, 1]], axis=1)
    terms = preprocessing_of(x, y=50 + Z[:, 0], inputs=inputs)
    assert (terms.origin, terms.unit, terms.float64_target) == ((), (), False)
    assert on_host(terms, x) is x


def test_range_takes_the_offset_off_all_features_together():
    """The least number becomes 0 and the largest 1, as for pixels."""
    x = 1.7e9 + 10 * Z
    terms = preprocessing_of(x, inputs="range")
    np.testing.assert_allclose(seen(terms, x), (x - x.min()) / (x.max() - x.min()), atol=1e-6)


@pytest.mark.parametrize("kinds", [("a", "b"), ("a", "b", "c")])
def test_range_leaves_categories_as_they_are(kinds):
    """Beside a column of seconds since 1970, the code of a category still becomes its one-hot block."""
    columns = (Column(name="when"), Column(name="kind", categories=kinds))
    codes = np.arange(N) % len(kinds)
    x = np.stack([1.7e9 + 5e4 * Z[:, 0] ** 2, codes], axis=1)
    terms = fit_preprocessing(Rows(x, np.arange(N) % 2), DataConfig(inputs="range"), columns, classify=True)
    found = seen(terms, x)
    np.testing.assert_array_equal(found[:, 1:], np.eye(len(kinds))[codes])
    assert (found[:, 0].min(), found[:, 0].max()) == (0, 1)


def test_draws_and_mode_are_compared_on_the_rows_that_are_served():
    """The pooled log-likelihood of a classifier of seconds since 1970 is that of its served probabilities."""
    rng = np.random.default_rng(0)
    x = 1.7e9 + 10 * rng.normal(size=(60, 1))
    preprocessing = fit_preprocessing(Rows(x, np.arange(60) % 2), DataConfig(), (), classify=True)
    model = Model(
        network=MLPSpec(hidden=()),
        likelihood="categorical",
        preprocessing=preprocessing,
        feature_shape=(1,),
        class_names=("a", "b"),
    )
    kernel = rng.normal(size=(3, 1, 2)).astype(np.float32)
    posterior = Posterior(model, {"network": {"Dense_0": {"kernel": kernel, "bias": np.zeros((3, 2), np.float32)}}})
    served = np.asarray(Predictor(posterior, (64,))(x).summary.mean)
    labels = np.arange(60) % 2
    found = pooled_log_likelihood(posterior, Rows(x, labels))
    np.testing.assert_allclose(found, np.log(served[np.arange(60), labels]), rtol=1e-4, atol=1e-5)


def test_a_gap_is_filled_on_the_scale_of_the_data():
    """`missing` is what a client sends in place of a gap, and fills a gap alike."""
    columns = (Column(name="when"), Column(name="kind", categories=("a", "b")))
    x = np.stack([1.7e9 + 23 * Z[:, 0], np.arange(N) % 2.0], axis=1)
    x[3, 0] = np.nan
    terms = fit_preprocessing(Rows(x, np.arange(N) % 2), DataConfig(), columns, classify=True)
    assert terms.columns[0].missing == np.nanmedian(x[:, 0])
    filled = x.copy()
    filled[3, 0] = terms.columns[0].missing
    np.testing.assert_array_equal(seen(terms, x), seen(terms, filled))
    np.testing.assert_array_equal(seen(terms, x)[:, 1:], np.eye(2)[np.arange(N) % 2])


def test_a_row_far_outside_is_finite():
    """A value that overflows float32 in units of the feature becomes its largest number, with the same sign."""
    terms = preprocessing_of(Z * [1e-40, 1.0])
    found = on_host(terms, np.array([[1e10, 0], [-1e10, 0]]))
    assert found[:, 0].tolist() == [np.finfo(np.float32).max, -np.finfo(np.float32).max]


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_what_float32_merges_all_the_same_is_refused_by_name(dtype):
    """Seconds since 1970 with 0 for a gap: no offset helps. So are seconds with inputs as they are."""
    x = np.stack([Z[:, 0] * 100, 1.7e9 + RNG.permutation(N)], axis=1).astype(dtype)
    with pytest.raises(
        DataError, match=r"feature 'f1': .* found 400 distinct values in 400 rows, of which float32 keeps \d+"
    ):
        preprocessing_of(x, inputs="none")
    x[:40, 1] = 0
    with pytest.raises(DataError, match=r"feature 'f1': .*leave gaps empty"):
        preprocessing_of(x)


def test_many_random_numbers_are_not_refused():
    """Float32 merges some of a hundred thousand float64 numbers, and nothing is lost."""
    terms = preprocessing_of(np.random.default_rng(1).normal(size=(100_000, 2)), inputs="none")
    assert not terms.unit


@pytest.mark.parametrize(
    ("mean", "std", "wide"),
    [(1.7e9, 10, True), (0, 1e-20, True), (0, 1e20, True), (0, 1, False), (2000, 10, False), (1e6, 5e3, False)],
)
def test_targets_that_need_float64(mean, std, wide):
    """The reason is the offset compared with the spread, or a variance beyond float32."""
    assert target_needs_float64(float(mean), float(std)) == wide


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [(0, 1e-35, "expected a standard deviation from 1e-30 to 1e[+]30"), (1e15, 1e-2, "subtract an offset")],
)
def test_targets_beyond_float64_are_refused(mean, std, message):
    """Before the fit, with what to do."""
    with pytest.raises(DataError, match=f"targets: .*{message}"):
        preprocessing_of(Z, y=mean + std * Z[:, 0] * (1 + (mean > 0)))


def test_the_rule_is_about_float32s_spacing():
    """A feature is as coarse as its largest number's neighbour is far, in standard deviations."""
    largest = np.array([1e3, 1e3])
    spread = np.spacing(np.float32(1e3)).astype(float) / COARSE * np.array([0.99, 1.01])
    assert too_coarse(largest, spread).tolist() == [True, False]


def test_a_request_keeps_its_digits_for_the_host():
    """JSON rows of a model with an origin stay float64; of any other they are float32 as before."""
    model = Model.model_validate(
        {"network": {"kind": "mlp"}, "likelihood": "categorical", "feature_shape": (1,), "class_names": ("a", "b")}
    )
    wide = model.model_copy(update={"preprocessing": Preprocessing(origin=(1.7e9,), unit=(23.0,))})
    request = parse_predict(b'{"inputs": [[1700000024.5]]}', 10)
    assert check_rows(request.inputs, request.plain, wide, 10).tolist() == [[1700000024.5]]
    assert check_rows(request.inputs, request.plain, model, 10).dtype == np.float32


# ---- a whole fit -----------------------------------------------------------------------------------------------------

START, STD = 1.7e9, 1e-20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A regression on seconds since 1970, of a target whose variance is 1e-40; with noise of a tenth of it."""
    folder = tmp_path_factory.mktemp("tiny")
    y = STD * (np.sin(2 * Z[:, 0]) + 0.1 * RNG.normal(size=N))
    np.savez(folder / "tiny.npz", x=START + 23 * Z, y=y)
    config = Config(
        name="tiny",
        draws=1,
        likelihood="normal",
        data=DataConfig(calibration_size=100),
        method=MAPConfig(steps=600, reports=1),
        calibration={"decision": "total_std", "recalibrate": "auto", "percentile": 90.0},
    )
    fit(config, str(folder / "tiny.npz"), folder / "store", lambda *_, **__: None, report=False)
    return load(folder / "store" / "tiny" / "1")


def test_a_fit_of_tiny_targets_is_sound_and_all_its_metrics_are_numbers(tiny):
    """It learns the course, in the target's units; the intervals are as wide as the noise."""
    metrics = tiny.manifest.metrics
    assert json.dumps(metrics, allow_nan=False)
    # Always saying the mean gives the target's own standard deviation, 0.7e-20.
    assert 0.09 * STD < metrics["rmse"] < 0.5 * STD
    assert abs(metrics["nll"] - np.log(metrics["rmse"]) - 1.4) < 1
    assert 0.3 < tiny.manifest.calibration.recalibration.factor < 3
    x = START + 23 * np.stack([np.linspace(-2, 2, 9), np.zeros(9)], axis=1)
    prediction = tiny.predictor((16,))(x)
    assert np.corrcoef(prediction.summary.mean, np.sin(np.linspace(-4, 4, 9)))[0, 1] > 0.5
    judgement = judge(tiny.calibration, prediction)
    width = judgement.interval[:, 1] - judgement.interval[:, 0]
    assert (width > 0.1 * STD).all()
    assert (width < 6 * metrics["rmse"]).all()


@pytest.mark.parametrize(("offset", "unit"), [(1.7e9, 10), (0, 1e-20), (0, 1e20), (-5e5, 1e-3)])
def test_answers_are_right_in_the_targets_own_units(tiny, offset, unit):
    """Means, quantiles, variances, entropy and scores are those of a unit target, shifted and scaled, to the digit."""
    terms = tiny.manifest.model.preprocessing
    plain = terms.model_copy(update={"target_shift": 0.0, "target_scale": 1.0, "float64_target": False})
    moved = terms.model_copy(update={"target_shift": float(offset), "target_scale": float(unit)})
    x = START + 23 * Z[:8]
    expected, found = (
        Predictor(
            Posterior(tiny.manifest.model.model_copy(update={"preprocessing": own}), tiny.posterior.draws),
            (8,),
            feature_scores=tiny.feature_scores,
        )(x)
        for own in (plain, moved)
    )
    np.testing.assert_allclose(found.summary.mean, offset + unit * expected.summary.mean.astype(float), rtol=1e-14)
    quantiles = offset + unit * expected.summary.quantiles.astype(float)
    np.testing.assert_allclose(found.summary.quantiles, quantiles, rtol=1e-14)
    np.testing.assert_allclose(
        found.summary.aleatoric_variance, unit**2 * expected.summary.aleatoric_variance.astype(float), rtol=1e-6
    )
    np.testing.assert_allclose(found.summary.entropy, expected.summary.entropy + np.log(unit), rtol=1e-6)
    for score in ("std", "total_std"):
        np.testing.assert_allclose(found.scores[score], unit * expected.scores[score].astype(float), rtol=1e-6)
    np.testing.assert_array_equal(found.scores["range"], expected.scores["range"])


def test_the_v2_protocol_tells_wide_types_where_they_are_needed(tiny):
    """FP64 for rows with an origin, and for places in the target's units; FP32 for all else."""
    model = tiny.manifest.model
    outputs = outputs_of(model, tiny.calibration)
    assert input_of(model).datatype == "FP64"
    assert {name for name, output in outputs.items() if output.datatype == "FP64"} == {
        "mean",
        "quantiles",
        "lower",
        "upper",
    }
    plain = model.model_copy(update={"preprocessing": Preprocessing()})
    assert {output.datatype for output in outputs_of(plain, tiny.calibration).values()} == {"FP32", "BOOL"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metrics_that_are_no_numbers_are_a_shortfall(value):
    """Each by name, so that such a version is never called sound."""
    assert metric_shortfalls({"rmse": 1.0, "reject_rate": {}}) == ()
    (lack,) = metric_shortfalls({"rmse": 1.0, "nll": value})
    assert "not finite: nll" in lack.text
    assert lack == Shortfall("not_finite", lack.text) == recognise(lack.text)
