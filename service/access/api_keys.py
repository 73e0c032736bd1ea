"""Keys: who may ask for what; a file names each key and holds its hash.

    {"keys": [{"name": "prometheus", "sha256": "9f86…", "scopes": ["metrics"], "created": "2026-01-31T12:00:00+00:00"}]}

A key is 256 random bits. Its plain SHA-256 therefore tells nothing about it: salts and slow hashes are for passwords, which
people choose and others can guess.
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

from abstain.models.errors import ConfigError
from abstain.models.files.locks import disk_errors, hold
from abstain.models.files.regular import refuse_other_writers
from abstain.models.validation import first_fault, refuse

log = logging.getLogger("abstain.keys")

KeyScope = Literal["predict", "read", "metrics", "feedback", "admin"]
SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)
"""`admin` stands for all of them."""
PREFIX = "abstain_"
LARGEST_FILE = 1024 * 1024
MOST_PER_SECOND = 1e6
"""Of a key's rate."""
CHECK_SECONDS = 1.0
"""How often a worker looks whether the file has changed."""


class Caller(NamedTuple):
    """Who sent a request, and what for: the holder of a key or of a token."""

    name: str
    scopes: tuple[KeyScope, ...]
    rate: float | None
    """Requests a second."""

    def allows(self, scope: KeyScope) -> bool:
        """Whether this caller may do it."""
        return scope in self.scopes or "admin" in self.scopes


class Key(BaseModel):
    """One key: who has it, the SHA-256 of it, and what it is for."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[KeyScope, ...], Field(min_length=1)]
    rate: Annotated[float, Field(gt=0, le=MOST_PER_SECOND, allow_inf_nan=False)] | None = None
    """Requests a second, over all workers; None sets no limit."""
    created: str = ""
    """UTC, ISO 8601; for people."""

    def caller(self) -> Caller:
        """Who has the key."""
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
        """The key that was presented, or None. How long it takes does not depend on which one, or whether any."""
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
            ConfigError: it cannot be read, others may write to it, or it is no file of keys.
        """
        self._path = path
        self._state = _state_of(path)
        self._keys = read_keys(path)
        self._checked = time.monotonic()
        self._fault: str | None = None

    def current(self) -> Keys:
        """The keys as they are now, to within `CHECK_SECONDS`; where the file has become unreadable, those it held before."""
        now = time.monotonic()
        if now - self._checked >= CHECK_SECONDS:
            self._checked = now
            try:
                state = _state_of(self._path)
                if state != self._state:
                    self._keys = read_keys(self._path)
                    # Only now: a file that could not be read is read again, also if nothing but its mode is mended.
                    self._state, self._fault = state, None
                    log.warning("%s has changed: %d keys", self._path, len(self._keys.keys))
            except ConfigError as error:
                if str(error) != self._fault:
                    log.error("the keys stay as they were: %s", error)
                self._fault = str(error)
        return self._keys


def read_keys(path: Path) -> Keys:
    """The keys in a file.

    Raises:
        ConfigError: it cannot be read, others may write to it, or it is no file of keys.
    """
    try:
        # A pipe would be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _check_file(path, os.fstat(descriptor))
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(LARGEST_FILE + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        return Keys.model_validate_json(content)
    except ValidationError as error:
        fix = "restore the file from a copy, or move it away and make every key anew"
        raise refuse(error, ConfigError, Keys, where=str(path), whole="keys", fix=fix) from error


def add_key(path: Path, name: str, scopes: tuple[KeyScope, ...], rate: float | None = None) -> str:
    """Makes a key, writes its name, hash and scopes into the file, and returns it: it is kept nowhere.

    Raises:
        ConfigError: the file cannot be written or is none of keys, the name is no name or is there, or the
            rate is none.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    with _locked(path):
        old = read_keys(path).keys if path.exists() else ()
        if name in {other.name for other in old}:
            raise ConfigError(
                "name",
                where=str(path),
                expected="a name that no key has",
                found=name,
                fix=f"take another name, or revoke that key first: abstain key revoke {name} --keys {path}",
            )
        digest = hashlib.sha256(key.encode()).hexdigest()
        try:
            new = Key(name=name, sha256=digest, scopes=scopes, rate=rate, created=created)
        except ValidationError as error:
            fault = first_fault(error, Key)
            raise ConfigError(
                fault.key,
                expected="1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit; a scope; a rate above 0",
                found=fault.found,
            ) from error
        _write(path, Keys(keys=(*old, new)))
    return key


def revoke_key(path: Path, name: str) -> None:
    """Takes a key out of the file.

    Raises:
        ConfigError: the file cannot be read or written, or has no such key.
    """
    with _locked(path):
        old = read_keys(path).keys
        left = tuple(key for key in old if key.name != name)
        if len(left) == len(old):
            known = ", ".join(key.name for key in old) or "none"
            raise ConfigError("no such key", where=str(path), expected=f"one of {known}", found=name)
        _write(path, Keys(keys=left))


def _state_of(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written or replaced."""
    try:
        facts = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return facts.st_mtime_ns, facts.st_size, facts.st_ino


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        "keys cannot be read", where=str(path), found=error.strerror, fix="make the file with abstain key new"
    )


def _check_file(path: Path, facts: os.stat_result) -> None:
    """Refuses what is no plain file of bearable size, and what others could write keys of their own into."""
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > LARGEST_FILE:
        raise ConfigError(
            "keys",
            where=str(path),
            expected=f"a file of at most {LARGEST_FILE} bytes",
            found=stat.filemode(facts.st_mode),
        )
    refuse_other_writers(path, facts.st_mode, "keys")


@contextmanager
def _locked(path: Path) -> Generator[None]:
    """Writers take turns."""
    with disk_errors(path, kind=ConfigError, what="keys cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold(path.with_name(f".{path.name}.lock")):
            yield


def _write(path: Path, keys: Keys) -> None:
    """The file exists whole, old or new. A new one its owner alone may read; an old one keeps its mode."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        draft = Path(file.name)
        try:
            file.write(orjson.dumps(keys.model_dump(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
