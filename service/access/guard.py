"""The guard: whether a request may be asked at all, by its host, its origin and its key; before its body is read.

    host      DNS rebinding: a web page's own name, made to mean this server's address, reaches a server on loopback; but the
              browser then sends that name as Host. Names that are not this server's are refused.
    origin    browsers say with every POST which page it is of. Pages that are not this server's are refused, unless listed.
    key       if there are keys, every route but those of health and the console's files needs one with its scope; or a token of
              the identity provider, if there is one. A key may have a limit of requests a second.

Clients that are no browsers send no Origin, and go on as they are.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

from starlette.types import Scope

from abstain.models.errors import clip_repr
from abstain.service.access.api_keys import Caller, KeyFile, KeyScope
from abstain.service.access.oidc import is_token, provider_of
from abstain.service.access.rate_limits import RateLimits
from abstain.service.errors import HTTPError
from abstain.service.settings import Settings

log = logging.getLogger("abstain.guard")

ANY = "*"
SAY_SECONDS = 1.0
"""How often at most the log tells of unknown keys."""
HEALTH = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""For probes: of kubelets and load balancers, which have no key and call a server by its address."""
SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Of every response that has none of its own: data is never a page."""


class Guard:
    """What is asked of every request."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Reads the keys.

        Args:
            folder: of the server's run, where its workers count requests together.

        Raises:
            ConfigError: the file of keys is none, or the identity provider cannot be used.
        """
        self._hosts = frozenset(host.lower().strip("[]") for host in settings.hosts)
        self._origins = frozenset(settings.cors_origins)
        self._keys = KeyFile(settings.keys) if settings.keys else None
        self._provider = provider_of(settings)
        self._limits = RateLimits(folder)
        self._said = -SAY_SECONDS

    async def check(self, scope: Scope) -> None:
        """Refuses a request that may not be asked.

        Raises:
            HTTPError: 400 for a path that is not printable, 421 for a host that is not this server's, 403 for a foreign page or a
                key without the scope, 401 without a key or with an unknown one, 429 beyond the key's rate.
        """
        path: str = scope["path"]
        if not path.isprintable():
            # A router may take "/predict\n" for "/predict", but `scope_of` does not: a key for reading could then predict.
            raise HTTPError(400, where="path", expected="printable characters", found=clip_repr(path))
        if path in HEALTH:
            return
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        authorities = [value for name, value in headers if name == b"host"]
        for authority in authorities:
            self._check_host(authority)
        for name, value in headers:
            if name == b"origin":
                self._check_origin(value, authorities)
        needed = scope_of(scope["method"], path)
        if needed is not None and (self._keys or self._provider):
            caller = await self._caller(headers)
            if caller is None:
                self._say_unknown(scope)
                raise _unknown()
            _check_scope(caller, needed)
            self._check_rate(caller)

    async def _caller(self, headers: Sequence[tuple[bytes, bytes]]) -> Caller | None:
        """Whose key or token a request has; None if it is not known."""
        presented = _presented(headers)
        if presented is None:
            raise HTTPError(
                401,
                "",
                {"WWW-Authenticate": "Bearer"},
                where="key",
                expected="Authorization: Bearer KEY, or X-API-Key: KEY",
                code="missing_key",
                found="none",
            )
        if self._provider and is_token(presented):
            return await self._provider.caller(presented.decode("latin-1"))
        key = self._keys.current().find(presented) if self._keys else None
        return key and key.caller()

    def _say_unknown(self, scope: Scope) -> None:
        """Leaves a line in the log, not one for every guess."""
        now, client = time.monotonic(), scope.get("client")
        if now - self._said >= SAY_SECONDS:
            self._said = now
            # A proxy may pass on any text as the client's address.
            log.warning("%.60r sent an unknown key for %.100r", client[0] if client else "a client", scope["path"])

    def _check_rate(self, caller: Caller) -> None:
        if caller.rate is None:
            return
        seconds = self._limits.take(caller.name, caller.rate)
        if seconds:
            raise HTTPError(
                429,
                "",
                {"Retry-After": str(math.ceil(seconds))},
                where="rate",
                expected=f"at most {caller.rate:g} requests a second with the key {caller.name}",
                code="rate_limited",
                found="more",
            )

    def _check_host(self, authority: bytes) -> None:
        if ANY in self._hosts:
            return
        host = host_of(authority.decode("latin-1"))
        if host not in self._hosts:
            raise HTTPError(
                421,
                where="Host",
                expected=f"one of {', '.join(sorted(self._hosts))}",
                found=repr(host[:100]),
                fix="the server's ABSTAIN_HOSTS lists the names that it answers to",
            )

    def _check_origin(self, origin: bytes, authorities: list[bytes]) -> None:
        text = origin.decode("latin-1")
        if text in self._origins or ANY in self._origins or origin.partition(b"://")[2] in authorities:
            return
        raise HTTPError(
            403,
            where="Origin",
            expected="this server's own pages, or an origin in its ABSTAIN_CORS_ORIGINS",
            code="foreign_origin",
            found=repr(text[:100]),
        )


def host_of(authority: str) -> str:
    """The name or address in `host:port`, in small letters, without the brackets of IPv6 or the dot of the root."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().rstrip(".")


def scope_of(method: str, path: str) -> KeyScope | None:
    """The scope of a key that a path other than those of `HEALTH` needs; None for the console's own files, which need none."""
    match path.split("/"):
        case ["", ""] | ["", "console", _]:
            return None
        case ["", "metrics"]:
            return "metrics"
        case ["", "predict"]:
            return "predict"
        case ["", "v2", "models", *_, "infer"] if method == "POST":
            return "predict"
        case _:
            return "read"


def _unknown() -> HTTPError:
    return HTTPError(
        401,
        "",
        {"WWW-Authenticate": 'Bearer error="invalid_token"'},
        where="key",
        expected="a key of this server",
        code="unknown_key",
        found="another",
    )


def _check_scope(caller: Caller, needed: KeyScope) -> None:
    if not caller.allows(needed):
        raise HTTPError(
            403,
            "",
            {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{needed}"'},
            where="key",
            expected=f"a key with the scope {needed}",
            code="missing_scope",
            found=f"{clip_repr(caller.name)[1:-1]}, which has {', '.join(caller.scopes) or 'none'}",
        )


def _presented(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """The key in a request's headers; the first of several."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization":
            kind, _, rest = value.partition(b" ")
            if kind.lower() == b"bearer":
                return rest.strip()
    return None
