"""The settings of a server, read once from the environment."""

from __future__ import annotations

import ipaddress
import os
import re
import tempfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

from abstain.models.bundles.remote.url import RemoteURL, parse_store
from abstain.models.errors import ConfigError, printable
from abstain.models.networks.allowed import MODULES, read_modules
from abstain.models.validation import refuse


def _user_cache() -> Path:
    """Returns the user's folder for caches (XDG Base Directory); a temporary folder for a user without a home."""
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "abstain"
    try:
        return Path.home() / ".cache" / "abstain"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"abstain-{os.getuid()}"


def _split(value: object) -> object:
    """Splits names that are separated by commas."""
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def _split_paths(value: object) -> object:
    """Splits paths that are separated by commas; refuses an empty list, which would mean that no signature is needed."""
    names = _split(value)
    if names == ():
        raise ValueError("at least one path of a public key, separated by commas")
    return tuple(Path(name).absolute() for name in cast("tuple[str, ...]", names))


def _check_network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_split_paths)]
Networks = Annotated[tuple[Annotated[str, AfterValidator(_check_network)], ...], BeforeValidator(_split)]
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PREFIX = "ABSTAIN_"
_NOT_SETTINGS = (MODULES, "ABSTAIN_DATA_BYTES", "ABSTAIN_RUN_FOLDER", "ABSTAIN_IMAGE", "ABSTAIN_API_KEY")
"""Known variables that are not settings of a server: of other parts of abstain, and of `deploy/compose.yaml`."""
_OF_A_KUBERNETES_SERVICE = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT\w*|PORT(_\d+_(TCP|UDP|SCTP)\w*)?)")
"""Matches the variables that Kubernetes sets in every container for a service with a name such as "abstain"."""


class Settings(BaseModel):
    """The settings; `ABSTAIN_<NAME>` in the environment sets each of them."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    store: Annotated[Path | InstanceOf[RemoteURL], BeforeValidator(parse_store)] = Path("artifacts")
    """The folder of models, or the URL of a store elsewhere."""
    workers: PositiveInt = 1
    max_body_bytes: PositiveInt = 32 * 1024 * 1024
    max_rows: PositiveInt = 10_000
    """The limit for one request."""
    queue: PositiveInt = 256
    """How many requests of one worker may wait for a response; further requests get 429."""
    timeout_seconds: PositiveFloat = 30.0
    """How long a request may wait and be computed; a longer one gets 504."""
    grace_seconds: PositiveFloat = 30.0
    """How long running requests may take after the server has got the signal to stop."""
    devices: PositiveInt = 1
    """Devices of one worker that share every model's draws; fewer if this number does not divide the draws."""
    require_sound: bool = False
    """Whether versions with a shortfall are refused, labelled or not."""
    refresh_seconds: NonNegativeFloat = 2.0
    """The time between two looks at the store for new versions and labels; 0 looks only at the start."""
    memory_bytes: PositiveInt | None = None
    """The most bytes of arrays that one worker may hold for its versions; a version that does not fit is refused."""
    ready: Literal["any", "all"] = "any"
    """When `/readyz` is 200: if any model is served, or only if all are that the store asks for."""
    caller_header: Annotated[str, Field(pattern="^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")] | None = None
    """The header that names the caller of a request, such as X-User-Id: a caller stays on one side of a canary."""
    shadow_cpu: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """The largest share of its time that a worker computes for shadows."""
    state: Path | None = None
    """A folder that only this server uses: it keeps the state of drift detection over restarts."""
    keys: Path | None = None
    """A file of API keys (`service/access/api_keys.py`); if set, requests need one of them."""
    trusted_keys: Paths = ()
    """Public keys, or folders of them; if set, only versions that one of them has signed are served."""
    hosts: Names = LOOPBACK
    """Host names that the server accepts, separated by commas; `*` for any."""
    cors_origins: Names = ()
    """Origins of web pages that may send requests, such as https://app.example.org; separated by commas."""
    tls_cert: Path | None = None
    """A certificate in PEM, followed by its chain; the server then accepts only TLS."""
    tls_key: Path | None = None
    """The certificate's private key."""
    proxies: Networks = ()
    """Addresses and networks of trusted proxies, separated by commas; only their X-Forwarded headers are used."""
    oidc_issuer: str | None = None
    """An identity provider, such as https://login.example.org/; requests may send its access tokens as keys."""
    oidc_audience: str | None = None
    """The audience that these tokens must be issued for."""
    oidc_jwks: str | None = None
    """The URL of the provider's public keys; if not set, it is read from the provider's discovery document."""
    oidc_claim: str = "scope"
    """The claim of a token that lists scopes."""
    insecure: bool = False
    """Whether the server may listen beyond loopback without API keys."""
    quiet: bool = False
    """Whether the server prints only its log, and no progress while it starts."""
    compiled: Path = Field(default_factory=lambda: _user_cache() / "compiled")
    """A folder that only its owner may write to: it keeps compiled programs over restarts."""
    cache: Path = Field(default_factory=lambda: _user_cache() / "stores")
    """A folder for what is copied from stores elsewhere; each store has a folder of its own there."""

    @property
    def folder(self) -> Path:
        """The store as a folder: its own, or the one that mirrors it."""
        return self.store if isinstance(self.store, Path) else self.cache / self.store.folder_name


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Reads the settings from an environment; an empty variable counts as not set.

    `ABSTAIN_MODULES` is a setting of every process that loads a bundle (`models.networks.allowed`), not of a server. It is
    only checked here, so that a server does not start with an invalid one.

    Raises:
        ConfigError: names the variable.
    """
    read_modules(environ)
    variables = {name: environ.get(f"ABSTAIN_{name.upper()}") for name in Settings.model_fields}
    try:
        settings = Settings.model_validate({name: value for name, value in variables.items() if value})
    except ValidationError as error:
        raise refuse(error, ConfigError, Settings, where="environment", named=_variable) from error
    _check_together(settings)
    # Links to keys and certificates are not resolved: renewing a certificate may change the target of a link.
    absolute = {
        name: path and path.absolute() for name in ("keys", "tls_cert", "tls_key") for path in [getattr(settings, name)]
    }
    resolved = {
        "store": settings.store.resolve() if isinstance(settings.store, Path) else settings.store,
        "state": settings.state and settings.state.resolve(),
        "compiled": settings.compiled.absolute(),
        "cache": settings.cache.absolute(),
    }
    return settings.model_copy(update=resolved | absolute)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Describes every variable that begins like a setting but is none, with the nearest known name.

    They do not keep a server from starting, because another program may have set them.
    """
    known = {name.removeprefix(_PREFIX) for name in (*map(_variable, Settings.model_fields), *_NOT_SETTINGS)}
    described: list[str] = []
    for variable in sorted(environ):
        name = variable.removeprefix(_PREFIX)
        if name in {variable, *known} or _OF_A_KUBERNETES_SERVICE.fullmatch(variable):
            continue
        near = get_close_matches(name, known, n=1)  # Without the prefix, which makes all names alike.
        fix = f"; did you mean {_PREFIX}{near[0]}?" if near else ""
        described.append(printable(f"{variable}: is no setting, and has no effect{fix}"))
    return described


def _variable(key: str) -> str:
    """Returns the environment variable of a setting from its dotted path."""
    return f"ABSTAIN_{key.partition('.')[0]}".upper()


def _check_together(settings: Settings) -> None:
    """Refuses a setting that has no meaning without another one.

    Raises:
        ConfigError: names the missing variable.
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
                expected=f"a value, because ABSTAIN_{one.upper()} has one",
                found="no value",
            )


def check_address(settings: Settings, host: str) -> None:
    """Refuses to listen beyond loopback, unless requests need API keys or the settings say `insecure`.

    Args:
        host: an address or a host name.

    Raises:
        ConfigError: the host is not loopback, there are no API keys, and `insecure` is not set.
    """
    if settings.keys or settings.oidc_issuer or settings.insecure or _is_loopback(host):
        return
    raise ConfigError(
        "other machines could use this server without a key",
        where=f"--host {host}",
        expected="a loopback address, or API keys",
        found="no ABSTAIN_KEYS",
        fix="make keys (abstain key new NAME --scope predict) and set ABSTAIN_KEYS to their file; "
        "or allow access without keys with --insecure or ABSTAIN_INSECURE=1",
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
