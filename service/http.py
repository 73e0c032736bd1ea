"""THE STORY of a request: bytes → checked rows → prediction → judgement → answer → bytes.

An ASGI application of its own, which knows no BentoML: `service/app.py` puts it in front of BentoML's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import orjson
from jaxtyping import Float
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from abstain.models.errors import AbstainError
from abstain.service import console
from abstain.service.access.guard import SAFE_HEADERS, Guard
from abstain.service.access.proxies import behind_proxies
from abstain.service.batcher import Batcher, Judged, Share
from abstain.service.errors import HTTPError, status_of
from abstain.service.live_versions import Live, Serving
from abstain.service.monitoring import metrics
from abstain.service.open_inference import routes as open_inference
from abstain.service.open_inference.json_objects import HEADER_LENGTH
from abstain.service.predict import response
from abstain.service.predict.request import PredictRequest, check_rows, parse_predict
from abstain.service.process import Process, Traffic
from abstain.service.settings import Settings

log = logging.getLogger("abstain.http")

# How much of a refused body is read and thrown away.
DRAIN_BYTES = 512 * 1024 * 1024
DRAIN_SECONDS = 10.0
DRAIN_IDLE_SECONDS = 2.0
LARGE_BODY = 64 * 1024
"""Bytes beyond which a body is decoded in a thread, and not between other requests."""


class Asked(NamedTuple):
    """A request that has been read and checked."""

    live: Live
    rows: Float[np.ndarray, "rows ..."]
    request: PredictRequest
    fields: tuple[str, ...]


def read_predict(serving: Serving, max_rows: int, body: bytes) -> Asked:
    """What the body of `POST /predict` asks: of which version, and of which rows."""
    request = parse_predict(body, max_rows)
    live = serving.find(request.model)
    model = live.bundle.manifest.model
    fields = response.check_fields(model, request.fields)
    return Asked(live, check_rows(request, model, max_rows), request, fields)


def encode_predict(asked: Asked, request_id: str, shares: list[Share]) -> bytes:
    """The answer's body, of the shares that the request has in one or more batches."""
    live, judgement = asked.live, shares[0].answer.judgement
    rows = [
        row
        for share in shares
        for row in response.rows(
            {field: share.answer.columns[field][share.rows] for field in asked.fields}, asked.fields
        )
    ]
    return orjson.dumps(
        {
            "id": request_id,
            "model": {"name": live.name, "version": live.version, "digest": live.bundle.manifest.digest},
            "percentile": judgement.percentile,
            "coverage": judgement.coverage,
            "draws": live.predictor.draws,
            "predictions": rows,
        }
    )


def build_app(
    settings: Settings,
    process: Process,
    traffic: Traffic,
    serving: Serving,
    described: ASGIApp,
    judged: Judged,
) -> ASGIApp:
    """The application of one worker.

    Args:
        judged: is told of everything that has been judged.
        described: answers `/schema.json` and `/docs.json`; BentoML's own application.
    """
    batcher = Batcher(settings.queue, settings.timeout_seconds, judged)

    async def predict(request: Request) -> Response:
        if traffic.draining:
            raise HTTPError(503, "draining: this server is about to stop", {"Retry-After": "1", "Connection": "close"})
        body = await read_body(request, settings.max_body_bytes)
        content_type = request.headers.get("content-type", "none")
        if content_type != "application/json" and content_type.split(";")[0].strip().lower() != "application/json":
            raise HTTPError(415, "Content-Type", expected="application/json", found=content_type)
        request_id = request.headers.get("x-request-id") or f"{random.getrandbits(128):032x}"
        read = partial(read_predict, serving, settings.max_rows, body)
        with batcher.place():
            asked = read() if len(body) <= LARGE_BODY else await asyncio.to_thread(read)
            terms = asked.request.percentile, asked.request.coverage
            answer = await batcher.submit(asked.live, asked.rows, *terms, partial(encode_predict, asked, request_id))
        return Response(answer, media_type="application/json")

    async def livez(_: Request) -> Response:
        return _json({"live": True})

    async def readyz(_: Request) -> Response:
        ready = process.ready_workers()
        whole = ready >= process.workers and not traffic.draining
        why = serving.hindrances()
        if ready < process.workers:
            why.append(f"{ready} of {process.workers} workers are ready")
        if traffic.draining:
            why.append("draining: this server is about to stop")
        facts = {"ready": whole, "workers_ready": ready, "workers": process.workers, "why": why}
        return _json(facts, 200 if whole else 503)

    async def models(_: Request) -> Response:
        return _json(await asyncio.to_thread(serving.listing))

    async def show_metrics(_: Request) -> Response:
        metrics.WORKERS.set(process.workers)
        metrics.WORKERS_READY.set(0 if traffic.draining else process.ready_workers())
        return Response(await asyncio.to_thread(metrics.exposition), media_type=metrics.CONTENT_TYPE)

    engine = open_inference.Engine(serving, batcher, process)
    infer, others = open_inference.routes(engine, settings, traffic, read_body)
    routes = [
        Route("/predict", predict, methods=["POST"]),
        Route("/models", models),
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/metrics", show_metrics),
        Route("/docs.json", _forwarded(described)),
        Route("/schema.json", _forwarded(described)),
        *console.routes(serving),
        *others,
    ]
    app = Starlette(routes=routes, exception_handlers=cast("Any", ERRORS))
    app.router.redirect_slashes = False
    guarded = _guarded(_with_short_way(app, predict, infer), Guard(settings, process.folder))
    if settings.cors_origins:
        # Outside of the guard: a browser asks what is allowed before it sends a key, and reads what is refused.
        guarded = CORSMiddleware(
            guarded,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-Id", HEADER_LENGTH],
            expose_headers=[HEADER_LENGTH],
        )
    return behind_proxies(_watched(guarded, {route.path for route in routes}, traffic), settings.proxies)


def _guarded(app: ASGIApp, guard: Guard) -> ASGIApp:
    """Only what the guard lets pass; the body of any other request is not read."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await guard.check(scope)
        except HTTPError as error:
            await _refusal(error)(scope, receive, send)
            return
        await app(scope, receive, send)

    return guarded


def _with_short_way(app: ASGIApp, predict: Handler, infer: Handler) -> ASGIApp:
    """The two busiest routes past the framework's routing and middleware, which cost more than decoding does."""

    async def shortened(scope: Scope, receive: Receive, send: Send) -> None:
        place = open_inference.place_of(scope["path"])
        if scope["method"] != "POST" or (place is None and scope["path"] != "/predict"):
            await app(scope, receive, send)
            return
        handler = infer if place else predict
        request, unexpected = Request({**scope, "path_params": place or {}}, receive), None
        try:
            response = await handler(request)
        except Exception as error:  # As the framework's middleware has it.
            kind = next(kind for kind in ERRORS if isinstance(error, kind))
            response = await ERRORS[kind](request, error)
            unexpected = error if kind is Exception else None
        await response(scope, receive, send)
        if unexpected:
            raise unexpected

    return shortened


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body.

    Raises:
        BodyTooLong: it says that it is longer than the limit, before any of it is read; or it grows beyond it.
    """
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise BodyTooLong(413, "body", expected=f"at most {limit} bytes", found=length)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise BodyTooLong(413, "body", expected=f"at most {limit} bytes", found="more")
    return bytes(body)


class BodyTooLong(HTTPError):
    """A body beyond the limit; answered by `BodyRefusal`."""


class BodyRefusal(Response):
    """An answer to a body that is not read: sent whole, then what the client still writes is thrown away.

    Clients that write all before they read would see a reset connection in place of the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Answer, drain within bounds, and let the server close the connection."""
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        # The answer is complete, but "more" keeps the server from closing while the client still writes.
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await _drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    left = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                async with asyncio.timeout(DRAIN_IDLE_SECONDS):
                    message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body"):
                    return
    except TimeoutError:
        log.debug("a refused body was not written to its end")


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, "application/json")


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": text}, status, headers)


async def _abstain_error(request: Request, error: AbstainError) -> Response:
    status = status_of(error)
    if status == 500:
        log.error("%s %s: %s", request.method, request.url.path, error, exc_info=error)
    return _error(status, str(error), error.headers if isinstance(error, HTTPError) else None)


async def _body_too_long(_: Request, error: BodyTooLong) -> Response:
    return _refusal(error)


def _refusal(error: HTTPError) -> BodyRefusal:
    """The answer to a request whose body is not read."""
    return BodyRefusal(orjson.dumps({"error": str(error)}), error.status, error.headers, "application/json")


async def _http_exception(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        return _error(404, f"no such route: {request.url.path[:200]}")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return _error(405, f"method: expected {allowed}, found {request.method}", {"Allow": allowed})
    return _error(error.status_code, error.detail)


async def _client_disconnect(_request: Request, _disconnect: ClientDisconnect) -> Response:
    return _error(400, "the client went away before its body was read")


async def _unexpected(_request: Request, error: Exception) -> Response:
    return _error(500, f"unexpected {type(error).__name__}; the server's log has the details")


Handler = Callable[[Request], Awaitable[Response]]
# The first kind that an error is of: what is special comes before what is general.
ERRORS: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
    BodyTooLong: _body_too_long,
    AbstainError: _abstain_error,
    HTTPException: _http_exception,
    ClientDisconnect: _client_disconnect,
    Exception: _unexpected,
}


def _forwarded(app: ASGIApp) -> Callable[[Request], Awaitable[Response]]:
    async def forward(_: Request) -> Response:
        return _Forward(app)

    return forward


class _Forward(Response):
    """A response that another application gives."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _watched(app: ASGIApp, routes: set[str], traffic: Traffic) -> ASGIApp:
    """Counts and times every request, and logs what nobody expected: nothing may escape to the server.

    Routes that do not exist are one, for a label must not grow by requests.
    """

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in routes else console.template(path) or open_inference.template(path)
        started, code = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                given = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(header for header in SAFE_HEADERS if header[0] not in given),
                ]
            await send(message)

        traffic.under_way += 1
        try:
            await app(scope, receive, noting)
        except Exception:
            # Starlette has answered 500 and raises on; the server would reset a connection that clients think is open.
            log.exception("%s %s", scope["method"], route)
        finally:
            traffic.under_way -= 1
            metrics.REQUESTS.labels(route, str(code)).inc()
            metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started)

    return watched
