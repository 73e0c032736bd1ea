"""The path of a request: bytes → checked rows → prediction → decision → response.

An ASGI application without BentoML: `service/app.py` puts it in front of BentoML's. The formats of requests and
responses are in `service/predict` and `service/open_inference`, the queue is in `service/batcher.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import Judgement, Levels
from abstain.models.prediction.predictive import Prediction
from abstain.service import console, control, openapi
from abstain.service.access.guard import SAFE_HEADERS, Guard
from abstain.service.access.proxies import trust_proxies
from abstain.service.batcher import Batcher
from abstain.service.batches import Stages
from abstain.service.bodies import read_body
from abstain.service.errors import HTTPError
from abstain.service.json_objects import HEADER_LENGTH
from abstain.service.live import Live
from abstain.service.live_versions import LiveVersions
from abstain.service.monitoring import metrics
from abstain.service.open_inference import routes as open_inference
from abstain.service.predict import routes as predict
from abstain.service.predict.description import describe
from abstain.service.process import Process, Traffic
from abstain.service.responses import (
    ERRORS,
    Handler,
    is_unexpected,
    json_response,
    refuse,
    request_id,
    respond_to_error,
)
from abstain.service.rollouts.observing import RolloutWatch
from abstain.service.rollouts.rollouts import Rollouts
from abstain.service.rollouts.shadowing import ShadowQueue
from abstain.service.rollouts.state import read_state
from abstain.service.rows import finite_rows, overflow_error
from abstain.service.settings import Settings

log = logging.getLogger("abstain.http")

MODEL = "/models/{model}"
ROLLOUT = "/models/{model}/rollout"
Match = Callable[[str], dict[str, str] | None]
"""Returns the path parameters if a path belongs to a route; None for any other path."""


def build_app(
    settings: Settings,
    process: Process,
    traffic: Traffic,
    versions: LiveVersions,
    bentoml_app: ASGIApp,
    note: Callable[[Live, Judgement], None],
) -> ASGIApp:
    """Builds the application of one worker.

    Args:
        bentoml_app: responds to `/schema.json`.
        note: is called with every decision, for drift detection.
    """
    batcher = Batcher(settings.queue, settings.timeout_seconds, make_stages(note))
    watch = RolloutWatch(process.folder)
    rollouts = Rollouts(watch, ShadowQueue(watch, lambda: batcher.idle, settings.shadow_cpu), settings.caller_header)
    handle_predict = predict.make_handler(versions, batcher, rollouts, settings, traffic, read_body)
    engine = open_inference.Engine(versions, batcher, process, rollouts)
    handle_infer, protocol_routes = open_inference.routes(engine, settings, traffic, read_body)
    routes = [
        Route(predict.PATH, handle_predict, methods=["POST"]),
        *_server_routes(versions, process, traffic, settings.max_rows),
        openapi.route(),
        Route("/schema.json", _forward_to(bentoml_app)),
        *console.routes(versions),
        *control.routes(versions, process, settings, read_body),
        *protocol_routes,
    ]
    app = Starlette(routes=routes, exception_handlers=cast("Any", ERRORS))
    app.router.redirect_slashes = False
    busiest = ((predict.match_path, handle_predict), (open_inference.match_path, handle_infer))
    guarded = _with_guard(_with_direct_routes(app, busiest), Guard(settings, process.folder))
    if settings.cors_origins:
        # Outside of the guard: a browser sends a preflight request without a key, and must be able to read refusals.
        guarded = CORSMiddleware(
            guarded,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", "X-Request-Id", HEADER_LENGTH],
            expose_headers=[HEADER_LENGTH],
        )
    return trust_proxies(_with_metrics(guarded, {route.path for route in routes}, traffic), settings.proxies)


def make_stages(note: Callable[[Live, Judgement], None]) -> Stages:
    """Makes the stages of a batch: the decisions of the bundle, the Prometheus metrics, and drift detection."""

    def count_answer(live: Live, prediction: Prediction, judgement: Judgement) -> None:
        metrics.record_prediction(live.name, live.version, prediction, judgement)
        metrics.record_unseen(live.name, live.version, live.bundle.manifest.model, prediction)
        note(live, judgement)

    def count_batch(live: Live, rows: int) -> None:
        metrics.BATCH_ROWS.labels(live.name, str(live.version)).observe(rows)

    def decide(live: Live, prediction: Prediction, levels: Levels) -> Judgement:
        return judge(live.bundle.calibration, prediction, *levels)

    return Stages(
        judge=decide,
        finite_rows=lambda packed: finite_rows([packed]),
        overflow_error=overflow_error,
        count_wait=metrics.QUEUE_SECONDS.observe,
        count_batch=count_batch,
        count_answer=count_answer,
    )


def _server_routes(versions: LiveVersions, process: Process, traffic: Traffic, max_rows: int) -> list[Route]:
    """Makes the routes that report the state of the server, its models and its metrics."""

    async def livez(_: Request) -> Response:
        return json_response({"live": True})

    async def readyz(_: Request) -> Response:
        ready = process.ready_workers()
        all_ready = ready >= process.workers and not traffic.draining
        why = [*dict.fromkeys([*versions.reasons_not_ready(), *versions.shortcomings()])]
        if ready < process.workers:
            why.append(f"{ready} of {process.workers} workers are ready")
        if traffic.draining:
            why.append("draining: this server is about to stop")
        facts = {"ready": all_ready, "workers_ready": ready, "workers": process.workers, "why": why}
        return json_response(facts, 200 if all_ready else 503)

    async def models(_: Request) -> Response:
        return json_response(await asyncio.to_thread(versions.list_models))

    async def model(request: Request) -> Response:
        live = versions.find(request.path_params["model"])
        served = [ready.version for ready in versions.ready_versions() if ready.name == live.name]
        return json_response(await asyncio.to_thread(describe, live, served, max_rows))

    async def rollout(request: Request) -> Response:
        name = versions.find(request.path_params["model"]).name
        state = await asyncio.to_thread(read_state, process.folder, name)
        if state is None:
            raise HTTPError(404, f"no rollout of {name} since the start of this server", code="no_rollout")
        return Response(state.model_dump_json(), media_type="application/json")

    async def show_metrics(_: Request) -> Response:
        metrics.WORKERS.set(process.workers)
        metrics.WORKERS_READY.set(0 if traffic.draining else process.ready_workers())
        return Response(await asyncio.to_thread(metrics.exposition), media_type=metrics.CONTENT_TYPE)

    return [
        Route("/models", models),
        Route(MODEL, model),
        Route(ROLLOUT, rollout),
        Route("/livez", livez),
        Route("/readyz", readyz),
        Route("/metrics", show_metrics),
    ]


def _with_guard(app: ASGIApp, guard: Guard) -> ASGIApp:
    """Puts the application behind the guard; the body of a refused request is not read."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await guard.check(scope)
        except HTTPError as error:
            await refuse(Request(scope), error)(scope, receive, send)
            return
        await app(scope, receive, send)

    return guarded


def _with_direct_routes(app: ASGIApp, busiest: tuple[tuple[Match, Handler], ...]) -> ASGIApp:
    """Calls the handlers of the busiest routes without Starlette's routing and middleware, which cost more than decoding."""

    async def direct(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            for match, handler in busiest:
                parameters = match(scope["path"])
                if parameters is not None:
                    await _run(handler, Request({**scope, "path_params": parameters}, receive), send)
                    return
        await app(scope, receive, send)

    return direct


async def _run(handler: Handler, request: Request, send: Send) -> None:
    """Runs a handler and sends its response, or that of its error, as Starlette's middleware does."""
    unexpected = None
    try:
        response = await handler(request)
    except Exception as error:
        response = await respond_to_error(request, error)
        unexpected = error if is_unexpected(error) else None
    await response(request.scope, request.receive, send)
    if unexpected:
        raise unexpected


def _forward_to(app: ASGIApp) -> Callable[[Request], Awaitable[Response]]:
    async def forward(_: Request) -> Response:
        return _Forward(app)

    return forward


class _Forward(Response):
    """A response that another application sends."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _template(path: str) -> str:
    """Returns the route of a path with parameters, for metrics; "other" for a path without a route."""
    match path.split("/"):
        case ["", "models", name] if name:
            return MODEL
        case ["", "models", name, "rollout"] if name:
            return ROLLOUT
        case _:
            return console.route_template(path) or control.route_template(path) or open_inference.route_template(path)


def _with_metrics(app: ASGIApp, routes: set[str], traffic: Traffic) -> ASGIApp:
    """Counts and times every request, and logs unexpected errors: none may reach uvicorn.

    All routes that do not exist count as one, because the values of a label must not grow with requests.
    """

    async def measured(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in routes else _template(path)
        started, code = time.perf_counter(), 500
        scope.setdefault("state", {})  # Copies of the scope share it, and with it the id of the request.

        async def send_safely(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                present = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(header for header in SAFE_HEADERS if header[0] not in present),
                ]
            await send(message)

        traffic.under_way += 1
        try:
            await app(scope, receive, send_safely)
        except Exception:
            # Starlette has sent 500 and raises again; uvicorn would reset a connection that the client thinks is open.
            log.exception("%s %s (id %s)", scope["method"], route, request_id(scope))
        finally:
            traffic.under_way -= 1
            metrics.REQUESTS.labels(route, str(code)).inc()
            metrics.REQUEST_SECONDS.labels(route).observe(time.perf_counter() - started)

    return measured
