"""Where a fit's journal is, so that a fit that was cut off can go on, and a finished one can be lengthened.

    STORE/NAME/.fits/DIGEST/       the digest is of everything that the draws depend on: config, data, package versions
    STORE/NAME/.fits/DIGEST/lock   held by the fit that writes there

Left out of the digest is what may change on resuming: the number of samples (of steps, where the learning rate is
constant), how many draws are kept, the calibration's terms, and what the fit is reported on. A published fit leaves its
journal behind where it can be lengthened, until the same model is fitted with other settings; other journals are
removed on publishing.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from abstain.models.errors import ConfigError, StoreError
from abstain.models.files.locks import disk_errors, hold
from abstain.training.config.config import Config
from abstain.training.runs.journal import Journal, Progress, write_beside

FOLDER = ".fits"
FINISHED = "finished"
LOCK = "lock"


@contextmanager
def open_journal(
    store: Path, config: Config, fingerprint: str, packages: dict[str, str], progress: Progress | None, *, resume: bool
) -> Generator[Journal]:
    """The journal of a fit, held by a lock that dies with its process.

    Args:
        fingerprint: of the data.
        resume: go on with what is there; else begin anew.

    Raises:
        ConfigError: there is nothing to resume.
        StoreError: a fit of the same settings is under way.
    """
    home = store / config.name / FOLDER
    folder = home / digest(config, fingerprint, packages)
    if resume and not (folder / "fit.json").is_file():
        others = sorted(other.name for other in home.glob("*") if (other / "fit.json").is_file())
        raise ConfigError(
            "--resume",
            where=str(folder),
            expected="a fit of these settings, data and package versions that was begun",
            found=f"fits of others: {', '.join(others)}" if others else "none",
            fix="leave --resume out to begin one",
        )
    with ExitStack() as held:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(hold(folder / LOCK, blocking=False))
            except BlockingIOError as error:
                raise StoreError(
                    "a fit of the same settings is under way", where=str(folder), fix="wait for it, or change the seed"
                ) from error
            if not resume:
                for left in folder.iterdir():
                    if left.name != LOCK:
                        shutil.rmtree(left) if left.is_dir() else left.unlink()
            (folder / FINISHED).unlink(missing_ok=True)
            terms = orjson.dumps(terms_of(config, fingerprint, packages), option=orjson.OPT_INDENT_2)
            write_beside(folder / "fit.json", lambda file: file.write(terms))
        yield Journal(folder, progress)


def close_journal(journal: Journal, *, keep: bool) -> None:
    """After publishing: keeps the journal of a fit that can be lengthened, and removes other finished ones."""
    if journal.folder is None:
        return
    # The version is published. On a full disk its journal stays as one that was cut off, which does no harm.
    with suppress(OSError):
        (journal.folder / FINISHED).touch()
    for other in journal.folder.parent.iterdir():
        if (other != journal.folder or not keep) and (other / FINISHED).is_file():
            shutil.rmtree(other, ignore_errors=True)


def digest(config: Config, fingerprint: str, packages: dict[str, str]) -> str:
    """Names the journal of a fit."""
    terms = orjson.dumps(terms_of(config, fingerprint, packages), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(terms).hexdigest()[:16]


def can_be_lengthened(config: Config) -> bool:
    """Whether more samples, or more steps, can be added to the fit."""
    return config.method.growing_key is not None


def terms_of(config: Config, fingerprint: str, packages: dict[str, str]) -> dict[str, Any]:
    """Everything that a fit's states depend on."""
    terms = config.model_dump(mode="json", exclude={"name", "draws", "calibration", "evaluation"})
    growing = config.method.growing_key
    terms["method"] = {key: value for key, value in terms["method"].items() if key != growing}
    return terms | {"data_fingerprint": fingerprint, "packages": packages}
