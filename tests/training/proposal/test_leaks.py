"""Leaks, copies and repeated rows, on columns whose answer is known."""

import numpy as np
import pytest
from sklearn.datasets import load_iris

from abstain.training.proposal.leaks import count_repeated, find_copies, leaks, moves_with

RNG = np.random.default_rng(5)
ROWS = 1_000
NOISE = RNG.normal(size=ROWS)
CLASSES = RNG.integers(0, 3, ROWS).astype(float)


def wrong(share: float) -> np.ndarray:
    """The classes, with another class in some rows."""
    return np.where(RNG.random(ROWS) < share, (CLASSES + 1) % 3, CLASSES)


@pytest.mark.parametrize(
    ("feature", "leak"),
    [
        (CLASSES, True),
        ((CLASSES * 7 + 2) % 5, True),
        (CLASSES + RNG.uniform(0, 0.9, ROWS), True),
        (wrong(0.002), True),
        (wrong(0.1), False),
        (np.where(np.arange(ROWS) % 2, CLASSES, np.nan), False),
        (NOISE, False),
        (np.arange(ROWS, dtype=float), False),
    ],
)
def test_a_column_leaks_a_class_if_it_tells_new_rows_almost_all_right(feature, leak):
    """The class, its other names, its ranges; not a good feature, noise, an id, or a class that every second row has."""
    assert leaks(feature, CLASSES, classify=True) == leak


@pytest.mark.parametrize(
    ("feature", "leak"),
    [
        (NOISE, True),
        (5 - NOISE**3, True),
        (NOISE + 0.1 * RNG.normal(size=ROWS), False),
        (RNG.normal(size=ROWS), False),
        (np.round(NOISE), False),
    ],
)
def test_a_column_leaks_a_number_if_it_orders_the_rows_as_it(feature, leak):
    """The number in another unit or form; not a good feature, noise, or the number rounded."""
    assert leaks(feature, NOISE, classify=False) == leak


def test_a_code_of_few_numbers_leaks_them():
    """A category for each value of the target, in no order."""
    assert leaks(np.array([2.0, 0.0, 1.0])[CLASSES.astype(int)], CLASSES * 10, classify=False)


def test_no_measurement_of_irises_leaks_their_species():
    """The best of them is right in 95 % of rows, which a leak would not be."""
    iris = load_iris()
    assert not any(leaks(column, iris.target.astype(float), classify=True) for column in iris.data.T)


def test_few_rows_show_no_leak():
    """With fewer than twenty rows to judge, a perfect column may be chance."""
    assert not leaks(CLASSES[:30], CLASSES[:30], classify=True)


def test_copies_are_columns_with_the_same_groups_of_rows():
    """By value, in whatever order; columns of different values in every row are not compared."""
    columns = {
        "code": CLASSES,
        "name": np.array([5.0, 9.0, 7.0])[CLASSES.astype(int)],
        "other": wrong(0.01),
        "id": np.arange(ROWS, dtype=float),
        "noise": NOISE,
        "constant": np.ones(ROWS),
        "empty": np.full(ROWS, np.nan),
    }
    assert find_copies(columns) == {"name": "code"}


def test_repeated_rows_are_counted_with_their_gaps():
    """Two gaps are equal, -0 is 0, and only whole rows count."""
    one, other = np.array([1, 1, 1, np.nan, np.nan, 0.0]), np.array([2, 2, 3, 4, 4, 0.0])
    assert count_repeated({"one": one, "other": other}) == 2
    assert count_repeated({"one": one}) == 3
    assert count_repeated({"zero": np.array([0.0, -0.0])}) == 1
    assert count_repeated({}) == 0


def test_a_number_moves_with_the_time_if_later_rows_leave_its_range():
    """Rising, falling, by steps, with a little noise; not with gaps alone, or with the season."""
    time = np.arange(ROWS, dtype=float)
    for feature in (time**2, -time, np.floor(time / 400), time + 50 * NOISE):
        assert moves_with(feature, time)
    for feature in (NOISE, np.sin(time / 50), np.ones(ROWS), np.full(ROWS, np.nan)):
        assert not moves_with(feature, time)
