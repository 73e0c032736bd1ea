"""The state of drift detection over restarts: the epoch always, the whole state after a clean stop, for any contents on disk."""

import logging
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from abstain.models.bundles.bundle import Bundle
from abstain.models.decisions import drift
from abstain.models.decisions.records import Calibration, Judgement
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.service.live import Live
from abstain.service.monitoring.drift import ALPHA, VersionWatch
from abstain.service.monitoring.drift_state import SavedWatch, StateFile
from abstain.service.process import Process
from tests.helpers.records import stand_in

SCORES = ("entropy", "std")
CALIBRATION = {name: np.random.default_rng(index).exponential(size=200) for index, name in enumerate(SCORES)}
DIGEST = "sha256:" + "ab" * 32
MODEL = Model(network=MLPSpec(hidden=()), likelihood="categorical", feature_shape=(2,), class_names=("a", "b"))
LIVE = stand_in(
    Live,
    name="kept",
    version=1,
    bundle=stand_in(
        Bundle,
        calibration=Calibration(scores=CALIBRATION, nonconformity=np.zeros(200)),
        manifest=SimpleNamespace(digest=DIGEST, model=MODEL),
    ),
)


def start(state, worker=1, workers=1):
    """Starts a worker's watch."""
    return VersionWatch(LIVE, Process(worker, workers, state), state)


def add_rows(watch, rows, factor=1.0, seed=0):
    """Adds rows to the watch."""
    random = np.random.default_rng(seed)
    values = {name: SimpleNamespace(value=factor * random.exponential(size=rows)) for name in SCORES}
    for _ in watch.add([Judgement(99.0, 0.95, "std", np.zeros(rows, bool), values, {}, {}, [], None, None)]):
        pass


def kill(watch):
    """Does what the system does when it kills a process: releases its locks and writes nothing."""
    watch._file.close()


def files(state, workers=1):
    """The names of the state files, without locks."""
    return sorted(path.name for path in state.rglob(f"of-{workers}/*") if path.suffix != ".lock")


def test_a_clean_stop_loses_nothing(tmp_path):
    """The next process has the same ranks, bets, rows and window, and continues with them."""
    first = start(tmp_path)
    add_rows(first, 1_200)
    first.close()
    second = start(tmp_path)
    assert (second._epoch, second._watch.rows) == (1, 1_200)
    for before, after in zip(first._watch[:3], second._watch[:3], strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(first._window, second._window)
    add_rows(second, 100)
    assert second._watch.rows == 1_300


def test_a_killed_worker_is_followed_by_the_next_epoch(tmp_path):
    """Also if it continued after a clean stop: the rows since then are not counted twice."""
    kill(start(tmp_path))
    watch = start(tmp_path)
    add_rows(watch, 50)
    watch.close()
    again = start(tmp_path)
    assert (again._epoch, again._watch.rows) == (2, 50)
    kill(again)
    assert (start(tmp_path)._epoch, files(tmp_path)) == (3, ["worker-1.epoch-3.npz"])


def test_the_start_of_an_epoch_is_saved(tmp_path, monkeypatch):
    """A worker that is killed in the second epoch continues with the third."""
    monkeypatch.setattr(drift, "EPOCH", 2_000)
    watch = start(tmp_path)
    add_rows(watch, 2_001)
    kill(watch)
    assert start(tmp_path)._epoch == 3


def test_an_alarm_is_saved(tmp_path):
    """The worker that replaces a killed one reports the same time of the alarm."""
    watch = start(tmp_path)
    add_rows(watch, 1_000, factor=4)
    crossed = watch._crossed
    assert (crossed > 0).all()
    kill(watch)
    np.testing.assert_allclose(start(tmp_path)._crossed, crossed, atol=60)


def test_each_worker_has_its_own_file(tmp_path):
    """Each of two workers has half of the probability, and neither changes the other's file."""
    watches = [start(tmp_path, worker, 2) for worker in (1, 2)]
    for rows, watch in zip((100, 300), watches, strict=True):
        add_rows(watch, rows, seed=rows)
        watch.close()
    assert files(tmp_path, 2) == ["worker-1.epoch-1.npz", "worker-2.epoch-1.npz"]
    again = [start(tmp_path, worker, 2) for worker in (1, 2)]
    assert [watch._watch.rows for watch in again] == [100, 300]
    assert again[0]._streams == 2 * len(SCORES)


def set_bit(content: bytes, place: int, bit: int) -> bytes:
    """The bytes with one bit set."""
    return content[:place] + bytes([content[place] | 1 << bit]) + content[place + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _content: b"",
        lambda content: content[: len(content) // 2],
        lambda _content: b"\x80\x04K\x01.",
        lambda content: content.replace(b"counts.npy", b"cuonts.npy"),
        lambda _content: bytes(2_000),
        lambda content: set_bit(content, content.index(b"PK\x01\x02") + 8, 0),
        lambda content: set_bit(content, content.index(b"PK\x01\x02") + 10, 6),
    ],
    ids=["empty", "truncated", "a pickle", "another record", "zeros", "encrypted", "another compression"],
)
def test_a_damaged_file_is_renamed(tmp_path, caplog, spoil):
    """Its epoch is in its name: the next one starts, and the log reports it; nothing is unpickled."""
    watch = start(tmp_path)
    add_rows(watch, 100)
    watch.close()
    [path] = tmp_path.rglob("worker-1.epoch-1.npz")
    path.write_bytes(spoil(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        after = start(tmp_path)
    assert "worker-1.epoch-1.npz is damaged" in caplog.text
    assert (after._epoch, after._watch.rows) == (2, 0)
    assert files(tmp_path) == ["worker-1.epoch-1.damaged", "worker-1.epoch-2.npz"]


def test_arrays_that_do_not_match_are_damaged(tmp_path):
    """In a readable file: impossible counts, values out of order, or values of another number of rows."""
    watch = start(tmp_path)
    add_rows(watch, 1_500)
    whole = SavedWatch(1, watch._crossed, watch._watch, watch._window)
    kill(watch)
    wrong = (
        whole.watch._replace(counts=whole.watch.counts + 1),
        whole.watch._replace(begun=whole.watch.begun[:1]),
        whole.watch._replace(begun=whole.watch.begun + 10_000),
        whole.watch._replace(ranked=tuple(values[::-1] for values in whole.watch.ranked)),
        whole.watch._replace(ranked=tuple(values[:-1] for values in whole.watch.ranked)),
    )
    for epoch, changed in enumerate(wrong, start=2):
        file = StateFile(tmp_path, DIGEST, 1, 1)
        file.save(whole._replace(epoch=epoch, watch=changed))
        loaded = file.load(len(SCORES), 200)
        assert (loaded.epoch, loaded.watch) == (epoch + 1, None)
        file.close()
    file = StateFile(tmp_path, DIGEST, 1, 1)
    file.save(whole._replace(epoch=99))
    assert file.load(len(SCORES), 200).watch.rows == 1_500
    assert file.load(len(SCORES), 201).watch is None


def test_the_shares_of_an_epoch_never_exceed_the_whole(tmp_path):
    """In 60 starts with one to four workers, some of them killed, no epoch's probability is used twice."""
    random = np.random.default_rng(0)
    spent = defaultdict(set)
    for _ in range(60):
        workers = int(random.integers(1, 5))
        for worker in random.permutation(np.arange(1, workers + 1)).tolist():
            watch = start(tmp_path, worker, workers)
            spent[watch._epoch].add((worker, workers))
            add_rows(watch, int(random.integers(1, 20)))
            kill(watch) if random.random() < 0.3 else watch.close()
    assert len(spent) > 10
    for epoch, shares in spent.items():
        assert sum(1 / workers for _, workers in shares) <= 1 + 1e-9, (epoch, shares)


def test_without_a_usable_folder_the_watch_works_but_is_not_saved(tmp_path, caplog):
    """If the folder is in use or cannot be written; the log gives the reason and the fix."""
    holder = start(tmp_path)
    add_rows(holder, 10)
    other = start(tmp_path)
    add_rows(other, 20)
    other.close()
    assert "expected a folder that this process can write to and no other server uses" in caplog.text
    holder.close()
    assert start(tmp_path)._watch.rows == 10
    (tmp_path / "file").touch()
    assert VersionWatch(LIVE, Process(1, 1, tmp_path), tmp_path / "file")._file is None


def test_a_failed_write_is_logged(tmp_path, caplog, monkeypatch):
    """For example on a full disk; the old file is unchanged."""
    watch = start(tmp_path)
    monkeypatch.setattr("os.fsync", lambda _descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    watch.close()
    assert "No space left on device" in caplog.text
    assert start(tmp_path)._epoch == 2


def test_without_a_folder_every_process_starts_at_epoch_one(tmp_path):
    """Each process then has the whole probability of a false alarm."""
    watch = VersionWatch(LIVE, Process(1, 1, tmp_path))
    add_rows(watch, 10)
    watch.close()
    assert (watch._epoch, watch._file) == (1, None)


def test_a_late_epoch_costs_a_few_nats():
    """Twice the logarithm of its number: 9.2 nats at epoch 100."""
    levels = [drift.alarm_level(ALPHA, 15, epoch) for epoch in (1, 100)]
    assert levels[1] - levels[0] == pytest.approx(9.21, abs=0.01)
