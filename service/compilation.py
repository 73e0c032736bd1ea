"""A checked cache of compiled programs on disk, so that a restarted server need not compile them again.

JAX writes native code into its cache folder and later runs it without any check. This cache replaces that of JAX. It returns
an entry only if it is a regular file that no other user can write, and if its content is exactly what was written under its
name. Any other entry counts as missing: the log names it, the program is compiled again, and the entry is replaced.

The digest of an entry detects flipped bits and incomplete writes. It does not show who wrote the entry; the owners and modes
of the folder and the file do.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from pathlib import Path
from tempfile import NamedTemporaryFile

import jax

from abstain.models.errors import AbstainError, ConfigError
from abstain.models.files.regular import open_regular, others_may_write
from abstain.service.compat.jax import use_cache, use_no_cache

log = logging.getLogger("abstain.compilation")

MAX_ENTRY_BYTES = 2**28
"""Largest size of an entry: a thousand times that of the programs that serving compiles."""
MARK = b"abstain program 1\n"
"""The first bytes of an entry. The SHA-256 of its key and program follows, then the program."""
_SUFFIX = "-cache"
"""The suffix that JAX uses, so that an entry written by JAX is replaced."""
_DIGEST = hashlib.sha256().digest_size


def keep_compiled(folder: Path) -> None:
    """Keeps compiled programs in a folder and uses those in it; if the folder cannot be used, logs a warning and keeps none."""
    if not getattr(jax.config, "jax_enable_compilation_cache", True):
        return  # JAX_ENABLE_COMPILATION_CACHE is off
    try:
        _check(folder)
        use_cache(Programs(folder), folder)
    except ConfigError as error:
        # JAX_COMPILATION_CACHE_DIR may name a folder in which nothing is checked.
        use_no_cache()
        log.warning("compiled programs are not kept: %s", error)


class Programs:
    """The entries of one folder, with the methods of `service.compat.jax.ProgramCache`.

    Several processes may read and write them at the same time: an entry is either complete or absent.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder

    def get(self, key: str) -> bytes | None:
        """Returns the program of this key; None if there is no entry, or if it must not be run."""
        path = self._entry(key)
        try:
            return read_program(path, key)
        except FileNotFoundError:
            return None
        except (AbstainError, OSError) as error:
            log.warning("a kept program is not run but compiled again: %s", _describe(error, path))
            return None

    def put(self, key: str, value: bytes) -> None:
        """Writes a program under a key, and replaces an earlier entry; if this fails, logs the reason."""
        path = self._entry(key)
        try:
            write_program(path, key, value)
        except (AbstainError, OSError) as error:
            log.warning("a compiled program is not kept: %s", _describe(error, path))

    def _entry(self, key: str) -> Path:
        return self._path / f"{key}{_SUFFIX}"


def read_program(path: Path, key: str) -> bytes:
    """Reads and checks the program in an entry.

    Raises:
        ConfigError: the entry is not a regular file, another user owns it or may write to it, or its content was altered.
        OSError: it does not exist, or cannot be read.
    """
    with open_regular(path, ConfigError) as file:
        facts = os.fstat(file.fileno())
        if others_may_change(facts):
            raise ConfigError(
                "others may have written it",
                where=str(path),
                expected=f"a file of user {os.getuid()}, that no other user may write to",
                found=_owner_and_mode(facts),
            )
        _check_size(path, facts.st_size)
        entry = file.read(MAX_ENTRY_BYTES)
    if not entry.startswith(MARK):
        raise ConfigError(
            "is not one of abstain's programs",
            where=str(path),
            expected=f"{MARK!r} at its beginning",
            found=repr(entry[: len(MARK)]) if entry else "an empty file",
        )
    digest, program = entry[len(MARK) : len(MARK) + _DIGEST], entry[len(MARK) + _DIGEST :]
    expected = _digest(key, program)
    if digest != expected:
        raise ConfigError(
            "is not as it was written", where=str(path), expected=f"SHA-256 {digest.hex()}", found=expected.hex()
        )
    return program


def write_program(path: Path, key: str, program: bytes) -> None:
    """Writes an entry under another name and then renames it, so that no process reads an incomplete one.

    There is no fsync: if a power cut damages an entry, its digest does not match.

    Raises:
        ConfigError: the entry would be too large to be read again.
        OSError: it cannot be written, or a folder has its name.
    """
    parts = (MARK, _digest(key, program), program)
    _check_size(path, sum(map(len, parts)))
    with NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as file:
        draft = Path(file.name)
        try:
            file.writelines(parts)
            file.close()
            draft.replace(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise


def others_may_change(facts: os.stat_result) -> bool:
    """Whether a file or a folder belongs to another user, or its mode lets other users write to it."""
    return facts.st_uid != os.getuid() or others_may_write(facts.st_mode)


def _digest(key: str, program: bytes) -> bytes:
    """Returns the SHA-256 of key and program, so that a program copied to the name of another key is detected."""
    named = key.encode()
    digest = hashlib.sha256(b"%d %s " % (len(named), named))
    digest.update(program)
    return digest.digest()


def _check_size(path: Path, size: int) -> None:
    if size > MAX_ENTRY_BYTES:
        raise ConfigError(
            "is too large", where=str(path), expected=f"at most {MAX_ENTRY_BYTES:,} bytes", found=f"{size:,}"
        )


def _owner_and_mode(facts: os.stat_result) -> str:
    return f"owner {facts.st_uid}, mode {stat.filemode(facts.st_mode)}"


def _describe(error: Exception, path: Path) -> str:
    return f"{path}: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def _check(folder: Path) -> None:
    """Makes the folder, and refuses one that other users could put programs into.

    JAX finds a program by its source, the versions and flags of the compiler and the kind of machine.

    Raises:
        ConfigError: the folder belongs to another user, others may write to it, or it cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except OSError as error:
        raise ConfigError(
            "ABSTAIN_COMPILED",
            where=str(folder),
            expected="a folder for compiled programs",
            found=error.strerror or str(error),
        ) from error
    if others_may_change(facts):
        raise ConfigError(
            "ABSTAIN_COMPILED",
            where=str(folder),
            expected="a folder that only this process's user owns and may write to, because programs in it are run",
            found=_owner_and_mode(facts),
            fix="run chmod go-w on it, or choose another folder",
        )
