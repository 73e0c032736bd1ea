"""The guard: whether a request may be asked at all, by its host, its origin and its key; before its body is read.

    host      DNS rebinding: a web page's own name, made to mean this server's address, reaches a server on loopback; but the
              browser then sends that name as Host. Names that are not this server's are refused.
    origin    browsers say with every POST which page it is of. Pages that are not this server's are refused, unless listed.
    key       if there is a file of keys, every route but those of health and the console's files needs one with its scope.

Clients that are no browsers send no Origin, and go on as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Scope

from service import open_inference
from service.errors import HTTPError
from service.keys import KeyFile, KeyScope
from service.settings import Settings

ANY = "*"
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

    def __init__(self, settings: Settings) -> None:
        """Reads the keys.

        Raises:
            ConfigError: the file of keys is none.
        """
        self._hosts = frozenset(host.lower().strip("[]") for host in settings.hosts)
        self._origins = frozenset(settings.cors_origins)
        self._keys = KeyFile(settings.keys) if settings.keys else None

    def check(self, scope: Scope) -> None:
        """Refuses a request that may not be asked.

        Raises:
            HTTPError: 421 for a host that is not this server's, 403 for a foreign page or a key without the scope, 401 where
                there is no key or an unknown one.
        """
        path: str = scope["path"]
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
        if self._keys is not None and needed is not None:
            _check_key(self._keys, headers, needed)

    def _check_host(self, authority: bytes) -> None:
        if ANY in self._hosts:
            return
        host = host_of(authority.decode("latin-1"))
        if host not in self._hosts:
            raise HTTPError(
                421,
                "Host",
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
            "Origin",
            expected="this server's own pages, or an origin in its ABSTAIN_CORS_ORIGINS",
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
        case _:
            return "predict" if method == "POST" and open_inference.place_of(path) else "read"


def _check_key(keys: KeyFile, headers: Sequence[tuple[bytes, bytes]], needed: KeyScope) -> None:
    presented = _presented(headers)
    if presented is None:
        raise HTTPError(
            401,
            "key",
            {"WWW-Authenticate": "Bearer"},
            expected="Authorization: Bearer KEY, or X-API-Key: KEY",
            found="none",
        )
    key = keys.current().find(presented)
    if key is None:
        raise HTTPError(
            401,
            "key",
            {"WWW-Authenticate": 'Bearer error="invalid_token"'},
            expected="a key of this server",
            found="another",
        )
    if not key.allows(needed):
        raise HTTPError(
            403,
            "key",
            {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{needed}"'},
            expected=f"a key with the scope {needed}",
            found=f"{key.name}, which has {', '.join(key.scopes)}",
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
