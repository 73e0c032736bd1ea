"""Augmentation: what each change does to an image, held against naive loops and SciPy, and who may learn from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from abstain.models.bundles.bundle import load
from abstain.models.errors import ConfigError, DataError
from abstain.models.prediction.preprocessing import transform
from abstain.training.calibrate import calibrate_version
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.reference import set_aside
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.data import AugmentConfig
from abstain.training.config.methods import Optimisation
from abstain.training.config.reading import read_config
from abstain.training.data.augmentation import augment, build_augmentation, rotate, shift, thicken, transform_rows
from abstain.training.data.rows import Rows
from abstain.training.fit import build_model, fit, load_dataset
from abstain.training.inference.bnn import Observations
from abstain.training.inference.optimization import DescentRows, Objective, descend
from abstain.training.inference.tracking import TrackedRows
from abstain.training.runs.journal import Journal
from tests.helpers.fits import draws_of_config, silent

CONFIG = """
name = "{kind}"
draws = 2
[data]
source = "digits"
calibration_size = 300
inputs = "{inputs}"
{augment}
[network]
kind = "mlp"
hidden = [4]
[method]
kind = "{kind}"
{method}
"""
DESCENT = "steps = 60\nreports = 6\nbatch_size = 64\nlearning_rate = 0.01"
AUGMENT = "[data.augment]\nshift = 1\nrotate = 10.0\nthickness = 0.5"


def pictures(rows=6, shape=(9, 7), low=0.0):
    """Images of noise above a background."""
    return np.random.default_rng(0).uniform(low + 1, 10, (rows, *shape)).astype(np.float32)


def test_a_shift_is_a_roll_filled_with_background():
    """Down and right where positive; what comes in over the edge is background, channels move together."""
    offsets = np.array([[0, 0], [2, 0], [0, -2], [-1, 2], [1, 1], [-2, -2]])
    for shape in ((9, 7), (9, 7, 3)):
        images = pictures(shape=shape)
        found = np.asarray(shift(jnp.asarray(images), jnp.asarray(offsets), -3.0, limit=2))
        for image, (down, right), moved in zip(images, offsets, found, strict=True):
            expected = np.roll(image, (down, right), axis=(0, 1))
            expected[slice(0, down) if down >= 0 else slice(down, None)] = -3
            expected[:, slice(0, right) if right >= 0 else slice(right, None)] = -3
            np.testing.assert_array_equal(moved, expected)


def disc(size=31, radius=9.0):
    """A disc with a soft edge, centred."""
    place = np.arange(size) - (size - 1) / 2
    return (1 / (1 + np.exp(np.hypot(place[:, None], place[None, :]) - radius))).astype(np.float32)


def test_a_disc_turned_is_the_disc():
    """A disc does not change by any angle, except for interpolation at its soft edge."""
    angles = jnp.array([0.0, 17.0, -45.0, 90.0, 180.0])
    found = np.asarray(rotate(jnp.asarray(np.tile(disc(), (5, 1, 1))), angles, 0.0))
    np.testing.assert_array_equal(found[0], disc())
    np.testing.assert_allclose(found, np.tile(disc(), (5, 1, 1)), atol=0.03)
    assert np.abs(found[[0, 3, 4]] - disc()).max() < 1e-4


@pytest.mark.parametrize("angle", [90, -90, 180, 30, -12.5])
def test_a_rotation_is_scipys(angle):
    """Counterclockwise, as `scipy.ndimage.rotate` turns the axes; by right angles it is `numpy.rot90`."""
    image = np.pad(pictures(1, (5, 5))[0], 4)
    found = np.asarray(rotate(jnp.asarray(image[None]), jnp.array([float(angle)]), 0.0))[0]
    expected = ndimage.rotate(image, angle, order=1, reshape=False, mode="grid-constant")
    np.testing.assert_allclose(found, expected, atol=1e-3)
    if angle % 90 == 0:
        np.testing.assert_allclose(found, np.rot90(image, angle // 90), atol=1e-3)


def test_thickening_is_a_dilation_and_thinning_an_erosion():
    """Whole amounts are SciPy's grey-scale 3×3 ones, half of one lies half-way, none leaves the image as it is."""
    images = pictures()
    found = np.asarray(thicken(jnp.asarray(np.tile(images, (5, 1, 1))), jnp.repeat(jnp.linspace(-1, 1, 5), 6), 0.0))
    thin, half_thin, same, half_thick, thick = found.reshape(5, *images.shape)
    sizes = {"size": (1, 3, 3), "mode": "constant", "cval": 0.0}
    np.testing.assert_allclose(thick, ndimage.grey_dilation(images, **sizes), rtol=1e-6)
    np.testing.assert_allclose(thin, ndimage.grey_erosion(images, **sizes), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(half_thick, (images + thick) / 2, rtol=1e-6)
    np.testing.assert_allclose(half_thin, (images + thin) / 2, rtol=1e-6)
    np.testing.assert_array_equal(same, images)
    assert (thin <= half_thin).all()
    assert (half_thin <= images).all()
    assert (images <= half_thick).all()
    assert (half_thick <= thick).all()


def test_every_image_is_changed_by_an_amount_of_its_own_within_the_limits():
    """A lone pixel lands everywhere within the limit and nowhere else, evenly; with all changes off nothing happens."""
    images = jnp.zeros((4000, 9, 9)).at[:, 4, 4].set(1.0)
    moved = augment(jax.random.key(0), images, AugmentConfig(shift=2), 0.0)
    share = np.asarray(moved).mean(axis=0)
    assert share[2:7, 2:7].sum() == pytest.approx(1.0)
    assert (np.abs(share[2:7, 2:7] - 1 / 25) < 5 * np.sqrt(1 / 25 / 4000)).all()

    amounts = np.asarray(augment(jax.random.key(0), images, AugmentConfig(thickness=0.5), 0.0))[:, 3, 3]
    assert amounts.max() == pytest.approx(0.5, abs=0.01)
    assert (amounts == 0).mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(augment(jax.random.key(0), images, AugmentConfig(), 0.0), images)
    again = augment(jax.random.key(1), images, AugmentConfig(shift=2), 0.0)
    assert (np.asarray(again) != np.asarray(moved)).any()


def test_rows_to_calibrate_on_are_changed_in_one_way_each_with_equal_odds():
    """Left alone, moved, turned, dilated or eroded: a fifth each, and never two at once."""
    glyph = np.zeros((21, 21), np.uint8)
    glyph[6:15, 8:12] = 200
    glyph[6:9, 8:15] = 150
    images = np.tile(glyph, (3000, 1, 1))
    changed_bundle = AugmentConfig(shift=2, rotate=15.0, thickness=1.0)
    found = transform_rows(0, images, changed_bundle)
    assert found.dtype == np.float32
    flat, plain = found.reshape(3000, -1), glyph.reshape(-1).astype(np.float32)
    same = (flat == plain).all(axis=1)
    moves = [np.roll(glyph, (down, right), (0, 1)).ravel() for down in range(-2, 3) for right in range(-2, 3)]
    moved = np.any([(flat == move).all(axis=1) for move in moves], axis=0) & ~same
    thicker = (flat >= plain).all(axis=1) & ~same
    thinner = (flat <= plain).all(axis=1) & ~same
    turned = ~(same | moved | thicker | thinner)
    kinds = np.array([same, moved, turned, thicker, thinner])
    assert (kinds.sum(axis=0) == 1).all()
    # Of the shifted, one in 25 is moved by nothing.
    odds = np.array([1 + 1 / 25, 1 - 1 / 25, 1, 1, 1]) / 5
    assert (np.abs(kinds.mean(axis=1) - odds) < 4 * np.sqrt(odds / 3000)).all()

    np.testing.assert_array_equal(transform_rows(0, images, changed_bundle), found)
    assert (transform_rows(1, images, changed_bundle) != found).any()
    np.testing.assert_array_equal(transform_rows(0, images, AugmentConfig()), images)
    shares = (transform_rows(0, images, AugmentConfig(rotate=15.0)) == images).all(axis=(1, 2)).mean()
    assert shares == pytest.approx(0.5, abs=0.05)


def test_the_background_of_rows_to_calibrate_on_is_their_least_value():
    """Not 0, where the images have none."""
    images = np.full((50, 5, 5), 7.0)
    images[:, 2, 2] = 9.0
    assert transform_rows(0, images, AugmentConfig(shift=2)).min() == 7.0


def written(tmp_path, kind, method=DESCENT, augment=AUGMENT, inputs="range"):
    """A config of a small fit of the embedded digits."""
    path = tmp_path / "a.toml"
    path.write_text(CONFIG.format(kind=kind, method=method, augment=augment, inputs=inputs))
    return read_config(path)


def kernel_of(draws):
    """The first layer's."""
    return draws["network"]["Dense_0"]["kernel"]


class Killed(Exception):
    """A fit that was cut off."""


def dying_after(reports):
    """Progress that ends the fit at a report."""
    reports_left = iter(range(reports))

    def progress(*_, **__):
        if next(reports_left, None) is None:
            raise Killed

    return progress


def test_every_step_changes_its_rows_anew_whatever_the_blocks():
    """Each member by random numbers of its own, functions of the step alone."""
    data = Observations(jnp.zeros((12, 3)), jnp.zeros(12))
    settings = Optimisation(steps=20, batch_size=5, learning_rate=1e-30)

    def noise(key, x):
        return jax.random.uniform(key, x.shape)

    def go(reports, **options):
        objective = Objective(lambda z, _key, batch: batch.x.mean() + z, lambda z, *_: {"place": z}, **options)
        rows, cut = DescentRows(data, TrackedRows(data, data)), settings.model_copy(update={"reports": reports})
        return descend("d", jax.random.key(0), jnp.zeros(2), objective, rows, cut, Journal())[1].column("loss")

    whole = go(1, augment=noise)
    assert len(np.unique(whole)) == 40
    np.testing.assert_array_equal(go(3, augment=noise), whole)
    np.testing.assert_allclose(go(1), 0, atol=1e-20)


def test_a_fit_that_learns_from_changed_rows_resumes_bit_for_bit(tmp_path):
    """Cut off in the warm start and in the guide's passage; without augmentation it is another posterior."""
    method = f'{DESCENT}\nstarts = 2\nstart = "map"\n[method.map]\n{DESCENT}'
    config = written(tmp_path, "vi", method)
    whole = draws_of_config(config)
    for reports in (2, 7):
        with pytest.raises(Killed):
            fit(config, None, tmp_path / "cut", dying_after(reports), resume=reports > 2, report=False)
    fit(config, None, tmp_path / "cut", silent, resume=True, report=False)
    resumed = load(tmp_path / "cut" / "vi" / "1").posterior.draws
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)

    plain = draws_of_config(written(tmp_path, "vi", method, augment=""))
    assert (kernel_of(whole) != kernel_of(plain)).any()


def test_images_move_before_they_are_standardised(tmp_path):
    """Features that are standardised one by one differ from pixel to pixel: a moved image is what one would have sent."""
    config = written(tmp_path, "map", inputs="standardize", augment="[data.augment]\nshift = 3")
    dataset = load_dataset(config, None)
    model, images = build_model(config, dataset), dataset.train.x[:40]
    change = build_augmentation(config, model, dataset.train.x)
    prepare = jax.vmap(lambda image: transform(model.preprocessing, jnp.float32(image)))
    found = change(jax.random.key(3), prepare(images))
    moved = augment(jax.random.key(3), jnp.float32(images), config.data.augment, 0.0)
    np.testing.assert_allclose(found, prepare(moved), rtol=1e-3, atol=1e-4)


def refusal(config, tmp_path):
    """The text of a fit's refusal, which comes before anything is fitted."""
    with pytest.raises(ConfigError) as caught:
        fit(config, None, tmp_path / "store", lambda *_: pytest.fail("fitting began"))
    return str(caught.value)


@pytest.mark.parametrize("kind", ["laplace", "hmc", "nuts", "chees", "mile"])
def test_one_density_of_all_rows_has_no_rows_that_change(tmp_path, kind):
    """Markov chains and Laplace's curvature refuse augmentation, and say why."""
    text = refusal(written(tmp_path, kind, method=""), tmp_path)
    assert f"data.augment: expected none for {kind}, which works on one fixed density" in text
    assert "method.kind = map, ensemble, vi" in text


def test_densities_may_be_fitted_to_changed_rows_and_calibrated_anew(tmp_path):
    """A fit and `abstain calibrate` make the very same ones, of `transform_rows`; draws and other terms stay."""
    changed = "[calibration]\npercentile = 95.0\n[calibration.densities]\nshift = 1\nthickness = 0.5"
    settings = AugmentConfig(shift=1, thickness=0.5)
    store, config = tmp_path / "store", written(tmp_path, "map", DESCENT, augment=changed)
    plain = config.model_copy(update={"name": "plain", "calibration": CalibrationConfig(percentile=95.0)})
    for terms in (config, plain):
        fit(terms, None, store, silent, report=False)
    changed = ("densities={ shift = 1, thickness = 0.5 }",)
    assert calibrate_version(store, "plain", "digits", changed, report=False)[:2] == (
        "plain",
        2,
    )
    assert calibrate_version(store, "plain:2", "digits", ("percentile=90.0",), report=False)[:2] == ("plain", 3)

    changed_bundle, before, after, kept = (load(store / name) for name in ("map/1", "plain/1", "plain/2", "plain/3"))
    _, train = set_aside(load_dataset(plain, None).train, config.seed)
    # The rows are all of the training part but for reference rows, in its order; a range is of raw rows.
    rows = Rows(transform_rows(config.seed, train.x, settings, "calibration.densities"), train.y)
    expected = fit_feature_scores(changed_bundle.posterior, rows, config.seed).records | {
        "range": before.feature_scores.records["range"]
    }
    for found in (changed_bundle, after, kept):
        jax.tree.map(np.testing.assert_array_equal, found.feature_scores.records, expected)
        jax.tree.map(np.testing.assert_array_equal, found.posterior.draws, before.posterior.draws)
    assert not np.array_equal(before.feature_scores.records["vim"].weight, expected["vim"].weight)
    assert kept.manifest.calibration.settings["densities"] == settings.model_dump()
    with pytest.raises(ConfigError, match=r"calibration.densities.shift: expected less than the images' 8, found 9"):
        calibrate_version(store, "plain", "digits", ("densities.shift=9",))
    new = load_dataset(plain, None).test
    np.savez(tmp_path / "new.npz", x=new.x, y=new.y.astype(int))
    with pytest.raises(DataError, match=r"training rows for the feature scores of plain:1"):
        calibrate_version(store, "plain:1", str(tmp_path / "new.npz"), ("densities.shift=1",))


def test_rows_that_are_no_images_are_refused_by_their_shape(tmp_path):
    """So are images smaller than they are to be shifted."""
    config = written(tmp_path, "vi")
    table = config.model_copy(update={"data": config.data.model_copy(update={"source": "boxes"})})
    assert "data.augment: expected images [height, width]" in refusal(table, tmp_path)
    assert "found rows of shape (2,)" in refusal(table, tmp_path)
    far = written(tmp_path, "vi", augment="[data.augment]\nshift = 8")
    assert "data.augment.shift: expected less than the images' 8, found 8" in refusal(far, tmp_path)
    with pytest.raises(ConfigError, match=r"calibration.augment: expected images .* found rows of shape \(4,\)"):
        transform_rows(0, np.zeros((3, 4)), AugmentConfig(shift=1))


def test_the_settings_of_augmentation_are_checked(tmp_path):
    """Both tables know their keys and limits."""
    with pytest.raises(ConfigError, match=r"unknown key 'data.augment.zoom'.*expected one of rotate, shift, thickness"):
        written(tmp_path, "vi", augment="[data.augment]\nzoom = 2")
    for line in ("shift = -1", "thickness = 1.5", "rotate = -3.0"):
        with pytest.raises(ConfigError, match=r"data\.augment"):
            written(tmp_path, "vi", augment=f"[data.augment]\n{line}")
    config = written(tmp_path, "vi", augment="[calibration.augment]\nshift = 2")
    assert config.calibration.augment == AugmentConfig(shift=2)
    assert not config.data.augment.changes_rows
