"""Opens the journal of a fit, so that an interrupted fit can continue and a finished one can be lengthened.

    STORE/NAME/.fits/DIGEST/       a hash of everything that the draws depend on: config, data, package versions
    STORE/NAME/.fits/DIGEST/lock   held by the fit that writes there

The digest leaves out the settings that may change on resuming: the number of samples (or of steps, if the learning rate is
constant), the number of draws, and the settings of calibration and evaluation. A published fit that can be lengthened
keeps its journal until the same model is fitted with other settings; other journals are removed on publishing.
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
from abstain.progress import ProgressCallback
from abstain.training.config.config import Config, recorded_settings
from abstain.training.runs.journal import Journal, write_atomically

FOLDER = ".fits"
FINISHED = "finished"
LOCK = "lock"


@contextmanager
def open_journal(
    store: Path,
    config: Config,
    fingerprint: str,
    packages: dict[str, str],
    progress: ProgressCallback | None,
    *,
    resume: bool,
) -> Generator[Journal]:
    """Opens the journal of a fit, under a lock that ends with the process.

    Args:
        fingerprint: the fingerprint of the data.
        resume: whether to continue the saved fit; otherwise the fit starts again.

    Raises:
        ConfigError: there is nothing to resume.
        StoreError: a fit with the same settings is running.
    """
    home = store / config.name / FOLDER
    folder = home / digest(config, fingerprint, packages)
    if resume and not (folder / "fit.json").is_file():
        others = sorted(other.name for other in home.glob("*") if (other / "fit.json").is_file())
        raise ConfigError(
            "--resume",
            where=str(folder),
            expected="an unfinished fit with these settings, data and package versions, or one that can be lengthened",
            found=f"fits with other settings: {', '.join(others)}" if others else "no fit",
            fix="leave --resume out to start one",
        )
    with ExitStack() as stack:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(hold(folder / LOCK, blocking=False))
            except BlockingIOError as error:
                raise StoreError(
                    "a fit with the same settings is running", where=str(folder), fix="wait for it, or change the seed"
                ) from error
            if not resume:
                for leftover in folder.iterdir():
                    if leftover.name != LOCK:
                        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            (folder / FINISHED).unlink(missing_ok=True)
            settings = orjson.dumps(fit_settings(config, fingerprint, packages), option=orjson.OPT_INDENT_2)
            write_atomically(folder / "fit.json", lambda file: file.write(settings))
        yield Journal(folder, progress)


def close_journal(journal: Journal, *, keep: bool) -> None:
    """Closes a journal after publishing: keeps it if the fit can be lengthened, and removes other finished ones."""
    if journal.folder is None:
        return
    # The version is published. On a full disk its journal remains unfinished, which does no harm.
    with suppress(OSError):
        (journal.folder / FINISHED).touch()
    for other in journal.folder.parent.iterdir():
        if (other != journal.folder or not keep) and (other / FINISHED).is_file():
            shutil.rmtree(other, ignore_errors=True)


def digest(config: Config, fingerprint: str, packages: dict[str, str]) -> str:
    """Returns the name of a fit's journal: a hash of `fit_settings`."""
    settings = orjson.dumps(fit_settings(config, fingerprint, packages), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(settings).hexdigest()[:16]


def can_be_lengthened(config: Config) -> bool:
    """Whether more samples, or more steps, can be added to the fit."""
    return config.method.growing_key is not None


def fit_settings(config: Config, fingerprint: str, packages: dict[str, str]) -> dict[str, Any]:
    """Returns all settings that a fit's states depend on."""
    unused = {"name", "draws", "calibration", "evaluation"}
    settings = {key: value for key, value in recorded_settings(config).items() if key not in unused}
    growing = config.method.growing_key
    settings["method"] = {key: value for key, value in settings["method"].items() if key != growing}
    content = settings | {"data_fingerprint": fingerprint, "packages": packages}
    # An earlier abstain recorded only whether any transition of a sample diverged, from which no number can be counted.
    # So its journals of thinned chains have another digest, and are not continued.
    return content | {"divergences": "by transition"} if settings["method"].get("thin", 1) > 1 else content
