"""Swaps: all workers answer by a new plan from the same moment, and by the old one until then.

The workers are threads of this process (`tests/helpers/following.py`).
"""

import logging
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from abstain.models.bundles.bundle import load, serving_bytes
from abstain.models.bundles.retention import prune
from abstain.models.bundles.store import rollback, set_label, versions
from abstain.service.following import follower as following
from abstain.service.plans import Failure
from tests.helpers.following import Worker, serve
from tests.helpers.golden_versions import damage_version, publish_golden
from tests.helpers.processes import PATIENCE, until


@pytest.fixture
def root(tmp_path) -> Path:
    """A store with one version."""
    publish_golden(tmp_path / "store")
    return tmp_path / "store"


def test_versions_labels_rollbacks_and_deletions_are_followed(root, tmp_path, caplog):
    """By every worker, after one look at the store; the log names the digests."""
    caplog.set_level(logging.INFO, "abstain.serving")
    with serve(tmp_path) as server:
        assert server.answers() == [1, 1]
        for change, expected in (
            (lambda: publish_golden(root, 1.1), 2),
            (lambda: set_label(root, "golden", 1, "stable"), 1),
            (lambda: set_label(root, "golden", 2, "stable"), 2),
            (lambda: rollback(root, "golden"), 1),
            (lambda: shutil.rmtree(root / "golden" / "2"), 1),
        ):
            change()
            server.follower.settle()
            assert server.answers() == [expected, expected]
        digest = load(root / "golden" / "1").manifest.digest
        assert f"golden:1 ({digest}) is served from now on" in caplog.text
        # Version 1 was served before, and version 2 since it was tried.
        assert server.tried == ["golden:2"]
        assert [state.version for state in server.workers[0].versions.list_versions()] == [1]
        publish_golden(root, name="other")
        server.follower.settle()
        assert server.answers("other") == [1, 1]
        shutil.rmtree(root / "golden")
        server.follower.settle()
        assert all("expected one of other" in answer for answer in server.answers())


def test_no_worker_answers_by_the_old_plan_after_another_has_answered_by_the_new(root, tmp_path):
    """The requests of many threads, each of which sees the versions in the order of the moves."""
    publish_golden(root, 1.1)
    set_label(root, "golden", 1, "stable")
    with serve(tmp_path) as server:
        newest, lock, wrong, done = [0], threading.Lock(), [], threading.Event()
        moves = [2, 1] * 3

        def ask(worker: Worker) -> None:
            """Reads how many moves an answer has shown before the request, and compares it with this answer's."""
            while not done.is_set():
                with lock:
                    before = newest[0]
                live = worker.versions.find("golden")
                number = worker.versions.number
                with lock:
                    if number < before:
                        wrong.append((before, number, live.version))
                    newest[0] = max(newest[0], number)

        threads = [threading.Thread(target=ask, args=(worker,)) for worker in server.workers * 2]
        for thread in threads:
            thread.start()
        for version in moves:
            set_label(root, "golden", version, "stable")
            server.follower.settle()
            assert server.answers() == [version, version]
        done.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert wrong == []
        assert newest[0] > 1


def test_a_version_that_cannot_be_served_leaves_the_old_one(root, tmp_path, caplog):
    """Whoever finds it: the process that tries versions, or a worker. Its state says why, and it is tried again later."""
    with serve(tmp_path) as server:
        publish_golden(root, 1.1)
        server.failures = {"golden:2": Failure(state="failed", why="crashed")}
        server.follower.settle()
        assert server.answers() == [1, 1]
        assert server.state(2) == ("failed", "crashed")
        assert "golden:2 cannot be served: crashed" in caplog.text
        version = publish_golden(root, 1.2)
        damage_version(root, version)
        server.follower.settle()
        assert server.answers() == [1, 1]
        assert "is damaged or was altered" in server.state(3)[1]
        assert server.workers[0].versions.reasons_not_ready() == []
        assert len(server.workers[0].versions.shortcomings()) == 1
        publish_golden(root, 1.3)
        server.follower.settle()
        assert server.answers() == [4, 4]


def test_prune_leaves_what_a_server_uses(root, tmp_path):
    """Also a version without a label that is served because the newest one cannot be; it goes when it is not served any more."""
    with serve(tmp_path) as server:
        publish_golden(root, 1.1)
        server.failures = {"golden:2": Failure(state="failed", why="crashed")}
        server.follower.settle()
        assert server.answers() == [1, 1]
        assert prune(root, "golden", 1) == ([], [1])
        publish_golden(root, 1.2)
        server.follower.settle()
        assert server.answers() == [3, 3]
        assert until(lambda: prune(root, "golden", 1, dry_run=True) == ([1, 2], []))
        assert prune(root, "golden", 1) == ([1, 2], [])
    assert versions(root, "golden") == [3]


def test_a_failed_version_is_tried_again(root, tmp_path, monkeypatch):
    """Later, because it may have failed for want of memory; and at once if its files were replaced."""
    monkeypatch.setattr(following, "FIRST_RETRY", 0.2)
    with serve(tmp_path, workers=1) as server:
        publish_golden(root, 1.1)
        server.failures = {"golden:2": Failure(state="failed", why="no memory")}
        server.follower.settle()
        server.follower.settle()
        assert server.tried == ["golden:2"]
        server.failures = {}
        assert until(lambda: server.follower.settle() or server.answers() == [2])
        assert server.state(2) == ("ready", None)


def test_a_store_that_is_away_changes_nothing(root, tmp_path):
    """Also an empty folder, such as that of a file system that is not mounted; the state says so."""
    with serve(tmp_path) as server:
        root.rename(tmp_path / "away")
        server.follower.settle()
        assert server.answers() == [1, 1]
        assert server.workers[0].versions.shortcomings() == ["the store cannot be read: No such file or directory"]
        root.mkdir()
        server.follower.settle()
        assert server.answers() == [1, 1]
        assert "the store has no models" in server.workers[0].versions.shortcomings()[0]
        root.rmdir()
        (tmp_path / "away").rename(root)
        server.follower.settle()
        assert server.workers[0].versions.shortcomings() == []


def test_a_first_model_appears(tmp_path):
    """In a server that started with an empty store: it becomes ready then."""
    (tmp_path / "store").mkdir()
    with serve(tmp_path) as server:
        assert all("expected one of none" in answer for answer in server.answers())
        assert server.ready() == []
        publish_golden(tmp_path / "store")
        server.follower.settle()
        assert until(lambda: server.answers() == [1, 1])
        assert until(lambda: server.ready() == [1, 2])


def test_a_swap_waits_for_every_ready_worker(root, tmp_path):
    """Nobody answers by the new plan while one of them has not prepared it."""
    with serve(tmp_path) as server:
        assert until(lambda: server.follower.accepting_workers() == [1, 2])
        server.workers[1].paused.set()
        publish_golden(root, 1.1)
        step = threading.Thread(target=server.follower.settle)
        step.start()
        assert until(lambda: server.workers[0].follower.prepared == 2)
        time.sleep(0.1)
        assert server.answers() == [1, 1]
        server.workers[1].paused.clear()
        step.join(PATIENCE)
        assert server.answers() == [2, 2]


def test_a_new_worker_starts_with_what_the_others_serve(root, tmp_path):
    """Not with what the store asks for meanwhile."""
    with serve(tmp_path) as server:
        publish_golden(root, 1.1)
        late = server.start_worker(2)
        assert until(lambda: late.follower.prepared)
        assert late.version() == 1
        server.workers[1].stop()
        server.workers[1] = late
        server.follower.settle()
        assert server.answers() == [2, 2]


def test_what_one_worker_cannot_load_stays_with_the_others(root, tmp_path):
    """A worker that replaces another finds damaged files: the others go on, and new versions are still followed."""
    with serve(tmp_path) as server:
        damage_version(root, 1)
        server.workers[1].stop()
        server.workers[1] = late = server.start_worker(2)
        assert until(lambda: late.follower.prepared)
        server.follower.settle()
        assert server.answers()[0] == 1
        assert "golden:1 is failed: " in server.answers()[1]
        publish_golden(root, name="other")
        server.follower.settle()
        assert server.answers("other") == [1, 1]
        assert server.answers()[0] == 1
        publish_golden(root, 1.1)
        server.follower.settle()
        assert server.answers() == [2, 2]


def test_a_version_that_no_worker_can_load_at_the_start_is_tried_again(root, tmp_path, monkeypatch):
    """The first plan is not tried by another process; what fails there in all workers is noted by the main process."""
    monkeypatch.setattr(following, "FIRST_RETRY", 0.2)
    draws = root / "golden" / "1" / "draws"
    draws.rename(tmp_path / "draws")
    with serve(tmp_path) as server:
        server.follower.settle()
        assert until(lambda: all("golden:1 is failed" in answer for answer in server.answers()))
        (tmp_path / "draws").rename(draws)
        assert until(lambda: server.follower.settle() or server.answers() == [1, 1])


def test_a_slow_version_does_not_keep_other_changes_waiting(root, tmp_path):
    """A rollback is followed while another version is being tried, and a trial that nobody wants any more has no effect."""
    publish_golden(root, 1.1)
    for version in (1, 2):
        set_label(root, "golden", version, "stable")
    with serve(tmp_path) as server:
        server.hold.clear()
        publish_golden(root, name="slow")
        server.follower.step()
        assert server.state(1, "slow") == ("loading", None)
        assert server.workers[0].versions.reasons_not_ready() == []
        server.hold.set()
        server.follower.settle()
        server.hold.clear()
        publish_golden(root, 1.2, "slow")
        server.follower.step()
        assert server.answers("slow") == [1, 1]
        rollback(root, "golden")
        server.follower.step()
        # Version 1 is not in memory: it waits for its trial, and the label stays.
        assert server.answers() == [2, 2]
        shutil.rmtree(root / "slow" / "2")
        server.follower.step()
        server.hold.set()
        server.follower.settle()
        assert server.answers() == [1, 1]
        assert [state.version for state in server.workers[0].versions.list_versions() if state.name == "slow"] == [1]


def test_a_version_that_only_workers_cannot_load_is_tried_less_and_less(root, tmp_path, monkeypatch):
    """The time doubles although the other process finds nothing wrong."""
    monkeypatch.setattr(following, "FIRST_RETRY", 0.05)
    with serve(tmp_path, workers=1) as server:
        damage_version(root, publish_golden(root, 1.1))
        for _ in range(4):
            server.follower.settle()
            time.sleep(0.4)
        (delay,) = server.follower._delays.values()
        assert delay >= 0.2
        assert server.answers() == [1]


def test_damaged_labels_are_reported_once(root, tmp_path, caplog):
    """In the log and to whoever asks; what was served stays."""
    with serve(tmp_path) as server:
        (root / "golden" / "labels.json").write_text("{")
        server.follower.settle()
        server.follower.settle()
        (reason,) = server.workers[0].versions.shortcomings()
        assert reason.startswith("golden: golden/labels.json: is not JSON")
        assert server.workers[0].versions.why_not_served("golden") == [reason]
        assert caplog.text.count("golden: the labels cannot be read") == 1
        assert server.answers() == [1, 1]


def test_replaced_files_that_fail_are_not_loaded_by_a_new_worker(root, tmp_path):
    """Two workers would answer with different numbers for one version."""
    with serve(tmp_path) as server:
        shutil.rmtree(root / "golden" / "1")
        assert publish_golden(root, 1.5) == 1
        server.failures = {"golden:1": Failure(state="failed", why="was ended by signal 11")}
        server.follower.settle()
        assert server.answers() == [1, 1]
        late = server.start_worker(2)
        assert until(lambda: late.follower.prepared)
        assert "its files were replaced by others" in late.version()
        late.stop()


def test_files_of_the_run_that_are_gone_or_damaged_do_not_end_a_worker(root, tmp_path):
    """It takes the next plan."""
    with serve(tmp_path, workers=1) as server:
        (worker,) = server.workers
        assert until(lambda: worker.follower.prepared == server.follower.plan.number)
        server.follower._numbers.proposed = 50
        (tmp_path / "run" / "plan-51.json").write_text("")
        server.follower._numbers.proposed = 51
        assert until(lambda: worker.errors)
        server.follower._numbers.proposed = 52
        publish_golden(root, 1.1)
        server.follower.settle()
        assert server.answers() == [2]


def test_what_does_not_fit_into_memory_is_refused(root, tmp_path):
    """By name and before it is loaded; both versions count, because requests in flight need the old one."""
    with serve(tmp_path, workers=1, memory_bytes=10) as server:
        assert "golden:1 is refused: ABSTAIN_MEMORY_BYTES: does not fit" in server.answers()[0]


def test_a_version_that_does_not_fit_beside_the_served_one_is_refused(root, tmp_path):
    """The old one stays, and the reason names it."""
    need = serving_bytes(load(root / "golden" / "1").manifest)
    with serve(tmp_path, workers=1, memory_bytes=2 * need - 1) as server:
        publish_golden(root, 1.1)
        server.follower.settle()
        assert server.answers() == [1]
        state, why = server.state(2)
        assert (state, f"others have {need:,} (golden:1 {need:,})" in why) == ("refused", True)


def test_the_files_of_the_run_do_not_grow(root, tmp_path):
    """Plans and notes of the past are removed."""
    with serve(tmp_path) as server:
        publish_golden(root, 1.1)
        for version in (1, 2, 1):
            set_label(root, "golden", version, "stable")
            server.follower.settle()
        left = {path.name for path in (tmp_path / "run").glob("p*.json")}
        assert {name.split("-")[1].removesuffix(".json") for name in left} == {str(server.follower.plan.number)}
        assert os.listdir(tmp_path / "run")
