"""Damaged files of rows: each reader must read what is there, or refuse it with a `DataError`.

    python benchmarks/mutated_files.py --files 200

Each file is a good one with one to three random changes: bytes replaced, removed, repeated or inserted, quotes, delimiters
and line breaks inserted, the end cut off. An accepted text table must have the cells that Python's `csv` finds in the same
bytes. Parquet pages, .npz and .gz members have checksums, so an accepted file must have the original cells. An Arrow file has
none, so only its shape and its types are compared.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.ipc as arrow_ipc
import pyarrow.parquet as arrow_parquet

from abstain.models.errors import AbstainError, DataError
from abstain.models.files.row_files import read_npz, read_table
from abstain.training.config.data import DataConfig
from abstain.training.data.sources import read_source

pa: Any = pyarrow
ipc: Any = arrow_ipc
parquet: Any = arrow_parquet
DELIMITERS = ",;\t|"


class Outcome(NamedTuple):
    """What a reader did with a file: `read`, `refused`, `wrong` cells, or `crashed` with another exception."""

    kind: str
    text: str


def rows_of_text(delimiter: str = ",", mark: str = ".") -> str:
    """Returns a small table with numbers, quoted text, dates, booleans and gaps."""
    lines = [["age", "word", "when", "flag", "y"]]
    for row in range(12):
        word = f'"w{row % 3}{delimiter} x"' if row % 4 else '"say ""hi"""'
        when = f"2024-03-0{1 + row % 9}" if row % 5 else ""
        lines.append([f"{20 + row}{mark}5", word, when, ("True", "False")[row % 2], ("no", "yes")[row % 3 > 0]])
    return "".join(delimiter.join(cells) + "\n" for cells in lines)


def good_files() -> dict[str, bytes]:
    """Returns a good file of each format, by its name."""
    table = pa.table(
        {
            "age": [20.5 + row for row in range(12)],
            "word": [None if row % 5 == 0 else f"w{row % 3}" for row in range(12)],
            "count": pa.array(range(12), pa.int32()),
            "flag": [row % 2 == 0 for row in range(12)],
            "y": [("no", "yes")[row % 3 > 0] for row in range(12)],
        }
    )
    pages, stream, packed, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    parquet.write_table(table, pages, write_page_checksum=True)
    with ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    with ipc.new_file(packed, table.schema, options=ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_table(table)
    np.savez_compressed(arrays, x=np.arange(24.0).reshape(12, 2), y=np.arange(12) % 3)
    return {
        "comma.csv": rows_of_text().encode(),
        "semicolon.csv": rows_of_text(";", ",").encode(),
        "tabs.tsv": rows_of_text("\t").encode(),
        "wide.csv": rows_of_text().encode("utf-16"),
        "packed.csv.gz": gzip.compress(rows_of_text().encode(), mtime=0),
        "rows.parquet": pages.getvalue(),
        "stream.arrow": stream.getvalue(),
        "packed.arrow": packed.getvalue(),
        "rows.npz": arrays.getvalue(),
    }


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Changes a file in one to three places."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(len(changed) + 1))
        kind = int(rng.integers(7))
        if kind == 0 and place < len(changed):
            changed[place] = int(rng.integers(256))
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            del changed[place : place + int(rng.integers(1, 6))]
        elif kind == 3:
            changed[place:place] = changed[max(place - 10, 0) : place]
        elif kind == 4:
            changed[place:place] = rng.bytes(3)
        else:
            changed[place:place] = rng.choice([b'"', b",", b";", b"\t", b"|", b"\n", b"\r", b"x", b"#"])
    return bytes(changed)


def judge(path: Path, content: bytes, good: bytes) -> Outcome:
    """Reads a changed file, and compares what was read with another reader's cells.

    Args:
        path: where to write it.
        content: the changed file.
        good: the file before the changes.
    """
    path.write_bytes(content)
    try:
        if path.suffix == ".npz":
            found: Any = {name: array.tolist() for name, array in read_npz(path).items()}
        else:
            found = cells_of(read_table(path))
    except DataError as error:
        return Outcome("refused", str(error))
    except Exception as error:  # every other exception is a fault
        return Outcome("crashed", f"{type(error).__name__}: {error}")
    for likelihood in (True, False):
        try:
            read_source(str(path), DataConfig(target=None if path.suffix == ".npz" else "y"), classify=likelihood)
        except AbstainError:
            pass
        except Exception as error:
            return Outcome("crashed", f"{type(error).__name__}: {error}")
    return Outcome("read" if is_right(path, content, good, found) else "wrong", str(found)[:200])


def cells_of(table: Any) -> list[list[str]]:
    """Returns the names and the cells of a table as text, without blanks at their ends; missing values as empty text."""
    columns = [
        [cell or "" for cell in table.column(place).cast(pa.string()).to_pylist()] for place in range(len(table.schema))
    ]
    rows = list(zip(*columns, strict=True))
    return [[cell.strip() for cell in row] for row in [table.column_names, *rows]]


def is_right(path: Path, content: bytes, good: bytes, found: Any) -> bool:
    """Whether a reader's cells are those of the file."""
    if path.suffix == ".npz":
        path.write_bytes(good)
        original = read_npz(path)
        return all(original[name].tolist() == values for name, values in found.items() if name in original)
    if path.suffix in {".parquet", ".gz"}:
        path.write_bytes(good)
        return found == cells_of(read_table(path))
    if path.suffix == ".arrow":
        return len({len(row) for row in found}) == 1
    text = content.decode("utf-16" if path.name == "wide.csv" else "utf-8-sig")
    return any(found == cells_by_csv(text, delimiter) for delimiter in DELIMITERS)


def cells_by_csv(text: str, delimiter: str) -> list[list[str]] | None:
    """Returns the cells that Python's csv module finds; None if it refuses the text."""
    try:
        lines = [cells for cells in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if cells]
    except csv.Error:
        return None
    if delimiter == ";":
        lines = [[with_point(cell) for cell in cells] for cells in lines[:1]] + [
            [with_point(cell) for cell in cells] for cells in lines[1:]
        ]
    return [[cell.strip() for cell in cells] for cells in lines]


def with_point(cell: str) -> str:
    """Replaces the decimal comma of a number."""
    whole, comma, rest = cell.strip().partition(",")
    return f"{whole}.{rest}" if comma and whole.lstrip("+-").isdigit() and rest.isdigit() else cell


def run(files: int, folder: Path, report: Callable[[str, Counter[str], list[str]], None]) -> None:
    """Judges changed files of each format, and reports the counts of their outcomes and the first faults."""
    for name, good in good_files().items():
        counts, faults = Counter[str](), list[str]()
        for seed in range(files):
            outcome = judge(folder / name, mutate(good, np.random.default_rng([seed, len(name)])), good)
            counts[outcome.kind] += 1
            if outcome.kind in {"wrong", "crashed"}:
                faults.append(f"seed {seed}: {outcome.kind}: {outcome.text}")
        report(name, counts, faults)


def main() -> None:
    """Prints the outcomes of each format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200)
    options = parser.parse_args()

    def report(name: str, counts: Counter[str], faults: list[str]) -> None:
        print(
            f"{name:16}", *(f"{kind} {counts[kind]:5}" for kind in ("read", "refused", "wrong", "crashed")), flush=True
        )
        for fault in faults[:5]:
            print(f"    {fault}")

    with tempfile.TemporaryDirectory() as folder:
        run(options.files, Path(folder), report)


if __name__ == "__main__":
    main()
