"""What the environment says of a server; read once, at the top, and passed on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from models.allowed import read_modules
from models.errors import ConfigError, clip_repr


def _own_cache() -> Path:
    """Where programs keep what they can make anew (XDG Base Directory); a user without a home has a temporary folder."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "abstain" / "compiled"
    try:
        return Path.home() / ".cache" / "abstain" / "compiled"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"abstain-{os.getuid()}" / "compiled"


class Settings(BaseModel):
    """`ABSTAIN_<NAME>` in the environment sets each of these."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    store: Path = Path("artifacts")
    workers: PositiveInt = 1
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    max_rows: PositiveInt = 10_000
    """Of one request."""
    queue: PositiveInt = 256
    """Requests of one worker that may wait for an answer; beyond them, 429."""
    timeout_seconds: PositiveFloat = 30.0
    """How long a request may wait and be computed; beyond it, 504."""
    grace_seconds: PositiveFloat = 30.0
    """How long requests under way may take after a server is told to stop."""
    devices: PositiveInt = 1
    """Devices of one worker to spread every model's draws over; of as many as divide them."""
    require_sound: bool = False
    """Whether versions whose fit fell short are refused, labelled or not."""
    state: Path | None = None
    """A folder of this server alone, that keeps the watch for drift from one start to the next."""
    compiled: Path = Field(default_factory=_own_cache)
    """A folder, its owner's alone, that keeps compiled programs from one start to the next."""


def read_settings(environ: Mapping[str, str]) -> Settings:
    """The settings in an environment; an empty variable is one not set.

    `ABSTAIN_MODULES` is no setting of a server, but of every process that loads a bundle (`models.allowed`): here it is
    only checked, so that a server does not start with one that will fail.

    Raises:
        ConfigError: naming the variable.
    """
    read_modules(environ)
    given = {name: environ.get(f"ABSTAIN_{name.upper()}") for name in Settings.model_fields}
    try:
        settings = Settings.model_validate({name: value for name, value in given.items() if value})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"ABSTAIN_{first['loc'][0]}".upper(),
            where="environment",
            expected=first["msg"],
            found=clip_repr(first["input"]),
        ) from error
    state = settings.state and settings.state.resolve()
    return settings.model_copy(update={"store": settings.store.resolve(), "state": state})
