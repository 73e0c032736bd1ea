"""Access tokens of an identity provider: a real one on loopback, which signs, turns its keys and goes away."""

import asyncio
import base64
import hmac
import json
import time

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from abstain.models.errors import ConfigError
from abstain.service.access import oidc
from abstain.service.access.oidc import Provider, is_token, scopes_in
from abstain.service.errors import HTTPError
from tests.helpers.issuers import AUDIENCE, running_issuer
from tests.helpers.processes import until


@pytest.fixture
def issuer():
    """A provider of this test alone."""
    with running_issuer() as running:
        yield running


@pytest.fixture
def provider(issuer):
    """What a server makes of it."""
    return Provider(issuer.url, AUDIENCE, None, "scope")


def ask(provider, token):
    """Who the token is of."""
    return asyncio.run(provider.caller(token))


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
def test_scopes_are_those_of_ours_in_the_claim(issuer, provider, scope, expected):
    """As words or as a list; what is for others is left out."""
    caller = ask(provider, issuer.token(scope=scope))
    assert caller == ("app", expected, None)
    assert scopes_in(scope) == expected


def encoded(content):
    """Base64 as tokens have it."""
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def signed_with_the_public_key(issuer):
    """The classic confusion: the public key, taken for a shared secret. By hand, for the library refuses to."""
    public = issuer.keys["first"].public_key()
    secret = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = encoded(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "first"}).encode())
    signed = f"{head}.{issuer.token().split('.')[1]}"
    return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), 'sha256'))}"


def altered(issuer):
    """Another content under a signature that was valid."""
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
    """401, whatever is wrong with it; and the provider is asked only where it says that its keys are."""
    with pytest.raises(HTTPError, match="token: expected a token of") as error:
        ask(provider, WRONG[name](issuer))
    assert error.value.status == 401
    assert set(issuer.asked) <= {"/.well-known/openid-configuration", "/keys"}
    assert ask(provider, issuer.token()).name == "app"


def test_the_providers_keys_are_asked_for_once(issuer, provider):
    """And a flood of tokens that name unknown keys does not become one of requests to the provider."""
    for _ in range(5):
        ask(provider, issuer.token())
    for number in range(20):
        with pytest.raises(HTTPError):
            ask(provider, issuer.token(kid=f"unknown-{number}"))
    assert issuer.asked == ["/.well-known/openid-configuration", "/keys"]


def test_a_new_key_of_the_provider_is_taken(issuer, provider, monkeypatch):
    """A token that names an unknown key leads to one more look, once the last one is long enough ago."""
    monkeypatch.setattr(oidc, "UNKNOWN_SECONDS", 0.0)
    ask(provider, issuer.token())
    issuer.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    assert ask(provider, issuer.token(kid="second", key=issuer.keys["second"])).name == "app"


def test_a_key_that_the_provider_no_longer_has_is_refused(issuer, provider, monkeypatch):
    """Once its keys have been read again."""
    ask(provider, issuer.token())
    withdrawn = issuer.token()
    issuer.keys = {"second": ec.generate_private_key(ec.SECP256R1())}
    monkeypatch.setattr(oidc, "KEYS_SECONDS", 0.0)
    monkeypatch.setattr(oidc, "UNKNOWN_SECONDS", 0.0)

    def refused():
        try:
            ask(provider, withdrawn)
        except HTTPError as error:
            return error.status == 401
        return False

    assert until(refused)


def test_a_provider_that_is_away_is_503_and_left_alone_for_a_while(issuer, provider, monkeypatch):
    """The keys are not asked for by every request; and once it is back, tokens are taken."""
    issuer.away = True
    for _ in range(5):
        with pytest.raises(HTTPError, match="keys cannot be read now") as error:
            ask(provider, issuer.token())
        assert error.value.status == 503
        assert error.value.headers == {"Retry-After": "5"}
    assert len(issuer.asked) == 1
    issuer.away = False
    monkeypatch.setattr(oidc, "RETRY_SECONDS", 0.0)
    assert ask(provider, issuer.token()).name == "app"


@pytest.mark.parametrize("fault", ["away", "dripping", "huge"])
def test_known_keys_are_used_whatever_the_provider_does(issuer, provider, monkeypatch, fault):
    """Tokens that anyone can make, of unknown keys, must not keep those of others waiting, or make them invalid."""
    monkeypatch.setattr(oidc, "UNKNOWN_SECONDS", 0.0)
    monkeypatch.setattr(oidc, "ANSWER_SECONDS", 0.5)
    ask(provider, issuer.token())
    setattr(issuer, fault, True)

    async def both():
        stranger = asyncio.ensure_future(provider.caller(issuer.token(kid="unknown")))
        await asyncio.sleep(0)
        began = time.monotonic()
        assert (await provider.caller(issuer.token())).name == "app"
        waited = time.monotonic() - began
        with pytest.raises(HTTPError) as error:
            await stranger
        return waited, error.value.status

    for _ in range(3):
        waited, status = asyncio.run(both())
        assert (waited < 0.4, status) == (True, 401)
    setattr(issuer, fault, False)


@pytest.mark.parametrize("fault", ["dripping", "huge"])
def test_an_answer_without_end_keeps_nobody_waiting(issuer, provider, monkeypatch, fault, caplog):
    """Requests are answered 503 after a while; no more is read than such a document can have."""
    monkeypatch.setattr(oidc, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(oidc, "RETRY_SECONDS", 0.0)
    setattr(issuer, fault, True)
    for _ in range(4):
        with pytest.raises(HTTPError, match="keys cannot be read now"):
            ask(provider, issuer.token())
    setattr(issuer, fault, False)
    assert until(lambda: provider._fetching is None or provider._fetching.done())
    assert ask(provider, issuer.token()).name == "app"
    expected = {"dripping": "not read to its end", "huge": "expected at most 1048576 bytes, found more"}
    assert expected[fault] in caplog.text


def test_no_redirection_is_followed(issuer, provider):
    """It could lead from https to a place that others on the way can alter."""
    issuer.redirect = f"{issuer.url}/keys"
    with pytest.raises(HTTPError, match="keys cannot be read now"):
        ask(provider, issuer.token())
    assert issuer.asked == ["/.well-known/openid-configuration"]


@pytest.mark.parametrize(
    "document",
    [[], {}, {"issuer": "https://other.example.org", "jwks_uri": "https://other.example.org/keys"}, "x"],
)
def test_a_discovery_document_of_another_is_not_taken(issuer, provider, document, monkeypatch):
    """Neither are places that others on the way could alter, nor what is no place."""
    issuer.document = document
    with pytest.raises(HTTPError, match="keys cannot be read now"):
        ask(provider, issuer.token())
    monkeypatch.setattr(oidc, "RETRY_SECONDS", 0.0)
    for place in ("http://example.org/keys", "file:///etc/passwd", 7, ""):
        issuer.document = {"issuer": issuer.url, "jwks_uri": place}
        with pytest.raises(HTTPError, match="keys cannot be read now"):
            ask(provider, issuer.token())
    assert "/keys" not in issuer.asked


@pytest.mark.parametrize("url", ["http://login.example.org", "login.example.org", "file:///etc", "https://", ""])
def test_a_provider_is_named_by_https(url):
    """Its keys say whom to believe."""
    with pytest.raises(ConfigError, match="expected an https URL"):
        Provider(url, AUDIENCE, None, "scope")
    with pytest.raises(ConfigError, match="ABSTAIN_OIDC_JWKS: expected an https URL"):
        Provider("https://login.example.org", AUDIENCE, url, "scope")


@pytest.mark.parametrize(
    ("presented", "token"), [(b"a.b.c", True), (b"abstain_x-Y_z", False), (b"", False), (b"a.b", False)]
)
def test_keys_and_tokens_are_told_apart(presented, token):
    """By their form."""
    assert is_token(presented) == token


def test_what_is_missing_is_said(monkeypatch):
    """Without the extra, in one line."""
    monkeypatch.setitem(__import__("sys").modules, "jwt", None)
    with pytest.raises(ConfigError, match=r"pip install 'abstain\[oidc\]'"):
        Provider("https://login.example.org", AUDIENCE, None, "scope")
