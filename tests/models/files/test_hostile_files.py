"""Data files, configs and disks that are hostile or broken: our own error, in bounded memory and time, and nothing left."""

import errno
import gzip
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abstain.models.bundles.store import LOCK, publish, read_labels, set_label, versions
from abstain.models.errors import ConfigError, DataError, StoreError
from abstain.models.files.locks import hold
from abstain.models.files.room import DATA_BYTES, data_limit
from abstain.models.files.row_files import read_npz, read_table
from abstain.service.commands import predict_file
from abstain.training.config.reading import read_config
from abstain.training.config.requirements import memory_of_machine
from abstain.training.data.embedded import EMBEDDED
from abstain.training.fit import fit
from abstain.training.runs.journal import Journal
from abstain.training.runs.resume import FOLDER
from tests.helpers.commands import abstain
from tests.helpers.fits import silent
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE

LIMIT = 64 * 2**20
"""Of rows, in these tests."""
GROWTH = 400 * 2**20
"""Bytes that a process may grow by while it refuses them all: several times the limit, a tenth of the bombs."""
SECONDS = 10


@contextmanager
def within(seconds):
    """Fails what takes longer, such as waiting for a writer to a named pipe."""

    def late(*_):
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---- data files ------------------------------------------------------------------------------------------------------


def listen(path):
    """A socket at a path."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def npy(shape, descr="<f8", version=1, pad=""):
    """The header of an array that claims a shape."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}{pad}\n".encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text


def archive(path, **members):
    """An .npz file with these bytes as members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, content in members.items():
            file.writestr(name.replace("_npy", ".npy"), content)


def idx(path, shape, data=b"", pack=bytes):
    """An IDX file that claims a shape, in a folder of its own."""
    path.mkdir()
    content = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + data
    name = "train-images-idx3-ubyte" + (".gz" if pack is gzip.compress else "")
    (path / name).write_bytes(pack(content))


def idx_pipe(path):
    """A folder of IDX files, of which one is a pipe."""
    path.mkdir()
    os.mkfifo(path / "train-images-idx3-ubyte")


def parquet(path, **columns):
    """A table; its text columns as dictionaries and codes."""
    pq.write_table(pa.table(columns), path)


def repeated(text, rows):
    """One text, many times, in little memory."""
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array([text]))


def with_schema(path, table, schema):
    """A table; its file does not state that its text is a dictionary."""
    pq.write_table(table, path, store_schema=False)
    assert pq.read_schema(path) == schema


def csv(path, head=b"x,y\n", row=b"", times=1, tail=b""):
    """A file of one line, repeated."""
    path.write_bytes(head + row * times + tail)


MUCH = "take too much memory"
HOSTILE = {
    "pipe.npz": (os.mkfifo, "found a named pipe"),
    "pipe.csv": (os.mkfifo, "found a named pipe"),
    "pipe.parquet": (os.mkfifo, "found a named pipe"),
    "socket.csv": (listen, "found a socket"),
    "device.npz": (lambda path: path.symlink_to("/dev/zero"), "found a device"),
    "device.csv": (lambda path: path.symlink_to("/dev/zero"), "found a device"),
    "device.parquet": (lambda path: path.symlink_to("/dev/zero"), "found a device"),
    "folder.csv": (Path.mkdir, "found a folder"),
    "folder.parquet": (Path.mkdir, "found a folder"),
    "loop.csv": (lambda path: path.symlink_to(path), "cannot be read: found "),
    "pipe-idx": (idx_pipe, "found a named pipe"),
    "twice.csv": (
        lambda path: csv(path, b"x,y,x\n", b"1,a,2\n"),
        "column 'x': expected one column of that name, found 2",
    ),
    "twice-wide.csv": (
        lambda path: csv(path, b"x," * 15_000 + b"y\n"),
        "column 'x': expected one column of that name",
    ),
    "wide.csv": (lambda path: csv(path, b"x," * 300_000 + b"y\n"), MUCH),
    "twice-y.csv": (
        lambda path: csv(path, b"x,y,y\n", b"1,a,b\n"),
        "column 'y': expected one column of that name, found 2",
    ),
    "line.csv": (
        lambda path: csv(path, row=b"1" * 50_000_000, tail=b",a\n"),
        "a line is too long, or a quote is never closed",
    ),
    "header.csv": (
        lambda path: csv(path, b"x" * 20_000_000, b",y\n1,a\n"),
        "a line is too long, or a quote is never closed",
    ),
    "quote.csv": (lambda path: csv(path, row=b"1,a\n", times=10, tail=b'2,"b\n3,c\n'), "a quote is never closed"),
    "quote-first.csv": (lambda path: csv(path, row=b'1,"a\n', tail=b"2,b\n" * 6_000_000), "a quote is never closed"),
    "quote-header.csv": (lambda path: csv(path, b'x,"y\n', b"1,a\n", 10), "a quote is never closed"),
    "quote-one-column.csv": (lambda path: csv(path, b"y\n", b'"1\n', tail=b"2\n" * 9), "a quote is never closed"),
    "cells.csv": (lambda path: csv(path, b"y\n", b"1\n", 8_000_000), MUCH),
    "empty-cells.csv": (lambda path: csv(path, b"x," * 999 + b"y\n", b"," * 999 + b"\n", 10_000), "column 'x'"),
    "twice.parquet": (
        lambda path: pq.write_table(pa.Table.from_arrays([pa.array([1.0])] * 2, ["y", "y"]), path),
        "column 'y': expected one column of that name, found 2",
    ),
    "numbers.parquet": (lambda path: parquet(path, x=np.zeros(9_000_000), y=np.zeros(9_000_000)), MUCH),
    "gaps.parquet": (lambda path: parquet(path, x=pa.nulls(9_000_000), y=pa.nulls(9_000_000, pa.string())), MUCH),
    "texts.parquet": (
        lambda path: with_schema(path, pa.table({"y": repeated("a" * 2**20, 9_000)}), pa.schema([("y", pa.string())])),
        MUCH,
    ),
    "categories.parquet": (lambda path: parquet(path, y=repeated("a" * 2**20, 9_000)), MUCH),
    "zeros.npz": (lambda path: archive(path, x_npy=npy((25_000_000,)) + bytes(200_000_000), y_npy=npy((0,))), MUCH),
    "many.npz": (
        lambda path: archive(path, **{f"x{n}_npy": npy((1_000_000,)) + bytes(8_000_000) for n in range(12)}),
        MUCH,
    ),
    "no-array.npz": (lambda path: archive(path, x=bytes(100_000_000)), MUCH),
    "objects.npz": (lambda path: archive(path, x_npy=npy((2,), "|O") + b"(lp0\n."), "expected an .npz of plain arrays"),
    "negative.npz": (lambda path: archive(path, x_npy=npy((-1,)) + bytes(8)), "expected an .npz of plain arrays"),
    "two-negatives.npz": (
        lambda path: archive(path, x_npy=npy((-1, -1)) + bytes(8)),
        "expected an .npz of plain arrays",
    ),
    "overflow.npz": (
        lambda path: archive(path, x_npy=npy((2**40, 2**40))),
        "which needs 9,671,406,556,917,033,397,649,408",
    ),
    "claims.npz": (lambda path: archive(path, x_npy=npy((2**40,)) + bytes(8)), "which needs 8,796,093,022,208"),
    "less.npz": (lambda path: archive(path, x_npy=npy((1,)) + bytes(80)), "80 bytes for float64 (1,)"),
    "no-width.npz": (lambda path: archive(path, class_names_npy=npy((2**50, 0))), MUCH),
    "no-size.npz": (
        lambda path: archive(path, class_names_npy=npy((2**50,), "|V0")),
        "expected an .npz of plain arrays",
    ),
    "long-header.npz": (
        lambda path: archive(path, x_npy=npy((1,), version=2, pad=" " * 100_000_000) + bytes(8)),
        "expected an .npz of plain arrays",
    ),
    "deep-header.npz": (lambda path: archive(path, x_npy=npy("-" * 9000 + "1")), "expected an .npz of plain arrays"),
    "claims-idx": (
        lambda path: idx(path, (60_000, 28, 28), bytes(784)),
        "expected 47040000 bytes for (60000, 28, 28), found 784",
    ),
    "overflow-idx": (lambda path: idx(path, (2**32 - 1,) * 3), MUCH),
    "no-rows-idx": (lambda path: idx(path, (2**32 - 1, 2**32 - 1, 0)), MUCH),
    "more-idx": (
        lambda path: idx(path, (1, 1), bytes(200_000_000), gzip.compress),
        "expected 1 bytes for (1, 1), found more",
    ),
    "bomb-idx": (lambda path: idx(path, (200_000, 1000), bytes(200_000_000), gzip.compress), MUCH),
}

READER = """
import json, signal, sys
from pathlib import Path
from abstain.models.errors import AbstainError
from types import SimpleNamespace
from abstain.service.commands.predict_rows import read_input
from abstain.training.config.data import DataConfig
from abstain.training.data.sources import read_source
def late(*_):
    raise TimeoutError("too long")
signal.signal(signal.SIGALRM, late)
peak = lambda: 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
MODEL = SimpleNamespace(target_name="y", class_names=(), feature_names=(), preprocessing=SimpleNamespace(columns=()))
UNREAD = SimpleNamespace(model=MODEL, data=SimpleNamespace(settings={}, dialect=None))
folder, seconds = Path(sys.argv[1]), int(sys.argv[2])
doors = {"fit": lambda path: read_source(str(path), DataConfig(target="y"), classify=True), "predict": lambda path: read_input(path, UNREAD)}
for path in sorted(folder.iterdir()):
    for door, read in doors.items():
        if door == "predict" and not path.suffix:
            continue
        before, kind, message = peak(), "AbstainError", ""
        signal.alarm(seconds)
        try:
            read(path)
            kind = "read"
        except AbstainError as error:
            message = str(error)
        except BaseException as error:
            kind, message = type(error).__name__, str(error)[:300]
        signal.alarm(0)
        print(json.dumps([path.name, door, kind, message, peak() - before]), flush=True)
"""


def child(script, *arguments, timeout=PATIENCE, **environment):
    """Runs a script of ours in a process of its own; its standard output."""
    result = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **environment},
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What fit and predict say of every hostile file, read by one process."""
    folder = tmp_path_factory.mktemp("hostile") / "files"
    folder.mkdir()
    for name, (make, _) in HOSTILE.items():
        make(folder / name)
    output = child(READER, folder, SECONDS, **{DATA_BYTES: str(LIMIT)})
    shutil.rmtree(folder)
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name(answers, name):
    """By fit and by predict: our own error, which names the file and what is wrong, within seconds."""
    here = {door: (kind, message) for file, door, kind, message, _ in answers if file == name}
    assert set(here) == ({"fit", "predict"} if "." in name else {"fit"})
    for kind, message in here.values():
        assert kind == "AbstainError", message
        assert f"/{name}" in message
        assert HOSTILE[name][1] in message
        assert len(message) < 1000


def test_hostile_files_take_little_memory(answers):
    """All of them together, though each bomb would take more than that many times over."""
    grown = {f"{name} by {door}": growth for name, door, *_, growth in answers}
    assert sum(grown.values()) < GROWTH, sorted(grown.items(), key=lambda item: -item[1])[:5]


# ---- … through the command line --------------------------------------------------------------------------------------

COMMANDS = """
import contextlib, io, json, signal, sys, time
from pathlib import Path
from abstain.service.commands.cli import main
folder, store, config, seconds = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
commands = {
    "predict": lambda path: ["predict", "wave", "--data", path, "--out", f"{folder}-answers/out.csv", "--store", store],
    "evaluate": lambda path: ["evaluate", "wave", "--data", path, "--store", store],
    "fit": lambda path: ["fit", config, "--data", path, "--store", f"{folder}-store"],
}
# The others read files as predict does, or as fit in the test above, and each of their starts costs more.
strides = {"predict": 1, "evaluate": 6, "fit": 7}
def late(*_):
    raise TimeoutError("too long")
signal.signal(signal.SIGALRM, late)
def peak():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def work(arguments):
    sys.argv = ["abstain", *arguments]
    out, err = io.StringIO(), io.StringIO()
    signal.alarm(seconds)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except BaseException as error:
            code = repr(error)
    signal.alarm(0)
    return code, out.getvalue(), err.getvalue()
for name, arguments in commands.items():
    # The first imports what the command needs: it is not measured.
    work(arguments("absent.csv"))
    for path in sorted(folder.iterdir())[:: strides[name]]:
        if path.suffix or name != "predict":
            before, began = peak(), time.monotonic()
            result = work(arguments(str(path)))
            print(json.dumps([path.name, name, *result, peak() - before, time.monotonic() - began]), flush=True)
"""


@pytest.fixture(scope="module")
def hostile_files(tmp_path_factory):
    """A folder of all hostile files."""
    folder = tmp_path_factory.mktemp("commands") / "files"
    folder.mkdir()
    for name, (make, _) in HOSTILE.items():
        make(folder / name)
    yield folder
    shutil.rmtree(folder)


def test_commands_end_with_one_line_for_a_hostile_file(store, hostile_files):
    """Exit code 1, nothing on stdout, one line of ours on stderr, and neither time nor memory nor a file for it.

    One process runs the command again and again, as each start would cost seconds.
    """
    folder = hostile_files
    path = config(folder.parent, SMALL.replace('source = "sine"', 'target = "y"'))
    output = child(COMMANDS, folder, store, path, SECONDS, **{DATA_BYTES: str(LIMIT)})
    answers = [json.loads(line) for line in output.splitlines()]
    assert len({name for name, *_ in answers}) >= 40
    assert {command for _, command, *_ in answers} == {"predict", "evaluate", "fit"}
    for name, command, code, out, err, _, seconds in answers:
        assert (code, out) == (1, ""), (name, command, err)
        assert err.startswith("abstain: "), (name, command)
        assert err.index("\n") == len(err) - 1, (name, command)
        assert f"/{name}" in err
        assert HOSTILE[name][1] in err, (name, command)
        assert seconds < SECONDS
    assert sum(growth for *_, growth, _ in answers) < GROWTH
    assert sorted(path.name for path in folder.parent.iterdir()) == ["config.toml", "files"]


def test_commands_as_processes_end_with_one_line_for_a_hostile_file(store, hostile_files, tmp_path):
    """One of each, as a user starts it."""
    path = config(tmp_path, SMALL.replace('source = "sine"', 'target = "y"'))
    commands = {
        "zeros.npz": ("predict", "wave", "--store", store, "--out", tmp_path / "out.csv"),
        "texts.parquet": ("evaluate", "wave", "--store", store),
        "bomb-idx": ("fit", path, "--store", tmp_path / "store"),
    }

    def start(name):
        return abstain(*commands[name], "--data", hostile_files / name, timeout=PATIENCE, **{DATA_BYTES: str(LIMIT)})

    with ThreadPoolExecutor(len(commands)) as pool:
        for name, ended in zip(commands, pool.map(start, commands), strict=True):
            assert (ended.returncode, ended.stdout) == (1, "")
            assert ended.stderr.startswith("abstain: ")
            assert ended.stderr.index("\n") == len(ended.stderr) - 1
            assert HOSTILE[name][1] in ended.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_for_too_much_names_the_limit_and_the_fix(tmp_path, monkeypatch):
    """The bytes found, those allowed, and the setting that allows more; which then does."""
    np.savez(tmp_path / "rows.npz", x=np.zeros((1000, 10)), y=np.zeros(1000))
    monkeypatch.setenv(DATA_BYTES, "50000")
    with pytest.raises(
        DataError, match=r"expected at most 50,000 bytes, found 80,000 bytes or more; .* ABSTAIN_DATA_BYTES"
    ):
        read_npz(tmp_path / "rows.npz")
    monkeypatch.setenv(DATA_BYTES, "88000")
    assert read_npz(tmp_path / "rows.npz")["x"].shape == (1000, 10)


def test_the_limit_is_four_gigabytes_or_as_set():
    """What is no number of bytes is refused by name."""
    assert (data_limit({}), data_limit({DATA_BYTES: ""}), data_limit({DATA_BYTES: "7"})) == (2**32, 2**32, 7)
    for text in ("0", "-1", "4 GB", "1e9", "٣", "9" * 5000):
        with pytest.raises(ConfigError, match=f"environment: {DATA_BYTES}: expected a whole number of bytes above 0"):
            data_limit({DATA_BYTES: text})


def test_more_rows_than_memory_are_not_drawn():
    """An embedded data set has as many rows as requested."""
    with pytest.raises(DataError, match=r"data.calibration_size = 1000000000000: the rows to draw take too much"):
        EMBEDDED["sine"](10**12, 0.2)


def test_line_breaks_within_quotes_are_read(tmp_path):
    """In the middle of a file, and at its end."""
    path = tmp_path / "rows.csv"
    path.write_text('x,y\n1,"a\nb"\n2,"c\nd"\n')
    assert read_table(path).column("y").to_pylist() == ["a\nb", "c\nd"]


def varint(value: int, length: int = 0) -> bytes:
    """A number as Thrift's compact protocol writes it, in at least so many bytes."""
    left, found = 2 * value, []
    while left or len(found) < max(length, 1):
        found.append(left & 0x7F)
        left >>= 7
    return bytes(byte | 0x80 for byte in found[:-1]) + bytes(found[-1:])


def test_a_footer_that_states_too_little_costs_one_column(tmp_path, monkeypatch):
    """Six columns of 16 MiB in a small file whose footer states 100 bytes each: the second is the last that is decoded."""
    path = tmp_path / "rows.parquet"
    table = pa.table({f"c{index}": pa.array([b"\0" * 2**24], pa.binary()) for index in range(6)})
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    content = path.read_bytes()
    group = pq.read_metadata(path).row_group(0)
    for stated in {group.total_byte_size, *(group.column(index).total_uncompressed_size for index in range(6))}:
        honest = varint(stated)
        assert honest in content
        content = content.replace(honest, varint(100, len(honest)))
    path.write_bytes(content)
    assert pq.read_metadata(path).row_group(0).total_byte_size == 100

    decoded = []
    iter_batches = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda file, **terms: decoded.append(terms["columns"]) or iter_batches(file, **terms),
    )
    monkeypatch.setenv(DATA_BYTES, str(20_000_000))
    with pytest.raises(DataError, match=MUCH):
        read_table(path)
    assert decoded == [["c0"], ["c1"]]


def test_text_of_a_parquet_file_is_read_unchanged(tmp_path):
    """Text, gaps, long repeats, categories and numbers, over several row groups; a nested column can be dropped."""
    rows = 200_000
    table = pa.table(
        {
            "text": pa.array(["a", None, "long" * 10, ""] * (rows // 4)),
            "large": pa.array([str(n % 1000) for n in range(rows)], pa.large_string()),
            "category": pa.array(["u", "v"] * (rows // 2)).dictionary_encode(),
            "number": np.arange(rows) / 7,
        }
    )
    nested = pa.array([[1, 2]] * rows)
    pq.write_table(table.add_column(1, "nested", nested), tmp_path / "rows.parquet", row_group_size=70_000)
    found = read_table(tmp_path / "rows.parquet")
    assert found.column_names == ["text", "nested", "large", "category", "number"]
    assert found.column("nested").type == nested.type
    for name in table.column_names:
        assert found.column(name).type == table.column(name).type
        assert found.column(name).to_pylist() == table.column(name).to_pylist()


# ---- configs ---------------------------------------------------------------------------------------------------------

SMALL = """
name = "small"
likelihood = "normal"
draws = 8
[data]
source = "sine"
calibration_size = 100
test_size = 60
[network]
kind = "mlp"
hidden = [2]
[method]
kind = "map"
steps = 20
reports = 2
"""


def config(folder, text=SMALL):
    """A config file."""
    path = folder / "config.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1" + "0" * 30, "seed: expected a whole number below 9,223,372,036,854,775,808, found 1000"),
        ("seed = " + "1" * 5000, "is not TOML: found Exceeds the limit"),
        (
            "seed = 0x" + "f" * 5000,
            "seed: expected a whole number below 9,223,372,036,854,775,808, found a value of type int",
        ),
        ("[network]\nkind = 'mlp'\nhidden = [64, 1" + "0" * 30 + "]", "network.hidden: expected a whole number below"),
        (
            "[network]\nkind = 'mlp'\nhidden = [" + "1," * 50_000 + "]",
            "network.hidden: expected a tuple with at most 256",
        ),
        (
            "[method]\nkind = 'hmc'\nleapfrogs = 1000000000000",
            "method.leapfrogs: expected a number less than 2147483648",
        ),
        ("x = " + "[" * 100_000 + "]" * 100_000, "is nested too deeply: expected at most 32"),
        ("x = " + "{a = " * 5000 + "1" + "}" * 5000, "is nested too deeply: expected at most 32"),
        ("x = " + "[" * 40 + "]" * 40, "is nested too deeply: expected at most 32"),
        (".".join(["a"] * 200_000) + " = 1", "is nested too deeply: expected at most 32"),
        ("[" + ".".join(['"a"'] * 100_000) + "]", "is nested too deeply: expected at most 32"),
        ("# " + "x" * 1_000_000, "is too long: expected at most 524,288 bytes, found more"),
        (b"\xff\xfe", "is not TOML"),
    ],
    ids=range(13),
)
def test_a_hostile_config_is_refused_by_name(tmp_path, text, message):
    """Whatever it holds: the file and what is wrong, in an instant."""
    path = config(tmp_path, text if isinstance(text, bytes) else 'name = "a"\n' + text)
    with within(SECONDS), pytest.raises(ConfigError) as error:
        read_config(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=" + "1" * 5000, "--set: is not TOML"),
        ("seed=" + "[" * 5000, "--set: is nested too deeply"),
        ("a." * 5000 + "a=1", "--set: is nested too deeply"),
        ("seed=1" + "0" * 30, "seed: expected a whole number below"),
    ],
    ids=range(4),
)
def test_a_hostile_override_is_refused(tmp_path, override, message):
    """Like the file's own keys."""
    with within(SECONDS), pytest.raises(ConfigError) as error:
        read_config(config(tmp_path), (override,))
    assert message in str(error.value)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("make", "found"),
    [(os.mkfifo, "a named pipe"), (Path.mkdir, "a folder"), (lambda path: path.symlink_to("/dev/zero"), "a device")],
)
def test_a_config_that_is_no_file_is_refused(tmp_path, make, found):
    """It is not opened: a named pipe would be waited for, and a device may have no end."""
    path = tmp_path / "config.toml"
    make(path)
    with (
        within(SECONDS),
        pytest.raises(ConfigError, match=f"config.toml: cannot be read: expected a file, found {found}"),
    ):
        read_config(path)


VI = ("method={kind='vi', steps=20}",)
HMC = ("method={kind='hmc', chains=2, warmup=4, samples=8}",)


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("draws", (*VI, "draws=1000000000000")),
        ("network.hidden", (*VI, "hidden=[1000000000]", "draws=100")),
        ("network.hidden", ("hidden=[1000000, 1000000]",)),
        ("network.hidden", ("hidden=[4611686018427387904]",)),
        ("network", ("network={kind='lenet', channels=[1000000, 1000000]}",)),
        ("method.steps", ("steps=1000000000000",)),
        ("method.particles", (*VI, "method.particles=1000000000000")),
        ("method.starts", (*VI, "method.starts=1000000000000")),
        ("method.rank", (*VI, "method.family=low_rank", "method.rank=1000000000000")),
        ("method.members", ("method={kind='ensemble', members=1000000000000}",)),
        ("method.chains", (*HMC, "method.chains=1000000000000")),
        ("method.warmup", (*HMC, "method.warmup=1000000000000")),
        ("method.samples", (*HMC, "method.samples=1000000000000")),
        ("method.thin", (*HMC, "method.thin=1000000000000")),
        ("method.mass_matrix", (*HMC, "method.mass_matrix=dense", "hidden=[1000, 1000]")),
        ("method.map.steps", (*HMC, "method.start=map", "method.map.steps=1000000000000")),
    ],
)
def test_what_no_memory_holds_is_refused_before_the_fit(tmp_path, key, overrides):
    """By the key's name, with what it would need and what the machine has; no file is made."""
    settings = read_config(config(tmp_path), overrides)
    with within(SECONDS), pytest.raises(ConfigError) as error:
        fit(settings, None, tmp_path / "store", silent, report=False)
    message = str(error.value)
    assert message.startswith(f"config of small: {key}: expected a value that needs at most this machine's memory of ")
    assert f"{memory_of_machine():,} bytes" in message
    assert " or more; lower it" in message
    assert not (tmp_path / "store").exists()


# ---- disks -----------------------------------------------------------------------------------------------------------


def full(*_, **__):
    """A disk that takes no more."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*_, **__):
    """A disk that takes nothing."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def as_tensorstore(*_, **__):
    """The same from below Orbax."""
    raise ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']\nand more lines")


def seal(folder, version):
    """A manifest."""
    (folder / "manifest.json").write_text(str(version))


def left(folder):
    """All that lies in a folder but a lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK)


@pytest.mark.parametrize("fails", [full, read_only, as_tensorstore])
@pytest.mark.parametrize("stage", ["write", "seal"])
def test_a_full_disk_leaves_no_draft(tmp_path, fails, stage):
    """Publishing says where, why and what to do; the next version gets the number."""
    stages = {"write": lambda folder: (folder / "draws").mkdir(), "seal": seal, stage: fails}
    with pytest.raises(
        StoreError, match=r"toy: cannot be written: found .*(space left|Read-only).*; free space there"
    ) as error:
        publish(tmp_path, "toy", stages["write"], stages["seal"])
    assert "\n" not in str(error.value)
    assert left(tmp_path / "toy") == []
    assert publish(tmp_path, "toy", lambda folder: None, seal) == 1


ORBAX = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from abstain.models.bundles.checkpoint import write_checkpoint
from abstain.models.errors import StoreError
from abstain.models.bundles.store import publish
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
draws = {"a": np.random.default_rng(0).normal(size=200_000)}
try:
    publish(Path(sys.argv[1]), "toy", lambda folder: write_checkpoint(folder / "draws", draws), lambda folder, version: None)
except StoreError as error:
    print(error)
"""


def test_orbax_errors_of_a_disk_become_one_line(tmp_path):
    """A real checkpoint, in a process that may not write so large a file."""
    message = child(ORBAX, tmp_path)
    assert message.startswith(f"{tmp_path / 'toy'}: cannot be written: found File too large; free space there")
    assert left(tmp_path / "toy") == []


@pytest.mark.parametrize("fails", [full, read_only])
def test_labels_on_a_full_disk_stay_as_they_were(tmp_path, monkeypatch, fails):
    """The file is named, no draft of it is left, and the old labels hold."""
    for _ in range(2):
        publish(tmp_path, "toy", lambda folder: None, seal)
    set_label(tmp_path, "toy", 1, "stable")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fails)
        with pytest.raises(
            StoreError, match=r"labels.json: cannot be written: found .*; free space there or make it writable"
        ):
            set_label(tmp_path, "toy", 2, "stable")
    assert left(tmp_path / "toy") == ["1", "2", "labels.json"]
    assert read_labels(tmp_path, "toy").labels == {"stable": 1}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".npz", ".parquet"])
def test_answers_on_a_full_disk_leave_no_file(tmp_path, monkeypatch, ending):
    """What was there before stays; the error names the file."""
    out = tmp_path / f"answers{ending}"
    out.write_text("before")

    def half(columns, path):
        path.write_text("half")
        full()

    monkeypatch.setitem(predict_file._WRITERS, ending, half)
    with pytest.raises(DataError, match=rf"answers\{ending}: cannot be written: found .*No space left on device"):
        predict_file._write({"mean": [1.0]}, out)
    assert (left(tmp_path), out.read_text()) == ([out.name], "before")


def test_a_block_on_a_full_disk_names_resume(tmp_path, monkeypatch):
    """Its draft is gone, and what was written before is there."""

    def block(state, steps):
        if state >= 2:
            monkeypatch.setattr(os, "fsync", full)
        return state + steps, {"place": np.zeros(steps)}, {}

    with pytest.raises(StoreError, match=r"00002.npz: cannot be written: found .*No space left .* --resume"):
        Journal(tmp_path).run("walk", lambda: np.zeros(()), block, 4, 4)
    assert left(tmp_path / "walk") == ["00000.npz", "00001.npz", "state.npz"]
    monkeypatch.undo()
    assert (
        len(
            Journal(tmp_path)
            .run("walk", lambda: np.zeros(()), lambda s, n: (s + n, {"place": np.zeros(n)}, {}), 4, 4)
            .traces.column("place")
        )
        == 4
    )


def test_a_fit_on_a_full_disk_names_resume_and_can_be_resumed(tmp_path, monkeypatch):
    """At its very end, when the bundle is written; nothing is done twice."""
    settings, store, passages = read_config(config(tmp_path)), tmp_path / "store", []
    with monkeypatch.context() as patched:
        patched.setattr("abstain.training.publish.write_arrays", as_tensorstore)
        with pytest.raises(StoreError, match=r"small: cannot be written: found No space left .* --resume"):
            fit(settings, None, store, silent, report=False)
    assert left(store / "small") == [FOLDER]
    fit(settings, None, store, lambda done, total, passage="", **_: passages.append(passage), resume=True, report=False)
    assert "map" not in passages
    assert versions(store, "small") == [1]


# ---- locks -----------------------------------------------------------------------------------------------------------

# Linux's NFS client refuses an exclusive lock through a descriptor that cannot write; some file systems refuse all.
NFS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <unistd.h>

int flock(int descriptor, int operation)
{
    if (getenv("TEST_HAS_NO_LOCKS")) {
        errno = ENOLCK;
        return -1;
    }
    if ((operation & LOCK_EX) && (fcntl(descriptor, F_GETFL) & O_ACCMODE) == O_RDONLY) {
        errno = EBADF;
        return -1;
    }
    return (int) syscall(SYS_flock, descriptor, operation);
}
"""

WRITER = """
import sys
from pathlib import Path
from abstain.models.errors import StoreError
from abstain.models.bundles.store import publish, read_labels, rollback, set_label
from abstain.training.config.config import Config
from abstain.training.runs.resume import open_journal
store = Path(sys.argv[1])
try:
    for _ in range(2):
        version = publish(store, "toy", lambda folder: None, lambda folder, version: None)
        set_label(store, "toy", version, "stable")
    print(rollback(store, "toy"), read_labels(store, "toy").labels)
    with open_journal(store, Config(name="toy"), "", {}, None, resume=False):
        try:
            with open_journal(store, Config(name="toy"), "", {}, None, resume=True):
                print("twice")
        except StoreError as error:
            print(error)
except StoreError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def nfs(tmp_path_factory):
    """A library that makes locks behave as on NFS."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("nfs")
    (folder / "nfs.c").write_text(NFS)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "nfs.so", folder / "nfs.c"], check=True)
    return str(folder / "nfs.so")


def test_locks_hold_on_nfs(tmp_path, nfs):
    """Publishing, labelling, rolling back, and a fit that keeps another out."""
    output = child(WRITER, tmp_path, LD_PRELOAD=nfs).splitlines()
    assert output[0] == "1 {'stable': 1}"
    assert output[1].split(": ")[1].startswith("a fit with the same settings is running")
    assert len(output) == 2


def test_a_file_system_without_locks_is_reported(tmp_path, nfs):
    """The lock's file, the system's reason, and what to do."""
    (output,) = child(WRITER, tmp_path, LD_PRELOAD=nfs, TEST_HAS_NO_LOCKS="1").splitlines()
    assert output.startswith(
        f"{tmp_path / 'toy' / LOCK}: cannot be locked: found {os.strerror(errno.ENOLCK)}; mount its file"
    )


def test_a_lock_that_was_removed_while_it_was_waited_for_keeps_no_one_out(tmp_path):
    """Who holds a lock holds the file of that name: another's later lock is the same one."""
    path = tmp_path / "lock"
    with hold(path):
        path.unlink()
        with hold(path, blocking=False), pytest.raises(BlockingIOError), hold(path, blocking=False):
            pass


def test_a_lock_belongs_to_all_who_may_write_to_its_folder(tmp_path):
    """Whatever this process's umask is."""
    tmp_path.chmod(0o775)
    before = os.umask(0o077)
    try:
        with hold(tmp_path / "lock"):
            assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


LABELLER = """
import os, sys
from pathlib import Path
from abstain.models.bundles.store import set_label
sync = os.fsync
def wait(descriptor):
    print("writing", flush=True)
    sys.stdin.read()
    sync(descriptor)
os.fsync = wait
set_label(Path(sys.argv[1]), "toy", 1, "stable")
"""


def test_drafts_of_labels_are_swept_but_never_a_living_writers(tmp_path):
    """While one writes it holds the model's lock; once it is killed, its draft goes with the next label or version."""
    publish(tmp_path, "toy", lambda folder: None, seal)
    command = [sys.executable, "-c", LABELLER, str(tmp_path)]
    for sweep in (
        lambda: set_label(tmp_path, "toy", 1, "canary"),
        lambda: publish(tmp_path, "toy", lambda folder: None, seal),
    ):
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        ) as writer:
            assert writer.stdout.readline() == "writing\n"
            assert len(list((tmp_path / "toy").glob(".labels-*"))) == 1
            with pytest.raises(BlockingIOError), hold(tmp_path / "toy" / LOCK, blocking=False):
                pass
            writer.kill()
        sweep()
        assert not list((tmp_path / "toy").glob(".labels-*"))
    assert "stable" not in read_labels(tmp_path, "toy").labels


def test_what_could_not_be_served_is_refused_before_the_fit(tmp_path):
    """A small network fits into any memory, but a batch of its answers does not: no load would take the bundle."""
    settings = read_config(config(tmp_path), (*VI, "hidden=[1]", "draws=2000000"))
    with within(SECONDS), pytest.raises(ConfigError) as error:
        fit(settings, None, tmp_path / "store", silent, report=False)
    assert str(error.value).startswith(
        "config of small: draws: expected a batch that takes at most 4,294,967,296 bytes"
    )
    assert not (tmp_path / "store").exists()
