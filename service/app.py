"""The BentoML service: process management, `bentoml serve`, `bentoml build`, and the description of the API.

In every worker, the application in `service/http.py` responds to requests before they reach BentoML's application, because
BentoML's decoding accepts strings as numbers and takes longer than the prediction. Only this module,
`service/compat/bentoml.py` and `abstain serve` use BentoML.

BentoML imports this module in every process of a server. The import reads the settings and prepares the process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import uuid
from contextlib import suppress
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import bentoml
import orjson

from abstain.models.bundles.signatures import read_trusted
from abstain.service.access.startup_checks import check_access, pem_files
from abstain.service.access.tls import follow_changes
from abstain.service.compat.bentoml import (
    Service,
    check_process_manager,
    restrict_process_manager,
    set_up_uvicorn,
    stop_usage_reports,
    worker_index,
)
from abstain.service.following.follower import follow_store
from abstain.service.process import Traffic, drain_on_stop, end_with_main, join_run
from abstain.service.settings import check_address, read_settings, unknown_variables

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from abstain.models.decisions.records import Judgement
    from abstain.service.live import Live
    from abstain.service.live_versions import LiveVersions
    from abstain.service.monitoring.drift import DriftWatch

SETTINGS = read_settings(os.environ)
PROCESS = join_run(SETTINGS.workers, worker_index())
stop_usage_reports()
if PROCESS.index is None:
    # Checked once, not by every worker.
    for unknown in unknown_variables(os.environ):
        logging.getLogger("abstain.settings").warning("environment: %s", unknown)
    check_access(SETTINGS)
    restrict_process_manager(PROCESS.folder, partial(check_address, SETTINGS), partial(follow_store, SETTINGS, PROCESS))
else:
    check_process_manager(PROCESS.folder)
CERTIFICATE = pem_files(SETTINGS)
ENCRYPTED = set_up_uvicorn(CERTIFICATE)

SWITCH_SECONDS = 2e-4
"""The longest time that a thread may hold the interpreter while another thread waits for it."""

T_co = TypeVar("T_co", covariant=True)


class FrontedService(Service[T_co]):
    """A BentoML service that puts abstain's application in front of BentoML's."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Makes the application of a worker, which uses BentoML's for the life cycle and the description of the API."""
        # jax reads the environment when it is imported: that must be after `join_run`.
        from abstain.service.compilation import keep_compiled  # noqa: PLC0415
        from abstain.service.http import build_app  # noqa: PLC0415
        from abstain.service.monitoring.drift import DriftWatch  # noqa: PLC0415

        bentoml_app = super().to_asgi(is_main=is_main)
        keep_compiled(SETTINGS.compiled)
        logging.getLogger("uvicorn.access").handlers.clear()
        logging.getLogger("uvicorn.access").propagate = False
        versions, traffic = _new_versions(), Traffic()
        watch = DriftWatch(PROCESS, SETTINGS.state)
        app = build_app(SETTINGS, PROCESS, traffic, versions, bentoml_app, watch.note)
        return _with_life_cycle(app, bentoml_app, versions, traffic, watch)


def _new_versions() -> LiveVersions:
    from abstain.service.live_versions import LiveVersions  # noqa: PLC0415 - as above

    trusted = read_trusted(SETTINGS.trusted_keys)
    return LiveVersions(
        SETTINGS.folder,
        SETTINGS.devices,
        require_sound=SETTINGS.require_sound,
        trusted=trusted,
        memory_bytes=SETTINGS.memory_bytes,
        all_ready=SETTINGS.ready == "all",
    )


def _with_life_cycle(
    app: ASGIApp, bentoml_app: ASGIApp, versions: LiveVersions, traffic: Traffic, watch: DriftWatch
) -> ASGIApp:
    """Passes HTTP to `app`, and start and stop to BentoML's application; models load in a thread, so `/livez` responds at once."""
    followers: list[asyncio.Task[None]] = []
    accepting = threading.Event()

    def start() -> None:
        """Prepares this worker, and starts to load the models."""
        sys.setswitchinterval(SWITCH_SECONDS)
        from abstain.service.following.worker import follow_plans  # noqa: PLC0415
        from abstain.service.monitoring.metrics import count_compiles  # noqa: PLC0415

        if CERTIFICATE and not ENCRYPTED:
            sys.exit(
                "abstain: ABSTAIN_TLS_CERT: this server does not encrypt; install the versions in requirements-serving.lock"
            )
        followers.extend(asyncio.create_task(follow_changes(encrypted)) for encrypted in ENCRYPTED)
        drain_on_stop(PROCESS, traffic, SETTINGS.grace_seconds)
        end_with_main(PROCESS)
        count_compiles()
        watch.start()
        # All workers load the same versions: the first one says which.
        progress = _print_progress if PROCESS.index == 1 else None
        follow_plans(versions, PROCESS, accepting, watch.forget, ready, progress)

    def ready() -> None:
        _print_progress(f"worker {PROCESS.index} of {PROCESS.workers} is ready")
        if PROCESS.announce_ready() and (address := PROCESS.address()):
            _print_progress(f"ready for requests; open {address} in a browser for the console, stop with Ctrl+C")

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        """Answers HTTP requests, starts and ends the worker, and refuses web sockets."""
        if scope["type"] == "http":
            await app(scope, receive, send)
            return
        if scope["type"] != "lifespan":
            # abstain has no web sockets, and BentoML's application would accept them without the guard.
            await send({"type": "websocket.close", "code": 1008})
            return

        async def receive_and_act() -> Message:
            """Starts and stops abstain when BentoML starts and stops."""
            message = await receive()
            if message["type"] == "lifespan.startup":
                replaces = PROCESS.replaces_a_worker()
                start()
                if replaces:
                    # Other workers answer: this one accepts no connection before it has loaded what they serve.
                    await asyncio.to_thread(accepting.wait)
            elif message["type"] == "lifespan.shutdown":
                watch.stop()
            return message

        await bentoml_app(scope, receive_and_act, send)

    return application


def _print_progress(text: str) -> None:
    """Prints what the server does while it starts, unless the settings say `quiet`."""
    if not SETTINGS.quiet:
        with suppress(OSError):  # Nobody reads it any more.
            sys.stderr.write(f"abstain: {text}\n")
            sys.stderr.flush()


def _ignore_decision(_live: Live, _judgement: Judgement) -> None:
    """Does nothing: drift detection does not include calls from Python."""


@bentoml.service(
    name="abstain",
    service_class=FrontedService,
    workers=SETTINGS.workers,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": ".*"},
    traffic={"timeout": 3600},
)
class Abstain:
    """Predictions of Bayesian neural networks, with their uncertainty and a calibrated reject flag."""

    @bentoml.api(route="/predict")
    def predict(
        self,
        inputs: list[list[Any]],
        model: str | None = None,
        percentile: float | None = None,
        coverage: float | None = None,
        fields: list[str] | None = None,
        max_error: float | None = None,
    ) -> dict[str, Any]:
        """Predict a batch of rows; an image row is nested as the model's input shape, or flat.

        HTTP requests do not reach this method, because `service.http` responds to them. It gives the types to BentoML's
        clients (`/schema.json`), and responds to calls from Python.
        """
        from abstain.service.http import make_stages  # noqa: PLC0415
        from abstain.service.predict.routes import respond_now  # noqa: PLC0415

        request = {
            "inputs": inputs,
            "model": model,
            "percentile": percentile,
            "coverage": coverage,
            "max_error": max_error,
            "fields": fields,
        }
        body = orjson.dumps({key: value for key, value in request.items() if value is not None})
        stages = make_stages(_ignore_decision)
        return orjson.loads(respond_now(self._versions, SETTINGS.max_rows, body, uuid.uuid4().hex, stages))

    @cached_property
    def _versions(self) -> LiveVersions:
        versions = _new_versions()
        versions.load_all()
        return versions
