"""The guard: accepts or refuses a request by its host, its origin and its key, before its body is read.

    host      DNS rebinding: a foreign web page can make its own host name point to a server on loopback. The browser then sends
              that name as Host, so host names that are not this server's are refused.
    origin    browsers send the origin of the page with every POST. Other origins than this server's are refused, unless listed.
    key       if there are API keys, every route except health and the console's files needs a key with its scope, or a token
              of the identity provider, if there is one. A key may have a limit of requests per second.

Clients that are not browsers send no Origin and need not.
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
from abstain.service.responses import request_id
from abstain.service.settings import Settings

log = logging.getLogger("abstain.guard")

ANY = "*"
LOG_SECONDS = 1.0
"""The shortest time between two log lines about refused keys and tokens."""
_LOGGED = {"unknown_key": "an unknown key", "invalid_token": "an invalid token"}
"""The codes of the refusals that the log shows. The log never shows the key or the token."""
HEALTH = frozenset({"/livez", "/readyz", "/v2/health/live", "/v2/health/ready"})
"""Paths for probes of kubelets and load balancers, which have no key and use the address of the server as Host."""
SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""The defaults of every response, so that a browser never shows data as a page."""


class Guard:
    """Checks every request."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Reads the keys.

        Args:
            folder: the folder of the server's run, where its workers share the counts of requests.

        Raises:
            ConfigError: the file of keys is invalid, or the identity provider cannot be used.
        """
        self._hosts = frozenset(host.lower().strip("[]") for host in settings.hosts)
        self._origins = frozenset(settings.cors_origins)
        self._keys = KeyFile(settings.keys) if settings.keys else None
        self._provider = provider_of(settings)
        self._limits = RateLimits(folder)
        self._logged = -LOG_SECONDS

    async def check(self, scope: Scope) -> None:
        """Refuses a request that is not allowed.

        Raises:
            HTTPError: 400 for a path that is not printable, 421 for a host that is not this server's, 403 for a foreign origin or
                a key without the scope, 401 without a key or with an unknown one, 429 beyond the key's rate.
        """
        path: str = scope["path"]
        if not path.isprintable():
            # A router may treat "/predict\n" as "/predict", but `scope_of` does not: a key with scope read could then predict.
            raise HTTPError(400, where="path", expected="printable characters", found=clip_repr(path))
        if path in HEALTH:
            return
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        authorities = [value for name, value in headers if name == b"host"]
        for authority in authorities:
            self._check_host(authority)
        for name, value in headers:
            if name == b"origin":
                self._check_origin(value, authorities, scope["scheme"])
        needed = scope_of(scope["method"], path)
        if needed == "admin" and not (self._keys or self._provider):
            raise HTTPError(
                403,
                where="key",
                expected="a key with the scope admin",
                code="missing_scope",
                found="a server without keys",
                fix="start it with a file of keys (abstain serve --keys FILE), and make one with abstain key new NAME --scope admin",
            )
        if needed is not None and (self._keys or self._provider):
            try:
                caller = await self._identify(headers)
            except HTTPError as error:
                if error.code in _LOGGED:
                    self._log_refused(scope, _LOGGED[error.code])
                raise
            _check_scope(caller, needed)
            self._check_rate(caller)

    async def _identify(self, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        """Returns the holder of a request's key or token.

        Raises:
            HTTPError: 401 without a key, or with an unknown key or an invalid token; 503, the identity provider's public
                keys are not available.
        """
        secret = _key_in(headers)
        if secret is None:
            raise HTTPError(
                401,
                "",
                {"WWW-Authenticate": "Bearer"},
                where="key",
                expected="Authorization: Bearer KEY, or X-API-Key: KEY",
                code="missing_key",
                found="no key",
                fix="ask the owner of this server for a key; abstain key new makes one",
            )
        if self._provider and is_token(secret):
            return await self._provider.check_token(secret.decode("latin-1"))
        key = self._keys.current().find(secret) if self._keys else None
        if key is None:
            raise _unknown_key()
        return key.caller()

    def _log_refused(self, scope: Scope, what: str) -> None:
        """Logs a refused key or token, at most one in `LOG_SECONDS`."""
        now, client = time.monotonic(), scope.get("client")
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            # A proxy may forward any text as the client's address.
            sender = client[0] if client else "a client"
            log.warning("%.60r sent %s for %.100r (id %s)", sender, what, scope["path"], request_id(scope))

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
                expected=f"at most {caller.rate:g} requests per second with the key {caller.name}",
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
                fix="use one of these names, or add this one to the server's ABSTAIN_HOSTS",
            )

    def _check_origin(self, origin: bytes, authorities: list[bytes], scheme: str) -> None:
        text = origin.decode("latin-1")
        if text in self._origins or ANY in self._origins:
            return
        # Behind a proxy that ends TLS, pages are https and this server is http; the reverse is another site.
        downgraded = scheme == "https" and text.startswith("http://")
        if not downgraded and origin.partition(b"://")[2] in authorities:
            return
        raise HTTPError(
            403,
            where="Origin",
            expected="this server's own origin, or one in its ABSTAIN_CORS_ORIGINS",
            code="foreign_origin",
            found=repr(text[:100]),
        )


def host_of(authority: str) -> str:
    """Returns the name or address in `host:port`, in lower case, without the brackets of IPv6 or a final dot."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower().rstrip(".")


def scope_of(method: str, path: str) -> KeyScope | None:
    """Returns the scope that a path needs; None for the console's files. `check` does not call it for `HEALTH`."""
    match path.split("/"):
        case ["", ""] | ["", "console", _]:
            return None
        case ["", "metrics"]:
            return "metrics"
        case ["", "predict"]:
            return "predict"
        case ["", "v2", "models", *_, "infer"] if method == "POST":
            return "predict"
        case ["", "admin", *_] | ["", "v2", "repository", "models", _, "load" | "unload"]:
            return "admin"
        case _:
            return "read"


def _unknown_key() -> HTTPError:
    return HTTPError(
        401,
        "",
        {"WWW-Authenticate": 'Bearer error="invalid_token"'},
        where="key",
        expected="a key of this server",
        code="unknown_key",
        found="an unknown key",
        fix="get a key from the operator of the server, who makes it with abstain key new",
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
            found=f"{clip_repr(caller.name)[1:-1]}, which has {', '.join(caller.scopes) or 'no scope'}",
            fix=f"use another key, or have the operator make one with abstain key new NAME --scope {needed}",
        )


def _key_in(headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """Returns the first key in a request's headers."""
    for name, value in headers:
        if name == b"x-api-key":
            return value.strip()
        if name == b"authorization":
            scheme, _, rest = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return rest.strip()
    return None
