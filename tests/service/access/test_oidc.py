"""Access tokens of an identity provider: a real provider on loopback signs, changes its keys and becomes unavailable."""

import asyncio
import base64
import hmac
import json
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import RSAAlgorithm

from abstain.models.errors import ConfigError
from abstain.service.access import oidc
from abstain.service.access.oidc import Provider, is_token, parse_scopes
from abstain.service.errors import HTTPError
from tests.helpers.issuers import AUDIENCE, running_issuer
from tests.helpers.processes import until


@pytest.fixture
def issuer():
    """A provider for one test."""
    with running_issuer() as running:
        yield running


@pytest.fixture
def provider(issuer):
    """The server's side of the provider."""
    return Provider(issuer.url, AUDIENCE, None, "scope")


def check(provider, token):
    """The holder of a token."""
    return asyncio.run(provider.check_token(token))


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("openid predict metrics", ("predict", "metrics")),
        (["read", "email"], ("read",)),
        ("admin", ("admin",)),
        ("predictable", ()),
        (None, ()),
        (7, ()),
        ({"predict": 1}, ()),
        ([["predict"]], ()),
    ],
)
def test_the_scopes_are_those_of_abstain_in_the_claim(issuer, provider, scope, expected):
    """In words or in a list; scopes of other services are ignored."""
    caller = check(provider, issuer.token(scope=scope))
    assert caller == ("app", expected, None)
    assert parse_scopes(scope) == expected


def encoded(content):
    """Base64 without padding, as in tokens."""
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def signed_with_the_public_key(issuer):
    """A token signed with the public key as a shared secret; made by hand, because the library refuses it."""
    public = issuer.keys["first"].public_key()
    secret = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = encoded(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "first"}).encode())
    signed = f"{head}.{issuer.token().split('.')[1]}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), 'sha256'))}"


def altered(issuer):
    """A token with changed content and its old signature."""
    head, body, signature = issuer.token().split(".")
    content = json.loads(base64.urlsafe_b64decode(body + "==")) | {"scope": "admin"}
    return f"{head}.{encoded(json.dumps(content).encode())}.{signature}"


WRONG = {
    "expired": lambda issuer: issuer.token(exp=int(time.time()) - 3600),
    "not yet valid": lambda issuer: issuer.token(nbf=int(time.time()) + 3600),
    "for another": lambda issuer: issuer.token(aud="https://other.example.org"),
    "of another issuer": lambda issuer: issuer.token(iss="https://other.example.org"),
    "without an end": lambda issuer: issuer.token(exp=None),
    "without an audience": lambda issuer: issuer.token(aud=None),
    "without a subject": lambda issuer: issuer.token(sub=None),
    "signed by another key": lambda issuer: issuer.token(key=ec.generate_private_key(ec.SECP256R1())),
    "of an unknown key": lambda issuer: issuer.token(kid="second", key=ec.generate_private_key(ec.SECP256R1())),
    "of another kind of key": lambda issuer: issuer.token(
        key=rsa.generate_private_key(public_exponent=65537, key_size=2048), algorithm="RS256"
    ),
    "not signed": lambda issuer: issuer.token(key=None, algorithm="none"),
    "signed with the public key": signed_with_the_public_key,
    "altered": altered,
    "that brings its own key": lambda issuer: issuer.token(
        key=ec.generate_private_key(ec.SECP256R1()), header={"jku": "http://127.0.0.1:9/keys", "jwk": {"kty": "EC"}}
    ),
    "no token": lambda issuer: "a.b.c",
    "nothing": lambda issuer: "..",
    "not text": lambda issuer: "ü.ü.ü",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_token_that_is_not_valid_is_refused(issuer, provider, name):
    """401 for any fault; only the discovery document and the keys are fetched."""
    with pytest.raises(HTTPError, match="token: expected a token of") as error:
        check(provider, WRONG[name](issuer))
    assert error.value.status == 401
    assert set(issuer.requests) <= {"/.well-known/openid-configuration", "/keys"}
    assert check(provider, issuer.token()).name == "app"


@pytest.mark.parametrize(("bits", "accepted"), [(1024, False), (2048, True)])
def test_a_short_key_of_the_provider_is_refused(issuer, provider, bits, accepted):
    """RSA keys below 2,048 bits can be broken (NIST SP 800-131A)."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    issuer.further_keys.append(json.loads(RSAAlgorithm.to_jwk(key.public_key())) | {"kid": "rsa", "alg": "RS256"})
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    token = issuer.token(kid="rsa", key=pem, algorithm="RS256")
    if accepted:
        assert check(provider, token).name == "app"
        return
    with pytest.raises(HTTPError) as error:
        check(provider, token)
    assert error.value.status == 401


def test_the_providers_keys_are_fetched_once(issuer, provider):
    """Also many tokens that name unknown keys do not cause many requests to the provider."""
    for _ in range(5):
        check(provider, issuer.token())
    for number in range(20):
        with pytest.raises(HTTPError):
            check(provider, issuer.token(kid=f"unknown-{number}"))
    assert issuer.requests == ["/.well-known/openid-configuration", "/keys"]


def test_a_new_key_of_the_provider_is_accepted(issuer, provider, monkeypatch):
    """A token that names an unknown key causes another fetch, if the last one is long enough ago."""
    monkeypatch.setattr(oidc, "UNKNOWN_SECONDS", 0.0)
    check(provider, issuer.token())
    issuer.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    assert check(provider, issuer.token(kid="second", key=issuer.keys["second"])).name == "app"


def test_a_key_that_the_provider_no_longer_has_is_refused(issuer, provider, monkeypatch):
    """After its keys have been fetched again."""
    check(provider, issuer.token())
    withdrawn = issuer.token()
    issuer.keys = {"second": ec.generate_private_key(ec.SECP256R1())}
    monkeypatch.setattr(oidc, "KEYS_SECONDS", 0.0)
    monkeypatch.setattr(oidc, "UNKNOWN_SECONDS", 0.0)

    def refused():
        try:
            check(provider, withdrawn)
        except HTTPError as error:
            return error.status == 401
        return False

    assert until(refused)


def test_an_unavailable_provider_is_503_and_not_retried_for_a_while(issuer, provider, monkeypatch):
    """Not every request fetches the keys; when the provider is available again, tokens are accepted."""
    issuer.away = True
    for _ in range(5):
        with pytest.raises(HTTPError, match="found none, because they cannot be read now") as error:
            check(provider, issuer.token())
        assert error.value.status == 503
        assert error.value.headers == {"Retry-After": "5"}
    assert len(issuer.requests) == 1
    issuer.away = False
    monkeypatch.setattr(oidc, "RETRY_SECONDS", 0.0)
    assert check(provider, issuer.token()).name == "app"


@pytest.mark.parametrize("fault", ["away", "dripping", "huge"])
def test_known_keys_are_used_whatever_the_provider_does(issuer, provider, monkeypatch, fault):
    """Tokens of unknown keys, which anybody can make, must not delay or invalidate other tokens."""
    monkeypatch.setattr(oidc, "UNKNOWN_SECONDS", 0.0)
    monkeypatch.setattr(oidc, "ANSWER_SECONDS", 0.5)
    check(provider, issuer.token())
    setattr(issuer, fault, True)

    async def both():
        unknown = asyncio.ensure_future(provider.check_token(issuer.token(kid="unknown")))
        await asyncio.sleep(0)
        began = time.monotonic()
        assert (await provider.check_token(issuer.token())).name == "app"
        waited = time.monotonic() - began
        with pytest.raises(HTTPError) as error:
            await unknown
        return waited, error.value.status

    for _ in range(3):
        waited, status = asyncio.run(both())
        assert (waited < 0.4, status) == (True, 401)
    setattr(issuer, fault, False)


@pytest.mark.parametrize("fault", ["dripping", "huge"])
def test_a_response_without_end_does_not_block_requests(issuer, provider, monkeypatch, fault, caplog):
    """They get 503 after a while; no more is read than the limit of a document."""
    monkeypatch.setattr(oidc, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(oidc, "RETRY_SECONDS", 0.0)
    setattr(issuer, fault, True)
    for _ in range(4):
        with pytest.raises(HTTPError, match="because they cannot be read now"):
            check(provider, issuer.token())
    setattr(issuer, fault, False)
    assert until(lambda: provider._fetching is None or provider._fetching.done())
    assert check(provider, issuer.token()).name == "app"
    expected = {
        "dripping": "expected a complete response within 0.5 s",
        "huge": "expected at most 1048576 bytes, found more",
    }
    assert expected[fault] in caplog.text


def test_no_redirect_is_followed(issuer, provider):
    """It could lead from https to a URL with traffic that others can change."""
    issuer.redirect = f"{issuer.url}/keys"
    with pytest.raises(HTTPError, match="because they cannot be read now"):
        check(provider, issuer.token())
    assert issuer.requests == ["/.well-known/openid-configuration"]


@pytest.mark.parametrize(
    "document",
    [[], {}, {"issuer": "https://other.example.org", "jwks_uri": "https://other.example.org/keys"}, "x"],
)
def test_an_invalid_discovery_document_is_refused(issuer, provider, document, monkeypatch):
    """It names another issuer, is not an object, or its URL is missing or not https."""
    issuer.document = document
    with pytest.raises(HTTPError, match="because they cannot be read now"):
        check(provider, issuer.token())
    monkeypatch.setattr(oidc, "RETRY_SECONDS", 0.0)
    for url in ("http://example.org/keys", "file:///etc/passwd", 7, ""):
        issuer.document = {"issuer": issuer.url, "jwks_uri": url}
        with pytest.raises(HTTPError, match="because they cannot be read now"):
            check(provider, issuer.token())
    assert "/keys" not in issuer.requests


@pytest.mark.parametrize("url", ["http://login.example.org", "login.example.org", "file:///etc", "https://", ""])
def test_the_url_of_a_provider_is_https(url):
    """Its keys decide which tokens are valid."""
    with pytest.raises(ConfigError, match="expected an https URL"):
        Provider(url, AUDIENCE, None, "scope")
    with pytest.raises(ConfigError, match="ABSTAIN_OIDC_JWKS: expected an https URL"):
        Provider("https://login.example.org", AUDIENCE, url, "scope")


@pytest.mark.parametrize(
    ("secret", "token"), [(b"a.b.c", True), (b"abstain_x-Y_z", False), (b"", False), (b"a.b", False)]
)
def test_keys_and_tokens_differ_in_form(secret, token):
    """A token has three parts."""
    assert is_token(secret) == token


def test_a_missing_package_is_an_error_with_a_fix(monkeypatch):
    """Without the extra `oidc`."""
    monkeypatch.setitem(__import__("sys").modules, "jwt", None)
    with pytest.raises(ConfigError, match=r"pip install 'abstain\[oidc\]'"):
        Provider("https://login.example.org", AUDIENCE, None, "scope")
