"""The console: the page at `/`, its files, and the facts of a version that it needs.

The files are read once, when a worker starts, and found by their names: no file path is made from a client's request.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from abstain.models.bundles.manifest import read_manifest
from abstain.models.bundles.signatures import TrustedKeys
from abstain.models.errors import BundleError, UnknownModel
from abstain.models.files.regular import read_bounded
from abstain.service.console.descriptions import describe
from abstain.service.errors import HTTPError
from abstain.service.live_versions import LiveVersions

log = logging.getLogger("abstain.console")

_HERE = Path(__file__).parent
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_LIBRARY = ("uPlot.esm.js", "uPlot.min.css")

_REPORT_BYTES = 64 * 2**20
"""The largest report that is sent."""
_FILE = "/console/{file}"
_VERSION = "/console/models/{model}/versions/{version}"
_REPORT = f"{_VERSION}/report.html"

_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
_PAGE_HEADERS = _SAFE | {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
}
# A report is one file that includes its style and pictures, and has no script.
_REPORT_HEADERS = _SAFE | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox"
}


class Page(NamedTuple):
    """The content and the headers of a file."""

    content: bytes
    media_type: str
    etag: str


def read_pages() -> dict[str, Page]:
    """Reads the console's files from the installed package, by name."""
    own = [path for path in _HERE.iterdir() if path.suffix in _TYPES]
    return {path.name: _page(path) for path in [*own, *(_HERE / "uplot" / name for name in _LIBRARY)]}


def route_template(path: str) -> str | None:
    """Returns the route that one of the console's paths belongs to, for metrics; None for any other path."""
    match path.split("/"):
        case ["", "console", name] if name:
            return _FILE
        case ["", "console", "models", name, "versions", version] if name and version:
            return _VERSION
        case ["", "console", "models", name, "versions", version, "report.html"] if name and version:
            return _REPORT
        case _:
            return None


def routes(serving: LiveVersions) -> list[Route]:
    """Makes the console's routes."""
    pages = read_pages()

    async def index(request: Request) -> Response:
        return _respond(request, pages["index.html"])

    async def file(request: Request) -> Response:
        page = pages.get(request.path_params["file"])
        if page is None:
            raise HTTPException(404)
        return _respond(request, page)

    async def version(request: Request) -> Response:
        live = serving.find(_reference(request))
        content = await asyncio.to_thread(lambda: orjson.dumps(describe(live.name, live.version, live.bundle)))
        return _respond(request, Page(content, "application/json", _etag(content)))

    async def report(request: Request) -> Response:
        folder = serving.folder(_reference(request))
        try:
            content = await asyncio.to_thread(_read_report, folder, serving.trusted)
        except BundleError as error:
            log.error("a report cannot be sent: %s", error)
            raise HTTPError(503, serving.hide_folders(str(error))) from error
        return _respond(request, Page(content, "text/html", _etag(content)), _REPORT_HEADERS)

    return [Route("/", index), Route(_REPORT, report), Route(_VERSION, version), Route(_FILE, file)]


def _respond(request: Request, page: Page, headers: dict[str, str] = _PAGE_HEADERS) -> Response:
    """Responds with the page, or with 304 to a client that already has it."""
    headers = headers | {"ETag": page.etag}
    if page.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(page.content, headers=headers, media_type=page.media_type)


def _page(path: Path) -> Page:
    content = path.read_bytes()
    return Page(content, _TYPES[path.suffix], _etag(content))


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _reference(request: Request) -> str:
    return f"{request.path_params['model']}:{request.path_params['version']}"


def _read_report(folder: Path, trusted: TrustedKeys | None = None) -> bytes:
    """Reads and verifies the report of the bundle in a folder.

    Raises:
        UnknownModel: the version has no report.
        BundleError: the report has changed since publication, or no trusted key has signed the version.
    """
    path, files = folder / "report.html", read_manifest(folder, trusted).files
    if path.name not in files:
        raise UnknownModel(f"{folder.parent.name}:{folder.name} was published without a report")
    try:
        content = read_bounded(path, _REPORT_BYTES, BundleError)
    except OSError as error:
        raise BundleError("cannot be read", where=str(path), found=error.strerror) from error
    if hashlib.sha256(content).hexdigest() != files[path.name]:
        raise BundleError("is damaged or was altered", where=str(path), expected=f"sha256 {files[path.name]}")
    return content
