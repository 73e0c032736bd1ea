"""Access tokens of an identity provider (OpenID Connect), taken in place of keys.

A token is a JWT (RFC 7519) that the provider has signed. It must be issued by `ABSTAIN_OIDC_ISSUER` for
`ABSTAIN_OIDC_AUDIENCE`, be valid now, and list scopes in `ABSTAIN_OIDC_CLAIM`, as a list or as words (RFC 9068).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel

from abstain.models.errors import ConfigError, clip_repr, printable
from abstain.service.access.api_keys import SCOPES, Caller, KeyScope
from abstain.service.errors import HTTPError
from abstain.service.settings import Settings

if TYPE_CHECKING:
    import jwt

log = logging.getLogger("abstain.oidc")

T = TypeVar("T")

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Those with a public key. With the others whoever can check a token can make one."""
KEYS_SECONDS = 600.0
"""How long the provider's public keys are used before they are asked for again."""
UNKNOWN_SECONDS = 30.0
"""How often at most they are asked for again because a token names a key that is not among them."""
RETRY_SECONDS = 5.0
"""How long a provider that does not answer is left alone, as long as none of its keys are known."""
ANSWER_SECONDS = 10.0
"""How long the provider has for a whole answer, and a request waits for it."""
CLOCK_SECONDS = 30.0
"""By how much the provider's clock may differ from this machine's."""
DOCUMENT_BYTES = 1024 * 1024
"""Of an answer of the provider."""


class Provider:
    """An identity provider: its public keys, and what its tokens allow.

    A token of a known key is checked at once, whether or not the provider answers. Keys are fetched in the background, by one
    thread at a time; only a token of an unknown key waits for that.
    """

    def __init__(self, issuer: str, audience: str, jwks: str | None, claim: str) -> None:
        """Asks the provider nothing yet: a server starts also while its provider is away.

        Raises:
            ConfigError: a URL is not https, or `abstain[oidc]` is not installed.
        """
        _import_jwt()
        for name, url in (("ABSTAIN_OIDC_ISSUER", issuer), ("ABSTAIN_OIDC_JWKS", jwks)):
            if url is not None:
                _check_url(name, url)
        self._issuer = issuer
        self._audience = audience
        self._jwks = jwks
        self._claim = claim
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched = self._tried = -math.inf
        self._fetching: Future[dict[str, jwt.PyJWK] | Exception] | None = None

    async def caller(self, token: str) -> Caller:
        """Who sent a token, and what it allows.

        Raises:
            HTTPError: 401, the token is not valid; 503, the provider's keys cannot be had.
        """
        jwt = _import_jwt()
        try:
            # Which key it names is believed for now: a wrong one does not fit the signature.
            name = jwt.get_unverified_header(token).get("kid", "")
            key = await self._key(name)
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=CLOCK_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.InvalidTokenError, jwt.PyJWKError) as error:
            raise HTTPError(
                401,
                "",
                {"WWW-Authenticate": 'Bearer error="invalid_token"'},
                where="token",
                expected=f"a token of {self._issuer} for {self._audience} that is valid now",
                code="invalid_token",
                found=str(error)[:200],
            ) from error
        return Caller(claims["sub"], scopes_in(claims.get(self._claim)), None)

    async def _key(self, name: str) -> jwt.PyJWK:
        """The provider's key of a name.

        Raises:
            PyJWKError: it has none of that name.
            HTTPError: 503, no key of it is known.
        """
        now = time.monotonic()
        if now - self._fetched > KEYS_SECONDS or name not in self._keys:
            self._begin_fetch(now)
        if name not in self._keys and self._fetching is not None:
            # The others that wait are not disturbed by one that gives up.
            await asyncio.wait([asyncio.wrap_future(self._fetching)], timeout=ANSWER_SECONDS)
            self._take_fetched()
        if not self._keys:
            raise HTTPError(
                503,
                "",
                {"Retry-After": str(int(RETRY_SECONDS))},
                where="token",
                found="the identity provider's keys cannot be read now; the server's log says why",
                code="identity_provider_unavailable",
            )
        if name not in self._keys:
            raise _import_jwt().PyJWKError(f"the provider has no key {clip_repr(name)}")
        return self._keys[name]

    def _begin_fetch(self, now: float) -> None:
        """Has the keys fetched, unless they are being fetched, or have been a moment ago."""
        self._take_fetched()
        if self._fetching or now - self._tried < (UNKNOWN_SECONDS if self._keys else RETRY_SECONDS):
            return
        self._tried, self._fetching = now, Future()
        # A daemon: a provider that never ends its answer must not keep the worker from ending.
        threading.Thread(target=_complete, args=(self._fetching, self._fetch), name="oidc", daemon=True).start()

    def _take_fetched(self) -> None:
        """Takes what has been fetched into use. If that failed, the old keys stay."""
        if self._fetching is None or not self._fetching.done():
            return
        found, self._fetching = self._fetching.result(), None
        if isinstance(found, Exception):
            log.error("the keys of %s cannot be read: %s", self._issuer, printable(str(found)))
        else:
            self._keys, self._fetched = found, time.monotonic()

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        """The provider's keys by name.

        Raises:
            ConfigError: its discovery document is another provider's, or names no https URL.
            OSError: it cannot be reached, or does not answer in time.
            ValueError: an answer is none.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        keys = _import_jwt().PyJWKSet.from_json(_read(self._jwks or self._discover(deadline), deadline))
        return {key.key_id or "": key for key in keys.keys if key.public_key_use in {None, "sig"}}

    def _discover(self, deadline: float) -> str:
        """Where the keys are, from the provider's discovery document (OpenID Connect Discovery 1.0)."""
        where = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        found = _Discovery.model_validate_json(_read(where, deadline))
        if found.issuer != self._issuer:
            raise ConfigError("issuer", where=where, expected=self._issuer, found=clip_repr(found.issuer))
        _check_url("jwks_uri", found.jwks_uri)
        return found.jwks_uri


def provider_of(settings: Settings) -> Provider | None:
    """The identity provider that the settings name, None if they name none.

    Raises:
        ConfigError: as `Provider`.
    """
    if settings.oidc_issuer is None or settings.oidc_audience is None:
        return None
    return Provider(settings.oidc_issuer, settings.oidc_audience, settings.oidc_jwks, settings.oidc_claim)


def is_token(presented: bytes) -> bool:
    """Whether what was presented as a key has the form of a token: three parts of base64, where keys have one."""
    return presented.count(b".") == 2


def scopes_in(claim: object) -> tuple[KeyScope, ...]:
    """The scopes of ours in a claim, which is a list or words; others are for other services."""
    if isinstance(claim, str):
        claim = claim.split()
    return tuple(scope for scope in SCOPES if isinstance(claim, list) and scope in claim)


def _import_jwt() -> Any:
    try:
        import jwt  # noqa: PLC0415 - most servers need none
    except ImportError as error:
        raise ConfigError(
            "ABSTAIN_OIDC_ISSUER",
            where="environment",
            expected="the packages that check tokens",
            found=str(error),
            fix="pip install 'abstain[oidc]'",
        ) from error
    return jwt


class _Discovery(BaseModel):
    """What is read of a provider's discovery document."""

    issuer: str
    jwks_uri: str


def _complete(future: Future[T | Exception], work: Callable[[], T]) -> None:
    """Gives a future the result of some work, or its error. An error is a result too: asyncio complains of one that nobody takes."""
    try:
        future.set_result(work())
    except Exception as error:
        future.set_result(error)


def _read(url: str, deadline: float) -> str:
    """What is at a URL, read until a deadline of the monotonic clock.

    Raises:
        OSError: it cannot be reached, answers with an error, or is not read to its end by then.
        ValueError: it is too long, or no text.
    """
    content = bytearray()
    # https, or loopback: `_check_url`.
    with _OPENER.open(url, timeout=max(0.1, deadline - time.monotonic())) as response:
        while part := response.read1(65_536):
            content += part
            if len(content) > DOCUMENT_BYTES:
                raise ValueError(f"{url}: expected at most {DOCUMENT_BYTES} bytes, found more")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url}: not read to its end within {ANSWER_SECONDS:g} s")
    return content.decode()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows none: it could lead from https to a place that others can alter."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        """No request, so that the redirection is the error."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def _check_url(name: str, url: str) -> None:
    """Refuses what others on the way could read and alter."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise ConfigError(name, expected="an https URL (http for loopback alone)", found=clip_repr(url))
