"""An OpenID Connect provider on loopback."""

import json
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

AUDIENCE = "https://abstain.example.org"


class Issuer:
    """An identity provider."""

    def __init__(self, url):
        self.url = url
        self.requests = []
        self.away = False
        self.dripping = self.huge = False
        self.redirect = None
        self.further_keys: list[dict[str, str]] = []
        self.document = {"issuer": url, "jwks_uri": f"{url}/keys"}
        self.keys = {"first": ec.generate_private_key(ec.SECP256R1())}

    def content(self, path):
        """The document at a path."""
        if path == "/keys":
            keys = {
                name: json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) for name, key in self.keys.items()
            }
            own = [{**key, "kid": name, "use": "sig", "alg": "ES256"} for name, key in keys.items()]
            return {"keys": [*own, *self.further_keys]}
        return self.document

    def token(self, *, kid="first", key=None, algorithm="ES256", header=None, **claims):
        """A valid token, with other claims if given; None removes one."""
        now = int(time.time())
        content = {"iss": self.url, "aud": AUDIENCE, "sub": "app", "exp": now + 60, "scope": "openid predict"} | claims
        content = {name: value for name, value in content.items() if value is not None}
        return jwt.encode(
            content,
            key or (self.keys["first"] if algorithm != "none" else None),
            algorithm,
            {"kid": kid} | (header or {}),
        )


@contextmanager
def running_issuer():
    """Runs a provider on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            issuer.requests.append(self.path)
            content = json.dumps(issuer.content(self.path)).encode()
            self.send_response(302 if issuer.redirect else 503 if issuer.away else 200)
            if issuer.redirect:
                self.send_header("Location", issuer.redirect)
            self.end_headers()
            with suppress(ConnectionError):
                while issuer.dripping or issuer.huge:
                    self.wfile.write(b" " * (100_000 if issuer.huge else 1))
                    time.sleep(0.0 if issuer.huge else 0.05)
            self.wfile.write(b"" if issuer.away else content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    issuer = Issuer(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield issuer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
