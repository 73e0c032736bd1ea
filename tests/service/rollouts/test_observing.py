"""What a worker observes of a rollout, what the main process makes of it, and the end of a rollout by verdict."""

import asyncio
import gc
import weakref
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.requests import Request

from abstain.models.bundles import store
from abstain.models.bundles.bundle import read_published
from abstain.models.bundles.rollout_evidence import read_status
from abstain.models.bundles.rollouts import ROLLOUT, Options, end_rollout, read_rollout, start_rollout
from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import Levels
from abstain.models.errors import InputError
from abstain.service.batches import Share
from abstain.service.errors import HTTPError
from abstain.service.live_versions import LiveVersions
from abstain.service.monitoring import metrics
from abstain.service.plans import make_plan, read_stored
from abstain.service.rollouts import gathering, shadowing
from abstain.service.rollouts.gathering import Gatherer
from abstain.service.rollouts.observing import Observed, RolloutWatch, observe
from abstain.service.rollouts.rollouts import Rollouts
from abstain.service.rollouts.routing import Caller
from abstain.service.rollouts.shadowing import ShadowQueue
from abstain.service.rollouts.state import read_state
from tests.helpers.golden_versions import damage_version, publish_golden

LEVELS = Levels(None, None, None)
ROWS = np.linspace(-3, 3, 8, dtype=np.float32)[:, None]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store with `golden:1`, which is stable, another version, and one that equals the first."""
    root = tmp_path_factory.mktemp("observing") / "store"
    for scale in (1.0, 1.5, 1.0):
        publish_golden(root, scale)
    store.set_label(root, "golden", 1, "stable")
    return root


@pytest.fixture
def root(original):
    """The store without a rollout, and with its first version stable."""
    (original / "golden" / ROLLOUT).unlink(missing_ok=True)
    store.set_label(original, "golden", 1, "stable")
    return original


def start(root, candidate=3, **changes):
    """Starts a shadow of all requests."""
    manifests = read_published(root, "golden", 1), read_published(root, "golden", candidate)
    return start_rollout(root, manifests, Options("shadow", 1.0, margin=0.2)._replace(**changes))


def load(root):
    """The versions that a worker serves, compiled for these tests' rows alone."""
    versions = LiveVersions(root)
    versions.load_all(buckets=(8,))
    return versions


def choose(versions, text="golden", number=0):
    """What a request of one of many callers gets."""
    return versions.choose(text, lambda: Caller(b"%d" % number, may_repeat=True))


def answer(live, rows=ROWS):
    """What is observed of the answer of a version."""
    prediction = live.predictor(rows)
    return observe(prediction, judge(live.bundle.calibration, prediction, *LEVELS), slice(0, len(rows)))


def test_only_requests_for_the_stable_version_take_part(root):
    """By the name of the model, its label, or no name at all; not those for a number, or for another label."""
    store.set_label(root, "golden", 2, "next")
    start(root, mode="canary", share=0.5)
    versions = load(root)
    for text in (None, "golden", "golden@stable"):
        got = {choose(versions, text, number).live.version for number in range(40)}
        assert got == {1, 3}, text
    for text, version in (("golden:1", 1), ("golden:3", 3), ("golden@next", 2)):
        choice = choose(versions, text)
        assert (choice.live.version, choice.part) == (version, None)
    assert versions.find("golden").version == 1
    (model,) = versions.list_models()["models"]
    assert (model["rollout"]["mode"], model["rollout"]["candidate"], model["rollout"]["share"]) == ("canary", 3, 0.5)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda root: damage_version(root, 4), None),
        (
            lambda root: store.set_label(root, "golden", 2, "stable"),
            "it compares with golden:1, and golden is golden:2 now",
        ),
        (lambda root: (root / "golden" / ROLLOUT).write_text("{"), "rollout.json"),
    ],
    ids=["damaged candidate", "another baseline", "damaged file"],
)
def test_a_rollout_that_cannot_be_followed_changes_no_answer(root, harm, why):
    """The baseline answers all requests, and `/readyz` says why."""
    publish_golden(root, 1.0)
    start(root, 4)
    harm(root)
    versions = load(root)
    expected = 2 if why and "compares" in why else 1
    assert {choose(versions, number=number).live.version for number in range(20)} == {expected}
    assert all(choose(versions, number=number).part is None for number in range(20))
    said = "; ".join(versions.shortcomings())
    assert (why or "golden:4") in said
    assert str(root) not in said
    assert not versions.reasons_not_ready()


def test_a_shadow_compares_both_answers_while_the_worker_is_idle(root, tmp_path):
    """Equal draws give equal answers; nothing is computed while requests wait."""
    start(root)
    versions, watch = load(root), RolloutWatch(tmp_path)
    busy = True
    shadows = ShadowQueue(watch, lambda: not busy, 0.5)
    choice = choose(versions)
    observed = answer(choice.live)
    shadows.add(choice.part, ROWS, LEVELS, observed, 0.001)
    assert shadows.step() == 0.0
    busy = False
    assert shadows.step() > 0.0
    assert shadows.step() == 0.0
    watch.update()
    (path,) = tmp_path.glob("evidence-*.json")
    evidence = gathering.ServerEvidence.model_validate_json(path.read_bytes())
    assert (evidence.rejects.count, evidence.rejects.total, evidence.rows, evidence.dropped) == (1, 0.0, 8, 0)
    assert evidence.labels is None  # A regression has none.


def test_a_busy_server_drops_the_rows_of_a_shadow(root, tmp_path, monkeypatch):
    """Those that are too many, and those that are too old; the evidence says how many."""
    monkeypatch.setattr(shadowing, "MOST_WAITING", 3)
    start(root)
    versions, watch = load(root), RolloutWatch(tmp_path)
    shadows = ShadowQueue(watch, lambda: False, 0.5)
    part, observed = choose(versions).part, answer(versions.find("golden"))
    for _ in range(5):
        shadows.add(part, ROWS, LEVELS, observed, 0.001)
    monkeypatch.setattr(shadowing, "OLDEST_SECONDS", -1.0)
    assert shadows.step() == 0.0
    watch.update()
    (path,) = tmp_path.glob("evidence-*.json")
    evidence = gathering.ServerEvidence.model_validate_json(path.read_bytes())
    assert (evidence.rejects.count, evidence.dropped) == (0, 5)


def evidence_in(folder):
    """What the workers of a run have left."""
    return [gathering.ServerEvidence.model_validate_json(path.read_bytes()) for path in folder.glob("evidence-*.json")]


def evidence_gauge(verdict):
    """The metric of the evidence on `golden:3`."""
    return metrics.ROLLOUT_EVIDENCE.labels("golden", "3", verdict)._value.get()


def note_many(watch, versions, count, candidate_rejects=None):
    """Notes the answers to many callers of a shadow."""
    before = answer(versions.find("golden:1"))
    after = answer(versions.find("golden:3"))
    if candidate_rejects is not None:
        after = Observed(np.full(8, candidate_rejects), None, after.percentiles)
    for number in range(count):
        watch.note_shadow(choose(versions, number=number).part, before, after, (0.001, 0.001))
    watch.update()


def test_a_caller_counts_once(root, tmp_path):
    """However many requests it sends, and whichever worker answers them."""
    start(root)
    versions, watch, other = load(root), RolloutWatch(tmp_path), RolloutWatch(tmp_path)
    note_many(watch, versions, 5)
    note_many(other, versions, 7)
    note_many(watch, versions, 5)
    assert sorted(each.rejects.count for each in evidence_in(tmp_path)) == [2, 5]


def test_a_caller_counts_once_over_servers_and_restarts(root, tmp_path):
    """Each server writes its callers into the store, and reads those of the others before it counts."""
    start(root)
    versions, plan = load(root), make_plan(read_stored(root))
    folders = [tmp_path / name for name in ("first", "second")]
    for folder, counted in zip(folders, (5, 2), strict=True):
        folder.mkdir()
        gatherer, watch = Gatherer(root, folder, lambda _text: None), RolloutWatch(folder)
        gatherer.step(plan)
        note_many(watch, versions, 5 if counted == 5 else 7)
        gatherer.step(plan)
        assert [each.rejects.count for each in evidence_in(folder)] == [counted]
    status = read_status(root, "golden")
    assert (status.servers, status.rejects.count) == (2, 7)


# ---- failures --------------------------------------------------------------------------------------------------------


class FailingRequest:
    """What a handler does with a request that fails after its version was chosen."""

    def __init__(self, versions, watch, number):
        self.versions = versions
        self.request = Request({"type": "http", "headers": [(b"x-user-id", b"%d" % number)]})
        self.rollouts = Rollouts(watch, ShadowQueue(watch, lambda: False, 0.5), "X-User-Id")
        self.rollouts.start = lambda: None

    def run(self, error):
        """Fails, and returns the version."""
        chosen = []
        with suppress(type(error)), self.rollouts.turn(self.request) as turn:
            chosen.append(turn.choose(self.versions.choose, "golden").live.version)
            raise error
        return chosen[0]


def test_a_candidate_that_fails_is_not_promoted(root, tmp_path):
    """Its failures count as rejected: without them, its callers would be missing from the evidence."""
    start(root, mode="canary", share=0.5, auto=True, margin=0.1)
    versions, watch, announced = load(root), RolloutWatch(tmp_path), []
    gatherer, plan = Gatherer(root, tmp_path, announced.append), make_plan(read_stored(root))
    gatherer.step(plan)
    accepted = Observed(np.zeros(1, bool), None, np.zeros(0))
    for number in range(300):
        choice = choose(versions, number=number)
        if choice.live.version == 1:
            watch.note_canary(choice.part, accepted, 0.001)
        else:
            watch.note_failure(choice.part)
    watch.update()
    assert gatherer.step(plan)
    assert read_rollout(root, "golden").outcome.verdict == "abort"
    state = read_state(tmp_path, "golden")
    assert state.failed_candidate > 100
    assert state.failed_baseline == 0


def test_a_request_that_fails_after_the_choice_is_a_failure(root, tmp_path):
    """Whatever the error, on either side; but not one that finds the queue full."""
    start(root, mode="canary", share=0.5)
    versions, watch = load(root), RolloutWatch(tmp_path)
    failed = Counter()
    for number in range(20):
        error = [InputError("row"), RuntimeError("XLA"), asyncio.CancelledError()][number % 3]
        failed[FailingRequest(versions, watch, number).run(error)] += 1
        FailingRequest(versions, watch, 100 + number).run(HTTPError(429, "full"))
    watch.update()
    (evidence,) = evidence_in(tmp_path)
    assert (evidence.failed_baseline, evidence.failed_candidate) == (failed[1], failed[3])
    assert evidence.rejects.count == 20


def test_what_cannot_be_observed_is_answered(root, tmp_path, monkeypatch):
    """A full disk, or a fault of our own, concerns no caller."""
    start(root, mode="canary", share=0.5)
    versions, watch = load(root), RolloutWatch(tmp_path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watch, "note_canary", fail)
    failing = FailingRequest(versions, watch, 1)
    prediction = versions.find("golden:1").predictor(ROWS)
    judgement = judge(versions.find("golden:1").bundle.calibration, prediction, *LEVELS)
    share = Share(SimpleNamespace(prediction=prediction, judgement=judgement), slice(0, 8))
    with failing.rollouts.turn(failing.request) as turn:
        turn.choose(versions.choose, "golden")
        encode = turn.observe(ROWS, LEVELS, lambda _shares: "the answer")
        assert encode([share]) == "the answer"


def test_rows_that_the_candidate_of_a_shadow_cannot_compute_are_failures(root, tmp_path):
    """The prediction of one of three requests is not finite: it alone counts as failed, and the others are compared."""
    start(root)
    versions, watch = load(root), RolloutWatch(tmp_path)
    shadows = ShadowQueue(watch, lambda: True, 0.5)
    observed = answer(versions.find("golden"))
    for number, rows in enumerate((ROWS, ROWS * np.float32(np.nan), ROWS)):
        shadows.add(choose(versions, number=number).part, rows, LEVELS, observed, 0.001)
    shadows.step()
    watch.update()
    (evidence,) = evidence_in(tmp_path)
    assert (evidence.rejects.count, evidence.failed_candidate, evidence.dropped) == (3, 1, 0)
    assert evidence.rejects.total == pytest.approx(1 - observed.reject.mean())


# ---- the end of a rollout --------------------------------------------------------------------------------------------


def test_a_rollout_that_a_command_ends_is_shown_as_ended(root, tmp_path):
    """The plan has no rollout any more when the main process looks; the gauges fall, so that no alert stays."""
    started = start(root)
    versions, watch = load(root), RolloutWatch(tmp_path)
    gatherer = Gatherer(root, tmp_path, lambda _text: None)
    gatherer.step(make_plan(read_stored(root)))
    note_many(watch, versions, 200, candidate_rejects=True)
    gatherer.step(make_plan(read_stored(root)))
    watch.update()
    assert evidence_gauge("abort") > 3
    end_rollout(root, "golden", "abort", by="command", own_id=started.id)
    gatherer.step(make_plan(read_stored(root)))
    watch.update()
    assert read_state(tmp_path, "golden").state == "aborted"
    assert evidence_gauge("abort") == 0.0


def test_a_rollout_that_is_not_followed_any_more_is_shown_as_such(root, tmp_path):
    """The label was moved by hand."""
    start(root)
    gatherer = Gatherer(root, tmp_path, lambda _text: None)
    gatherer.step(make_plan(read_stored(root)))
    assert read_state(tmp_path, "golden").state == "running"
    store.set_label(root, "golden", 2, "stable")
    gatherer.step(make_plan(read_stored(root)))
    assert read_state(tmp_path, "golden").state == "not followed"


def test_what_a_worker_keeps_of_a_rollout_holds_no_version(root, tmp_path):
    """Otherwise its memory, and the mark that it is in use, would stay until a restart."""
    start(root)
    versions, watch = load(root), RolloutWatch(tmp_path)
    note_many(watch, versions, 3)
    candidate = weakref.ref(versions.find("golden:3"))
    del versions
    gc.collect()
    assert candidate() is None


def test_late_requests_of_a_rollout_do_not_change_the_next(root, tmp_path):
    """Requests in progress belong to the one that they began in."""
    first = start(root)
    versions, watch = load(root), RolloutWatch(tmp_path)
    late = choose(versions, number=0).part
    end_rollout(root, "golden", "abort", by="command", own_id=first.id)
    second = start(root)
    versions = load(root)
    note_many(watch, versions, 5)
    watch.note_shadow(late, answer(late.baseline), answer(late.candidate), (0.001, 0.001))
    watch.update()
    note_many(watch, versions, 7)
    counts = {
        own: [
            gathering.ServerEvidence.model_validate_json(path.read_bytes()).rejects.count
            for path in tmp_path.glob(f"evidence-{own}-*.json")
        ]
        for own in (first.id, second.id)
    }
    assert counts == {first.id: [1], second.id: [7]}


def test_nobody_learns_the_secret_of_a_rollout(root, tmp_path):
    """Whoever knew it could choose a side; folders of the store are no secret of the responses either."""
    started = start(root)
    versions, gatherer = load(root), Gatherer(root, tmp_path, lambda _text: None)
    gatherer.step(make_plan(read_stored(root)))
    (root / "golden" / ".evidence" / started.id / f"{'0' * 32}.json").write_text("{")
    gatherer.step(make_plan(read_stored(root)))
    state = read_state(tmp_path, "golden")
    assert "cannot be read" in state.why
    shown = f"{state.model_dump_json()} {versions.list_models()} {started.facts.model_dump_json()}"
    assert started.id in shown
    assert started.key not in shown
    assert str(root) not in shown


@pytest.mark.parametrize(("rejects", "verdict", "served"), [(None, "promote", 3), (True, "abort", 1)])
def test_the_server_ends_a_rollout_that_has_a_verdict(root, tmp_path, rejects, verdict, served):
    """With `auto`: the label moves, and the state in the folder of the run says so; not before the evidence suffices."""
    start(root, auto=True)
    versions, watch, announced = load(root), RolloutWatch(tmp_path), []
    gatherer, plan = Gatherer(root, tmp_path, announced.append), make_plan(read_stored(root))
    assert not gatherer.step(plan)
    note_many(watch, versions, 3, rejects)
    assert not gatherer.step(plan)
    assert read_state(tmp_path, "golden").observations == 3
    note_many(watch, versions, 400, rejects)
    assert gatherer.step(plan)
    assert read_rollout(root, "golden").outcome.verdict == verdict
    assert store.resolve(root, "golden") == ("golden", served)
    assert read_state(tmp_path, "golden").state == ("promoted" if verdict == "promote" else "aborted")
    assert len(announced) == 1


def test_without_auto_the_evidence_only_stands_in_the_store(root, tmp_path):
    """`abstain rollout status` reads it there; a rollout that a command has ended is looked at again."""
    started = start(root)
    versions, watch = load(root), RolloutWatch(tmp_path)
    gatherer, plan = Gatherer(root, tmp_path, lambda _text: None), make_plan(read_stored(root))
    note_many(watch, versions, 200)
    assert not gatherer.step(plan)
    status = read_status(root, "golden")
    assert (status.rejects.count, status.comparison.verdict, status.rollout.outcome) == (200, "promote", None)
    end_rollout(root, "golden", "abort", by="command", own_id=started.id)
    assert gatherer.step(plan)
    assert read_state(tmp_path, "golden").state == "aborted"


def test_a_store_that_cannot_be_written_leaves_the_evidence_of_this_server(root, tmp_path, monkeypatch):
    """It is shown with the reason, and no verdict is acted on: other servers may have seen something else."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(gathering, "write_evidence_in", refuse)
    start(root, auto=True)
    versions, watch = load(root), RolloutWatch(tmp_path)
    gatherer, plan = Gatherer(root, tmp_path, lambda _text: None), make_plan(read_stored(root))
    note_many(watch, versions, 200)
    assert not gatherer.step(plan)
    state = read_state(tmp_path, "golden")
    assert (state.observations, state.verdict, state.state) == (200, "promote", "running")
    assert "one server alone" in state.why
    assert read_rollout(root, "golden").outcome is None
