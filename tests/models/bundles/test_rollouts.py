"""Rollouts in the store: what may start, how they end, and the evidence of several servers."""

import json
import secrets
import shutil

import numpy as np
import orjson
import pytest

from abstain.models.bundles import store
from abstain.models.bundles.bundle import read_published
from abstain.models.bundles.retention import removable_versions
from abstain.models.bundles.rollout_evidence import (
    ServerEvidence,
    StoredEvidence,
    read_status,
    write_evidence,
)
from abstain.models.bundles.rollouts import EVIDENCE, ROLLOUT, Options, end_rollout, now, read_rollout, start_rollout
from abstain.models.decisions.comparison import PAIRED, STAKES, TESTS, weigh
from abstain.models.errors import StoreError, UnknownModel
from abstain.models.tables.columns import Column
from tests.helpers.golden_versions import publish_golden

DEFAULTS = Options("canary", 0.1, margin=0.1)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store with three versions of `golden`, the first of which is stable; no test may change its versions."""
    root = tmp_path_factory.mktemp("rollouts") / "store"
    for scale in (1.0, 1.5, 1.0):
        publish_golden(root, scale)
    return root


@pytest.fixture
def root(original):
    """The store without a rollout."""
    for path in (original / "golden" / ROLLOUT, original / "golden" / store.LABELS):
        path.unlink(missing_ok=True)
    store.set_label(original, "golden", 1, "stable")
    return original


def manifests(root, baseline=1, candidate=2):
    """Those of two versions."""
    return read_published(root, "golden", baseline), read_published(root, "golden", candidate)


def start(root, **changes):
    """Starts a canary of `golden:2`."""
    return start_rollout(root, manifests(root), DEFAULTS._replace(**changes))


def evidence(values, dropped=0):
    """What a server has observed, by the differences of reject rates."""
    return ServerEvidence(
        rejects=StoredEvidence.of(weigh(np.array(values), 0.1, PAIRED)),
        rows=len(values),
        dropped=dropped,
        updated=now(),
    )


def test_a_rollout_lies_beside_the_labels_until_it_has_ended(root):
    """One at a time; the next may start when the last has ended."""
    assert read_rollout(root, "golden") is None
    started = start(root)
    assert read_rollout(root, "golden") == started
    assert (started.candidate, started.baseline, started.outcome) == (2, 1, None)
    with pytest.raises(StoreError, match=r"rollout of golden:2 is running.*abort golden"):
        start(root)
    ended = end_rollout(root, "golden", "abort", by="command", own_id=started.id)
    assert read_rollout(root, "golden") == ended
    assert store.read_labels(root, "golden").labels == {"stable": 1}
    with pytest.raises(StoreError, match="no rollout of golden is running"):
        end_rollout(root, "golden", "promote", by="command", own_id=started.id)
    assert start(root).id != started.id


def test_a_promotion_moves_the_label_and_can_be_rolled_back(root):
    """`stable` is the candidate; its previous version is the baseline."""
    started = start(root)
    end_rollout(root, "golden", "promote", by="server", own_id=started.id)
    assert store.resolve(root, "golden") == ("golden", 2)
    assert store.rollback(root, "golden") == 1


def test_without_a_stable_version_a_promotion_can_be_rolled_back_too(root):
    """The baseline, the newest version until then, becomes the previous stable one."""
    (root / "golden" / store.LABELS).unlink()
    started = start_rollout(root, manifests(root, 3, 2), DEFAULTS)
    end_rollout(root, "golden", "promote", by="command", own_id=started.id)
    assert store.resolve(root, "golden") == ("golden", 2)
    assert store.rollback(root, "golden") == 3


def test_a_rollout_of_what_is_there_no_more_does_not_start(root):
    """The label was moved, or the candidate removed, after the manifests were read."""
    read = manifests(root)
    store.set_label(root, "golden", 3, "stable")
    with pytest.raises(StoreError, match="golden is another version now"):
        start_rollout(root, read, DEFAULTS)
    gone = read[0], read[1].model_copy(update={"version": 9})
    with pytest.raises(UnknownModel, match="golden has no version 9"):
        start_rollout(root, gone, DEFAULTS)
    assert read_rollout(root, "golden") is None


def test_evidence_does_not_bring_a_model_back(root, tmp_path):
    """Its folder was removed while a server served it."""
    started = start(root)
    with pytest.raises(FileNotFoundError):
        write_evidence(tmp_path, "golden", started, secrets.token_hex(16), evidence([0.0]))
    assert not (tmp_path / "golden").exists()


def test_a_rollout_ends_only_as_the_one_that_was_meant(root):
    """Another one was started, or the label was moved meanwhile."""
    started = start(root)
    with pytest.raises(StoreError, match="another rollout of golden was started"):
        end_rollout(root, "golden", "abort", by="server", own_id=secrets.token_hex(16))
    store.set_label(root, "golden", 3, "stable")
    with pytest.raises(StoreError, match=r"compared with.*expected golden:1, found golden:3"):
        end_rollout(root, "golden", "promote", by="server", own_id=started.id)
    assert store.read_labels(root, "golden").labels == {"stable": 3}
    end_rollout(root, "golden", "abort", by="command", own_id=started.id)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"id": 1}', b"\xff" * 100, b"x" * 2**17])
def test_a_damaged_file_is_an_error_with_its_name(root, content):
    """Neither a crash nor a rollout."""
    (root / "golden" / ROLLOUT).write_bytes(content)
    with pytest.raises(StoreError, match=ROLLOUT):
        read_rollout(root, "golden")


def test_versions_that_cannot_be_compared_are_refused(root):
    """The version itself, and for a shadow other columns, categories or classes; a canary reads its own requests."""
    one, other = manifests(root)
    with pytest.raises(StoreError, match="is what requests for golden get already"):
        start_rollout(root, (one, one), DEFAULTS)
    columns = other.model.preprocessing.model_copy(update={"columns": (Column(name="other"),)})
    changed = other.model_copy(update={"model": other.model.model_copy(update={"preprocessing": columns})})
    with pytest.raises(StoreError, match="differs in its columns"):
        start_rollout(root, (one, changed), DEFAULTS._replace(mode="shadow"))
    assert start_rollout(root, (one, changed), DEFAULTS).mode == "canary"


def test_the_evidence_of_servers_adds_up(root):
    """Two servers; a file that replaces an earlier one counts once, and a new rollout starts without evidence."""
    started = start(root, mode="shadow", share=1.0)
    assert read_status(root, "golden").comparison is None
    server, other = secrets.token_hex(16), secrets.token_hex(16)
    write_evidence(root, "golden", started, server, evidence([1.0]))
    write_evidence(root, "golden", started, server, evidence([0.0] * 60))
    write_evidence(root, "golden", started, other, evidence([0.0] * 60, dropped=2))
    (root / "golden" / EVIDENCE / started.id / "notes.txt").write_text("not evidence")
    status = read_status(root, "golden")
    assert (status.servers, status.rows, status.dropped) == (2, 120, 2)
    assert status.rejects.count == 120
    np.testing.assert_allclose(status.rejects.capital, weigh(np.zeros(120), 0.1, PAIRED).capital)
    assert status.comparison.verdict == "promote"
    end_rollout(root, "golden", "abort", by="command", own_id=started.id)
    start(root)
    assert read_status(root, "golden").servers == 0


HUGE = [[60.0] * len(STAKES)] * len(TESTS)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": -1},
        {"rejects": {}},
        {"more": 1},
        {"rejects": {"count": 10**400, "total": 0.0, "squares": 0.0, "capital": HUGE}},
        {"rejects": {"count": 0, "total": 0.0, "squares": 0.0, "capital": HUGE}},
        {"rejects": {"count": 1, "total": 1e308, "squares": 0.0, "capital": HUGE}},
        {"rejects": {"count": 1, "total": 0.0, "squares": 0.0, "capital": HUGE}},
    ],
    ids=["rows", "empty", "more", "count", "capital without observations", "total", "capital"],
)
def test_damaged_evidence_is_an_error_with_its_name(root, change):
    """It must not become a verdict."""
    started, server = start(root), secrets.token_hex(16)
    write_evidence(root, "golden", started, server, evidence([0.0]))
    path = root / "golden" / EVIDENCE / started.id / f"{server}.json"
    path.write_text(json.dumps({**orjson.loads(path.read_bytes()), **change}))
    with pytest.raises(StoreError, match=server):
        read_status(root, "golden")


def test_a_model_without_a_rollout_says_how_to_start_one(root):
    """Also one that does not exist."""
    with pytest.raises(UnknownModel, match=r"never had a rollout.*abstain rollout start golden:VERSION"):
        read_status(root, "golden")
    with pytest.raises(UnknownModel, match="no model named"):
        read_status(root, "other")


def test_prune_keeps_both_versions_of_a_rollout_until_it_has_ended(root):
    """Without it, only the newest and the labelled version stay."""
    started = start_rollout(root, manifests(root, 1, 2), DEFAULTS)
    labels = store.Labels(labels={"stable": 3})
    assert removable_versions([1, 2, 3], labels, 1, started) == []
    ended = end_rollout(root, "golden", "abort", by="command", own_id=started.id)
    assert removable_versions([1, 2, 3], labels, 1, ended) == [1, 2]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_starts_shows_and_ends_a_rollout(run, root):
    """A canary that is promoted, with and without --json."""
    code, out, stderr = run("rollout", "start", "golden:2", "--share", "5%", "--store", root)
    assert code == 0, stderr
    assert out == "golden:2 is a canary of golden:1: 5% of the callers; margin 5.00%\n"
    started = read_rollout(root, "golden")
    assert (started.share, started.margin, started.alpha, started.auto) == (0.05, 0.05, 0.05, False)
    code, out, _ = run("rollout", "status", "golden", "--store", root)
    assert code == 0
    assert "none yet; too few observations" in out
    write_evidence(root, "golden", started, secrets.token_hex(16), evidence([0.0] * 100))
    code, out, _ = run("rollout", "status", "golden", "--store", root, "--json")
    state = orjson.loads(out)
    assert (state["observations"], state["verdict"], state["needed"]) == (100, "promote", 20)
    assert state["reject_rate"] == {"mean": 0.0, "standard_error": 0.0}
    code, out, _ = run("rollout", "promote", "golden", "--store", root)
    assert (code, out) == (0, "the rollout of golden:2 has ended: requests for golden get golden:2\n")
    code, out, _ = run("rollout", "status", "golden", "--store", root)
    assert "promoted by a command" in out


def test_a_candidate_with_the_verdict_abort_is_promoted_only_by_force(run, root):
    """What the evidence says, and how to look at it; without a verdict there is only a note."""
    started = start(root)
    write_evidence(root, "golden", started, secrets.token_hex(16), evidence([1.0] * 100))
    code, _, stderr = run("rollout", "promote", "golden", "--store", root)
    assert code == 1
    assert "the verdict on golden:2 is to abort" in stderr
    assert store.resolve(root, "golden") == ("golden", 1)
    assert run("rollout", "promote", "golden", "--force", "--store", root)[0] == 0
    assert store.rollback(root, "golden") == 1
    start(root)
    code, _, stderr = run("rollout", "promote", "golden", "--store", root)
    assert code == 0
    assert "note: there is no verdict yet" in stderr


def test_a_candidate_that_is_gone_is_never_promoted(root, tmp_path):
    """Not by force either: the label would point at nothing."""
    copy = shutil.copytree(root, tmp_path / "store")
    started = start(copy)
    shutil.rmtree(copy / "golden" / "2")
    with pytest.raises(UnknownModel, match="golden has no version 2"):
        end_rollout(copy, "golden", "promote", by="command", own_id=started.id)
    assert store.resolve(copy, "golden") == ("golden", 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["golden:2"], "--share: expected a share of the callers, such as 5%, or --shadow, found neither"),
        (["golden:2", "--share", "100%"], "--share: expected above 0% and below 100%, found '100%'"),
        (["golden:2", "--share", "20"], "found '20'; write 20% or 0.2"),
        (["golden:2", "--share", "x", "--shadow"], "--share: expected above 0%, at most 100%, found 'x'"),
        (["golden:2", "--share", "nan"], "--share: expected above 0% and below 100%"),
        (["golden:2", "--shadow", "--margin", "1.5"], "--margin: expected above 0 and below 1, found 1.5"),
        (["golden:2", "--shadow", "--alpha", "0"], "--alpha: expected above 0 and below 1"),
        (["golden:9", "--shadow"], "golden has no version 9"),
        (["golden:1", "--shadow"], "is what requests for golden get already"),
    ],
    ids=str,
)
def test_what_cannot_be_started_is_refused_with_its_option(run, root, arguments, message):
    """Nothing is written."""
    code, _, stderr = run("rollout", "start", *arguments, "--store", root)
    assert code == 1
    assert message in stderr
    assert read_rollout(root, "golden") is None
