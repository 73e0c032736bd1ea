"""The console: the page at `/`, the files it is made of, and what it needs to know of a version.

Files are read once, when a worker starts, and served from a table of their names: no path is made of what a client sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from abstain.models.bundles.bundle import read_manifest
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
"""A report may have."""
_FILE = "/console/{file}"
_VERSION = "/console/models/{model}/versions/{version}"
_REPORT = f"{_VERSION}/report.html"

_SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
_PAGE_HEADERS = _SAFE | {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
}
# A report is one file with its style and pictures inside, and no script.
_REPORT_HEADERS = _SAFE | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; sandbox"
}


class Page(NamedTuple):
    """A file as it is sent."""

    content: bytes
    media_type: str
    etag: str


def read_pages() -> dict[str, Page]:
    """The console's files by name, from the installed package."""
    own = [path for path in _HERE.iterdir() if path.suffix in _TYPES]
    return {path.name: _page(path) for path in [*own, *(_HERE / "uplot" / name for name in _LIBRARY)]}


def template(path: str) -> str | None:
    """The route of one of the console's paths, for metrics; None for any other path."""
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
    """The console's routes."""
    pages = read_pages()

    async def index(request: Request) -> Response:
        return _sent(request, pages["index.html"])

    async def file(request: Request) -> Response:
        page = pages.get(request.path_params["file"])
        if page is None:
            raise HTTPError(404, f"no such route: {request.url.path[:200]}")
        return _sent(request, page)

    async def version(request: Request) -> Response:
        live = serving.find(_reference(request))
        told = await asyncio.to_thread(lambda: orjson.dumps(describe(live.name, live.version, live.bundle)))
        return _sent(request, Page(told, "application/json", _etag(told)))

    async def report(request: Request) -> Response:
        folder = serving.folder(_reference(request))
        try:
            content = await asyncio.to_thread(_read_report, folder, serving.trusted)
        except BundleError as error:
            log.error("a report cannot be sent: %s", error)
            raise HTTPError(503, serving.within(str(error))) from error
        return _sent(request, Page(content, "text/html", _etag(content)), _REPORT_HEADERS)

    return [Route("/", index), Route(_REPORT, report), Route(_VERSION, version), Route(_FILE, file)]


def _sent(request: Request, page: Page, headers: dict[str, str] = _PAGE_HEADERS) -> Response:
    """The page, or 304 to a client that has it."""
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
    """The report of the bundle in a folder, as it was published.

    Raises:
        UnknownModel: the version has none.
        BundleError: it is not what was published, or none of the trusted keys has signed the version.
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
