"""What a worker observes of a rollout, what the main process makes of it, and the end of a rollout by verdict."""

import numpy as np
import pytest

from abstain.models.bundles import store
from abstain.models.bundles.bundle import read_published
from abstain.models.bundles.rollout_evidence import read_status
from abstain.models.bundles.rollouts import ROLLOUT, Options, end_rollout, read_rollout, start_rollout
from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import Levels
from abstain.service.live_versions import LiveVersions
from abstain.service.plans import make_plan, read_stored
from abstain.service.rollouts import gathering, shadowing
from abstain.service.rollouts.gathering import Gatherer
from abstain.service.rollouts.observing import Observed, RolloutWatch, observe
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
    (path,) = tmp_path.glob("evidence-*.json")  # One process: the other worker's file has the same name.
    assert gathering.ServerEvidence.model_validate_json(path.read_bytes()).rejects.count in {2, 5}


@pytest.mark.parametrize(("rejects", "verdict", "served"), [(None, "promote", 3), (True, "abort", 1)])
def test_the_server_ends_a_rollout_that_has_a_verdict(root, tmp_path, rejects, verdict, served):
    """With `auto`: the label moves, and the state in the folder of the run says so; not before the evidence suffices."""
    start(root, auto=True)
    versions, watch, told = load(root), RolloutWatch(tmp_path), []
    gatherer, plan = Gatherer(root, tmp_path, told.append), make_plan(read_stored(root))
    assert not gatherer.step(plan)
    note_many(watch, versions, 3, rejects)
    assert not gatherer.step(plan)
    assert read_state(tmp_path, "golden").observations == 3
    note_many(watch, versions, 400, rejects)
    assert gatherer.step(plan)
    assert read_rollout(root, "golden").outcome.verdict == verdict
    assert store.resolve(root, "golden") == ("golden", served)
    assert read_state(tmp_path, "golden").state == ("promoted" if verdict == "promote" else "aborted")
    assert len(told) == 1


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
