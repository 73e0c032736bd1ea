"""The guard: hosts, origins and keys for every route of a real server."""

import asyncio
import os
import re
import shutil
import socket
import time

import httpx
import pytest

from abstain.models.errors import ConfigError
from abstain.service.access.api_keys import CHECK_SECONDS, SCOPES, add_key, revoke_key
from abstain.service.access.guard import HEALTH, Guard, host_of, scope_of
from abstain.service.errors import HTTPError
from abstain.service.settings import Settings, check_address, read_settings
from tests.helpers.issuers import AUDIENCE, running_issuer
from tests.helpers.processes import PATIENCE, until
from tests.helpers.servers import start_server, stop_server

CLIENT = httpx.Client(timeout=PATIENCE)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ROW = [[16.0] * 64]
TENSOR = {"inputs": [{"name": "inputs", "datatype": "FP32", "shape": [1, 8, 8], "data": ROW[0]}]}
OPEN = ["/", "/console/app.js", "/console/nope.js", *sorted(HEALTH)]
ROUTES = [
    ("POST", "/predict", "predict"),
    ("POST", "/v2/models/digits/infer", "predict"),
    ("POST", "/v2/models/digits/versions/1/infer", "predict"),
    ("GET", "/predict", "predict"),
    ("GET", "/models", "read"),
    ("GET", "/models/digits", "read"),
    ("GET", "/v2", "read"),
    ("GET", "/v2/models/digits", "read"),
    ("GET", "/v2/models/digits/ready", "read"),
    ("GET", "/v2/models/digits/config", "read"),
    ("GET", "/v2/models/digits/stats", "read"),
    ("GET", "/v2/models/digits/versions/1", "read"),
    ("GET", "/v2/models/digits/versions/1/ready", "read"),
    ("GET", "/v2/models/digits/versions/1/config", "read"),
    ("GET", "/v2/models/digits/versions/1/stats", "read"),
    ("GET", "/v2/models/stats", "read"),
    ("POST", "/v2/repository/index", "read"),
    ("GET", "/console/models/digits/versions/1", "read"),
    ("GET", "/console/models/digits/versions/1/report.html", "read"),
    ("GET", "/docs.json", "read"),
    ("GET", "/schema.json", "read"),
    ("GET", "/nope", "read"),
    ("GET", "/metrics", "metrics"),
]


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A file of keys, and a key for each scope."""
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    return path, {scope: add_key(path, scope, (scope,)) for scope in SCOPES}


@pytest.fixture(scope="module")
def issuer():
    """An identity provider."""
    with running_issuer() as running:
        yield running


@pytest.fixture(scope="module")
def guarded(store, keys, issuer, tmp_path_factory):
    """Two workers that need keys or tokens, accept pages of another origin, and trust a proxy."""
    more = {
        "ABSTAIN_CORS_ORIGINS": "https://app.example.org",
        "ABSTAIN_OIDC_ISSUER": issuer.url,
        "ABSTAIN_OIDC_AUDIENCE": AUDIENCE,
        "ABSTAIN_PROXIES": "127.0.0.1",
    }
    folder = tmp_path_factory.mktemp("guarded")
    # A path relative to the current folder, which is not the folder that BentoML changes to.
    more["ABSTAIN_KEYS"] = os.path.relpath(keys[0], folder)
    running = start_server(store, folder, workers=2, **more)
    yield running
    stop_server(running)


def send(server, method, path, **headers):
    """Sends a request with the body that its route needs."""
    body = TENSOR if path.endswith("/infer") else {"inputs": ROW, "model": "digits"}
    content = {"json": body} if method == "POST" and "index" not in path else {}
    return CLIENT.request(method, server.url + path, headers=headers, **content)


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES, ids=str)
def test_every_route_needs_a_key_with_its_scope(guarded, keys, method, path, scope):
    """401 without a key or with an unknown one, 403 with a key of another scope, and the route's response with the right one."""
    by_scope = keys[1]
    for headers in ({}, {"X-API-Key": "abstain_wrong"}, {"Authorization": "Basic abcd"}, {"Authorization": "Bearer"}):
        response = send(guarded, method, path, **headers)
        assert response.status_code == 401, headers
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert "expected" in response.json()["error"]
    for other, key in by_scope.items():
        response = send(guarded, method, path, Authorization=f"Bearer {key}")
        allowed = other in {scope, "admin"}
        assert (response.status_code != 403) == allowed, other
        if not allowed:
            assert f"expected a key with the scope {scope}, found {other}" in response.json()["error"]
    code = 404 if path == "/nope" else 405 if (method, path) == ("GET", "/predict") else 200
    assert send(guarded, method, path, **{"X-API-Key": by_scope[scope]}).status_code == code
    assert send(guarded, method, path, authorization=f"bearer {by_scope[scope]}").status_code == code


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES, ids=str)
@pytest.mark.parametrize("end", ["%0a", "%0A%0a", "%0d", "%00", "%c2%85", "%e2%80%a8"])
def test_a_path_that_a_router_may_confuse_with_another_is_refused(guarded, keys, method, path, scope, end):
    """With any key: `/predict` and a line break would not need the scope of `/predict`."""
    for key in (keys[1]["admin"], keys[1]["read"], "abstain_wrong"):
        response = send(guarded, method, path + end, **{"X-API-Key": key})
        assert (response.status_code, "path: expected printable characters" in response.text) == (400, True)


def hold(server, content, seconds=20):
    """The response of a raw connection that sends a request in parts and then waits; None if there is none."""
    with socket.create_connection(server.address, timeout=seconds) as connection:
        try:
            for start in range(0, len(content), 65_536):
                connection.sendall(content[start : start + 65_536])
        except ConnectionError:
            pass
        try:
            return connection.recv(65_536)
        except TimeoutError:
            return None
        except ConnectionError:
            return b""


LINE = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"GET /" + b"a" * 3_000_000,
        LINE + b"X: " + b"a" * 3_000_000,
        LINE + b"a:b\r\n" * 500_000,
        LINE + b"a:b\r\n" * 300 + b"\r\n",
        LINE + b"a" * 3_000_000,
        LINE + b"Transfer-Encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nX: " + b"a" * 3_000_000,
        LINE + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 3_000_000,
    ],
    ids=["URL", "header", "headers without end", "too many headers", "name", "trailer", "chunk extension"],
)
def test_the_head_of_a_request_is_limited(guarded, content):
    """Before any key is checked: the response is 431, or the connection closes."""
    answer = hold(guarded, content)
    assert answer is not None
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    if content.startswith((b"GET", LINE + b"X", LINE + b"a:b")):
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    assert CLIENT.get(f"{guarded.url}/livez").status_code == 200


@pytest.mark.parametrize("pieces", [1, 2])
def test_trailers_are_no_headers(guarded, keys, pieces):
    """A key after the body is no key, a host no host; a proxy has not seen them. The next request may have a key again."""
    address = guarded.address
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"2\r\n{}\r\n0\r\n"
    trailers = b"X-API-Key: %s\r\nHost: evil\r\nX-Request-Id: late\r\n\r\n" % keys[1]["predict"].encode()
    parts = [head + body + trailers] if pieces == 1 else [head + body, trailers]
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(0.2)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"missing_key" in answer
        assert b"late" not in answer
    headers = {"X-API-Key": keys[1]["read"]}
    with httpx.Client(base_url=guarded.url, timeout=PATIENCE) as client:
        assert client.post("/predict", content=iter([b"{}"]), headers=headers).status_code == 403
        assert client.get("/models", headers=headers).status_code == 200


def test_a_usual_head_is_accepted(guarded, keys):
    """Cookies and tokens of proxies need some kilobytes."""
    more = {f"X-Header-{number}": "a" * 200 for number in range(100)}
    assert send(guarded, "GET", "/models", **{"X-API-Key": keys[1]["read"]}, **more).status_code == 200
    assert send(guarded, "GET", "/models?" + "a" * 20_000, **{"X-API-Key": keys[1]["read"]}).status_code == 200


@pytest.mark.parametrize("path", OPEN)
def test_probes_and_the_consoles_files_need_no_key(guarded, path):
    """Users need the page to sign in, and kubelets have no key."""
    assert CLIENT.get(guarded.url + path).status_code == (404 if "nope" in path else 200)


def test_a_revoked_key_is_refused_while_the_server_runs(guarded, keys):
    """A new key is accepted and a revoked one refused, each within a second or two."""
    path, _ = keys
    key = add_key(path, "guest", ("read",))

    def code():
        return send(guarded, "GET", "/models", **{"X-API-Key": key}).status_code

    assert until(lambda: code() == 200)
    revoke_key(path, "guest")
    assert until(lambda: code() == 401)


def test_a_token_of_the_provider_works_as_a_key(guarded, issuer):
    """With its scopes: 403 for a missing scope, 401 for a token for another audience."""

    def code(path, **claims):
        return send(guarded, "GET", path, Authorization=f"Bearer {issuer.token(**claims)}").status_code

    assert code("/models", scope="openid read") == 200
    assert code("/models", scope=["admin"]) == 200
    assert code("/metrics", scope="openid read") == 403
    assert code("/metrics", scope="") == 403
    assert code("/models", scope="read", aud="https://other.example.org") == 401
    strange = issuer.token(scope="read", sub="\x00\n\ud800" * 1000)
    response = send(guarded, "GET", "/metrics", Authorization=f"Bearer {strange}")
    assert response.status_code == 403
    assert response.json()["error"].isprintable()
    # The text, and its parts again.
    assert len(response.json()["error"]) < 500
    assert len(response.text) < 1000


def test_a_keys_rate_holds_over_all_workers(guarded, keys):
    """429 with the time to wait, over connections to either worker; other keys are not affected."""
    key = add_key(keys[0], "slow", ("read",), rate=0.01)

    def respond(sent):
        return httpx.get(f"{guarded.url}/models", headers={"X-API-Key": sent}, timeout=PATIENCE)

    assert until(lambda: respond(key).status_code != 401)
    # Now both workers know the key, and one of them has accepted the only request that is allowed in 100 s.
    time.sleep(2 * CHECK_SECONDS)
    refused = [respond(key) for _ in range(12)]
    assert [response.status_code for response in refused] == [429] * 12
    assert "rate: expected at most 0.01 requests per second with the key slow" in refused[-1].text
    assert 1 <= int(refused[-1].headers["retry-after"]) <= 100
    assert respond(keys[1]["read"]).status_code == 200


def test_the_headers_of_a_listed_proxy_are_used(guarded, keys):
    """The host in its X-Forwarded-Host must be this server's; the Host of its own request is ignored."""

    def code(**headers):
        return send(guarded, "GET", "/models", **{"X-API-Key": keys[1]["read"]}, **headers).status_code

    assert code(Host="inner.example", **{"X-Forwarded-Host": "localhost"}) == 200
    assert code(**{"X-Forwarded-Host": "evil.example"}) == 421
    assert code(**{"X-Forwarded-Host": "localhost, evil.example"}) == 421
    origin = {"X-Forwarded-Host": "localhost:8443", "X-Forwarded-Proto": "https", "Origin": "https://localhost:8443"}
    assert code(**origin) == 200

    def logged():
        # Unknown keys are logged once a second, and another test may have sent one.
        send(guarded, "GET", "/models", **{"X-API-Key": "x", "X-Forwarded-For": "203.0.113.7, 127.0.0.1"})
        return "'203.0.113.7' sent an unknown key for '/models'" in guarded.log.read_text()

    assert until(logged)


def test_the_forwarded_headers_of_others_are_ignored(server):
    """If no proxies are listed."""
    for header in ("X-Forwarded-Host", "X-Forwarded-For", "Forwarded"):
        assert CLIENT.get(f"{server.url}/models", headers={header: "evil.example"}).status_code == 200
    response = CLIENT.get(f"{server.url}/models", headers={"Host": "evil.example", "X-Forwarded-Host": "localhost"})
    assert response.status_code == 421


def test_web_sockets_are_refused(guarded):
    """The server has none, and BentoML's application must not accept them without the guard."""
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for path in ("/predict", "/livez", "/"):
        # A connection of its own: the server ends one after it has refused an upgrade.
        assert httpx.get(guarded.url + path, headers=upgrade, timeout=PATIENCE).status_code in {400, 403}


def test_a_refused_request_is_not_read(guarded):
    """A client that sends a body of 30 MB without a key still gets the response."""
    response = CLIENT.post(f"{guarded.url}/predict", content=b" " * 30_000_000)
    assert response.status_code == 401


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
def test_the_console_requests_a_key_and_keeps_it_in_its_tab(guarded, keys):
    """It shows the error for an unknown key; a known one opens the console, also after a reload, and stays in the tab."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    expect, admin = playwright.expect, keys[1]["admin"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        context = browser.new_context()
        page = context.new_page()
        urls = []
        page.on("request", lambda request: urls.append(request.url))
        page.goto(f"{guarded.url}/")
        field = page.get_by_label("Key", exact=True)
        expect(field).to_be_focused()
        expect(page.locator("#sign-in-why")).to_have_text(re.compile("key: expected Authorization: Bearer KEY"))
        field.fill("abstain_wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.locator("#sign-in-why")).to_have_text(re.compile("expected a key of this server"))
        field.fill(admin)
        field.press("Enter")
        expect(page.get_by_role("heading", name="Try it")).to_be_visible()
        expect(field).to_be_hidden()
        page.reload()
        expect(page.get_by_role("heading", name="Try it")).to_be_visible()
        page.get_by_role("link", name="Model", exact=True).click()
        with page.expect_download() as saved:
            page.get_by_role("link", name="The full report of this version").click()
        assert saved.value.suggested_filename == "digits-1-report.html"
        assert saved.value.path().read_text().startswith("<!doctype html>")
        page.get_by_role("link", name="Watch it").click()
        expect(page.locator("#pulse")).to_have_text(re.compile("read at"))
        assert page.evaluate("JSON.stringify(localStorage)") == "{}"
        assert context.cookies() == []
        assert not any(admin in url for url in urls)
        other = context.new_page()
        other.goto(f"{guarded.url}/")
        expect(other.get_by_label("Key", exact=True)).to_be_visible()
        browser.close()


FOREIGN = {"Origin": "https://evil.example"}


def test_a_foreign_page_is_refused_and_a_listed_one_is_accepted(guarded, keys):
    """Also the preflight request of a browser."""
    right = {"X-API-Key": keys[1]["predict"]}
    for headers in (FOREIGN, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"}, {"Origin": ""}):
        response = send(guarded, "POST", "/predict", **right, **headers)
        assert (response.status_code, "Origin: expected" in response.text) == (403, True)
        assert "access-control-allow-origin" not in response.headers
    own = {"Origin": guarded.url}
    assert send(guarded, "POST", "/predict", **right, **own).status_code == 200
    listed = {"Origin": "https://app.example.org"}
    response = send(guarded, "POST", "/predict", **right, **listed)
    assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, listed["Origin"])
    preflight = {**listed, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    before = CLIENT.options(f"{guarded.url}/predict", headers=preflight)
    assert (before.status_code, before.headers["access-control-allow-origin"]) == (200, listed["Origin"])
    assert "x-api-key" in before.headers["access-control-allow-headers"].lower()
    assert CLIENT.options(f"{guarded.url}/predict", headers={**preflight, **FOREIGN}).status_code == 400


def test_a_foreign_page_cannot_use_a_server_without_keys(server):
    """Not with text/plain either, for which browsers send no preflight; clients that are not browsers send no Origin."""
    for path in ("/predict", "/v2/models/digits/infer"):
        assert send(server, "POST", path, **FOREIGN).status_code == 403
        assert send(server, "POST", path, **FOREIGN, **{"Content-Type": "text/plain"}).status_code == 403
        assert send(server, "POST", path).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:3000", "localhost.evil", "", "[::2]:80", "127.0.0.2"]
)
def test_another_name_for_this_server_is_refused(server, host):
    """DNS rebinding would use such a name."""
    response = CLIENT.get(f"{server.url}/models", headers={"Host": host})
    assert (response.status_code, "Host: expected one of" in response.text) == (421, True)
    assert CLIENT.get(f"{server.url}/livez", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:3000", "localhost.", "127.0.0.1:80", "[::1]:3000", "[::1]"])
def test_names_of_loopback_are_this_servers(server, host):
    """With and without a port."""
    assert CLIENT.get(f"{server.url}/models", headers={"Host": host}).status_code == 200


def test_every_response_has_the_headers_that_keep_browsers_safe(server, guarded):
    """Pages have their own content policy; data must not be shown as a page."""
    for response in (
        CLIENT.get(f"{server.url}/models"),
        CLIENT.get(f"{server.url}/nope"),
        CLIENT.get(f"{server.url}/metrics"),
        send(server, "POST", "/predict"),
        CLIENT.post(f"{server.url}/predict", content=b"{"),
        CLIENT.get(f"{guarded.url}/models"),
        CLIENT.get(f"{server.url}/"),
    ):
        assert response.headers.get_list("x-content-type-options") == ["nosniff"]
        assert response.headers.get_list("referrer-policy") == ["no-referrer"]
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
    assert "default-src 'self'" in CLIENT.get(f"{server.url}/").headers["content-security-policy"]


# ---- without a server ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("A.b:1", "a.b"),
        ("a.b", "a.b"),
        ("a.b.:80", "a.b"),
        ("[::1]:3", "::1"),
        ("[::1]", "::1"),
        ("", ""),
        ("[::1", "::1"),
    ],
)
def test_the_host_of_an_authority(authority, host):
    """Without port, brackets and final dot, in lower case."""
    assert host_of(authority) == host


@pytest.mark.parametrize(
    "path", ["//predict", "/predict/", "/Predict", "/livez/", "/v2/health/live/", "/console/a/b", "/console"]
)
def test_paths_similar_to_an_open_one_need_a_key(path):
    """Only the exact paths are open."""
    assert scope_of("GET", path) == "read"


def request(path="/models", method="GET", **headers):
    """The scope of a request."""
    return {
        "path": path,
        "method": method,
        "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
    }


def test_all_host_headers_are_checked(tmp_path):
    """One valid header of two is not enough."""
    guard = Guard(Settings(), tmp_path)
    scope = request()
    scope["headers"] = [(b"host", b"localhost"), (b"host", b"evil.example")]
    with pytest.raises(HTTPError, match=r"Host: expected one of .*, found 'evil\.example'"):
        asyncio.run(guard.check(scope))
    asyncio.run(Guard(Settings(hosts=("*",)), tmp_path).check(scope))


@pytest.mark.parametrize(
    ("secret", "what"),
    [(b"wrong", "an unknown key"), (b"wrong.wrong.wrong", "an invalid token")],
    ids=["key", "token"],
)
def test_refused_keys_and_tokens_are_logged(tmp_path, keys, issuer, caplog, secret, what):
    """With the sender, the path and the id of the response, but never with the key or token; no line for every guess."""
    settings = Settings(keys=keys[0], oidc_issuer=issuer.url, oidc_audience=AUDIENCE)
    guard = Guard(settings, tmp_path)
    scope = request(**{"host": "localhost", "x-api-key": secret.decode(), "x-request-id": "mine-1"})
    for _ in range(3):
        with pytest.raises(HTTPError) as refused:
            asyncio.run(guard.check(scope | {"client": ("203.0.113.7", 1)}))
        assert refused.value.status == 401
    assert [record.getMessage() for record in caplog.records if record.name == "abstain.guard"] == [
        f"'203.0.113.7' sent {what} for '/models' (id mine-1)"
    ]
    assert "wrong" not in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_keys(host):
    """Any user of the machine may send requests."""
    check_address(Settings(), host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])  # noqa: S104
def test_beyond_loopback_keys_or_insecure_are_needed(tmp_path, host):
    """So that no server is open to everybody by mistake."""
    with pytest.raises(
        ConfigError, match="other machines could use this server without a key: expected a loopback address"
    ):
        check_address(Settings(), host)
    check_address(Settings(keys=tmp_path / "keys.json"), host)
    check_address(Settings(insecure=True), host)


def test_lists_in_the_environment_are_separated_by_commas():
    """With and without spaces."""
    settings = read_settings(
        {"ABSTAIN_HOSTS": "a.b, c", "ABSTAIN_CORS_ORIGINS": "https://x.y,", "ABSTAIN_INSECURE": "1"}
    )
    assert (settings.hosts, settings.cors_origins, settings.insecure) == (("a.b", "c"), ("https://x.y",), True)
    assert read_settings({}).hosts == ("localhost", "127.0.0.1", "::1")
