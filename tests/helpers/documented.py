"""Whether responses are as `/docs.json` describes them."""

import re

import httpx

from abstain.service import openapi
from tests.helpers.json_schema import faults

DOCUMENT = openapi.document()
SCHEMAS = DOCUMENT["components"]["schemas"]
OPERATIONS = {
    (method.upper(), path): operation
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
}


def route_of(method: str, path: str) -> tuple[str, str]:
    """The operation that a request belongs to; a path without parameters comes first."""
    for own in sorted(DOCUMENT["paths"], key=lambda own: own.count("{")):
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", own.replace(".", r"\.")), path):
            return method, own
    raise AssertionError(f"no path of the document for {path}")


def check(response: httpx.Response) -> None:
    """Checks that the document has the status and the body of a response."""
    own = route_of(response.request.method, response.request.url.path)
    described = OPERATIONS[own]["responses"]
    assert str(response.status_code) in described, (own, response.status_code, response.text)
    content = described[str(response.status_code)].get("content")
    if content is None:
        assert response.content == b""
        return
    media_type = response.headers["content-type"].partition(";")[0]
    assert media_type in content, (own, media_type)
    if media_type == "application/json":
        assert list(faults(response.json(), content[media_type]["schema"], SCHEMAS)) == []
