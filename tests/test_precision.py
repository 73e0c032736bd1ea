"""Features and targets that float32 cannot hold: standardised on the host in float64, or refused before the fit."""

import json

import jax
import numpy as np
import pytest

from models.bundle import load
from models.errors import DataError
from models.posterior import Model
from models.preprocessing import Column, Preprocessing, on_host, transform
from service.schemas import check_rows, parse_predict
from training.config import Config, DataConfig, MAPConfig
from training.data import fit_preprocessing
from training.fit import fit
from training.precision import COARSE, target_needs_float64, too_coarse
from training.rows import Rows

RNG = np.random.default_rng(0)
N = 400
Z = RNG.normal(size=(N, 2))


def preprocessing_of(x, y=None, **terms):
    """What is fitted to these rows."""
    names = tuple(f"f{place}" for place in range(x.shape[-1]))
    rows = Rows(x, np.arange(len(x)) % 2 if y is None else y)
    return fit_preprocessing(rows, DataConfig(**terms), (), names, classify=y is None)


def seen(terms, x):
    """What the network sees of rows, through float32 as in the compiled program."""
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
    """What overflows float32 in units of the feature is its largest number, and keeps its sign."""
    terms = preprocessing_of(Z * [1e-40, 1.0])
    found = on_host(terms, np.array([[1e10, 0], [-1e10, 0]]))
    assert found[:, 0].tolist() == [np.finfo(np.float32).max, -np.finfo(np.float32).max]


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_what_float32_merges_all_the_same_is_refused_by_name(dtype):
    """Seconds since 1970 with 0 for a gap: no offset helps. So are seconds with inputs as they are."""
    x = np.stack([Z[:, 0] * 100, 1.7e9 + RNG.permutation(N)], axis=1).astype(dtype)
    with pytest.raises(
        DataError, match=r"feature 'f1': .* found 400 distinct values in 400 rows, of which \d+ are left"
    ):
        preprocessing_of(x, inputs="none")
    x[:40, 1] = 0
    with pytest.raises(DataError, match=r"feature 'f1': .*leave gaps empty"):
        preprocessing_of(x)


def test_many_random_numbers_are_not_refused():
    """Float32 merges some of a hundred thousand float64 numbers, and nothing is lost."""
    preprocessing_of(np.random.default_rng(1).normal(size=(100_000, 2)), inputs="none")


@pytest.mark.parametrize(
    ("mean", "std", "wide"),
    [(1.7e9, 10, True), (0, 1e-20, True), (0, 1e20, True), (0, 1, False), (2000, 10, False), (1e6, 5e3, False)],
)
def test_targets_that_need_float64(mean, std, wide):
    """By offset against spread, or a variance beyond float32."""
    assert target_needs_float64(mean, std) == wide


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [(0, 1e-35, "expected a standard deviation from 1e-30 to 1e[+]30"), (1e15, 1e-2, "subtract an offset")],
)
def test_targets_beyond_float64_are_refused(mean, std, said):
    """Before the fit, with what to do."""
    with pytest.raises(DataError, match=f"targets: .*{said}"):
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
    request = parse_predict(b'{"inputs": [[1700000024.5]]}')
    assert check_rows(request, wide, 10).tolist() == [[1700000024.5]]
    assert check_rows(request, model, 10).dtype == np.float32


# ---- whole fits ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def regressions(tmp_path_factory):
    """The same regression in four units, fitted alike; inputs are seconds since 1970 in all but the first."""
    folder, found = tmp_path_factory.mktemp("units"), {}
    noise = 0.1 * RNG.normal(size=N)
    for name, offset, unit, start in [
        ("plain", 0, 1, 0),
        ("epoch", 1.7e9, 10, 1.7e9),
        ("tiny", 0, 1e-20, 1.7e9),
        ("huge", 0, 1e20, 1.7e9),
    ]:
        x = start + 23 * Z[:, :1]
        np.savez(folder / f"{name}.npz", x=x, y=offset + unit * (np.sin(2 * Z[:, 0]) + noise))
        config = Config(
            name=name,
            draws=1,
            likelihood="normal",
            data=DataConfig(calibration_size=100),
            method=MAPConfig(steps=300, reports=1),
            calibration={"decision": "total_std", "recalibrate": "auto", "percentile": 90.0},
        )
        fit(config, str(folder / f"{name}.npz"), folder / "store", lambda *_, **__: None)
        bundle = load(folder / "store" / name / "1")
        found[name] = (offset, unit, start, bundle, bundle.predictor((8,)))
    return found


@pytest.mark.parametrize("name", ["epoch", "tiny", "huge"])
def test_answers_are_right_in_the_targets_own_units(regressions, name):
    """Means, quantiles and variances are the plain model's, shifted and scaled; so are scores, thresholds and metrics."""
    plain, predictor = regressions["plain"][3:]
    offset, unit, start, bundle, own = regressions[name]
    z = np.linspace(-2, 2, 5)[:, None]
    expected, found = predictor(23 * z).summary, own(start + 23 * z).summary
    tolerance = 2e-3
    np.testing.assert_allclose((found.mean - offset) / unit, expected.mean, atol=tolerance)
    np.testing.assert_allclose((found.quantiles - offset) / unit, expected.quantiles, atol=tolerance)
    np.testing.assert_allclose(found.aleatoric_variance / unit**2, expected.aleatoric_variance, rtol=0.02)
    np.testing.assert_allclose(found.entropy - np.log(unit), expected.entropy, atol=0.02)
    scores, metrics = own(start + 23 * z).scores, bundle.manifest.metrics
    np.testing.assert_allclose(scores["total_std"] / unit, predictor(23 * z).scores["total_std"], rtol=0.02)
    np.testing.assert_allclose(scores["range"], predictor(23 * z).scores["range"], atol=1e-4)
    assert metrics["rmse"] / unit == pytest.approx(plain.manifest.metrics["rmse"], rel=0.05)
    assert metrics["nll"] - np.log(unit) == pytest.approx(plain.manifest.metrics["nll"], abs=0.05)
    assert json.dumps(metrics, allow_nan=False)
