"""`GET /docs.json`: the OpenAPI description of every route. `operations` has the routes, `schemas` the bodies.

It is written by hand and not made from the code that answers: that code works on bytes and arrays. A test calls every route and
holds its responses to this description.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from abstain.service.openapi.operations import PATHS, TAGS
from abstain.service.openapi.schemas import SCHEMAS

PATH = "/docs.json"
_DESCRIPTION = (
    "Predictions of Bayesian neural networks, with their uncertainty and a calibrated reject flag. "
    "A method that a path does not have gets 405, a path that does not exist 404, and a URL and headers that are together "
    "too long 431."
)


def document() -> dict[str, Any]:
    """Makes the OpenAPI 3.1 document."""
    try:
        own_version = version("abstain")
    except PackageNotFoundError:  # In a Bento, the code is present but not installed.
        own_version = "unknown"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "abstain",
            "version": own_version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"apiKey": []}, {"bearer": []}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": PATHS,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def route() -> Route:
    """Makes the route of the document."""

    async def respond(_: Request) -> Response:
        return Response(_encoded(), media_type="application/json")

    return Route(PATH, respond)


@lru_cache(1)
def _encoded() -> bytes:
    return orjson.dumps(document())
