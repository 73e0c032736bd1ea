"""Compiled programs kept on disk, so that a restart need not compile them again.

JAX writes native code into its cache folder and later runs what it finds there: whatever it is, and whoever wrote it. Its
cache is replaced here by one that believes no entry: an entry is run only if it is a regular file that this user alone may
write, and holds, byte for byte, what was written under its name. Any other is as good as absent: the log names it, the
program is compiled again, and the entry replaced.

The digest in an entry finds bits that a disk has flipped, and writes that were cut off. It proves nothing about who wrote
the entry: for that there are the owners and modes of the folder and of the file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from pathlib import Path
from tempfile import NamedTemporaryFile

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from abstain.models.errors import AbstainError, ConfigError
from abstain.models.files.regular import open_regular, others_may_write

log = logging.getLogger("abstain.compilation")

MOST = 2**28
"""Bytes of an entry: a thousand times those of the programs that serving compiles."""
MARK = b"abstain program 1\n"
"""What an entry begins with; the SHA-256 of its key and program, then the program itself follow."""
_SUFFIX = "-cache"
"""JAX's own, so that an entry it has written itself is replaced."""
_DIGEST = hashlib.sha256().digest_size


def keep_compiled(folder: Path) -> None:
    """Lets XLA keep what it compiles in a folder, and look there first; without one it goes on, and says so."""
    if not getattr(jax.config, "jax_enable_compilation_cache", True):
        return  # as JAX_ENABLE_COMPILATION_CACHE asks
    try:
        _check(folder)
        _use(folder)
    except ConfigError as error:
        # None at all: JAX_COMPILATION_CACHE_DIR may name a folder in which nothing is checked.
        jax.config.update("jax_compilation_cache_dir", None)
        reset_cache()
        log.warning("compiled programs are not kept: %s", error)


class Programs:
    """The entries of one folder, in the form of `jax._src.compilation_cache_interface.CacheInterface`.

    Any number of processes may read and write them at once: an entry appears whole, under its name, or not at all.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder

    def get(self, key: str) -> bytes | None:
        """The program kept under a key; None where there is none, or one that must not be run."""
        path = self._entry(key)
        try:
            return read_program(path, key)
        except FileNotFoundError:
            return None
        except (AbstainError, OSError) as error:
            log.warning("a kept program is not run but compiled again: %s", _told(error, path))
            return None

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program under a key, in place of whatever has that name; where it cannot, the log says why."""
        path = self._entry(key)
        try:
            write_program(path, key, value)
        except (AbstainError, OSError) as error:
            log.warning("a compiled program is not kept: %s", _told(error, path))

    def _entry(self, key: str) -> Path:
        return self._path / f"{key}{_SUFFIX}"


def read_program(path: Path, key: str) -> bytes:
    """The program that an entry holds.

    Raises:
        ConfigError: the entry is no regular file, another user owns it or may write to it, or it is not as it was written.
        OSError: it does not exist, or cannot be read.
    """
    with open_regular(path, ConfigError) as file:
        facts = os.fstat(file.fileno())
        if is_not_ours_alone(facts):
            raise ConfigError(
                "others may have written it",
                where=str(path),
                expected=f"a file of user {os.getuid()}, which nobody else may write to",
                found=_owner_and_mode(facts),
            )
        _check_size(path, facts.st_size)
        entry = file.read(MOST)
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
    """Writes an entry under another name and then renames it, so that nobody reads half of it.

    The disk is not waited for: what a power cut leaves of an entry does not have its digest.

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


def is_not_ours_alone(facts: os.stat_result) -> bool:
    """Whether a file or a folder is another user's, or its mode lets others write to it."""
    return facts.st_uid != os.getuid() or others_may_write(facts.st_mode)


def _digest(key: str, program: bytes) -> bytes:
    """Of the key too: a program under another's name is not the one asked for."""
    named = key.encode()
    digest = hashlib.sha256(b"%d %s " % (len(named), named))
    digest.update(program)
    return digest.digest()


def _use(folder: Path) -> None:
    """Has JAX keep its programs by `Programs`, in a folder.

    JAX has no public way to give it a cache of one's own, so the function that makes its cache is replaced. Whether it
    then uses ours is checked by having it make one.

    Raises:
        ConfigError: it does not: this JAX keeps its programs in another way.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # XLA reads and writes its own caches for GPUs in the same folder without asking ours.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")

    def make_cache(path: str) -> tuple[Programs, str]:
        return Programs(Path(path)), path

    try:
        from jax._src import compilation_cache  # noqa: PLC0415 - absent in another JAX
        from jax._src.compilation_cache_interface import CacheInterface  # noqa: PLC0415 - as above

        asked = {*CacheInterface.__abstractmethods__}
        compilation_cache.get_file_cache = make_cache
        reset_cache()
        # By name: the type checker need not know what is private.
        getattr(compilation_cache, "_initialize_cache")()  # noqa: B009
        found: object = getattr(compilation_cache, "_cache")  # noqa: B009
    except Exception as error:  # whatever another JAX may raise
        raise _other_jax(f"{type(error).__name__}: {error}") from error
    if not isinstance(found, Programs) or asked != {"get", "put"}:
        raise _other_jax(f"{type(found).__name__}, with {', '.join(sorted(asked))} of it asked for")


def _other_jax(found: str) -> ConfigError:
    return ConfigError(
        "JAX's compiled programs cannot be checked",
        where=f"jax {jax.__version__}",
        expected="a cache that is made by get_file_cache and asked to get and put",
        found=found,
        fix="install the versions in requirements-serving.lock",
    )


def _check_size(path: Path, size: int) -> None:
    if size > MOST:
        raise ConfigError("is too large", where=str(path), expected=f"at most {MOST:,} bytes", found=f"{size:,}")


def _owner_and_mode(facts: os.stat_result) -> str:
    return f"owner {facts.st_uid}, mode {stat.filemode(facts.st_mode)}"


def _told(error: Exception, path: Path) -> str:
    return f"{path}: {error.strerror or error}" if isinstance(error, OSError) else str(error)


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
    if is_not_ours_alone(facts):
        raise ConfigError(
            "ABSTAIN_COMPILED",
            where=str(folder),
            expected="a folder that only its owner, this process's user, may write to: programs in it are run",
            found=_owner_and_mode(facts),
            fix="chmod go-w it, or name another",
        )
