"""Probability intervals against two isotonic regressions for each row, and their validity by simulation."""

import time

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from abstain.models.decisions.conformal import TIE
from abstain.models.decisions.venn_abers import fit_venn_abers, probability_intervals, second_class_probability


def by_definition(values, positive, new):
    """p0 and p1 of one row: isotonic regressions with it, rows of equal values pooled."""
    ends = []
    for label in (0.0, 1.0):
        all_values, labels = np.append(values, new), np.append(positive, label)
        _, places = np.unique(all_values, return_inverse=True)
        weights = np.bincount(places)
        fitted = isotonic_regression(np.bincount(places, weights=labels) / weights, weights=weights)
        ends.append(fitted.x[places[-1]])
    return ends


@pytest.mark.parametrize("levels", [2, 5, 30, 1_000])
@pytest.mark.parametrize("rows", [1, 2, 7, 40])
def test_intervals_are_those_of_two_isotonic_regressions(levels, rows):
    """With many ties and with few, at calibration values, between them and beyond; also where labels fall with the value."""
    rng = np.random.default_rng([levels, rows])
    for share in (0.0, 0.2, 0.5, 1.0):
        for slope in (-1.0, 0.0, 1.0):
            values = rng.integers(1, levels + 1, rows) / (levels + 1)
            positive = rng.random(rows) < np.clip(share + slope * (values - 0.5), 0, 1)
            new = np.concatenate([values, rng.random(10), [0.0, 1.0]])
            expected = np.array([by_definition(values, positive, value) for value in new])
            found = probability_intervals(fit_venn_abers(values, positive), new)
            np.testing.assert_allclose(found, expected, atol=1e-12)
            assert (found[:, 0] <= found[:, 1]).all()


def test_intervals_by_hand():
    """Two rows of each of two values; a third value in between, and beyond."""
    fitted = fit_venn_abers(np.array([0.2, 0.2, 0.8, 0.8]), np.array([False, True, True, True]))
    found = probability_intervals(fitted, np.array([0.1, 0.2, 0.5, 0.8, 0.9]))
    expected = [[0, 2 / 3], [1 / 3, 2 / 3], [1 / 3, 1], [2 / 3, 1], [2 / 3, 1]]
    np.testing.assert_allclose(found, expected)


def test_values_that_differ_by_rounding_are_ties():
    """A copy of a calibration row gets the same interval, computed a little higher or lower; another row does not."""
    rng = np.random.default_rng(0)
    values = rng.integers(1, 6, 200) / 6
    fitted = fit_venn_abers(values, rng.random(200) < values)
    exact = probability_intervals(fitted, values)
    for error in (-1e-6, 1e-6):
        np.testing.assert_array_equal(probability_intervals(fitted, values + error), exact)
        assert (probability_intervals(fitted, values + 20 * error) != exact).any()
    close = fit_venn_abers(np.array([0.5, 0.5 + TIE / 2]), np.array([False, True]))
    np.testing.assert_array_equal(
        probability_intervals(close, close.values), np.stack([close.lower, close.upper], axis=1)
    )


def test_intervals_grow_with_the_value():
    """Both ends, also for more rows than a slow reference could check; 50,000 rows take about a second at most."""
    rng = np.random.default_rng(1)
    values = rng.beta(0.3, 0.6, 50_000)
    positive = rng.random(50_000) < 0.2 + 0.6 * np.sin(7 * values) ** 2
    started = time.process_time()
    fitted = fit_venn_abers(values, positive)
    assert time.process_time() - started < 5
    for ends in (fitted.lower, fitted.upper):
        assert (np.diff(ends) >= 0).all()
        assert (ends >= 0).all()
        assert (ends <= 1).all()
    assert (fitted.lower < fitted.upper).all()


@pytest.mark.parametrize("law", ["right", "overconfident", "falling", "ties"])
def test_the_end_of_the_true_label_is_calibrated(law):
    """E[(Y − p_Y)·g(p_Y)] = 0 for any g, for any law of rows: 4,000 calibration parts of 20 rows, 4.5 standard errors."""
    rng = np.random.default_rng(["right", "overconfident", "falling", "ties"].index(law))
    chance = {
        "right": lambda p: p,
        "overconfident": lambda p: 0.4 + 0.2 * p,
        "falling": lambda p: 0.9 - 0.8 * p,
        "ties": lambda p: p**2,
    }[law]
    parts, rows = 4_000, 21
    values = rng.integers(1, 5, (parts, rows)) / 5 if law == "ties" else rng.random((parts, rows))
    labels = rng.random((parts, rows)) < chance(values)
    ends = np.empty((parts, 2))
    for part in range(parts):
        fitted = fit_venn_abers(values[part, :-1], labels[part, :-1])
        ends[part] = probability_intervals(fitted, values[part, -1:])[0]
    truth = labels[:, -1].astype(int)
    chosen, other = ends[np.arange(parts), truth], ends[np.arange(parts), 1 - truth]
    difference = truth - chosen
    for weight in (np.ones(parts), chosen, chosen < 0.3, (chosen >= 0.3) & (chosen < 0.6), chosen >= 0.6):
        terms = difference * weight
        assert abs(terms.mean()) < 4.5 * terms.std() / np.sqrt(parts) + 1e-12
    # The other end is far from calibrated: the bounds are narrow enough to tell.
    errors = [(truth - other) * weight for weight in (other < 0.3, other >= 0.6)]
    assert max(abs(terms.mean()) / terms.std() for terms in errors) > 10 / np.sqrt(parts)


def test_the_probability_of_the_second_class():
    """From the largest probability and its class; one half is the same for both."""
    found = second_class_probability(np.array([0.25, 0.25, 0.5, 0.0]), np.array([0, 1, 0, 1]))
    assert found.tolist() == [0.25, 0.75, 0.5, 1.0]
