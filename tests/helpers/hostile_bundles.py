"""Hostile bundles with correct hashes, and the error that each must be refused with.

Each is a copy of a real bundle, changed and then hashed again as an attacker would: anybody can write a SHA-256.
"""

import hashlib
import os
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
import tensorstore

from abstain.models.bundles.checkpoint import open_checkpoint, read_arrays, write_checkpoint

DRAWS, KERNEL = "draws", "network.Dense_0.kernel"


# ---- changes by an attacker -------------------------------------------------------------------------------------------


def sign(folder: Path, **changes: object) -> None:
    """Writes other values to the manifest, and hashes every regular file and the manifest itself.

    Args:
        changes: new values by dotted path, with two underscores for each dot.
    """
    path = folder / "manifest.json"
    content = orjson.loads(path.read_bytes())
    content["files"] = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.is_symlink() and file != path
    }
    for path_of_value, value in changes.items():
        *parents, last = path_of_value.split("__")
        branch = content
        for key in parents:
            branch = branch[key]
        branch[last] = value
    seal(path, content)


def seal(path: Path, content: dict[str, object]) -> None:
    """Writes a manifest with its digest."""
    option = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    digest = hashlib.sha256(orjson.dumps(content | {"digest": ""}, option=option)).hexdigest()
    path.write_bytes(orjson.dumps(content | {"digest": f"sha256:{digest}"}, option=option))


def signed(**changes: object) -> Callable[[Path], None]:
    """Returns a change that writes other values to the manifest."""
    return lambda folder: sign(folder, **changes)


def database(folder: Path) -> tensorstore.KvStore:
    """Opens a checkpoint's keys and values for writing."""
    spec = {"driver": "ocdbt", "base": f"file://{folder}/", "config": {"max_inline_value_bytes": 1024}}
    return tensorstore.KvStore.open(spec).result()


def value(key: str, make: Callable[[], bytes], part: str = DRAWS) -> Callable[[Path], None]:
    """Returns a change that writes other bytes to a key of a checkpoint; empty bytes remove the key."""

    def alter(folder: Path) -> None:
        content, keys = make(), database(folder / part)
        (
            keys.write(key, content) if content else keys.delete_range(tensorstore.KvStore.KeyRange(key, key + "\0"))
        ).result()
        sign(folder)

    return alter


def zarray(**changes: object) -> Callable[[Path], None]:
    """Returns a change of a kernel's declared shape, dtype or coding."""

    def alter(folder: Path) -> None:
        keys = database(folder / DRAWS)
        head = orjson.loads(keys.read(f"{KERNEL}/.zarray").result().value) | changes
        keys.write(f"{KERNEL}/.zarray", orjson.dumps(head)).result()
        sign(folder)

    return alter


def arrays_in(folder: Path) -> dict[str, Any]:
    """The arrays of a checkpoint."""
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return read_arrays(folder, open_checkpoint(folder, sizes))


def put_arrays(folder: Path, tree: dict[str, Any]) -> None:
    """Replaces the arrays of a checkpoint."""
    shutil.rmtree(folder)
    write_checkpoint(folder, tree)


def without_reference(folder: Path) -> None:
    """Makes a combination of scores that would rank each calibration row among all others."""
    rows = arrays_in(folder / "calibration")
    del rows["reference"]
    put_arrays(folder / "calibration", rows)
    decision = {"scores": ["entropy", "std"], "rule": "min", "weights": []}
    sign(folder, calibration__reference_rows=0, calibration__decision="combined", calibration__combination=decision)


def wide_convolutions(folder: Path) -> None:
    """Makes 300 kB of zeros that match their manifest: the first convolution of a LeNet makes 16 MiB of each row."""
    shapes = {
        "Conv_0": ((5, 5, 1, 1024), (1024,)),
        "Conv_1": ((5, 5, 1024, 1), (1,)),
        "Dense_0": ((14 * 14, 1), (1,)),
        "Dense_1": ((1, 10), (10,)),
    }
    zeros = {
        layer: {name: np.zeros((1, *shape), np.float32) for name, shape in zip(("kernel", "bias"), pair, strict=True)}
        for layer, pair in shapes.items()
    }
    put_arrays(folder / DRAWS, {"network": zeros})
    scores = ("energy", "entropy", "mutual_information", "std")
    rows = arrays_in(folder / "calibration")
    for part in ("scores", "reference"):
        rows[part] = {name: rows[part][name] for name in scores}
    rows.pop("plain", None)
    put_arrays(folder / "calibration", rows)
    shutil.rmtree(folder / "densities")
    sign(
        folder,
        draws=1,
        densities={},
        calibration__decision="std",
        calibration__combination=None,
        model__feature_shape=[64, 64],
        model__network={"kind": "lenet", "channels": [1024, 1], "hidden": [1], "activation": "relu"},
        model__preprocessing__shift=[0.0],
        model__preprocessing__scale=[1.0],
    )


def metadata(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Returns a change that replaces a text in one of Orbax's JSON files."""

    def alter(folder: Path) -> None:
        path = folder / DRAWS / file
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new))
        sign(folder)

    return alter


def bomb(mebibytes: int, head: bytes = b"") -> bytes:
    """Zeros after a head, compressed by zstd to 1/30,000 of their size."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(head)
        for _ in range(mebibytes):
            stream.write(bytes(2**20))
    return sink.getvalue().to_pybytes()


def number(value: int) -> bytes:
    """A number as in the index: 7 bits per byte, the lowest first."""
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + number(value >> 7)


def envelope(magic: str, body: bytes, compressed: int = 0) -> bytes:
    """A part of an index with its head and CRC-32C, so that TensorStore would read it."""
    content = bytes.fromhex(magic) + struct.pack("<Q", len(body) + 18) + bytes([0, compressed]) + body
    checksum = 0xFFFFFFFF
    for byte in content:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ (0x82F63B78 if checksum & 1 else 0)
    return content + struct.pack("<I", checksum ^ 0xFFFFFFFF)


def many_values(count: int) -> bytes:
    """A leaf of `count` values, each of 2²⁰ zeros: a TensorStore that opens it would allocate that memory."""
    keys = number(8) * count + b"".join(b"%08d" % index for index in range(count))
    head = number(0) + number(0) + number(count) + number(0) * (count - 1) + keys + number(2**20) * count + bytes(count)
    return envelope("0cdb20de", bomb(count, head), compressed=1)


def root(data_file: str, offset: int, length: int, height: int = 0, kind: int = 0) -> bytes:
    """A manifest.ocdbt of one version, with its tree in a data file."""
    head = bytes(16) + number(kind) + number(1024) + number(10**8) + bytes([4, 0])
    table = number(1) + number(len(data_file)) + number(0) + data_file.encode()
    location = number(0) + number(offset) + number(length)
    rest = number(1) + number(length) + number(0) + bytes(8) + number(0)
    return envelope("0cdb3a2a", head + table + number(1) + number(1) + bytes([height]) + location + rest)


def index(content: Callable[[str, int], bytes]) -> Callable[[Path], None]:
    """Returns a change of the draws' manifest.ocdbt; `content` gets the name and the size of one of their data files."""

    def alter(folder: Path) -> None:
        data_file = next((folder / DRAWS / "d").iterdir())
        (folder / DRAWS / "manifest.ocdbt").write_bytes(content(f"d/{data_file.name}", data_file.stat().st_size))
        sign(folder)

    return alter


def leaf(make: Callable[[], bytes]) -> Callable[[Path], None]:
    """Returns a change of the draws' leaf, in a data file that a new manifest.ocdbt points to."""

    def alter(folder: Path) -> None:
        content = make()
        data_file = next((folder / DRAWS / "d").iterdir())
        data_file.write_bytes(content)
        (folder / DRAWS / "manifest.ocdbt").write_bytes(root(f"d/{data_file.name}", 0, len(content)))
        sign(folder)

    return alter


def put(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Returns a change that adds or replaces a file or folder; the manifest is unchanged."""

    def alter(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.move(path, folder.parent.parent / "moved")
        else:
            path.unlink(missing_ok=True)
        make(path)

    return alter


def listen(path: Path) -> None:
    """Makes a socket by a relative path, because the path of a socket can have only 107 bytes."""
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def device(path: Path) -> None:
    """Makes a device of endless zeros; only root can."""
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root can make a device")


def sparse(path: Path) -> None:
    """Makes a file of a terabyte that needs no disk space."""
    with path.open("wb") as file:
        file.truncate(2**40)


def link_to_moved(path: Path) -> None:
    """Makes a link to the moved original."""
    path.symlink_to(path.parents[2] / "moved")


# ---- hostile bundles and their errors -------------------------------------------------------------------------------------------------

FOLDERS = {
    "an extra file": (put("notes.txt", lambda path: path.write_text("x")), "notes.txt: is not listed in the manifest"),
    "an extra file of Orbax's": (put("draws/d/0", Path.touch), "draws/d/0: is not listed in the manifest"),
    "an extra folder": (put("draws/e", Path.mkdir), "draws/e: is not listed in the manifest"),
    "an extra named pipe": (put("pipe", os.mkfifo), "pipe: is not listed in the manifest: expected only what"),
    "an extra link": (put("link", lambda path: path.symlink_to("/none")), "link: is not listed in the manifest"),
    "an extra file that commands the terminal": (put("\x1b[2J\n", Path.touch), r"/\x1b[2J\n: is not listed in the man"),
    "an extra file with a name that is no text": (
        put(os.fsdecode(b"\xff"), Path.touch),
        r"/\udcff: is not listed in the",
    ),
    "a named pipe as report": (
        put("report.html", os.mkfifo),
        "report.html: is no regular file: expected a regular file, found a named pipe",
    ),
    "a named pipe as metadata": (put("draws/_METADATA", os.mkfifo), "draws/_METADATA: is no regular file"),
    "a named pipe as manifest": (put("manifest.json", os.mkfifo), "manifest.json: is no regular file"),
    "a socket": (
        put("report.html", listen),
        "report.html: is no regular file: expected a regular file, found a socket",
    ),
    "a device": (
        put("report.html", device),
        "report.html: is no regular file: expected a regular file, found a device",
    ),
    "a link to a device": (put("report.html", lambda path: path.symlink_to("/dev/zero")), "found a symbolic link"),
    "a linked folder": (put("draws", link_to_moved), "draws: is not listed in the manifest"),
    "a linked manifest": (
        put("manifest.json", lambda path: path.symlink_to("/dev/zero")),
        "manifest.json: is no regular file",
    ),
    "a folder as report": (
        put("report.html", Path.mkdir),
        "report.html: is no regular file: expected a regular file, found a folder",
    ),
    "a folder as manifest": (put("manifest.json", Path.mkdir), "manifest.json: is no regular file"),
    "a file as folder": (put("draws", Path.touch), "draws: is not listed in the manifest"),
    "a terabyte of nothing": (put("report.html", sparse), "files: expected at most"),
    "a terabyte of arrays": (put("draws/_METADATA", sparse), "files: expected at most"),
    "a manifest without end": (put("manifest.json", sparse), "manifest.json: is too large: expected at most"),
    "no files": (signed(files={}), "manifest.json: files: expected 1 to 10,000 files, found 0"),
    "too many files": (signed(files={f"{index}": "" for index in range(10_001)}), "found 10001"),
    "a path out": (signed(files={"../1/report.html": ""}), "files: expected paths inside the bundle"),
    "a path that ends early": (
        signed(files={"report.html\0": ""}),
        r"files: expected paths inside the bundle, found report.html\x00",
    ),
    "a path too deep": (signed(files={"a/" * 5000 + "a": ""}), "files: expected paths inside the bundle"),
}

MODEL = "model__preprocessing__"
MANIFESTS = {
    "a key that commands the terminal": (
        signed(**{"\x1b[2J\n": 1}),
        r"""manifest.json: unknown key '"\x1b[2J\n"': expected""",
    ),
    "a name that is a path": (signed(name="../../etc"), "name: expected letters"),
    "another's name": (signed(name="wave"), "name and version: expected those of its folder, digits:1, found 'wave:1'"),
    "another version": (signed(version=77), "found 'digits:77'"),
    "version 0": (signed(version=0), "version: expected from 1"),
    "no draws": (signed(draws=0), "draws: expected from 1"),
    "too many draws": (signed(draws=10**12), "draws: expected from 1"),
    "more draws than there are": (signed(draws=10**4), "draws: expected 10000, found 20"),
    "negative rows": (signed(calibration__rows=-5), "calibration.rows: expected from 1"),
    "negative training rows": (signed(data__train_rows=-5), "data.train_rows: expected from 0"),
    "training rows of other classes": (signed(data__class_rows=[5, 5]), "data.class_rows: expected"),
    "percentile 0": (signed(calibration__percentile=0.0), "calibration.percentile: expected between 0 and 100"),
    "percentile 100": (signed(calibration__percentile=100.0), "calibration.percentile: expected between 0 and 100"),
    "coverage 1": (signed(calibration__coverage=1.0), "calibration.coverage: expected between 0 and 1"),
    "negative features": (signed(model__feature_shape=[-8, 8]), "model.feature_shape: expected at most 8 sizes"),
    "endless features": (signed(model__feature_shape=[2**40]), "model.feature_shape: expected at most 8 sizes"),
    "an endless layer": (signed(model__network__hidden=[2**40]), "its widest layer: expected from 1"),
    "endless layers": (
        signed(model__network__hidden=[1] * 10**5),
        "model.network.hidden: expected a tuple with at most 256 items",
    ),
    "a layer that fits nothing": (signed(model__network__hidden=[2**20, 2**20]), "expected float32 [draws, 1048576]"),
    "a layer of 4 GiB a batch": (
        signed(model__network__hidden=[2**22]),
        "the memory that a batch takes: expected at most 4,294,967,296 bytes, found '4,29",
    ),
    "answers of 50 GiB a batch": (signed(draws=10**6), "the memory that a batch takes: expected at most"),
    "distances of 16 GiB a batch": (
        signed(densities__knn__bank=[2**24, 1]),
        "the memory that a batch takes: expected at most",
    ),
    "a negative size": (signed(densities__range__low=[-64]), "densities.range.low: expected at most 8 sizes"),
    "a feature score of another shape": (
        signed(densities__range__low=[63]),
        "range.low: expected finite float32 (63,)",
    ),
    "scale 0": (signed(**{f"{MODEL}scale": [0.0]}), "model.preprocessing.scale: expected a number above 0"),
    "scale 0 in float32": (signed(**{f"{MODEL}scale": [1e-60]}), "scale: expected a number above 0 in float32"),
    "scales of others": (signed(**{f"{MODEL}scale": [1.0, 1.0]}), "scale: expected one number, or 64, found 2"),
    "target scale 0": (signed(**{f"{MODEL}target_scale": 0.0}), "target_scale: expected a number above 0"),
    "unit 0": (signed(**{f"{MODEL}origin": [0.0], f"{MODEL}unit": [0.0]}), "unit: expected a number above 0"),
    "origin without unit": (signed(**{f"{MODEL}origin": [0.0]}), "unit: expected 1 numbers, as in origin, found 0"),
}

HUGE = 2**46
"""This number of float32 values needs 256 TB."""
ARRAYS = {
    "a handler to import": (
        metadata("_CHECKPOINT_METADATA", "orbax.checkpoint._src.", "os."),
        "_CHECKPOINT_METADATA: item_handlers",
    ),
    "another type": (metadata("_METADATA", '"np.ndarray"', '"jax.Array"'), "_METADATA: tree_metadata"),
    "a type to import": (metadata("_METADATA", '"np.ndarray"', '"os.system"'), "_METADATA: tree_metadata"),
    "other keys": (metadata("_METADATA", '"key_type": 2', '"key_type": 1'), "_METADATA: tree_metadata"),
    "another format": (metadata("_METADATA", '"use_zarr3": false', '"use_zarr3": true'), "_METADATA: use_zarr3"),
    "metadata for others": (
        metadata("_METADATA", '"custom_metadata": null', '"custom_metadata": {"a": 1}'),
        "custom_metadata",
    ),
    "no JSON": (metadata("_METADATA", "{", "["), "_METADATA: "),
    "an array twice": (metadata("_METADATA", '"key": "bias"', '"key": "kernel"'), "two arrays of one name"),
    "256 TB": (zarray(shape=[HUGE, 1, 1], chunks=[HUGE, 1, 1]), "draws: arrays: expected at most"),
    "an endless chunk": (zarray(chunks=[HUGE, 64, 64]), "expected one chunk of shape"),
    "many chunks": (zarray(chunks=[1, 1, 1]), "expected one chunk of shape"),
    "another shape": (zarray(shape=[20, 64, 63], chunks=[20, 64, 63]), "kernel: expected float32 [draws, 64, 64]"),
    "a negative shape": (zarray(shape=[-20, 64, 64], chunks=[-20, 64, 64]), f"{KERNEL}: shape.0: "),
    "objects": (zarray(dtype="|O"), f"{KERNEL}: dtype: "),
    "fields": (zarray(dtype=[["a", "<f4"]]), f"{KERNEL}: dtype: "),
    "another compressor": (zarray(compressor={"id": "blosc"}), f"{KERNEL}: compressor.id: "),
    "filters": (zarray(filters=[{"id": "delta"}]), f"{KERNEL}: filters: "),
    "a fill value": (zarray(fill_value=1.0), f"{KERNEL}: fill_value: "),
    "columns first": (zarray(order="F"), f"{KERNEL}: order: "),
    "no chunk": (value(f"{KERNEL}/0.0.0", lambda: b""), f"{KERNEL}: expected its numbers in the index, found none"),
    "no shape": (value(f"{KERNEL}/.zarray", lambda: b""), f"{KERNEL}: expected its shape in the index"),
    "a long shape": (
        value(f"{KERNEL}/.zarray", lambda: b" " * 2000 + b"{}"),
        f"{KERNEL}: expected its shape in the index",
    ),
    "a key too many": (value("secret", lambda: b"x"), "a key that belongs to no array"),
    "a chunk that grows": (value(f"{KERNEL}/0.0.0", lambda: bomb(2048)), "kernel: expected 327,680 bytes, found more"),
    "a chunk too long": (
        value(f"{KERNEL}/0.0.0", lambda: bytes(2**20)),
        f"{KERNEL}: a chunk of 1,048,576 bytes for 327,680",
    ),
    "a short chunk": (value(f"{KERNEL}/0.0.0", lambda: bomb(0)), "kernel: expected 327,680 bytes, found 0"),
    "no zstd": (value(f"{KERNEL}/0.0.0", lambda: b"nonsense"), "draws: cannot be restored: found "),
    "rows that grow": (
        value("nonconformity/0", lambda: bomb(2048), "calibration"),
        "calibration: cannot be restored: found ",
    ),
    "an index that grows": (
        index(lambda _, __: envelope("0cdb3a2a", bomb(2048), compressed=1)),
        "a part of the index has more than 33,554,432 bytes",
    ),
    "an empty index": (index(lambda _, __: b""), "has a header that does not match"),
    "an index cut short": (index(lambda name, size: envelope("0cdb3a2a", bytes(10))), "the index ends too early"),
    "an index elsewhere": (
        index(lambda _, size: root("../../report.html", 0, size)),
        "that the checkpoint does not have",
    ),
    "an index of the system's": (
        index(lambda _, size: root("/etc/passwd", 0, size)),
        "that the checkpoint does not have",
    ),
    "an index beyond its file": (index(lambda name, size: root(name, 1, size)), "is beyond the end of its data file"),
    "an endless index": (index(lambda name, _: root(name, 0, 2**60)), "is beyond the end of its data file"),
    "a deep index": (index(lambda name, size: root(name, 0, size, height=200)), "found 201 levels"),
    "numbered manifests": (index(lambda name, size: root(name, 0, size, kind=1)), "the index's versions in this file"),
    "a leaf that grows": (leaf(lambda: many_values(2048)), "more than 33,554,432 bytes"),
    "a leaf of itself": (leaf(lambda: envelope("0cdb20de", bytes([5]))), "expected an index of one leaf"),
    "endless keys": (leaf(lambda: envelope("0cdb20de", bytes(2) + number(2**60))), "the index states"),
    "a key without end": (
        leaf(lambda: envelope("0cdb20de", bytes(2) + number(1) + number(2000) + bytes(2000))),
        "is too long",
    ),
    "a leaf without arrays": (
        leaf(lambda: envelope("0cdb20de", bytes(3))),
        "expected its shape in the index, found none",
    ),
}

SOUND_LOOKING = {
    "a combination without reference rows": (
        without_reference,
        "manifest.json: calibration.reference_rows: expected from 1 to",
    ),
    "convolutions that grow": (
        wide_convolutions,
        "manifest.json: model, the memory that a batch takes: expected at most 4,294,967,296 bytes, found '4,29",
    ),
}

HOSTILE = FOLDERS | MANIFESTS | ARRAYS | SOUND_LOOKING


# ---- labels ----------------------------------------------------------------------------------------------------------


def gigabyte(path: Path) -> None:
    """Makes a file of zeros that needs no disk space."""
    with path.open("wb") as file:
        file.truncate(2**30)


HOSTILE_LABELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a named pipe": (os.mkfifo, "is no regular file: expected a regular file, found a named pipe"),
    "a gigabyte of nothing": (gigabyte, "is too large: expected at most 1,048,576 bytes"),
    "a link": (
        lambda path: path.symlink_to("/etc/passwd"),
        "is no regular file: expected a regular file, found a symb",
    ),
    "a folder": (Path.mkdir, "is no regular file: expected a regular file, found a folder"),
    "garbage": (lambda path: path.write_bytes(bytes(range(256)) * 9), "is not JSON"),
    "deep": (lambda path: path.write_bytes(b"[" * 100_000), "is not JSON"),
    "no labels": (lambda path: path.write_bytes(b"[]"), "is not JSON"),
    "a version that is none": (
        lambda path: path.write_bytes(b'{"labels": {"stable": -1}}'),
        "labels.stable: expected ",
    ),
    "a version far away": (
        lambda path: path.write_bytes(b'{"labels": {"stable": 1%s}}' % (b"0" * 4000)),
        "labels.stable: expected ",
    ),
    "a label that commands the terminal": (
        lambda path: path.write_bytes(b'{"labels": {"\\u001b[2J\\n": 1}}'),
        r'labels."\x1b[2J\n": expected ',
    ),
    "many labels": (
        lambda path: path.write_bytes(orjson.dumps({"labels": {f"a{index}": index + 2 for index in range(50_000)}})),
        "labels: expected a dictionary with at most 256 items",
    ),
}
"""Hostile `labels.json` of a sound version, and the error that each must be refused with."""
