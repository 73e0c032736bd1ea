"""Access tokens of an identity provider (OpenID Connect), taken in place of keys.

A token is a JWT (RFC 7519) that the provider has signed. It must be issued by `ABSTAIN_OIDC_ISSUER` for
`ABSTAIN_OIDC_AUDIENCE`, be valid now, and list scopes in `ABSTAIN_OIDC_CLAIM`, as a list or as words (RFC 9068).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlsplit

from pydantic import BaseModel

from abstain.models.errors import ConfigError, clip_repr
from abstain.service.errors import HTTPError
from abstain.service.keys import SCOPES, Caller, KeyScope
from abstain.service.settings import Settings

if TYPE_CHECKING:
    import jwt

log = logging.getLogger("abstain.oidc")

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Those with a public key. With the others whoever can check a token can make one."""
KEYS_SECONDS = 600.0
"""How long the provider's public keys are used before they are asked for again."""
UNKNOWN_SECONDS = 30.0
"""How often at most they are asked for again because a token names a key that is not among them."""
TIMEOUT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
"""How long a request waits for the provider, which may answer a byte at a time."""
RETRY_SECONDS = 5.0
"""How long a provider that does not answer is left alone."""
CLOCK_SECONDS = 30.0
"""By how much the provider's clock may differ from this machine's."""
DOCUMENT_BYTES = 1024 * 1024


class Provider:
    """An identity provider: its public keys, and what its tokens allow."""

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
        self._client: jwt.PyJWKClient | None = None
        self._retry_at = 0.0
        # Of its own: a provider that is slow must not keep the threads that decode large requests.
        self._pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="oidc")

    async def caller(self, token: str) -> Caller:
        """Who sent a token, and what it allows.

        Raises:
            HTTPError: 401, the token is not valid; 503, the provider's keys cannot be had.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(self._pool, self._caller, token)
        except TimeoutError as error:
            log.error("the keys of %s did not come within %g s", self._issuer, ANSWER_SECONDS)
            raise self._away() from error

    def _caller(self, token: str) -> Caller:
        jwt = _import_jwt()
        try:
            key = self._signing_key(token)
            claims = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._audience,
                issuer=self._issuer,
                leeway=CLOCK_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.InvalidTokenError, jwt.PyJWKClientError, jwt.PyJWKError) as error:
            raise HTTPError(
                401,
                "token",
                {"WWW-Authenticate": 'Bearer error="invalid_token"'},
                expected=f"a token of {self._issuer} for {self._audience} that is valid now",
                found=str(error)[:200],
            ) from error
        return Caller(claims["sub"], scopes_in(claims.get(self._claim)), None)

    def _signing_key(self, token: str) -> jwt.PyJWK:
        jwt = _import_jwt()
        if time.monotonic() < self._retry_at:
            raise self._away()
        try:
            client = self._client = self._client or jwt.PyJWKClient(
                self._jwks or _discover(self._issuer),
                lifespan=KEYS_SECONDS,
                timeout=TIMEOUT_SECONDS,
                cooldown_duration=UNKNOWN_SECONDS,
            )
            return client.get_signing_key_from_jwt(token)
        except (jwt.PyJWKClientConnectionError, ConfigError, URLError, TimeoutError, ValueError) as error:
            # An answer that is no JSON is a ValueError.
            self._retry_at = time.monotonic() + RETRY_SECONDS
            log.error("the keys of %s cannot be read: %s", self._issuer, error)
            raise self._away() from error

    def _away(self) -> HTTPError:
        return HTTPError(
            503,
            "token",
            {"Retry-After": str(int(RETRY_SECONDS))},
            found="the identity provider's keys cannot be read now; the server's log says why",
        )


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


def _discover(issuer: str) -> str:
    """Where a provider's keys are, from its discovery document (OpenID Connect Discovery 1.0).

    Raises:
        ConfigError: the document is another provider's, or names no https URL.
        URLError: it cannot be had.
        ValueError: it is none.
    """
    where = f"{issuer.rstrip('/')}/.well-known/openid-configuration"
    with urllib.request.urlopen(where, timeout=TIMEOUT_SECONDS) as response:  # noqa: S310 - https, or loopback
        found = _Discovery.model_validate_json(response.read(DOCUMENT_BYTES))
    if found.issuer != issuer:
        raise ConfigError("issuer", where=where, expected=issuer, found=clip_repr(found.issuer))
    _check_url("jwks_uri", found.jwks_uri)
    return found.jwks_uri


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
