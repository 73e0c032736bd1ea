"""Fits small models, and makes folders that all processes of a test run share."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from abstain.models.prediction.posterior import Draws
from abstain.training.config.config import Config
from abstain.training.fit import build_model, build_problem, infer, load_dataset
from abstain.training.runs.journal import Journal


def silent(done: int, total: int, passage: str = "", **facts: float) -> None:
    """Reports no progress."""


def draws_of_config(config: Config) -> Draws:
    """The draws that a fit of the config would publish, without the stages after inference."""
    dataset = load_dataset(config, None)
    problem = build_problem(config, build_model(config, dataset), dataset)
    return infer(config, problem, Journal()).posterior.draws


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Copies a folder that `make` fills; the first process of the run that needs it makes it, and the others wait."""
    own = tmp_path_factory.getbasetemp()
    # Each process of pytest-xdist has its folder inside that of the run.
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    made = shared / f"{name}-made-once"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            draft = shared / f"{name}-{os.getpid()}"
            make(draft)
            draft.rename(made)
    return Path(shutil.copytree(made, tmp_path_factory.mktemp(name) / name))
