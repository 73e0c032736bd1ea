"""The journal: fits cut off after any block, files damaged in any way, and how much memory reading them takes."""

import shutil
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstain.models.errors import ConfigError, DataError
from abstain.training.runs.journal import Journal, Traces

WIDTH = 3


def start():
    """A state of every kind of leaf: a PRNG key, arrays of JAX and of numpy, a nested tree."""
    return {"key": jax.random.key(3), "at": (jnp.zeros(WIDTH), jnp.int32(0)), "seen": np.zeros(2)}


@jax.jit
def advance(key, place):
    """One step of a random walk."""
    key, used = jax.random.split(key)
    return key, place + jax.random.normal(used, (WIDTH,))


def walk(state, steps):
    """A block of a random walk, which leaves its places and their numbers behind."""
    (place, count), key, places = state["at"], state["key"], []
    for _ in range(steps):
        key, place = advance(key, place)
        places.append(place)
    state = {"key": key, "at": (place, count + steps), "seen": state["seen"] + steps}
    trace = {"place": np.stack(places), "number": int(count) + np.arange(steps)}
    return state, trace, {"far": float(jnp.abs(place).max())}


class Stopped(Exception):
    """The exception that interrupts a fit."""


def two_passages(journal, steps=10):
    """A story of two passages, the second from where the first ended."""
    first = journal.run("first", start, walk, 6, 3)
    return first, journal.run("second", lambda: first.state, walk, steps, 4)


def plain(state):
    """A state's leaves as numpy."""
    key, rest = state["key"], [*state["at"], state["seen"]]
    return [np.asarray(leaf) for leaf in (jax.random.key_data(key), *rest)]


def assert_same(left, right):
    """States and traces are the same bits."""
    for one, other in zip(left, right, strict=True):
        for mine, yours in zip(plain(one.state), plain(other.state), strict=True):
            np.testing.assert_array_equal(mine, yours)
            assert mine.dtype == yours.dtype
        for name in ("place", "number"):
            np.testing.assert_array_equal(one.traces.column(name), other.traces.column(name))


@pytest.fixture(scope="module")
def whole():
    """Both passages, in memory and in one go."""
    return two_passages(Journal())


def test_memory_and_disk_give_the_same_bits(whole, tmp_path):
    """Saved arrays are read back unchanged; leaves keep their type."""
    calls = []

    def progress(done, total, passage="", **facts):
        calls.append(((done, total, passage), sorted(facts)))

    on_disk = two_passages(Journal(tmp_path, progress))
    assert_same(whole, on_disk)
    state = two_passages(Journal(tmp_path))[1].state
    assert jnp.issubdtype(state["key"].dtype, jax.dtypes.prng_key)
    assert isinstance(state["at"][0], jax.Array)
    assert isinstance(state["seen"], np.ndarray)
    first = [((done, 6, "first"), ["far"]) for done in (2, 4, 6)]
    assert calls == first + [((done, 10, "second"), ["far"]) for done in (3, 6, 9, 10)]


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_fit_cut_off_after_any_block_ends_the_same(whole, tmp_path, cut):
    """Stopped from progress after each of its seven blocks, even twice; what was done is not done again."""
    blocks = []

    def stop(*place, passage="", **facts):
        blocks.append(place)
        if len(blocks) == cut:
            raise Stopped

    with pytest.raises(Stopped):
        two_passages(Journal(tmp_path, stop))
    # A block may have been written without the state after it, and a file only in part: both are written again.
    folder = tmp_path / ("first" if cut <= 3 else "second")
    (folder / "00099.part").write_bytes(b"PK")
    (folder / f"{cut if cut <= 3 else cut - 3:05}.npz").write_bytes(b"cut off")
    again = []
    resumed = two_passages(Journal(tmp_path, lambda *place, **_facts: again.append(place)))
    assert_same(whole, resumed)
    assert len(again) == 7 - cut


def test_a_crash_within_a_block_leaves_the_last_one(whole, tmp_path):
    """The block that failed is run again, from the state that it started from."""

    def failing(state, steps):
        if int(state["at"][1]) == 4:
            raise Stopped
        return walk(state, steps)

    with pytest.raises(Stopped):
        Journal(tmp_path).run("first", start, failing, 6, 3)
    assert_same(whole[:1], two_passages(Journal(tmp_path))[:1])


def test_lengthening_keeps_what_was_there(whole, tmp_path):
    """The first ten steps are unchanged, and seventeen are those of seventeen in one go."""
    two_passages(Journal(tmp_path))
    calls = []
    longer = two_passages(Journal(tmp_path, lambda *place, **_facts: calls.append(place[0])), steps=17)
    for name in ("place", "number"):
        np.testing.assert_array_equal(longer[1].traces.column(name)[:10], whole[1].traces.column(name))
    assert_same(two_passages(Journal(), steps=17), longer)
    # Blocks are as long as they were.
    assert calls == [13, 16, 17]


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    """It says how many there are."""
    two_passages(Journal(tmp_path))
    with pytest.raises(ConfigError, match="expected at least 10 steps of second, which are done, found 9"):
        two_passages(Journal(tmp_path), steps=9)


# ---- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A journal on disk."""
    folder = tmp_path_factory.mktemp("kept")
    two_passages(Journal(folder))
    return folder


def flipped(content):
    """A file with a byte of its arrays' numbers changed."""
    at = content.index(b"NUMPY") + 130
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


DAMAGE = {
    "empty": lambda _content: b"",
    "one byte": lambda content: content[:1],
    "half": lambda content: content[: len(content) // 2],
    "all but the last byte": lambda content: content[:-1],
    "a changed byte": flipped,
    "zeros": lambda content: bytes(len(content)),
    "text": lambda _content: b"not arrays at all\n" * 20,
    "an array of its own": lambda content: np.lib.format.magic(1, 0) + content[content.index(b"\x93NUMPY") + 8 :],
    "a pickle": lambda _content: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["state.npz", "00001.npz"])
def test_a_damaged_file_is_named_and_what_to_do(kept, tmp_path, damage, name):
    """A state or a trace, cut or changed or replaced: the error says which file, and how to begin again."""
    folder = tmp_path / "journal"
    shutil.copytree(kept, folder)
    path = folder / "second" / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DataError) as error:
        two_passages(Journal(folder))[1].traces.column("place")
    assert str(path) in str(error.value)
    assert "fit without --resume" in str(error.value)


def test_a_trace_that_is_gone_is_named(kept, tmp_path):
    """The error is raised on reading, in either way."""
    folder = tmp_path / "journal"
    shutil.copytree(kept, folder)
    (folder / "second" / "00002.npz").unlink()
    traces = two_passages(Journal(folder))[1].traces
    for read in (lambda: traces.column("place"), lambda: traces.rows("place", np.array([0])), lambda: list(traces)):
        with pytest.raises(DataError, match=r"00002\.npz: cannot be read"):
            read()


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"leaf_00000": np.zeros(2)},
        {"size": np.array(3), "sizes": np.array([3])},
        {"size": np.array(3), "sizes": np.array([3]), **{f"leaf_{place:05}": np.zeros(7) for place in range(4)}},
    ],
)
def test_a_foreign_state_is_refused(kept, tmp_path, arrays):
    """An archive of other arrays, or of too few, is not the state of this fit."""
    folder = tmp_path / "journal"
    shutil.copytree(kept, folder)
    np.savez(folder / "second" / "state.npz", **arrays)
    with pytest.raises(DataError, match=r"state\.npz: is not the state of this fit: .*; fit without --resume"):
        two_passages(Journal(folder))


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_rows_and_columns_are_those_of_the_whole(kept, whole):
    """Rows at any ascending steps, on the blocks' borders, all or none; blocks in order."""
    for traces in (whole[1].traces, two_passages(Journal(kept))[1].traces):
        column = traces.column("place")
        assert column.shape == (10, WIDTH)
        assert traces.column("number").tolist() == list(range(6, 16))
        for steps in ([], [0], [9], [2, 3], [0, 2, 3, 5, 6, 8, 9], range(10)):
            chosen = np.array(steps, int)
            np.testing.assert_array_equal(traces.rows("place", chosen), column[chosen])
        assert [len(trace["place"]) for trace in traces] == [3, 3, 3, 1]
        # Again, because a trace is read on every access.
        assert [sorted(trace) for trace in traces] == [["number", "place"]] * 4


def test_a_long_passage_never_lies_in_memory(tmp_path):
    """Forty blocks of 1 MB are written, looked through and picked from in less than six at once."""
    wide = 131_072

    def heavy(state, steps):
        return state + steps, {"wide": np.full((steps, wide), float(state)), "narrow": np.arange(steps)}, {}

    # Compiled and loaded before: what that takes is not the journal's.
    Journal(tmp_path / "before").run("short", lambda: jnp.zeros(()), heavy, 1, 1)
    tracemalloc.start()
    traces = Journal(tmp_path).run("long", lambda: jnp.zeros(()), heavy, 40, 40).traces
    assert sum(trace["wide"][0, 0] for trace in traces) == sum(range(40))
    assert traces.rows("wide", np.array([0, 39])).shape == (2, wide)
    assert traces.column("narrow").shape == (40,)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6e6
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.npz")) > 40e6


def test_traces_hold_no_pickles(tmp_path):
    """An array of objects is not written as one that could be read."""
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        Traces([tmp_path / "objects.npz"]).column("a")
