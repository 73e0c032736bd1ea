"""Access tokens of an identity provider (OpenID Connect), accepted instead of API keys.

A token is a JWT (RFC 7519) that the provider has signed. It must be issued by `ABSTAIN_OIDC_ISSUER` for
`ABSTAIN_OIDC_AUDIENCE`, be valid now, and list scopes in the claim `ABSTAIN_OIDC_CLAIM`, as a list or as words (RFC 9068).
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
"""Algorithms with a public key. With other algorithms, the key that checks a token can also make one."""
KEYS_SECONDS = 600.0
"""How long the provider's public keys are used before they are fetched again."""
UNKNOWN_SECONDS = 30.0
"""The shortest time between two fetches because a token names an unknown key."""
RETRY_SECONDS = 5.0
"""The shortest time between two fetches while no key of the provider is known."""
ANSWER_SECONDS = 10.0
"""How long the provider may take for a whole response, and how long a request waits for it."""
CLOCK_SECONDS = 30.0
"""The largest accepted difference between the provider's clock and this machine's."""
DOCUMENT_BYTES = 1024 * 1024
"""The largest accepted response of the provider."""


class Provider:
    """Checks the tokens of an identity provider with its public keys.

    A token of a known key is checked at once, even if the provider does not respond. One thread at a time fetches keys in
    the background; only a token of an unknown key waits for it.
    """

    def __init__(self, issuer: str, audience: str, jwks: str | None, claim: str) -> None:
        """Checks the settings; sends no request yet, so that a server can start while its provider is unavailable.

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
        self._fetch_time = self._attempt_time = -math.inf
        self._fetching: Future[dict[str, jwt.PyJWK] | Exception] | None = None

    async def check_token(self, token: str) -> Caller:
        """Checks a token and returns its holder.

        Raises:
            HTTPError: 401, the token is not valid; 503, the provider's keys are not available.
        """
        jwt = _import_jwt()
        try:
            # The key's name need not be verified: the signature does not match a wrong key.
            name = jwt.get_unverified_header(token).get("kid", "")
            key = await self._key(name)
            claims = jwt.PyJWT({"enforce_minimum_key_length": True}).decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=CLOCK_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise HTTPError(
                401,
                "",
                {"WWW-Authenticate": 'Bearer error="invalid_token"'},
                where="token",
                expected=f"a token of {self._issuer} for {self._audience} that is valid now",
                code="invalid_token",
                found=str(error)[:200],
            ) from error
        return Caller(claims["sub"], parse_scopes(claims.get(self._claim)), None)

    async def _key(self, name: str) -> jwt.PyJWK:
        """Returns the provider's key of a name; fetches the keys if necessary.

        Raises:
            PyJWKError: the provider has no key of this name.
            HTTPError: 503, no key of the provider is known.
        """
        now = time.monotonic()
        if now - self._fetch_time > KEYS_SECONDS or name not in self._keys:
            self._begin_fetch(now)
        if name not in self._keys and self._fetching is not None:
            # `wait`, unlike `wait_for`, does not cancel the fetch, for which other requests may wait.
            await asyncio.wait([asyncio.wrap_future(self._fetching)], timeout=ANSWER_SECONDS)
            self._take_fetched()
        if not self._keys:
            raise HTTPError(
                503,
                "",
                {"Retry-After": str(int(RETRY_SECONDS))},
                where="token",
                expected="public keys of the identity provider",
                found="none, because they cannot be read now",
                fix="try again later; the server's log has the reason",
                code="identity_provider_unavailable",
            )
        if name not in self._keys:
            raise _import_jwt().PyJWKError(f"the provider has no key {clip_repr(name)}")
        return self._keys[name]

    def _begin_fetch(self, now: float) -> None:
        """Starts to fetch the keys, unless a fetch is running or was started a short time ago."""
        self._take_fetched()
        if self._fetching or now - self._attempt_time < (UNKNOWN_SECONDS if self._keys else RETRY_SECONDS):
            return
        self._attempt_time, self._fetching = now, Future()
        # A daemon thread, so that a response without end does not stop the worker from ending.
        threading.Thread(target=_complete, args=(self._fetching, self._fetch), name="oidc", daemon=True).start()

    def _take_fetched(self) -> None:
        """Uses the keys of a finished fetch; if it failed, keeps the old keys."""
        if self._fetching is None or not self._fetching.done():
            return
        result, self._fetching = self._fetching.result(), None
        if isinstance(result, Exception):
            log.error("the keys of %s cannot be read: %s", self._issuer, printable(str(result)))
        else:
            self._keys, self._fetch_time = result, time.monotonic()

    def _fetch(self) -> dict[str, jwt.PyJWK]:
        """Fetches the provider's keys, by name.

        Raises:
            ConfigError: the discovery document names another issuer, or no https URL.
            OSError: the provider cannot be reached, or does not respond in time.
            ValueError: a response is invalid.
        """
        deadline = time.monotonic() + ANSWER_SECONDS
        keys = _import_jwt().PyJWKSet.from_json(_read(self._jwks or self._discover(deadline), deadline))
        return {key.key_id or "": key for key in keys.keys if key.public_key_use in {None, "sig"}}

    def _discover(self, deadline: float) -> str:
        """Reads the URL of the keys from the provider's discovery document (OpenID Connect Discovery 1.0)."""
        where = f"{self._issuer.rstrip('/')}/.well-known/openid-configuration"
        document = _Discovery.model_validate_json(_read(where, deadline))
        if document.issuer != self._issuer:
            raise ConfigError("issuer", where=where, expected=self._issuer, found=clip_repr(document.issuer))
        _check_url("jwks_uri", document.jwks_uri)
        return document.jwks_uri


def provider_of(settings: Settings) -> Provider | None:
    """Makes the identity provider of the settings; None if they name none.

    Raises:
        ConfigError: as `Provider`.
    """
    if settings.oidc_issuer is None or settings.oidc_audience is None:
        return None
    return Provider(settings.oidc_issuer, settings.oidc_audience, settings.oidc_jwks, settings.oidc_claim)


def is_token(secret: bytes) -> bool:
    """Whether a secret has the form of a token: three parts of base64, while a key has one."""
    return secret.count(b".") == 2


def parse_scopes(claim: object) -> tuple[KeyScope, ...]:
    """Returns the scopes of abstain in a claim, which is a list or a text of words; ignores scopes of other services."""
    if isinstance(claim, str):
        claim = claim.split()
    return tuple(scope for scope in SCOPES if isinstance(claim, list) and scope in claim)


def _import_jwt() -> Any:
    try:
        import jwt  # noqa: PLC0415 - most servers do not need it
    except ImportError as error:
        raise ConfigError(
            "ABSTAIN_OIDC_ISSUER",
            where="environment",
            expected="the installed packages of abstain[oidc]",
            found=str(error),
            fix="pip install 'abstain[oidc]'",
        ) from error
    return jwt


class _Discovery(BaseModel):
    """The fields of a provider's discovery document that are used."""

    issuer: str
    jwks_uri: str


def _complete(future: Future[T | Exception], work: Callable[[], T]) -> None:
    """Sets the result of a future to that of some work, or to its error: asyncio warns about an exception that is not read."""
    try:
        future.set_result(work())
    except Exception as error:
        future.set_result(error)


def _read(url: str, deadline: float) -> str:
    """Reads the text at a URL until a deadline of the monotonic clock.

    Raises:
        OSError: the server cannot be reached, responds with an error, or does not finish before the deadline.
        ValueError: the response is too long, or not UTF-8.
    """
    content = bytearray()
    # `_check_url` has checked that it is https or loopback.
    with _OPENER.open(url, timeout=max(0.1, deadline - time.monotonic())) as response:
        while part := response.read1(65_536):
            content += part
            if len(content) > DOCUMENT_BYTES:
                raise ValueError(f"{url}: expected at most {DOCUMENT_BYTES} bytes, found more")
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{url}: expected a complete response within {ANSWER_SECONDS:g} s, found only a part"
                )
    return content.decode()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it could lead from https to a URL that others can change."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        """Returns None, so that the redirect becomes an error."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def _check_url(name: str, url: str) -> None:
    """Refuses a URL with traffic that others could read and change."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and local)):
        raise ConfigError(name, expected="an https URL (http only for loopback)", found=clip_repr(url))
