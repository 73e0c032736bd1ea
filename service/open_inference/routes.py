"""The Open Inference Protocol v2 under `/v2`, for clients of KServe and Triton.

This module has the routes and their documents; `tensors` reads a request's tensor, and `outputs` writes the outputs.
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
from abstain.models.decisions.judging import check_limited
from abstain.service.batcher import Batcher
from abstain.service.batches import Answer, Cost, Share
from abstain.service.errors import HTTPError
from abstain.service.json_objects import flag_of, parse_object
from abstain.service.live import Live
from abstain.service.live_versions import LiveVersions
from abstain.service.loading import in_one_line
from abstain.service.open_inference.columns import inputs_of
from abstain.service.open_inference.datatypes import INPUT
from abstain.service.open_inference.outputs import (
    Output,
    OutputColumn,
    Records,
    all_in_binary,
    compute_output,
    encode,
    encode_row,
    input_of,
    join_parts,
    make_records,
    outputs_of,
    select_rows,
    to_wire_type,
)
from abstain.service.open_inference.statistics import VersionStatistics
from abstain.service.open_inference.tensors import InferRequest, Signature, decode
from abstain.service.process import Process, Traffic
from abstain.service.rollouts.rollouts import Rollouts, Turn
from abstain.service.rows import check_finite
from abstain.service.settings import Settings
from abstain.service.version_table import VersionState

T = TypeVar("T")
ReadBody = Callable[[Request, int], Awaitable[bytes]]
Statistics = defaultdict[tuple[str, int], VersionStatistics]
PLATFORM = "abstain_bundle"
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "statistics")
# Larger bodies are decoded in a thread; for smaller ones, starting the thread costs more than the work.
_SMALL_BODY_BYTES = 64 * 1024
_OUTPUT, _RECORDS = "output", "records"
"""Keys of the values that a batch keeps for all requests that share it."""


class Engine(NamedTuple):
    """The live versions, their queue, the process that they run in, and their rollouts."""

    serving: LiveVersions
    batcher: Batcher
    process: Process
    rollouts: Rollouts

    def reasons_not_ready(self) -> list[str]:
        """Returns why this worker, or another one, is not ready; an empty list if all are ready."""
        why, ready, workers = self.serving.reasons_not_ready(), self.process.ready_workers(), self.process.workers
        return why if ready >= workers else [*why, f"{ready} of {workers} workers are ready"]


def routes(
    engine: Engine, settings: Settings, traffic: Traffic, read_body: ReadBody
) -> tuple[Callable[[Request], Awaitable[Response]], list[Route]]:
    """Makes the handler of inference requests, and all routes of the protocol, including those of this handler.

    Args:
        read_body: reads a body up to a limit in bytes.
    """
    statistics: Statistics = defaultdict(VersionStatistics)
    infer = _make_infer_handler(engine, settings, traffic, read_body, statistics)

    async def server(_: Request) -> Response:
        return _json({"name": "abstain", "version": _own_version(), "extensions": EXTENSIONS})

    async def live(_: Request) -> Response:
        return _json({"live": True})

    async def ready(_: Request) -> Response:
        why = engine.reasons_not_ready()
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
        return _json(_metadata(live, requested_versions(request, live)))

    async def config(request: Request) -> Response:
        live = engine.serving.find(_reference(request))
        return _json(_config(live, requested_versions(request, live), settings.max_rows))

    async def stats(request: Request) -> Response:
        live = engine.serving.find(_reference(request))
        return respond_stats([(live.name, version) for version in requested_versions(request, live)])

    async def all_stats(_: Request) -> Response:
        return respond_stats([(live.name, live.version) for live in engine.serving.ready_versions()])

    async def index(request: Request) -> Response:
        body = await read_body(request, settings.max_body_bytes)
        content, _ = parse_object(body or b"{}", ("ready",))
        ready_only = flag_of(content, "ready", "body")
        # In a thread, because it may read the disk.
        entries = [_index_entry(version) for version in await asyncio.to_thread(engine.serving.list_versions)]
        return _json([entry for entry in entries if entry["state"] == "READY" or not ready_only])

    def respond_stats(versions: list[tuple[str, int]]) -> Response:
        return _json({"model_stats": [statistics[version].document(*version) for version in versions]})

    def requested_versions(request: Request, live: Live) -> list[int]:
        """Returns the version that a request names; all live ones of a model named without version or label."""
        if _reference(request) != live.name:
            return [live.version]
        return [ready.version for ready in engine.serving.ready_versions() if ready.name == live.name]

    of_models = {"": model, "/ready": model_ready, "/config": config, "/stats": stats}
    return infer, [
        *(Route(path + "/infer", infer, methods=["POST"]) for path in _MODEL_PATHS),
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        # Before the routes of models, so that it is found first: a model named "stats" needs its version in the path.
        Route("/v2/models/stats", all_stats),
        *(Route(path + suffix, endpoint) for path in _MODEL_PATHS for suffix, endpoint in of_models.items()),
        Route("/v2/repository/index", index, methods=["POST"]),
    ]


_MODEL_PATHS = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
_TEMPLATES = frozenset(
    path + suffix for path in _MODEL_PATHS for suffix in ("", "/infer", "/ready", "/config", "/stats")
)


def match_path(path: str) -> dict[str, str] | None:
    """Returns the model, and perhaps the version, in the path of an inference request; None for any other path."""
    match path.split("/"):
        case ["", "v2", "models", model, "infer"] if model:
            return {"model": model}
        case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
            return {"model": model, "version": version}
        case _:
            return None


def route_template(path: str) -> str:
    """Returns the route that a path belongs to, for metrics; "other" for any path that is not of a model."""
    parts = path.split("/")
    for index, word in ((3, "{model}"), (5, "{version}")):
        # An empty name has no route.
        if parts[index : index + 1] > [""] and parts[index - 1] in {"models", "versions"}:
            parts[index] = word
    route = "/".join(parts)
    return route if route in _TEMPLATES else "other"


def _make_infer_handler(
    engine: Engine, settings: Settings, traffic: Traffic, read_body: ReadBody, statistics: Statistics
) -> Callable[[Request], Awaitable[Response]]:
    """Makes the handler of inference requests: body → checked rows → prediction → outputs → body."""

    async def infer(request: Request) -> Response:
        started = time.perf_counter_ns()
        traffic.refuse_if_draining()
        body = await read_body(request, settings.max_body_bytes)
        arrived = time.perf_counter_ns()
        with engine.rollouts.turn(request) as turn:
            return await answer(request, body, turn, started, arrived)

    async def answer(request: Request, body: bytes, turn: Turn, started: int, arrived: int) -> Response:
        live = turn.choose(engine.serving.choose, _reference(request)).live
        version_statistics = statistics[live.name, live.version]
        try:
            with engine.batcher.reserve():
                small = len(body) <= _SMALL_BODY_BYTES and "content-encoding" not in request.headers
                parsed = await _run(small, lambda: _decode_request(request, body, live, settings))
                decoded, cost = time.perf_counter_ns(), Cost()
                encode_shares = partial(_encode_response, live, parsed, request.headers.get("accept-encoding", ""))
                encode_shares = turn.observe(parsed.rows, parsed.levels, encode_shares)
                headers, content = await engine.batcher.submit(live, parsed.rows, parsed.levels, encode_shares, cost)
        except BaseException:
            version_statistics.count_failure(time.perf_counter_ns() - started)
            raise
        ended = time.perf_counter_ns()
        version_statistics.count_success(
            len(parsed.rows),
            cost.batches,
            success=ended - started,
            queue=cost.queue,
            compute_input=decoded - arrived,
            compute_infer=cost.compute,
            compute_output=max(0, ended - decoded - cost.queue - cost.compute),
        )
        return Response(content, headers=headers)

    return infer


async def _run(small: bool, work: Callable[[], T]) -> T:
    return work() if small else await asyncio.to_thread(work)


def _reference(request: Request) -> str:
    model, version = request.path_params["model"], request.path_params.get("version")
    return model if version is None else f"{model}:{version}"


def _decode_request(request: Request, body: bytes, live: Live, settings: Settings) -> InferRequest:
    model = live.bundle.manifest.model
    outputs = outputs_of(model, live.bundle.calibration)
    names = (live.name, request.path_params["model"])
    signature = Signature(model, outputs, names)
    found = decode(request.headers, body, signature, max_rows=settings.max_rows, max_bytes=settings.max_body_bytes)
    check_limited(live.bundle.calibration, found.levels.percentile, found.levels.max_error)
    return found


def _encode_response(
    live: Live, request: InferRequest, accept: str, shares: list[Share]
) -> tuple[dict[str, str], bytes]:
    """Returns the headers and the body of the response to a request with these shares."""
    outputs = outputs_of(live.bundle.manifest.model, live.bundle.calibration)
    judgement = shares[0].answer.judgement
    head: dict[str, Any] = {"model_name": live.name, "model_version": str(live.version)}
    if request.id is not None:
        head["id"] = request.id
    head["parameters"] = {"digest": live.bundle.manifest.digest, **judgement.stated_levels}
    if len(request.rows) == 1 and not accept and request.outputs == all_in_binary(outputs):
        # Clients that need a low latency send this request: copies one record of the batch, does not join thirty outputs.
        records, row = shares[0].answer.make_once(_RECORDS, partial(_records, outputs)), shares[0].rows.start
        if records.finite[row]:
            return encode_row(head, records, row, outputs)
    columns = {
        name: join_parts(
            [
                select_rows(share.answer.make_once((_OUTPUT, name), partial(_output, name, outputs[name])), share.rows)
                for share in shares
            ]
        )
        for name, _ in request.outputs
    }
    check_finite([values for values in columns.values() if isinstance(values, np.ndarray)])
    return encode(head, columns, request.outputs, outputs, accept)


def _output(name: str, output: Output, answer: Answer) -> OutputColumn:
    """Computes one output of every row of a batch, in the type of the metadata."""
    values = compute_output(name, answer.live.bundle.manifest.model, answer.prediction, answer.judgement)
    return to_wire_type(values, output)


def _records(outputs: Mapping[str, Output], answer: Answer) -> Records:
    """Makes the records of all outputs of a batch."""
    columns = {
        name: answer.make_once((_OUTPUT, name), partial(_output, name, output)) for name, output in outputs.items()
    }
    return make_records(columns, outputs)


def _metadata(live: Live, versions: list[int]) -> dict[str, Any]:
    """Returns a model's metadata; the first axis of every shape is the batch."""
    model = live.bundle.manifest.model

    def tensor(name: str, output: Output, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        described = {"name": name, "datatype": output.datatype, "shape": [-1, *output.shape]}
        return described if parameters is None else {**described, "parameters": parameters}

    return {
        "name": live.name,
        "versions": [str(version) for version in versions],
        "platform": PLATFORM,
        "inputs": [tensor(INPUT, input_of(model)), *(tensor(*column) for column in inputs_of(live.bundle))],
        "outputs": [tensor(*item) for item in outputs_of(model, live.bundle.calibration).items()],
        "parameters": {"digest": live.bundle.manifest.digest},
    }


def _config(live: Live, versions: list[int], max_rows: int) -> dict[str, Any]:
    """Returns Triton's model configuration: `dims` do not include the batch, because `max_batch_size` is not 0."""
    manifest, calibration = live.bundle.manifest, live.bundle.calibration
    model = manifest.model

    columns = inputs_of(live.bundle)

    def tensor(name: str, output: Output) -> dict[str, Any]:
        data_type = "STRING" if output.datatype == "BYTES" else output.datatype
        return {"name": name, "data_type": f"TYPE_{data_type}", "dims": list(output.shape)}

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
        # A request has the first tensor or all others, so each is optional.
        "input": [
            {**tensor(INPUT, input_of(model)), **({"optional": True} if columns else {})},
            *({**tensor(*column[:2]), "optional": True} for column in columns),
        ],
        "output": [tensor(*item) for item in outputs_of(model, calibration).items()],
        "parameters": {key: {"string_value": text} for key, text in facts.items()},
    }


def _index_entry(version: VersionState) -> dict[str, Any]:
    """Returns one entry of Triton's repository index, with Triton's names of states."""
    word = {"ready": "READY", "loading": "LOADING"}.get(version.state, "UNAVAILABLE")
    reason = version.why or ("not served: it has no label" if version.state == "idle" else "")
    if not version.why and version.shortfalls:
        reason = f"{reason}; failed publication checks: {in_one_line(version.shortfalls)}".removeprefix("; ")
    return {"name": version.name, "version": str(version.version), "state": word, "reason": reason}


def _own_version() -> str:
    try:
        return version("abstain")
    except PackageNotFoundError:  # In a Bento, the code is present but not installed.
        return "unknown"


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
