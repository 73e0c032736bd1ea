"""The Open Inference Protocol v2 under `/v2`: what clients of KServe and Triton call.

The routes and their documents are here; how a request's tensor is read is in `tensors`, how outputs are written in
`outputs`. Whatever is not a prediction is answered from what the engine lists.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, TypeVar

import numpy as np
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from abstain.models.bundles.shortfalls import texts
from abstain.service.batcher import Batcher
from abstain.service.batches import Answer, Share, Spent
from abstain.service.errors import HTTPError
from abstain.service.json_objects import flag_of, parse_object
from abstain.service.live import Live
from abstain.service.live_versions import LiveVersions, in_one_line
from abstain.service.open_inference.outputs import (
    Column,
    Output,
    Records,
    all_in_binary,
    column,
    encode,
    encode_row,
    input_of,
    joined,
    on_the_wire,
    outputs_of,
    own_rows,
    records,
)
from abstain.service.open_inference.statistics import Tally
from abstain.service.open_inference.tensors import INPUT, InferRequest, Signature, decode
from abstain.service.process import Process, Traffic
from abstain.service.rows import check_finite
from abstain.service.settings import Settings

T = TypeVar("T")
ReadBody = Callable[[Request, int], Awaitable[bytes]]
Tallies = defaultdict[tuple[str, int], Tally]
PLATFORM = "abstain_bundle"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository(index)", "statistics")
# Work on more bytes than these leaves the event loop; less would cost more to hand over than to do.
_FEW_BYTES = 64 * 1024
_OUTPUT, _RECORDS = "output", "records"
"""What an answer keeps for all requests that share it."""


class Engine(NamedTuple):
    """What answers: the versions, their queue, and the process that they are in."""

    serving: LiveVersions
    batcher: Batcher
    process: Process

    def hindrances(self) -> list[str]:
        """What stands in the way of this worker, and that others are not ready."""
        why, ready, workers = self.serving.hindrances(), self.process.ready_workers(), self.process.workers
        return why if ready >= workers else [*why, f"{ready} of {workers} workers are ready"]


def routes(
    engine: Engine, settings: Settings, traffic: Traffic, read_body: ReadBody
) -> tuple[Callable[[Request], Awaitable[Response]], list[Route]]:
    """The handler of inference, and all routes of the protocol, its own among them.

    Args:
        read_body: reads a body that may not be longer than so many bytes.
    """
    tallies: Tallies = defaultdict(Tally)
    infer = _inferring(engine, settings, traffic, read_body, tallies)

    async def server(_: Request) -> Response:
        return _json({"name": "abstain", "version": _own_version(), "extensions": EXTENSIONS})

    async def live(_: Request) -> Response:
        return _json({"live": True})

    async def ready(_: Request) -> Response:
        why = [*engine.hindrances()]
        if traffic.draining:
            why.append("draining: this server is about to stop")
        if why:
            raise HTTPError(503, f"not ready: {'; '.join(why)}")
        return _json({"ready": True})

    async def model_ready(request: Request) -> Response:
        live = engine.serving.find(_reference(request))
        if traffic.draining:
            raise HTTPError(503, "draining: this server is about to stop", code="draining")
        return _json({"name": live.name, "ready": True})

    async def model(request: Request) -> Response:
        live = engine.serving.find(_reference(request))
        return _json(_metadata(live, await versions_meant(request, live)))

    async def config(request: Request) -> Response:
        live = engine.serving.find(_reference(request))
        return _json(_config(live, await versions_meant(request, live), settings.max_rows))

    async def stats(request: Request) -> Response:
        live = engine.serving.find(_reference(request))
        return told([(live.name, version) for version in await versions_meant(request, live)])

    async def all_stats(_: Request) -> Response:
        return told([(name, version) for name, version, state, *_ in await listed() if state == "ready"])

    async def index(request: Request) -> Response:
        body = await read_body(request, settings.max_body_bytes)
        content, _ = parse_object(body or b"{}", ("ready",))
        ready_only = flag_of(content, "ready", "body")
        known = [_indexed(*version) for version in await listed()]
        return _json([entry for entry in known if entry["state"] == "READY" or not ready_only])

    def told(versions: list[tuple[str, int]]) -> Response:
        return _json({"model_stats": [tallies[version].document(*version) for version in versions]})

    async def listed() -> list[tuple[str, int, str, str | None, list[str]]]:
        """Name, version, state, why, and shortfalls, of all in the store; off the event loop, for it may read the disk."""
        listing = await asyncio.to_thread(engine.serving.listing)
        return [
            (model["name"], entry["version"], entry["state"], entry["why"], entry["shortfalls"])
            for model in listing["models"]
            for entry in model["versions"]
        ]

    async def versions_meant(request: Request, live: Live) -> list[int]:
        """All that answer, of a model named without version or label; else the one that is meant."""
        if _reference(request) != live.name:
            return [live.version]
        return [version for name, version, state, *_ in await listed() if name == live.name and state == "ready"]

    of_models = {"": model, "/ready": model_ready, "/config": config, "/stats": stats}
    return infer, [
        *(Route(place + "/infer", infer, methods=["POST"]) for place in _PLACES),
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        # Before the models' own routes, for no model answers here: one called "stats" is asked with its version.
        Route("/v2/models/stats", all_stats),
        *(Route(place + what, endpoint) for place in _PLACES for what, endpoint in of_models.items()),
        Route("/v2/repository/index", index, methods=["POST"]),
    ]


_PLACES = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_TEMPLATES = frozenset(place + what for place in _PLACES for what in ("", "/infer", "/ready", "/config", "/stats"))


def place_of(path: str) -> dict[str, str] | None:
    """Which model, and perhaps version, a path asks an inference of; None for any other path."""
    match path.split("/"):
        case ["", "v2", "models", model, "infer"] if model:
            return {"model": model}
        case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
            return {"model": model, "version": version}
        case _:
            return None


def template(path: str) -> str:
    """A model's path as its route has it, for metrics; "other" for any path that is none of theirs."""
    parts = path.split("/")
    for place, word in ((3, "{model}"), (5, "{version}")):
        # An empty name is no name: its route is not there.
        if parts[place : place + 1] > [""] and parts[place - 1] in {"models", "versions"}:
            parts[place] = word
    route = "/".join(parts)
    return route if route in _TEMPLATES else "other"


def _inferring(
    engine: Engine, settings: Settings, traffic: Traffic, read_body: ReadBody, tallies: Tallies
) -> Callable[[Request], Awaitable[Response]]:
    """The way of a prediction: body → checked rows → prediction → outputs → body."""

    async def infer(request: Request) -> Response:
        started = time.perf_counter_ns()
        traffic.refuse_if_draining()
        body = await read_body(request, settings.max_body_bytes)
        live = engine.serving.find(_reference(request))
        tally = tallies[live.name, live.version]
        arrived = time.perf_counter_ns()
        try:
            with engine.batcher.place():
                few = len(body) <= _FEW_BYTES and "content-encoding" not in request.headers
                asked = await _near(few, lambda: _decoded(request, body, live, settings))
                decoded, spent = time.perf_counter_ns(), Spent()
                encoded = partial(_answer, live, asked, request.headers.get("accept-encoding", ""))
                terms = asked.percentile, asked.coverage
                headers, answer = await engine.batcher.submit(live, asked.rows, *terms, encoded, spent)
        except BaseException:
            tally.failed(time.perf_counter_ns() - started)
            raise
        ended = time.perf_counter_ns()
        tally.succeeded(
            len(asked.rows),
            spent.batches,
            success=ended - started,
            queue=spent.queue,
            compute_input=decoded - arrived,
            compute_infer=spent.compute,
            compute_output=max(0, ended - decoded - spent.queue - spent.compute),
        )
        return Response(answer, headers=headers)

    return infer


async def _near(few: bool, work: Callable[[], T]) -> T:
    return work() if few else await asyncio.to_thread(work)


def _reference(request: Request) -> str:
    model, version = request.path_params["model"], request.path_params.get("version")
    return model if version is None else f"{model}:{version}"


def _decoded(request: Request, body: bytes, live: Live, settings: Settings) -> InferRequest:
    model = live.bundle.manifest.model
    outputs = outputs_of(model, live.bundle.calibration)
    names = (live.name, request.path_params["model"])
    signature = Signature(model, outputs, names)
    return decode(request.headers, body, signature, max_rows=settings.max_rows, max_bytes=settings.max_body_bytes)


def _answer(live: Live, asked: InferRequest, accept: str, shares: list[Share]) -> tuple[dict[str, str], bytes]:
    """From the shares of a request to headers and body."""
    outputs = outputs_of(live.bundle.manifest.model, live.bundle.calibration)
    judgement = shares[0].answer.judgement
    head: dict[str, Any] = {"model_name": live.name, "model_version": str(live.version)}
    if asked.id is not None:
        head["id"] = asked.id
    head["parameters"] = {"percentile": judgement.percentile, "coverage": judgement.coverage}
    if len(asked.rows) == 1 and not accept and asked.outputs == all_in_binary(outputs):
        # What clients in a hurry ask for: it is cut from the batch whole, and not put together of thirty parts.
        whole, row = shares[0].answer.once(_RECORDS, partial(_records, outputs)), shares[0].rows.start
        if whole.finite[row]:
            return encode_row(head, whole, row, outputs)
    columns = {
        name: joined(
            [
                own_rows(share.answer.once((_OUTPUT, name), partial(_output, name, outputs[name])), share.rows)
                for share in shares
            ]
        )
        for name, _ in asked.outputs
    }
    check_finite([values for values in columns.values() if isinstance(values, np.ndarray)])
    return encode(head, columns, asked.outputs, outputs, accept)


def _output(name: str, output: Output, answer: Answer) -> Column:
    """An output of every row of an answer, in its type on the wire."""
    return on_the_wire(column(name, answer.live.bundle.manifest.model, answer.prediction, answer.judgement), output)


def _records(outputs: Mapping[str, Output], answer: Answer) -> Records:
    """All outputs of every row of an answer, side by side."""
    made = {name: answer.once((_OUTPUT, name), partial(_output, name, output)) for name, output in outputs.items()}
    return records(made, outputs)


def _metadata(live: Live, versions: list[int]) -> dict[str, Any]:
    """What clients ask before they send rows; the first axis of every shape is the batch."""
    model = live.bundle.manifest.model

    def tensor(name: str, output: Output) -> dict[str, Any]:
        return {"name": name, "datatype": output.datatype, "shape": [-1, *output.shape]}

    return {
        "name": live.name,
        "versions": [str(version) for version in versions],
        "platform": PLATFORM,
        "inputs": [tensor(INPUT, input_of(model))],
        "outputs": [tensor(*item) for item in outputs_of(model, live.bundle.calibration).items()],
    }


def _config(live: Live, versions: list[int], max_rows: int) -> dict[str, Any]:
    """Triton's model configuration: `dims` leave the batch out, since `max_batch_size` is not 0."""
    manifest, calibration = live.bundle.manifest, live.bundle.calibration
    model = manifest.model

    def tensor(name: str, output: Output) -> dict[str, Any]:
        kind = "STRING" if output.datatype == "BYTES" else output.datatype
        return {"name": name, "data_type": f"TYPE_{kind}", "dims": list(output.shape)}

    facts = {
        "digest": manifest.digest,
        "draws": str(live.predictor.draws),
        "percentile": str(calibration.percentile),
        "coverage": str(calibration.coverage),
        "class_names": orjson.dumps(model.class_names).decode(),
        "feature_names": orjson.dumps(model.feature_names).decode(),
        "shortfalls": orjson.dumps(texts(manifest.shortfalls)).decode(),
    }
    return {
        "name": live.name,
        "platform": PLATFORM,
        "backend": "abstain",
        "version_policy": {"specific": {"versions": versions}},
        "max_batch_size": max_rows,
        "input": [tensor(INPUT, input_of(model))],
        "output": [tensor(*item) for item in outputs_of(model, calibration).items()],
        "parameters": {key: {"string_value": text} for key, text in facts.items()},
    }


def _indexed(name: str, version: int, state: str, why: str | None, shortfalls: list[str]) -> dict[str, Any]:
    """One entry of Triton's repository index, whose words for states are its own."""
    word = {"ready": "READY", "loading": "LOADING"}.get(state, "UNAVAILABLE")
    reason = why or ("not served: it has no label" if state == "idle" else "")
    if not why and shortfalls:
        reason = f"{reason}; its fit fell short: {in_one_line(shortfalls)}".removeprefix("; ")
    return {"name": name, "version": str(version), "state": word, "reason": reason}


def _own_version() -> str:
    try:
        return version("abstain")
    except PackageNotFoundError:  # In a Bento the code is there, but not installed.
        return "unknown"


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
