"""How the processes of one server swap to a new plan in one step.

The main process writes `plan-N.json` into the folder of the run, and then N as the *proposed* number into shared memory.
Every worker loads what is new beside what it serves, and answers with a note, `prepared-N-INDEX`. When all workers that accept
requests have done so, the main process writes N as the *current* number. A worker reads this number whenever it admits a
request, so a request that arrives after any worker has answered by plan N is answered by plan N.

A worker that is not ready yet may become so between the count of the notes and the write. Both happen under one lock: such a
worker prepares the proposed plan before it is ready.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from abstain.models.files.locks import hold
from abstain.models.files.records import write_record
from abstain.service.plans import Failure, Plan

NUMBERS = "numbers"
_SIZE = 8
"""Bytes of one number in shared memory."""
_CURRENT, _PROPOSED = 0, 1


class Prepared(BaseModel):
    """What a worker has prepared: the versions that it could not load, as `name:version`."""

    model_config = ConfigDict(frozen=True)
    failures: dict[str, Failure] = {}


class Numbers:
    """The numbers of the current and the proposed plan, shared by the processes of a server; 0 is none.

    Each is one aligned machine word, which other processes see whole.
    """

    def __init__(self, folder: Path, *, writer: bool = False) -> None:
        """Opens the numbers of a run.

        Args:
            folder: the folder of the run.
            writer: whether this is the main process, which makes the file and writes the numbers.
        """
        path = folder / NUMBERS
        if writer:
            path.write_bytes(bytes(2 * _SIZE))
        with path.open("r+b" if writer else "rb") as file:
            self._memory = mmap.mmap(file.fileno(), 2 * _SIZE, access=mmap.ACCESS_WRITE if writer else mmap.ACCESS_READ)
        self._words = memoryview(self._memory).cast("Q")

    @property
    def current(self) -> int:
        """The number of the plan that requests are answered by."""
        return self._words[_CURRENT]

    @current.setter
    def current(self, number: int) -> None:
        self._words[_CURRENT] = number

    @property
    def proposed(self) -> int:
        """The number of the plan that workers are to prepare."""
        return self._words[_PROPOSED]

    @proposed.setter
    def proposed(self, number: int) -> None:
        self._words[_PROPOSED] = number


def write_plan(folder: Path, plan: Plan) -> None:
    """Writes a plan for the workers."""
    write_record(_plan_path(folder, plan.number), plan)


def keep_files(folder: Path, number: int) -> None:
    """Marks the files that a new worker needs as in use: systems remove temporary files that nobody has touched for days."""
    for path in (folder / NUMBERS, _plan_path(folder, number)):
        with suppress(OSError):
            os.utime(path)


def read_plan(folder: Path, number: int) -> Plan:
    """Reads the plan with this number.

    Raises:
        OSError: it does not exist any more.
    """
    return Plan.model_validate_json(_plan_path(folder, number).read_bytes())


def remove_plans(folder: Path, before: int) -> None:
    """Removes the plans before a number, and the notes on them."""
    for path in (*folder.glob("plan-*.json"), *folder.glob("prepared-*.json")):
        if int(path.stem.split("-")[1]) < before:
            path.unlink(missing_ok=True)


def note_prepared(folder: Path, number: int, index: int | None, prepared: Prepared) -> None:
    """Notes that a worker has prepared a plan."""
    write_record(_note_path(folder, number, index), prepared)


def read_prepared(folder: Path, number: int, index: int) -> Prepared | None:
    """Reads the note of a worker on a plan; None if it has not prepared it yet."""
    try:
        return Prepared.model_validate_json(_note_path(folder, number, index).read_bytes())
    except FileNotFoundError:
        return None


@contextmanager
def lock_swap(folder: Path) -> Generator[None]:
    """Keeps workers from becoming ready while the main process counts notes and swaps, and the other way round."""
    with hold(folder / "swap.lock"):
        yield


def _plan_path(folder: Path, number: int) -> Path:
    return folder / f"plan-{number}.json"


def _note_path(folder: Path, number: int, index: int | None) -> Path:
    return folder / f"prepared-{number}-{index}.json"
