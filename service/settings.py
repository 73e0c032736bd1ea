"""What the environment says of a server; read once, at the top, and passed on."""

from __future__ import annotations

import ipaddress
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from abstain.models.errors import ConfigError
from abstain.models.networks.allowed import read_modules
from abstain.models.validation import refuse


def _own_cache() -> Path:
    """Where programs keep what they can make anew (XDG Base Directory); a user without a home has a temporary folder."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "abstain" / "compiled"
    try:
        return Path.home() / ".cache" / "abstain" / "compiled"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"abstain-{os.getuid()}" / "compiled"


def _split(value: object) -> object:
    """Names separated by commas, as the environment has them."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def _split_paths(value: object) -> object:
    """Absolute paths separated by commas; at least one, for none would mean that no signature is needed."""
    names = _split(value)
    if names == ():
        raise ValueError("paths of public keys, separated by commas")
    return tuple(Path(name).absolute() for name in cast("tuple[str, ...]", names))


def _check_network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_split_paths)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_check_network)], ...], BeforeValidator(_split)]
LOOPBACK = ("localhost", "127.0.0.1", "::1")


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
    keys: Path | None = None
    """A file of keys (`service/access/api_keys.py`), which requests then need."""
    trusted_keys: Paths = ()
    """Public keys, or folders of them: where there are any, only versions that one of them has signed are served."""
    hosts: Names = LOOPBACK
    """Names that the server answers to, separated by commas; `*` for any."""
    cors_origins: Names = ()
    """Origins of web pages that may send requests, such as https://app.example.org; separated by commas."""
    tls_cert: Path | None = None
    """A certificate in PEM, followed by those that vouch for it; the server then answers over TLS alone."""
    tls_key: Path | None = None
    """The certificate's private key."""
    proxies: Networks = ()
    """Addresses and networks of proxies whose X-Forwarded headers are believed, separated by commas."""
    oidc_issuer: str | None = None
    """An identity provider, such as https://login.example.org/, whose access tokens are taken as keys."""
    oidc_audience: str | None = None
    """For whom those tokens must be issued."""
    oidc_jwks: str | None = None
    """Where the provider's public keys are; left out, its discovery document says it."""
    oidc_claim: str = "scope"
    """The claim of a token that lists scopes."""
    insecure: bool = False
    """Whether others may reach the server although there are no keys."""
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
        raise refuse(error, ConfigError, Settings, where="environment", named=_variable) from error
    _check_together(settings)
    # Links to keys and certificates are left as they are: those who renew them let the links point elsewhere.
    absolute = {
        name: path and path.absolute() for name in ("keys", "tls_cert", "tls_key") for path in [getattr(settings, name)]
    }
    resolved = {
        "store": settings.store.resolve(),
        "state": settings.state and settings.state.resolve(),
        "compiled": settings.compiled.absolute(),
    }
    return settings.model_copy(update=resolved | absolute)


def _variable(key: str) -> str:
    """The variable of a setting, given its dotted path."""
    return f"ABSTAIN_{key.partition('.')[0]}".upper()


def _check_together(settings: Settings) -> None:
    """Refuses settings of which one means nothing without another.

    Raises:
        ConfigError: naming the variable that is missing.
    """
    for one, other in (
        ("tls_cert", "tls_key"),
        ("tls_key", "tls_cert"),
        ("oidc_issuer", "oidc_audience"),
        ("oidc_audience", "oidc_issuer"),
        ("oidc_jwks", "oidc_issuer"),
    ):
        if getattr(settings, one) and not getattr(settings, other):
            raise ConfigError(
                f"ABSTAIN_{other.upper()}",
                where="environment",
                expected=f"a value, for ABSTAIN_{one.upper()} has one",
                found="none",
            )


def check_address(settings: Settings, host: str) -> None:
    """Refuses to listen where others can ask, unless they need keys.

    Args:
        host: an address, or a name of it.

    Raises:
        ConfigError: it is not of loopback, there are no keys, and it is not said that none are wanted.
    """
    if settings.keys or settings.oidc_issuer or settings.insecure or _is_loopback(host):
        return
    raise ConfigError(
        "others could reach this server, and need no key",
        where=f"--host {host}",
        expected="an address of loopback, or keys",
        found="no ABSTAIN_KEYS",
        fix="make keys (abstain key new NAME --scope predict) and set ABSTAIN_KEYS to their file; "
        "or say that none are wanted with --insecure or ABSTAIN_INSECURE=1",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
