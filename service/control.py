"""Routes for operators who deploy over HTTP: load and unload models, and move labels. All need a key with the scope `admin`.

    POST /v2/repository/models/M/load      Triton's repository extension; also looks at the store at once
    POST /v2/repository/models/M/unload
    POST /admin/models/M/label             {"label": "stable", "version": 3, "force": false}

Each responds when all workers serve what was asked for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from abstain.models.bundles.references import NAME_PATTERN
from abstain.models.bundles.remote.moves import move_label
from abstain.models.errors import AbstainError, InputError, UnknownModel, clip_repr
from abstain.service.errors import HTTPError
from abstain.service.following.orders import Order, send_order
from abstain.service.json_objects import describe_value, flag_of, parse_object
from abstain.service.live_versions import LiveVersions
from abstain.service.process import Process
from abstain.service.responses import json_response
from abstain.service.settings import Settings

LOAD, UNLOAD = "/v2/repository/models/{model}/load", "/v2/repository/models/{model}/unload"
LABEL = "/admin/models/{model}/label"
WAIT_SECONDS = 600.0
"""The longest time that a request waits until the workers serve what was asked for, in seconds."""
_MAX_BODY_BYTES = 64 * 1024

ReadBody = Callable[[Request, int], Awaitable[bytes]]


def routes(versions: LiveVersions, process: Process, settings: Settings, read_body: ReadBody) -> list[Route]:
    """Makes the routes.

    Args:
        read_body: reads a body up to a limit in bytes.
    """
    most = min(settings.max_body_bytes, _MAX_BODY_BYTES)

    async def order(kind: Any, model: str) -> None:
        """Orders a look at the store, and waits until it is followed."""
        done = await send_order(process.folder, Order(kind=kind, model=model), WAIT_SECONDS)
        if done is None:
            raise HTTPError(504, f"the workers did not serve what was asked for within {WAIT_SECONDS:g} s")

    async def load(request: Request) -> Response:
        name = _name(request)
        parse_object(await read_body(request, most) or b"{}", ("parameters",))
        await order("load", name)
        reasons = versions.why_not_served(name)
        if reasons is None:
            raise UnknownModel(f"no model named {clip_repr(name)} in the store")
        if reasons:
            raise HTTPError(400, f"{name} is not served as its store asks for: {'; '.join(reasons)}", code="not_loaded")
        return Response()

    async def unload(request: Request) -> Response:
        name = _name(request)
        parse_object(await read_body(request, most) or b"{}", ("parameters",))
        if versions.why_not_served(name) is None:
            raise UnknownModel(f"no model named {clip_repr(name)} is served")
        await order("unload", name)
        return Response()

    async def label(request: Request) -> Response:
        name = _name(request)
        content, _ = parse_object(await read_body(request, most), ("label", "version", "force"))
        own_label, version, force = _label(content), _version(content), flag_of(content, "force", "body")
        try:
            await asyncio.to_thread(move_label, settings.store, f"{name}:{version}", own_label, force=force)
        except AbstainError as error:
            # The texts have the folder of the store, which clients need not know.
            status = 404 if isinstance(error, UnknownModel) else 400
            raise HTTPError(status, versions.hide_folders(str(error)), code=error.code) from error
        await order("look", name)
        served = _served_version(versions, f"{name}@{own_label}") == version
        facts = {"name": name, "label": own_label, "version": version, "served": served}
        return json_response(facts if served else {**facts, "why": versions.why_not_served(name) or ["it is unloaded"]})

    return [
        Route(path, handler, methods=["POST"]) for path, handler in ((LOAD, load), (UNLOAD, unload), (LABEL, label))
    ]


def route_template(path: str) -> str | None:
    """Returns the route that a path belongs to, for metrics; None for any other path."""
    match path.split("/"):
        case ["", "v2", "repository", "models", name, "load"] if name:
            return LOAD
        case ["", "v2", "repository", "models", name, "unload"] if name:
            return UNLOAD
        case ["", "admin", "models", name, "label"] if name:
            return LABEL
        case _:
            return None


def _served_version(versions: LiveVersions, reference: str) -> int | None:
    """Returns the version that requests get by a reference; None if they get none."""
    try:
        return versions.find(reference).version
    except (HTTPError, UnknownModel):
        return None


def _name(request: Request) -> str:
    name = request.path_params["model"]
    if not re.fullmatch(NAME_PATTERN, name):
        raise UnknownModel("no such model", expected="a name", found=clip_repr(name))
    return name


def _label(content: dict[str, Any]) -> str:
    label = content.get("label")
    if not isinstance(label, str):
        raise InputError("label", where="body", expected="text", found=describe_value(label))
    return label


def _version(content: dict[str, Any]) -> int:
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or not 0 < version < 10**9:
        raise InputError("version", where="body", expected="the number of a version", found=describe_value(version))
    return version
