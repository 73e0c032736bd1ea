"""Drift: uniform ranks, fair bets, few false alarms; and the metrics of a server."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY
from scipy import stats

from abstain.models.decisions import drift
from abstain.models.decisions.decision import evidence, evidence_map
from abstain.models.decisions.judging import judge
from abstain.service.live import Live
from abstain.service.monitoring.drift import ALPHA, MAX_ROWS, DriftWatch
from abstain.service.monitoring.drift_state import StateFile
from abstain.service.process import Process
from abstain.training.config.reading import read_config
from abstain.training.fit import load_dataset
from tests.helpers.paths import CONFIGS
from tests.helpers.processes import wait_for
from tests.helpers.prometheus import of, predict, read
from tests.helpers.records import stand_in
from tests.helpers.servers import start_server, stop_server

LEVEL = math.log(100)


def follow(calibration, stream, seed=0, together=drift.STEP_ROWS):
    """Yields the watch after each part of a stream of one score."""
    random, watch, start = np.random.default_rng(seed), drift.start_epoch(calibration[None]), 0
    while start < len(stream):
        part = stream[None, start : start + min(drift.rows_allowed(watch), together)]
        watch = drift.observe(watch, part, random.random(part.shape))
        start += part.shape[1]
        yield watch


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.lists(st.integers(0, 4), min_size=1, max_size=12),
    st.integers(0, 99),
)
def test_online_ranks_match_their_definition(calibration, values, seed):
    """The share of greater values among all up to this one, plus a random part of the equal ones."""
    ties = np.random.default_rng(seed).random(len(values))
    found = drift.online_ranks(np.sort(np.array(calibration, float)), np.array(values, float), ties)
    for index, (value, tie) in enumerate(zip(values, ties, strict=True)):
        so_far = [*calibration, *values[: index + 1]]
        greater, equal = sum(other > value for other in so_far), so_far.count(value)
        assert found[index] == pytest.approx((greater + tie * equal) / len(so_far))


@pytest.mark.parametrize("steps", [None, 7])
def test_ranks_of_exchangeable_rows_are_uniform_and_independent(steps):
    """With and without ties; ranks only among the calibration part would be neither."""
    random = np.random.default_rng(0)
    ranks = []
    for _ in range(300):
        values = random.exponential(size=80)
        values = values if steps is None else np.floor(values * steps)
        ranks.append(drift.online_ranks(np.sort(values[:30]), values[30:], random.random(50)))
    assert stats.kstest(np.concatenate(ranks), "uniform").pvalue > 1e-3
    between = np.corrcoef(np.array(ranks).T)[np.triu_indices(50, 1)]
    assert abs(between.mean()) < 4 / math.sqrt(300 * len(between))


def test_every_bet_is_fair():
    """From any state, the mean of the next martingale over a uniform rank is the present value."""
    random = np.random.default_rng(1)
    for rows, skewed in ((0, 1.0), (700, 1.0), (1_500, 0.5), (3_250, 2.0)):
        watch = drift.start_epoch(random.exponential(size=(1, 50)))
        for _ in range(rows // 250):
            watch = drift.observe(watch, random.exponential(skewed, size=(1, 250)), random.random((1, 250)))
        now = drift.log_martingale(watch)[0]
        shares = np.diff(drift.EDGES)
        after = [
            drift.log_martingale(watch._replace(counts=watch.counts + chosen))[0]
            for chosen in np.eye(len(shares), dtype=int)
        ]
        assert (shares * np.exp(np.array(after) - now)).sum() == pytest.approx(1, rel=1e-9)


def test_the_closed_form_equals_one_bet_after_another():
    """A mixture of bets, each by the shares of ranks since its own start."""
    stream = np.random.default_rng(2).exponential(1.5, size=2_300)
    calibration = np.random.default_rng(3).exponential(size=400)
    watch = drift.start_epoch(calibration[None])
    ties = np.random.default_rng(4).random(len(stream))
    shares = np.diff(drift.EDGES)
    bets = drift.EPOCH // drift.BET_ROWS
    counts = np.zeros((bets, len(shares)))
    wealth = np.array([drift.FIRST_WEIGHT, *[(1 - drift.FIRST_WEIGHT) / (bets - 1)] * (bets - 1)])
    before = np.sort(calibration)
    for row, (value, tie) in enumerate(zip(stream, ties, strict=True)):
        rank = drift.online_ranks(before, np.array([value]), np.array([tie]))[0]
        chosen = int(np.searchsorted(drift.EDGES[1:-1], rank, side="right"))
        begun = np.arange(bets) * drift.BET_ROWS <= row
        stakes = (counts + drift.CONCENTRATION * shares) / (counts.sum(1, keepdims=True) + drift.CONCENTRATION)
        wealth *= np.where(begun, stakes[:, chosen] / shares[chosen], 1)
        counts[begun, chosen] += 1
        before = np.sort(np.append(before, value))
    start = 0
    while start < len(stream):
        end = min(len(stream), start + drift.rows_allowed(watch))
        watch = drift.observe(watch, stream[None, start:end], ties[None, start:end])
        start = end
    assert drift.log_martingale(watch)[0] == pytest.approx(math.log(wealth.sum()), rel=1e-9)


def test_false_alarms_are_as_rare_as_promised():
    """In 200 exchangeable streams of 5,000 rows with 1,000 calibration rows each, at 1 %: within binomial error.

    `benchmarks/drift.py` has more and longer streams.
    """
    alarms = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        calibration, stream = random.exponential(size=1_000), random.exponential(size=5_000)
        alarms += any(drift.log_martingale(watch)[0] >= LEVEL for watch in follow(calibration, stream, seed))
    assert alarms <= stats.binom.isf(1e-6, 200, 0.01)


DISTRIBUTIONS = {
    "atoms": lambda random, rows: random.choice([0.011, 0.2, 0.57, 3.0], rows, p=[0.5, 0.3, 0.15, 0.05]),
    "constant": lambda _random, rows: np.full(rows, 0.31),
    "zero-inflated": lambda random, rows: np.where(random.random(rows) < 0.8, 0.0, random.exponential(size=rows)),
    "heavy tails": lambda random, rows: random.standard_cauchy(rows),
    "discretised": lambda random, rows: np.round(random.exponential(size=rows), 1) * 1.1,
    "continuous": lambda random, rows: random.exponential(size=rows),
}
"""Scores of tables: few distinct values, one value, mostly zero, heavy tails, whole numbers, and real numbers."""
BUCKETS = 5


def rounded_by_bucket(random, values, *, alone=False):
    """The values as computed in several batch sizes: each size has its own rounding error of each distinct value.

    Args:
        alone: all values in one batch size, as in calibration; otherwise parts of 500 rows have one size each.
    """
    errors = 1e-6 * random.uniform(-1, 1, (BUCKETS, len(np.unique(values))))
    distinct = np.unique(values, return_inverse=True)[1]
    bucket = np.zeros(len(values), int) if alone else np.arange(len(values)) // 500 % BUCKETS
    return values * (1 + errors[bucket, distinct]) + 1e-7 * errors[bucket, distinct] / 1e-6


def peak(calibration, stream, random, dithered=True):
    """The largest log martingale over a stream, as a server computes it."""
    if dithered:
        rounding = np.array([drift.ABSOLUTE_ROUNDING])
        calibration, stream = (
            drift.dither(values[None], rounding, random.random((1, len(values))))[0] for values in (calibration, stream)
        )
    seed = int(random.integers(2**31))
    return max(drift.log_martingale(watch)[0] for watch in follow(calibration, stream, seed))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_rounding_is_no_drift(name):
    """Rows that repeat, in other batch sizes than the calibration rows: 40 streams of 3,000 rows, at 1 %.

    Under the guarantee, more than six alarms have a probability below 1e-6.
    """
    alarms = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        everything = DISTRIBUTIONS[name](random, 4_000)
        calibration = rounded_by_bucket(random, everything[:1_000], alone=True)
        alarms += peak(calibration, rounded_by_bucket(random, everything[1_000:]), random) >= LEVEL
    assert alarms <= stats.binom.isf(1e-6, 40, 0.01)


def test_without_dither_rounding_would_alarm():
    """The same streams with few distinct values, ranked without dither."""
    random = np.random.default_rng(0)
    everything = DISTRIBUTIONS["atoms"](random, 4_000)
    calibration = rounded_by_bucket(random, everything[:1_000], alone=True)
    stream = rounded_by_bucket(random, everything[1_000:])
    assert peak(calibration, stream, random, dithered=False) > 10 * LEVEL


@given(st.floats(-(2.0**100), 2.0**100, width=32), st.floats(0, 0.999))
def test_the_dither_has_a_limited_width(value, share):
    """The result is finite, and between the value and 1,000 rounding errors above it."""
    rounding = np.array([drift.ABSOLUTE_ROUNDING])
    found = drift.dither(np.array([[value]], np.float32), rounding, np.array([[share]]))[0, 0]
    width = 1_000 * (1e-6 * abs(value) + rounding[0])
    assert value <= found <= value + width * (1 + 1e-9)


def test_rounding_errors_are_in_each_scores_units():
    """For a target in other units, larger by its scale; for a difference of large numbers, larger."""
    found = drift.absolute_rounding(("std", "relative_mahalanobis", "entropy"), np.array([250.0, 1.0, 1.0]))
    np.testing.assert_allclose(found, [250 * drift.ABSOLUTE_ROUNDING, 5e-5, drift.ABSOLUTE_ROUNDING])


def test_the_rounding_of_combined_evidence_follows_its_steepest_map():
    """One rounding step of a saturated score changes the evidence by at most this value, anywhere on the map."""
    rng = np.random.default_rng(0)
    saturated = (2.0**-24 * rng.integers(0, 12, 200)).astype(np.float32)
    maps = {
        "max_probability": evidence_map(saturated),
        "std": evidence_map(rng.exponential(size=200).astype(np.float32)),
    }
    rounding = drift.combined_rounding(maps, {})
    step = np.float32(drift.ABSOLUTE_ROUNDING)
    for fixed in maps.values():
        scores = np.linspace(0, 2 * fixed.knots[-1], 2_001).astype(np.float32)
        assert np.abs(evidence(fixed, scores + step) - evidence(fixed, scores)).max() <= rounding * (1 + 1e-3)
    assert drift.absolute_rounding(("combined",), np.ones(1), rounding)[0] == max(rounding, 5e-5)


@pytest.mark.parametrize("ordinary", [0, 5_000])
def test_one_strange_row_in_twenty_raises_an_alarm(ordinary):
    """From the start, or after thousands of ordinary rows."""
    delays = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        stream = random.exponential(size=ordinary + 4_000)
        strange = (np.arange(len(stream)) >= ordinary) & (random.random(len(stream)) < 0.05)
        stream[strange] += 5
        alarms = [
            watch.rows
            for watch in follow(random.exponential(size=5_000), stream, seed, 50)
            if drift.log_martingale(watch)[0] >= LEVEL
        ]
        delays.append(alarms[0] - ordinary if alarms else math.inf)
    assert 0 < np.median(delays) < 600


def test_all_epochs_streams_and_scores_share_one_probability():
    """The sum of 1/level over all of them is the requested probability."""
    total = sum(15 * math.exp(-drift.alarm_level(0.01, 15, epoch)) for epoch in range(1, 100_001))
    assert 0.0099 < total < 0.01


def test_an_epoch_ends_and_does_not_depend_on_its_parts():
    """There is no room beyond its end, and the state is the same however the rows are divided."""
    random = np.random.default_rng(5)
    calibration, stream = random.exponential(size=100), random.exponential(size=drift.EPOCH)
    *_, last = follow(calibration, stream)
    assert (last.rows, drift.rows_allowed(last), len(last.begun)) == (drift.EPOCH, 0, drift.EPOCH // drift.BET_ROWS)
    assert last.counts.sum() == drift.EPOCH
    np.testing.assert_array_equal(last.ranked[0], np.sort(np.concatenate([calibration, stream])))


@pytest.mark.parametrize(("rows", "window"), [(1_000, 1_000), (5_000, 300), (40, 25), (1_000, 40)])
def test_kolmogorov_smirnov_is_scipys(rows, window):
    """The statistic is equal; the asymptotic p-value is almost equal."""
    random = np.random.default_rng(rows + window)
    for shift in (0.0, 0.1, 3.0):
        calibration, latest = np.sort(random.normal(size=rows)), random.normal(shift, size=window)
        statistic, p_value = drift.kolmogorov_smirnov(calibration, latest)
        expected = stats.ks_2samp(calibration, latest, method="exact" if rows < 100 else "asymp")
        assert statistic == pytest.approx(expected.statistic, abs=1e-12)
        assert p_value == pytest.approx(expected.pvalue, abs=0.03)


def test_the_stability_index_matches_its_definition():
    """About 0 for equal values, else Σ (q − p) ln(q/p) over deciles; finite if a decile is empty or all values are equal."""
    calibration = np.sort(np.random.default_rng(0).normal(size=5_000))
    assert drift.stability_index(calibration, calibration) == pytest.approx(0, abs=1e-3)
    moved = calibration + 1
    shares = np.histogram(moved, [-np.inf, *np.quantile(calibration, np.arange(1, 10) / 10), np.inf])[0] / len(moved)
    expected = ((shares - 0.1) * np.log(np.maximum(shares, 1e-9) / 0.1)).sum()
    assert drift.stability_index(calibration, moved) == pytest.approx(expected, rel=0.02)
    assert 0 < drift.stability_index(calibration, np.full(5, 1e9)) < math.inf
    assert drift.stability_index(np.zeros(900), np.zeros(400)) == pytest.approx(0, abs=1e-3)


@pytest.fixture(scope="module")
def own_server(store, tmp_path_factory):
    """A server that only these tests use."""
    folder = tmp_path_factory.mktemp("drift")
    server = start_server(store, folder, ABSTAIN_STATE=str(folder / "state"))
    yield server
    stop_server(server)


def test_a_server_detects_strange_rows_and_not_familiar_ones(own_server, digits):
    """Digits of the test part do not reach the alarm level; noise does, and the metrics give the time."""
    rows = load_dataset(read_config(CONFIGS / "digits-vi.toml"), None).test.x
    model = {"model": "digits", "version": "1"}
    for start in range(0, 250, 50):
        predict(own_server, rows[start : start + 50], "digits")
    wait_for(lambda: of(read(own_server), "abstain_drift_rows", **model) == 250)
    few = {name for name, _ in read(own_server)}
    assert not few & {"abstain_drift_psi", "abstain_drift_ks", "abstain_drift_ks_p_value"}
    for start in range(250, len(rows), 50):
        predict(own_server, rows[start : start + 50], "digits")
    wait_for(lambda: of(read(own_server), "abstain_drift_rows", **model) == len(rows))
    quiet = read(own_server)
    scores = {dict(labels)["score"] for name, labels in quiet if name == "abstain_drift_log_martingale"}
    assert scores == set(digits.calibration.all_scores)
    assert of(quiet, "abstain_drift_crossed_timestamp_seconds", **model) == 0
    level = of(quiet, "abstain_drift_alarm_level", **model, score=digits.calibration.decision.name)
    assert level == pytest.approx(drift.alarm_level(ALPHA, len(scores), 1))

    noise = np.random.default_rng(1).integers(0, 17, (400, *rows.shape[1:]))
    began = time.time()
    for start in range(0, len(noise), 50):
        predict(own_server, noise[start : start + 50], "digits")
    wait_for(lambda: of(read(own_server), "abstain_drift_rows", **model) == len(rows) + len(noise))
    loud, decides = read(own_server), {**model, "score": digits.calibration.decision.name}
    assert of(loud, "abstain_drift_log_martingale", **decides) >= level
    assert began <= of(loud, "abstain_drift_crossed_timestamp_seconds", **decides) <= time.time()
    assert of(loud, "abstain_drift_psi", **decides) > of(quiet, "abstain_drift_psi", **decides)
    assert of(loud, "abstain_drift_ks_p_value", **decides) < 1e-6


def test_the_stability_index_of_few_rows_is_noise():
    """Most ordinary windows of 10 rows have a large index; with `FEWEST` rows and calibration rows, none has."""
    random = np.random.default_rng(0)

    def moved(rows):
        return np.mean(
            [
                drift.stability_index(np.sort(random.normal(size=drift.LEAST_ROWS)), random.normal(size=rows)) > 0.25
                for _ in range(200)
            ]
        )

    assert moved(10) > 0.6
    assert moved(drift.LEAST_ROWS) == 0


def watched_rows(live):
    """The value of the gauge."""
    labels = {"model": live.name, "version": str(live.version)}
    return REGISTRY.get_sample_value("abstain_drift_rows", labels)


def test_many_rows_are_watched_in_part_and_each_version_separately(digits, tmp_path):
    """Rows beyond the limit of an update are dropped; the next update accepts as many again; another version starts at 0."""
    rows = np.random.default_rng(0).integers(0, 17, (256, *digits.manifest.model.feature_shape))
    judgement = judge(digits.calibration, digits.predictor((256,))(rows))
    first, second = (stand_in(Live, name="flood", version=version, bundle=digits) for version in (1, 2))
    watch = DriftWatch(Process(1, 1, tmp_path))
    for updates in (1, 2):
        for _ in range(3 * MAX_ROWS // 256):
            watch.note(first, judgement)
        watch.update()
        assert watched_rows(first) == updates * MAX_ROWS
    watch.note(second, judgement)
    watch.update()
    assert (watched_rows(first), watched_rows(second)) == (2 * MAX_ROWS, 256)


def test_the_metrics_have_the_memory_and_cpu_time_of_a_worker(own_server):
    """Labelled with the worker's index."""
    wait_for(lambda: of(read(own_server), "abstain_worker_cpu_seconds", worker="1") > 0)
    samples = read(own_server)
    assert 1e8 < of(samples, "abstain_worker_memory_bytes", worker="1") < 1e10
    assert (of(samples, "abstain_workers"), of(samples, "abstain_workers_ready")) == (1, 1)


def test_a_server_that_stops_saves_its_watch(own_server, digits):
    """The file of its only worker has all rows, for the next start."""
    rows = of(read(own_server), "abstain_drift_rows", model="digits", version="1")
    stop_server(own_server)
    folder = own_server.log.parent / "state"
    saved = StateFile(folder, digits.manifest.digest, 1, 1).load(
        len(digits.calibration.all_scores), digits.calibration.rows
    )
    assert saved.epoch == 1
    assert saved.watch is not None
    assert saved.watch.rows == rows
