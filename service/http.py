"""THE STORY of a request: bytes → checked rows → prediction → judgement → answer → bytes.

An ASGI application of its own, which knows no BentoML: `service/app.py` puts it in front of BentoML's.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import jax
import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.calibration import judge
from models.errors import AbstainError
from service import answers, metrics, open_inference
from service.compute import Compute
from service.errors import HTTPError, status_of
from service.process import Process, Traffic
from service.schemas import check_finite, check_rows, parse_predict
from service.serving import Serving
from service.settings import Settings

log = logging.getLogger("abstain.http")

# How much of a refused body is read and thrown away.
DRAIN_BYTES = 512 * 1024 * 1024
DRAIN_SECONDS = 10.0
DRAIN_IDLE_SECONDS = 2.0


def answer_predict(serving: Serving, max_rows: int, body: bytes, request_id: str) -> bytes:
    """The answer to the body of `POST /predict`: the whole way of a request, but for the transport."""
    request = parse_predict(body)
    live = serving.find(request.model)
    model = live.bundle.manifest.model
    fields = answers.check_fields(model, request.fields)
    rows = check_rows(request, model, max_rows)
    prediction = live.predictor(rows)
    check_finite(jax.tree.leaves(prediction))
    judgement = judge(live.bundle.calibration, prediction, request.percentile, request.coverage)
    metrics.record_prediction(live.name, live.version, prediction, judgement, live.predictor.batches(len(rows)))
    return orjson.dumps(
        {
            "id": request_id,
            "model": {"name": live.name, "version": live.version, "digest": live.bundle.manifest.digest},
            "percentile": judgement.percentile,
            "coverage": judgement.coverage,
            "draws": live.predictor.draws,
            "predictions": answers.rows(answers.columns(model, prediction, judgement), fields),
        }
    )


def build_app(settings: Settings, process: Process, traffic: Traffic, serving: Serving, described: ASGIApp) -> ASGIApp:
    """The application of one worker.

    Args:
        described: answers `/schema.json` and `/docs.json`; BentoML's own application.
    """
    compute = Compute(settings.queue, settings.timeout_seconds)

    async def predict(request: Request) -> Response:
        if traffic.draining:
            raise HTTPError(503, "draining: this server is about to stop", {"Retry-After": "1", "Connection": "close"})
        body = await read_body(request, settings.max_body_bytes)
        content_type = request.headers.get("content-type", "none")
        if content_type.split(";")[0].strip().lower() != "application/json":
            raise HTTPError(415, "Content-Type", expected="application/json", found=content_type)
        request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
        answer = await compute.run(lambda: answer_predict(serving, settings.max_rows, body, request_id))
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
        return _json(await compute.run(serving.listing))

    async def show_metrics(_: Request) -> Response:
        return Response(await asyncio.to_thread(metrics.exposition), media_type=metrics.CONTENT_TYPE)

    routes = [
        Route("/predict", predict, methods=["POST"]),
        Route("/models", models),
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/metrics", show_metrics),
        Route("/docs.json", _forwarded(described)),
        Route("/schema.json", _forwarded(described)),
        *open_inference.routes(open_inference.Direct(serving, compute, process), settings, traffic, read_body),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        AbstainError: _abstain_error,
        BodyTooLong: _body_too_long,
        HTTPException: _http_exception,
        ClientDisconnect: _client_disconnect,
        Exception: _unexpected,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return _watched(app, {route.path for route in routes}, traffic)


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
    return BodyRefusal(orjson.dumps({"error": str(error)}), error.status, media_type="application/json")


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
        route = scope["path"] if scope["path"] in routes else open_inference.template(scope["path"])
        started, code = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
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
