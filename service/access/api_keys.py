"""API keys: a file has the name, the hash and the scopes of each key.

    {"keys": [{"name": "prometheus", "sha256": "9f86…", "scopes": ["metrics"], "created": "2026-01-31T12:00:00+00:00"}]}

A key is 256 random bits, which cannot be guessed. So a plain SHA-256 protects it; only passwords, which people choose, need
salts and slow hashes.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from abstain.models.errors import ConfigError, suggest
from abstain.models.files.locks import disk_errors, hold
from abstain.models.files.regular import refuse_other_writers
from abstain.models.validation import first_fault, refuse

log = logging.getLogger("abstain.keys")

KeyScope = Literal["predict", "read", "metrics", "feedback", "admin"]
SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)
"""All scopes; `admin` includes the others."""
PREFIX = "abstain_"
MAX_FILE_BYTES = 1024 * 1024
MIN_RATE, MAX_RATE = 1e-6, 1e6
"""The limits of a key's rate, in requests per second."""
CHECK_SECONDS = 1.0
"""The time between two checks of a worker whether the file has changed."""
_EXPECTED = {
    "name": "1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit",
    "scopes": f"at least one of {', '.join(SCOPES)}",
    "rate": f"a number from {MIN_RATE:g} to {MAX_RATE:g}",
}


class Caller(NamedTuple):
    """The holder of a key or a token, and what it allows."""

    name: str
    scopes: tuple[KeyScope, ...]
    rate: float | None
    """The limit of requests per second; None sets no limit."""

    def allows(self, scope: KeyScope) -> bool:
        """Whether this caller has the scope."""
        return scope in self.scopes or "admin" in self.scopes


class Key(BaseModel):
    """One API key: the name of its holder, its SHA-256, and its scopes."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[KeyScope, ...], Field(min_length=1)]
    rate: Annotated[float, Field(ge=MIN_RATE, le=MAX_RATE, allow_inf_nan=False)] | None = None
    """Requests per second over all workers; None sets no limit."""
    created: str = ""
    """UTC, ISO 8601; only informative."""

    def caller(self) -> Caller:
        """Returns the holder of the key."""
        return Caller(self.name, self.scopes, self.rate)


class Keys(BaseModel):
    """All keys of a server."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    keys: tuple[Key, ...] = ()

    @model_validator(mode="after")
    def _check_names(self) -> Keys:
        names = [key.name for key in self.keys]
        if len(set(names)) < len(names):
            raise ValueError("key names must be unique")
        return self

    def find(self, presented: bytes) -> Key | None:
        """Returns the key with this secret, or None; the time does not depend on which key it is, or whether there is one."""
        digest = hashlib.sha256(presented).hexdigest()
        found = None
        for key in self.keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found


class KeyFile:
    """The keys in a file, which may change while the server runs."""

    def __init__(self, path: Path) -> None:
        """Reads the file.

        Raises:
            ConfigError: the file cannot be read, other users may write to it, or it is not a file of keys.
        """
        self._path = path
        self._state = _state_of(path)
        self._keys = read_keys(path)
        self._checked = time.monotonic()
        self._fault: str | None = None

    def current(self) -> Keys:
        """Returns the keys in the file, at most `CHECK_SECONDS` old; the last valid ones if the file is unreadable now."""
        now = time.monotonic()
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            try:
                state = _state_of(self._path)
                if state != self._state:
                    self._keys = read_keys(self._path)
                    # Set only now, so that an unreadable file is read again even if only its mode is repaired.
                    self._state, self._fault = state, None
                    log.warning("%s has changed: %d keys", self._path, len(self._keys.keys))
            except ConfigError as error:
                if str(error) != self._fault:
                    log.error("the keys are not reloaded: %s", error)
                self._fault = str(error)
        return self._keys


def read_keys(path: Path) -> Keys:
    """Reads the keys in a file.

    Raises:
        ConfigError: the file cannot be read, other users may write to it, or it is not a file of keys.
    """
    try:
        # Not blocking, because reading from a pipe would wait.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_file(path, os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(MAX_FILE_BYTES + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        return Keys.model_validate_json(content)
    except ValidationError as error:
        fix = "restore the file from a copy, or move it away and make all keys again"
        raise refuse(error, ConfigError, Keys, where=str(path), whole="keys", fix=fix) from error


def add_key(path: Path, name: str, scopes: tuple[KeyScope, ...], rate: float | None = None) -> str:
    """Makes a key, writes its name, hash and scopes to the file, and returns the key, which is stored nowhere.

    Raises:
        ConfigError: the file cannot be written or is not a file of keys, the name is invalid or in use, or the
            rate is invalid.
    """
    path = Path(os.path.realpath(path))  # A link stays a link: the server may read the file by either name.
    key = PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with _locked(path):
        old = read_keys(path).keys if path.exists() else ()
        if name in {other.name for other in old}:
            raise ConfigError(
                "name",
                where=str(path),
                expected="a name that no other key has",
                found=name,
                fix=f"choose another name, or revoke that key first: abstain key revoke {name} --keys {path}",
            )
        digest = hashlib.sha256(key.encode()).hexdigest()
        try:
            new = Key(name=name, sha256=digest, scopes=scopes, rate=rate, created=created)
        except ValidationError as error:
            fault = first_fault(error, Key)
            raise ConfigError(
                fault.key,
                expected=_EXPECTED.get(fault.key, fault.expected),
                found=fault.found,
            ) from error
        _write(path, Keys(keys=(*old, new)))
    return key


def revoke_key(path: Path, name: str) -> None:
    """Removes a key from the file.

    Raises:
        ConfigError: the file cannot be read or written, or has no key of this name.
    """
    path = Path(os.path.realpath(path))
    with _locked(path):
        old = read_keys(path).keys
        remaining = tuple(key for key in old if key.name != name)
        if len(remaining) == len(old):
            names = [key.name for key in old]
            raise ConfigError(
                "unknown key",
                where=str(path),
                expected=f"one of {', '.join(names) or 'none'}",
                found=name,
                fix=suggest(name, names),
            )
        _write(path, Keys(keys=remaining))


def _state_of(path: Path) -> tuple[int, int, int]:
    """Returns the modification time, the size and the inode, which change when a file is written or replaced."""
    try:
        facts = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        "the keys cannot be read", where=str(path), found=error.strerror, fix="make the file with abstain key new"
    )


def _check_file(path: Path, facts: os.stat_result) -> None:
    """Refuses a file that is not regular, is too large, or that other users could add keys to."""
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_FILE_BYTES:
        raise ConfigError(
            "keys",
            where=str(path),
            expected=f"a regular file of at most {MAX_FILE_BYTES} bytes",
            found=f"{stat.filemode(facts.st_mode)}, {facts.st_size} bytes",
        )
    refuse_other_writers(path, facts.st_mode, "keys")


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Locks the file, so that only one process at a time changes it."""
    with disk_errors(path, kind=ConfigError, what="the keys cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold(path.with_name(f".{path.name}.lock")):
            yield


def _write(path: Path, keys: Keys) -> None:
    """Replaces the file in one step. Only its owner may read a new file; an existing file keeps its mode and its owner.

    Raises:
        OSError: this user may not give the file its owner; a server that runs as the owner could no longer read it.
    """
    old = path.stat() if path.exists() else None
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        draft = Path(file.name)
        try:
            file.write(orjson.dumps(keys.model_dump(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            file.flush()
            if old is not None:
                os.fchown(file.fileno(), old.st_uid, old.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode) if old else 0o600)
            os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
