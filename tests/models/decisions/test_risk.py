"""The limit on the error of accepted rows: against SciPy, MAPIE, all outcomes of small cases, and laws of known risk."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapie.risk_control import BinaryClassificationController, BinaryRisk
from scipy import stats

from abstain.models.decisions.ranks import TOLERANCE
from abstain.models.decisions.risk import (
    COUNTS,
    RiskLimit,
    allowed_errors,
    binomial_tail,
    certify,
    check_certified,
    choose_limit,
    counts_to_test,
    crossing_probability,
    is_ambiguous,
    rows_needed,
)
from abstain.models.errors import CalibrationError, InputError
from tests.helpers.montecarlo import FALSE_ALARM

LEVELS = [(0.01, 0.95), (0.05, 0.9), (0.3, 0.8)]


def limit_of(ambiguity, wrong, novel=None, max_error=0.05, confidence=0.95):
    """The limit; by default for 5 % with a confidence of 95 %, and no row novel."""
    ambiguity = np.asarray(ambiguity, np.float64)
    novel = np.zeros(len(ambiguity), bool) if novel is None else np.asarray(novel)
    return certify(ambiguity, novel, np.asarray(wrong, bool), max_error=max_error, confidence=confidence)


def walk_probability(counts, allowed, max_error):
    """The crossing probability over all outcomes of `counts[-1]` rows."""
    total = 0.0
    for outcome in itertools.product((0, 1), repeat=counts[-1]):
        sums = np.cumsum(outcome)
        if any(sums[count - 1] <= limit for count, limit in zip(counts, allowed, strict=True)):
            total += math.prod(max_error if wrong else 1 - max_error for wrong in outcome)
    return total


@pytest.mark.parametrize("max_error", [0.001, 0.01, 0.1, 0.7])
@pytest.mark.parametrize("rows", [1, 7, 299, 5_000, 60_000])
def test_tails_are_scipys(rows, max_error):
    """Also far below the least float at no error, and with more errors than expected."""
    for errors in {0, 1, rows // 100, round(rows * max_error), rows} - {rows + 1}:
        np.testing.assert_allclose(
            binomial_tail(rows, min(errors, rows), max_error),
            stats.binom.cdf(min(errors, rows), rows, max_error),
            rtol=1e-9,
            atol=1e-300,
        )


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.floats(0.05, 0.9), st.data())
def test_the_chance_of_a_crossing_is_that_of_all_outcomes(rows, max_error, data):
    """Every outcome of up to nine rows, with its probability."""
    counts = sorted(data.draw(st.sets(st.integers(1, rows), min_size=1)))
    allowed = sorted(data.draw(st.lists(st.integers(-1, rows), min_size=len(counts), max_size=len(counts))))
    found = crossing_probability(max_error, counts, allowed)
    np.testing.assert_allclose(found, walk_probability(counts, allowed, max_error), atol=1e-12)


@pytest.mark.parametrize(("max_error", "confidence"), LEVELS)
@pytest.mark.parametrize("rows", [20, 400, 900])
def test_the_level_is_the_largest_with_the_confidence(rows, max_error, confidence):
    """SciPy's quantiles at the level give the allowed errors; a slightly larger level would break the confidence."""
    counts = counts_to_test(rows)
    allowance = allowed_errors(rows, max_error, confidence)
    if not allowance.level:
        assert rows < rows_needed(max_error, confidence)
        return
    tails = stats.binom.cdf(np.arange(rows + 1)[:, None], np.array(counts), max_error)
    allowed = (tails <= allowance.level).sum(axis=0) - 1
    np.testing.assert_array_equal(allowance.errors[counts], allowed)
    assert crossing_probability(max_error, counts, allowed.tolist()) <= 1 - confidence + 1e-12
    if allowance.level < 1 - confidence - 1e-12:
        more = (tails <= allowance.level * (1 + 1e-6)).sum(axis=0) - 1
        assert crossing_probability(max_error, counts, more.tolist()) > 1 - confidence


def test_the_allowed_errors_grow_with_the_rows_and_their_steps_are_few():
    """Also where not every count is tested."""
    allowance = allowed_errors(20_000, 0.1, 0.95)
    assert (np.diff(allowance.errors) >= 0).all()
    counts = counts_to_test(20_000)
    assert len(counts) == COUNTS
    assert counts[-1] == 20_000
    assert counts_to_test(3) == [1, 2, 3]


@given(st.decimals("0.001", "0.9", places=3), st.decimals("0.01", "0.999", places=3))
@settings(deadline=None, max_examples=100)
def test_rows_needed_is_exact(max_error, confidence):
    """In fractions: the rows needed suffice, and one fewer does not."""
    needed = rows_needed(float(max_error), float(confidence))
    right, chance = 1 - Fraction(max_error), 1 - Fraction(confidence)
    assert right**needed <= chance
    assert needed == 1 or right ** (needed - 1) > chance


def test_rows_needed_where_floats_would_slip():
    """Powers that equal 1 − confidence exactly."""
    assert rows_needed(0.01, 0.95) == 299
    assert rows_needed(0.2, 0.36) == 2  # 0.8² is 0.64 exactly; in floats it is more than 1 − 0.36
    assert rows_needed(0.1, 0.1) == 1
    assert limit_of([1, 2], [False, False], max_error=0.2, confidence=0.36).accepted_rows == 2


def test_the_rows_needed_suffice_and_one_fewer_does_not():
    """The rule of 299 rows for 1 % and 95 %, which `rows_needed` states."""
    assert limit_of(np.arange(298), np.zeros(298), max_error=0.01).threshold is None
    limit = limit_of(np.arange(299), np.zeros(299), max_error=0.01)
    assert (limit.threshold, limit.accepted_rows, limit.errors) == (298 * (1 + TOLERANCE), 299, 0)
    np.testing.assert_allclose(limit.p_value, 0.99**299)


def test_an_example_by_hand():
    """max_error 0.5, confidence 0.6, four rows. With level 1/4: no error in two or three rows (P = 1/4), one in four.

    P(W(4) ≤ 1) = 5/16 is above that level, so four rows allow none. The next level, 5/16, would allow one error in four: in
    all P = 1/4 + P(one of the first two, none after) = 1/4 + 2/16 = 3/8 ≤ 0.4, so it is used; 0.4 itself adds nothing.
    """
    assert allowed_errors(4, 0.5, 0.6).errors.tolist() == [-1, -1, 0, 0, 1]
    limit = limit_of([3, 1, 4, 2], [True, False, False, False], max_error=0.5, confidence=0.6)
    assert limit.threshold == 4 * (1 + TOLERANCE)
    assert (limit.accepted_rows, limit.errors, limit.p_value) == (4, 1, 5 / 16)
    # Two errors in four: only the first two rows are certified, and the threshold is halfway to the third.
    limit = limit_of([3, 1, 4, 2], [True, False, True, False], max_error=0.5, confidence=0.6)
    assert (limit.threshold, limit.accepted_rows, limit.errors, limit.p_value) == (2.5, 2, 0, 0.25)


def test_a_certified_threshold_may_lie_above_a_count_that_is_not():
    """Errors among the least ambiguous rows do not hide a low risk of more rows, as they do for a sequence of tests."""
    wrong = np.zeros(1_000)
    wrong[:10] = 1
    assert limit_of(np.arange(1_000), wrong).accepted_rows == 1_000


@pytest.mark.parametrize(("rows", "accepted"), [(58, 0), (59, 59)])
def test_ties_are_accepted_together_or_not_at_all(rows, accepted):
    """One wrong row of the tie makes 59 right rows too few, wherever it is in the arrays."""
    limit = limit_of(np.zeros(rows), np.zeros(rows))
    assert limit.accepted_rows == accepted
    # The same rows, and one wrong row that ties with them.
    assert limit_of(np.zeros(rows + 1), [True] + [False] * rows).threshold is None


def test_the_order_of_rows_does_not_matter():
    """Also of rows that tie."""
    rng = np.random.default_rng(1)
    ambiguity, wrong = np.round(rng.random(500), 1), rng.random(500) < 0.01
    order = rng.permutation(500)
    assert limit_of(ambiguity, wrong) == limit_of(ambiguity[order], wrong[order])


def test_novel_rows_do_not_count():
    """The limit is that of the familiar rows alone, and its counts are those of the rows it accepts."""
    rng = np.random.default_rng(2)
    ambiguity, wrong, novel = rng.random(400), rng.random(400) < 0.01, rng.random(400) < 0.3
    limit = limit_of(ambiguity, wrong | novel, novel)
    alone = limit_of(ambiguity[~novel], wrong[~novel])
    assert limit._replace(rows=0) == alone._replace(rows=0)
    accepted = ~novel & ~is_ambiguous(limit, ambiguity)
    assert (int(accepted.sum()), int(wrong[accepted].sum())) == (limit.accepted_rows, limit.errors)


@pytest.mark.parametrize("wide", [np.float64, np.float32])
def test_neighbouring_floats_are_told_apart(wide):
    """No number lies between the two, and a comparison in float32 is not one in float64."""
    low = wide(0.1)
    high = np.nextafter(low, wide(1))
    ambiguity = np.array([low] * 100 + [high] * 100, wide)
    limit = limit_of(ambiguity, [False] * 100 + [True] * 100)
    np.testing.assert_array_equal(~is_ambiguous(limit, ambiguity), ambiguity == low)


def test_extreme_ambiguities_have_a_finite_threshold():
    """The difference of the two would overflow."""
    limit = limit_of([-1.7e308] * 59 + [1.7e308], [False] * 59 + [True])
    assert (limit.threshold, limit.accepted_rows) == (0.0, 59)


@pytest.mark.parametrize("rows", [0, 1, 200])
def test_nothing_is_certified(rows):
    """No row, all rows wrong, and all rows novel."""
    every, none = np.ones(rows, bool), np.zeros(rows, bool)
    for wrong, novel in [(every, none), (none, every)]:
        limit = limit_of(np.arange(rows), wrong, novel)
        assert limit[:4] == (None, 0, 0, 1.0)
        assert is_ambiguous(limit, np.arange(3.0)).all()
        with pytest.raises(CalibrationError, match="59 calibration rows" if novel.all() or rows < 59 else "too many"):
            check_certified(limit)


def test_a_nan_is_never_accepted():
    """Nor is a row above the threshold."""
    limit = limit_of(np.arange(99), np.zeros(99))
    check_certified(limit)
    assert is_ambiguous(limit, np.array([np.nan, 98.0, 98.1, -np.inf])).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ambiguity": np.array([0.0, np.nan])}, "ambiguity of calibration row 1: expected a finite number, found nan"),
        ({"ambiguity": np.array([np.inf, 0.0])}, "row 0"),
        ({"max_error": 0.0}, "max_error: expected a number above 0 and below 1, found 0.0"),
        ({"confidence": 1.0}, "confidence"),
        ({"max_error": math.nan}, "max_error"),
    ],
)
def test_wrong_arguments_are_refused(change, text):
    """With what was expected and found."""
    flags = np.zeros(2, bool)
    arguments = {"ambiguity": np.zeros(2), "novel": flags, "wrong": flags, "max_error": 0.1, "confidence": 0.9} | change
    with pytest.raises(CalibrationError, match=text):
        certify(**arguments)


# Laws with a uniform ambiguity: the probability of a wrong answer by ambiguity, and the risk up to it (its mean).
LAWS = {
    # Everywhere just above the limit: every certified threshold is a violation, the least favourable law.
    "edge": (lambda a: np.full_like(a, 0.05 + 1e-9), lambda a: np.full_like(a, 0.05 + 1e-9)),
    "rising": (lambda a: 0.12 * a, lambda a: 0.06 * a),
    # The risk rises to 7 %, falls to 4 %, and rises to 5.5 %: more rows are safer than few.
    "waves": (
        lambda a: np.where(a < 0.2, 0.07, np.where(a < 0.5, 0.02, 0.07)),
        lambda a: np.where(a < 0.2, 0.07, np.where(a < 0.5, 0.014 + 0.02 * (a - 0.2), 0.02 + 0.07 * (a - 0.5)) / a),
    ),
}


@pytest.mark.parametrize("atoms", [False, True])
@pytest.mark.parametrize("law", list(LAWS))
def test_violations_are_at_most_as_frequent_as_stated(law, atoms):
    """10 % of calibration parts at most may certify a risk above 5 %; binomial quantile of one false alarm in a million."""
    rng, splits, (wrongness, risk) = np.random.default_rng(3), 500, LAWS[law]
    violations = 0
    for _ in range(splits):
        places = rng.random(400)
        # With atoms, all rows of a tenth have the ambiguity of its end: the risk of a threshold is that up to this end.
        ambiguity = np.ceil(places * 10) / 10 if atoms else places
        limit = limit_of(ambiguity, rng.random(400) < wrongness(places), max_error=0.05, confidence=0.9)
        if limit.threshold is not None:
            end = np.floor(limit.threshold * 10 + 1e-9) / 10 if atoms else limit.threshold
            violations += bool(risk(np.array(end)) > 0.05)
    assert violations <= stats.binom.isf(FALSE_ALARM, splits, 0.1)
    if law == "edge" and not atoms:
        # The confidence is used up at this law, up to the steps of whole errors.
        assert violations >= stats.binom.ppf(FALSE_ALARM, splits, 0.07)


def mapies(ambiguity, wrong, thresholds, level):
    """MAPIE's p-values of these thresholds for the share of wrong rows among accepted ones, and those at most `level`.

    MAPIE accepts a row if its "probability" is at least the parameter. Bonferroni's correction for k thresholds at a
    confidence of 1 − k·level compares each p-value with `level`.
    """
    loss = BinaryRisk(lambda right, _: right == 0, lambda _, accepted: accepted == 1, higher_is_better=False)
    oracle = BinaryClassificationController(
        lambda rows: np.stack([1 - rows[:, 0], rows[:, 0]], axis=1),
        loss,
        target_level=0.05,
        confidence_level=1 - len(thresholds) * level,
        best_predict_param_choice=loss,
        list_predict_params=1 - thresholds,
        fwer_method="bonferroni",
    )
    oracle.calibrate(1 - ambiguity[:, None], (~wrong).astype(int))
    return np.asarray(oracle.p_values).ravel(), 1 - oracle.valid_predict_params


@pytest.mark.filterwarnings("ignore:No predict parameters")
@pytest.mark.parametrize("seed", range(8))
def test_p_values_and_thresholds_are_mapies(seed):
    """Ambiguities of 24 levels, exact in binary, so that MAPIE's comparison is the same.

    MAPIE's p-value is the exact tail of ⌈m·(e/m)⌉ errors, which in floats may be one too many: then it is larger.
    """
    rng = np.random.default_rng(seed)
    ambiguity = rng.integers(0, 24, 400) / 32
    wrong = rng.random(400) < 0.06 * ambiguity
    thresholds = np.unique(ambiguity)
    level = allowed_errors(400, 0.05, 0.95).level
    found, valid = mapies(ambiguity, wrong, thresholds, level)
    counts = np.array([(ambiguity <= threshold).sum() for threshold in thresholds])
    errors = np.array([wrong[ambiguity <= threshold].sum() for threshold in thresholds])
    exact = np.array([binomial_tail(int(c), int(e), 0.05) for c, e in zip(counts, errors, strict=True)])
    slipped = np.ceil(counts * (errors / counts)) > errors
    np.testing.assert_allclose(found[~slipped], exact[~slipped], rtol=1e-9)
    assert (found[slipped] > exact[slipped]).all()
    limit = limit_of(ambiguity, wrong)
    accepted = ambiguity[~is_ambiguous(limit, ambiguity)]
    assert accepted.max(initial=-1.0) == thresholds[exact <= level].max(initial=-1.0)
    np.testing.assert_array_equal(valid, thresholds[(exact <= level) & ~(slipped & (found > level))])


def test_a_request_gets_the_largest_certified_limit_that_is_not_above_it():
    """A smaller error may be certified where a larger one is not; a limit that is not certified is an error only alone."""
    own = RiskLimit(0.4, 90, 2, 0.01, 0.02, 100, 100, 0.05, 0.95)
    small = own._replace(threshold=0.2, max_error=0.01)
    bad = own._replace(threshold=None, accepted_rows=0, max_error=0.02)
    assert choose_limit(own, (small, bad), None) == own
    assert choose_limit(own, (small, bad), 0.3) == own
    assert choose_limit(own, (small, bad), 0.03) == small
    with pytest.raises(CalibrationError, match=r"max_error 0\.03, of known limits 0\.02"):
        choose_limit(own, (bad,), 0.03)
    with pytest.raises(InputError, match=r"max_error: expected at least 0\.01"):
        choose_limit(own, (small, bad), 0.001)
