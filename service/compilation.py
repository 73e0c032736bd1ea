"""Compiled programs kept on disk, so that a restart need not compile them again."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import jax

from models.errors import ConfigError

log = logging.getLogger("abstain.compilation")


def keep_compiled(folder: Path) -> None:
    """Lets XLA keep what it compiles in a folder, and look there first; without one it goes on, and says so."""
    try:
        _check(folder)
    except ConfigError as error:
        log.warning("compiled programs are not kept: %s", error)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _check(folder: Path) -> None:
    """Makes the folder, and refuses one that others could put programs into.

    A program is found by its own text, the versions and flags of the compiler and the kind of machine; a bundle's digest
    would say less: what it fixes of a program is in its text. What lies there is run as it is, hence the folder must be
    its owner's alone.

    Raises:
        ConfigError: the folder is not the owner's, or others may write to it; or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except OSError as error:
        raise ConfigError(
            "ABSTAIN_COMPILED",
            where=str(folder),
            expected="a folder to keep compiled programs in",
            found=error.strerror or str(error),
        ) from error
    if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            "ABSTAIN_COMPILED",
            where=str(folder),
            expected="a folder that only its owner, this process's user, may write to: programs in it are run",
            found=f"owner {facts.st_uid}, mode {stat.filemode(facts.st_mode)}",
            fix="chmod go-w it, or name another",
        )
