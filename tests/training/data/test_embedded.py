"""Embedded sets: each follows the distribution that its docstring states, in parts of the requested sizes."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import split
from abstain.training.data.embedded import EMBEDDED
from abstain.training.data.sources import read_source

ROWS = 20_000
TRAIN_ROWS = {"sine": 100, "boxes": 80, "spirals": 300, "wave": 40, "bimodal": 200}


def drawn(name):
    """Twenty thousand rows of a set, each fitting its own law."""
    arrays = EMBEDDED[name](ROWS, 1)
    return arrays["x_calibration"], arrays["y_calibration"]


def test_digits_are_scikit_learns():
    """`digits` is scikit-learn's set, images and all, named 0 to 9."""
    found, expected = read_source("digits", DataConfig(), classify=True), load_digits()
    np.testing.assert_array_equal(expected.images, found.train.x)
    np.testing.assert_array_equal(expected.target, found.train.y)
    assert found.class_names == tuple("0123456789")
    assert found.test is None


@pytest.mark.parametrize("name", TRAIN_ROWS)
def test_a_drawn_set_has_parts_of_its_own(name):
    """Sizes are as requested, a share is of the training rows, and no row is in two parts."""
    config = DataConfig(calibration_size=0.5, test_size=30)
    dataset = split(read_source(name, config, classify=name in {"boxes", "spirals", "bimodal"}), config, 0)
    rows = TRAIN_ROWS[name]
    assert (len(dataset.train), len(dataset.calibration), len(dataset.test)) == (rows, rows // 2, 30)
    everything = np.concatenate([dataset.train.x, dataset.calibration.x, dataset.test.x])
    assert len(np.unique(everything, axis=0)) == len(everything)


@pytest.mark.parametrize("name", TRAIN_ROWS)
def test_a_drawn_set_is_the_same_every_time(name):
    """The training rows depend on nothing, and the others on nothing but their number."""
    first, second = EMBEDDED[name](50, 0.5), EMBEDDED[name](60, 0.5)
    for key in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(first[key], second[key])


@pytest.mark.parametrize(
    ("name", "law", "noise"),
    [("wave", lambda x: x * np.sin(5 * x), 0.1), ("sine", lambda x: 0.3 + np.sin(2 * np.pi * x / 2.5), 0.2)],
)
def test_a_regression_set_is_its_curve_and_normal_noise(name, law, noise):
    """Inputs are uniform on [−1, 1], and targets leave the curve by independent normal noise."""
    x, y = drawn(name)
    residuals = (y - law(x[:, 0])) / noise
    assert x.shape == (ROWS, 1)
    assert np.abs(x).max() <= 1
    # Each statistic within four standard errors of its expectation.
    assert abs(x.mean()) < 4 * np.sqrt(1 / 3 / ROWS)
    assert abs((x**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / ROWS)
    assert abs(residuals.mean()) < 4 / np.sqrt(ROWS)
    assert abs((residuals**2).mean() - 1) < 4 * np.sqrt(2 / ROWS)
    assert abs((residuals * x[:, 0]).mean()) < 4 * np.sqrt(1 / 3 / ROWS)


def test_boxes_are_four_squares_two_of_each_class():
    """Every point lies in one of four squares of side 4.5; class 1 where its signs agree; as many in each."""
    x, y = drawn("boxes")
    assert ((np.abs(x) >= 0.5) & (np.abs(x) <= 5)).all()
    np.testing.assert_array_equal(y, x[:, 0] * x[:, 1] > 0)
    corners, counts = np.unique(np.sign(x), axis=0, return_counts=True)
    assert (len(corners), set(counts)) == (4, {ROWS // 4})
    assert np.abs(np.abs(x).mean(axis=0) - 2.75).max() < 4 * 4.5 / np.sqrt(12 * ROWS)


def test_spirals_are_three_arms_of_four_radians():
    """The angle of each point is four times its class plus its place on the arm, and noise of 0.2 radians."""
    x, y = drawn("spirals")
    turn = np.hypot(*x.T) / 0.5
    assert turn.max() <= 1
    np.testing.assert_array_equal(np.bincount(y), np.bincount(np.arange(ROWS) % 3))
    gap = np.arctan2(x[:, 0], x[:, 1]) - 4 * (y + turn)
    noise = (gap + np.pi) % (2 * np.pi) - np.pi
    assert abs(noise.mean()) < 4 * 0.2 / np.sqrt(ROWS)
    assert abs(noise.std() - 0.2) < 4 * 0.2 / np.sqrt(2 * ROWS)


def test_bimodal_is_two_standard_normals():
    """Class 0 lies about (2, −2), class 1 about (−2, 2), each with the identity as covariance."""
    x, y = drawn("bimodal")
    for label, centre in ((0, (2, -2)), (1, (-2, 2))):
        rows = x[y == label]
        assert len(rows) == ROWS // 2
        assert np.abs(rows.mean(axis=0) - centre).max() < 4 / np.sqrt(len(rows))
        assert np.abs(np.cov(rows.T) - np.eye(2)).max() < 4 * np.sqrt(2 / len(rows))
