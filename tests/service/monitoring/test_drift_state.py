"""What a watch for drift keeps over restarts: its epoch always, all of it after a clean stop; whatever the disk holds."""

import logging
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from abstain.models.decisions import drift
from abstain.models.decisions.records import Calibration
from abstain.service.monitoring.drift import ALPHA, VersionWatch
from abstain.service.monitoring.drift_state import Saved, StateFile
from abstain.service.process import Process

SCORES = ("entropy", "std")
CALIBRATION = {name: np.random.default_rng(place).exponential(size=200) for place, name in enumerate(SCORES)}
DIGEST = "sha256:" + "ab" * 32
LIVE = SimpleNamespace(
    name="kept",
    version=1,
    bundle=SimpleNamespace(
        calibration=Calibration(scores=CALIBRATION, nonconformity=np.zeros(200)),
        manifest=SimpleNamespace(digest=DIGEST, model=SimpleNamespace(law=SimpleNamespace(task="classification"))),
    ),
)


def started(state, worker=1, workers=1):
    """A worker's watch, as it begins when the first rows are answered."""
    return VersionWatch(LIVE, Process(worker, workers, state), state)


def show(watch, rows, factor=1.0, seed=0):
    """The watch sees so many rows."""
    random = np.random.default_rng(seed)
    values = {name: SimpleNamespace(value=factor * random.exponential(size=rows)) for name in SCORES}
    for _ in watch.saw([SimpleNamespace(scores=values)]):
        pass


def kill(watch):
    """What the system does to a process that is killed: its locks are let go of, nothing is written."""
    watch._file.close()


def files(state, workers=1):
    """The names of what is kept, but for locks."""
    return sorted(path.name for path in state.rglob(f"of-{workers}/*") if path.suffix != ".lock")


def test_a_clean_stop_loses_nothing(tmp_path):
    """The next process has the same ranks, bets, rows and window, and goes on to bet on them."""
    first = started(tmp_path)
    show(first, 1_200)
    first.close()
    second = started(tmp_path)
    assert (second._epoch, second._watch.rows) == (1, 1_200)
    for mine, kept in zip(first._watch[:3], second._watch[:3], strict=True):
        np.testing.assert_array_equal(mine, kept)
    np.testing.assert_array_equal(first._window, second._window)
    show(second, 100)
    assert second._watch.rows == 1_300


def test_a_killed_worker_is_followed_by_the_next_epoch(tmp_path):
    """Also if it had gone on from a clean stop: rows that it has seen since are not bet on twice."""
    kill(started(tmp_path))
    watch = started(tmp_path)
    show(watch, 50)
    watch.close()
    again = started(tmp_path)
    assert (again._epoch, again._watch.rows) == (2, 50)
    kill(again)
    assert (started(tmp_path)._epoch, files(tmp_path)) == (3, ["worker-1.epoch-3.npz"])


def test_an_epoch_that_ends_is_written_down(tmp_path, monkeypatch):
    """A worker that is killed after it begins beyond it."""
    monkeypatch.setattr(drift, "EPOCH", 2_000)
    watch = started(tmp_path)
    show(watch, 2_001)
    kill(watch)
    assert started(tmp_path)._epoch == 3


def test_an_alarm_is_kept(tmp_path):
    """A worker that is killed has told when it crossed its level; the one that replaces it tells so, too."""
    watch = started(tmp_path)
    show(watch, 1_000, factor=4)
    crossed = watch._crossed
    assert (crossed > 0).all()
    kill(watch)
    np.testing.assert_allclose(started(tmp_path)._crossed, crossed, atol=60)


def test_workers_keep_their_own(tmp_path):
    """Two of them, each with its half of the probability; neither touches what the other has written."""
    watches = [started(tmp_path, worker, 2) for worker in (1, 2)]
    for rows, watch in zip((100, 300), watches, strict=True):
        show(watch, rows, seed=rows)
        watch.close()
    assert files(tmp_path, 2) == ["worker-1.epoch-1.npz", "worker-2.epoch-1.npz"]
    again = [started(tmp_path, worker, 2) for worker in (1, 2)]
    assert [watch._watch.rows for watch in again] == [100, 300]
    assert again[0]._streams == 2 * len(SCORES)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _content: b"",
        lambda content: content[: len(content) // 2],
        lambda _content: b"\x80\x04K\x01.",
        lambda content: content.replace(b"counts.npy", b"cuonts.npy"),
        lambda _content: bytes(2_000),
    ],
    ids=["empty", "truncated", "a pickle", "another record", "zeros"],
)
def test_a_damaged_file_is_set_aside(tmp_path, caplog, spoil):
    """Its epoch is in its name: the next one begins, and the log says so; nothing is unpickled."""
    watch = started(tmp_path)
    show(watch, 100)
    watch.close()
    [path] = tmp_path.rglob("worker-1.epoch-1.npz")
    path.write_bytes(spoil(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        after = started(tmp_path)
    assert "worker-1.epoch-1.npz is damaged" in caplog.text
    assert (after._epoch, after._watch.rows) == (2, 0)
    assert files(tmp_path) == ["worker-1.epoch-1.damaged", "worker-1.epoch-2.npz"]


def test_arrays_that_do_not_fit_are_damage(tmp_path):
    """Whatever is in a file that can be read: counts that no stream can have, values out of order or of other scores."""
    watch = started(tmp_path)
    show(watch, 1_500)
    whole = Saved(1, watch._crossed, watch._watch, watch._window)
    kill(watch)
    wrong = (
        whole.watch._replace(counts=whole.watch.counts + 1),
        whole.watch._replace(begun=whole.watch.begun[:1]),
        whole.watch._replace(begun=whole.watch.begun + 10_000),
        whole.watch._replace(ranked=tuple(values[::-1] for values in whole.watch.ranked)),
        whole.watch._replace(ranked=tuple(values[:-1] for values in whole.watch.ranked)),
    )
    for epoch, altered in enumerate(wrong, start=2):
        file = StateFile(tmp_path, DIGEST, 1, 1)
        file.save(whole._replace(epoch=epoch, watch=altered))
        found = file.load(len(SCORES), 200)
        assert (found.epoch, found.watch) == (epoch + 1, None)
        file.close()
    file = StateFile(tmp_path, DIGEST, 1, 1)
    file.save(whole._replace(epoch=99))
    assert file.load(len(SCORES), 200).watch.rows == 1_500
    assert file.load(len(SCORES), 201).watch is None


def test_the_shares_of_an_epoch_never_exceed_the_whole(tmp_path):
    """Over 60 starts with one to four workers, of which some are killed: no epoch's probability is spent twice."""
    random = np.random.default_rng(0)
    spent = defaultdict(set)
    for _ in range(60):
        workers = int(random.integers(1, 5))
        for worker in random.permutation(np.arange(1, workers + 1)).tolist():
            watch = started(tmp_path, worker, workers)
            spent[watch._epoch].add((worker, workers))
            show(watch, int(random.integers(1, 20)))
            kill(watch) if random.random() < 0.3 else watch.close()
    assert len(spent) > 10
    for epoch, shares in spent.items():
        assert sum(1 / workers for _, workers in shares) <= 1 + 1e-9, (epoch, shares)


def test_a_folder_in_use_or_not_to_be_written_stops_nothing(tmp_path, caplog):
    """The watch goes on without keeping anything, and the log says why and what to do."""
    holder = started(tmp_path)
    show(holder, 10)
    other = started(tmp_path)
    show(other, 20)
    other.close()
    assert "expected a folder that this process can write and no other server uses" in caplog.text
    holder.close()
    assert started(tmp_path)._watch.rows == 10
    (tmp_path / "file").touch()
    assert VersionWatch(LIVE, Process(1, 1, tmp_path), tmp_path / "file")._file is None


def test_a_failed_write_is_logged(tmp_path, caplog, monkeypatch):
    """As on a full disk; what was there stays whole."""
    watch = started(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    watch.close()
    assert "No space left on device" in caplog.text
    assert started(tmp_path)._epoch == 2


def test_without_a_folder_every_process_begins_at_one():
    """As before; the probability of a false alarm is then each process's own."""
    watch = VersionWatch(LIVE, Process(1, 1, None))
    show(watch, 10)
    watch.close()
    assert (watch._epoch, watch._file) == (1, None)


def test_a_late_epoch_costs_a_few_nats():
    """Twice the logarithm of its number: 9.2 nats at epoch 100."""
    levels = [drift.alarm_level(ALPHA, 15, epoch) for epoch in (1, 100)]
    assert levels[1] - levels[0] == pytest.approx(9.21, abs=0.01)
