"""Orders from a worker to the main process: look at the store now, load a model or unload it.

A worker that gets such a request leaves `order-ID.json` in the folder of the run; the main process answers with `done-ID.json` when
all workers serve what the store asks for, as far as it can be served.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from abstain.models.files.records import write_record

KEPT_SECONDS = 60.0
"""How long an answer may wait for its reader, in seconds."""
LOOK_SECONDS = 0.05
"""The time between two looks at the answer, in seconds."""


class Order(BaseModel):
    """What an operator asked for; `look` changes nothing itself."""

    model_config = ConfigDict(frozen=True)
    kind: Literal["look", "load", "unload"]
    model: str


class Done(BaseModel):
    """The answer to an order: the number of the plan that is served."""

    model_config = ConfigDict(frozen=True)
    number: int


async def send_order(folder: Path, order: Order, seconds: float) -> Done | None:
    """Leaves an order and waits for its answer; returns None if none came in time.

    Args:
        folder: the folder of the run.
        seconds: the longest time to wait.
    """
    name = uuid.uuid4().hex
    answer = folder / f"done-{name}.json"
    write_record(folder / f"order-{name}.json", order)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError):
                return Done.model_validate_json(answer.read_bytes())
            await asyncio.sleep(LOOK_SECONDS)
        return None
    finally:
        answer.unlink(missing_ok=True)


def take_orders(folder: Path) -> Iterator[tuple[str, Order]]:
    """Takes all orders that wait, with their names."""
    for path in sorted(folder.glob("order-*.json")):
        with suppress(OSError, ValidationError):
            content = path.read_bytes()
            path.unlink()
            yield path.stem.removeprefix("order-"), Order.model_validate_json(content)


def answer_order(folder: Path, name: str, done: Done) -> None:
    """Answers an order, and removes answers that nobody has read."""
    for path in folder.glob("done-*.json"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()
    write_record(folder / f"done-{name}.json", done)
