"""`POST /predict`: makes the body of a response from the body of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import orjson
from jaxtyping import Float
from starlette.requests import Request
from starlette.responses import Response

from abstain.models.decisions.judging import check_limited
from abstain.models.tables.unseen import NO_TEXTS, UnseenTexts
from abstain.service.batcher import Batcher
from abstain.service.batches import Answer, Share, Stages
from abstain.service.errors import HTTPError
from abstain.service.live import Live
from abstain.service.live_versions import LiveVersions
from abstain.service.predict import response
from abstain.service.predict.request import PredictRequest, parse_predict
from abstain.service.process import Traffic
from abstain.service.responses import Handler, request_id
from abstain.service.rows import check_finite, check_rows
from abstain.service.settings import Settings

PATH = "/predict"
LARGE_BODY = 64 * 1024
"""Longer bodies, in bytes, are decoded in a thread so that they do not block the event loop."""
_COLUMNS = "predict"


class ParsedRequest(NamedTuple):
    """A checked request, and the version that it names.

    Attributes:
        texts: the unseen categories of the rows, where the request has their names.
    """

    live: Live
    rows: Float[np.ndarray, "rows ..."]
    request: PredictRequest
    fields: tuple[str, ...]
    texts: UnseenTexts = NO_TEXTS


def match_path(path: str) -> dict[str, str] | None:
    """Returns the path parameters of this route, which has none; None for any other path."""
    return {} if path == PATH else None


def make_handler(
    versions: LiveVersions,
    batcher: Batcher,
    settings: Settings,
    traffic: Traffic,
    read_body: Callable[[Request, int], Awaitable[bytes]],
) -> Handler:
    """Makes the handler of `POST /predict`."""

    async def predict(request: Request) -> Response:
        traffic.refuse_if_draining()
        body = await read_body(request, settings.max_body_bytes)
        content_type = request.headers.get("content-type", "none")
        if content_type != "application/json" and content_type.split(";")[0].strip().lower() != "application/json":
            raise HTTPError(415, where="Content-Type", expected="application/json", found=content_type)
        read = partial(read_request, versions, settings.max_rows, body)
        with batcher.reserve():
            parsed = read() if len(body) <= LARGE_BODY else await asyncio.to_thread(read)
            encode = partial(encode_response, parsed, request_id(request.scope))
            content = await batcher.submit(parsed.live, parsed.rows, parsed.request.levels, encode)
        return Response(content, media_type="application/json")

    return predict


def read_request(versions: LiveVersions, max_rows: int, body: bytes) -> ParsedRequest:
    """Reads and checks a body of `POST /predict`.

    Raises:
        InputError: the body is not a request, or a row does not fit the model.
        UnknownModel: the model, version or label is not served.
        HTTPError: 503, the version is not ready.
    """
    request = parse_predict(body, max_rows)
    live = versions.find(request.model)
    model = live.bundle.manifest.model
    calibration = live.bundle.calibration
    two_parts, interval = calibration.ambiguity is not None, calibration.targets is not None
    fields = response.check_fields(model, request.fields, two_parts=two_parts, probability_interval=interval)
    check_limited(calibration, request.levels.percentile, request.levels.max_error)
    return ParsedRequest(live, check_rows(request.inputs, request.plain, model, max_rows), request, fields)


def encode_response(parsed: ParsedRequest, own_id: str, shares: list[Share]) -> bytes:
    """Encodes the body of the response, from the request's shares of one or more batches."""
    live, judgement = parsed.live, shares[0].answer.judgement
    rows = [row for share in shares for row in _rows(share, parsed.fields)]
    response.name_unseen(rows, live.bundle.manifest.model, parsed.texts)
    return orjson.dumps(
        {
            "id": own_id,
            "model": {"name": live.name, "version": live.version, "digest": live.bundle.manifest.digest},
            **judgement.stated_levels,
            "draws": live.predictor.draws,
            "predictions": rows,
        }
    )


def respond_now(versions: LiveVersions, max_rows: int, body: bytes, own_id: str, stages: Stages) -> bytes:
    """Makes the body of the response to a body of `POST /predict`, in the caller's thread and without the queue.

    Raises:
        AbstainError: as `read_request` and `Batcher.submit` do.
    """
    parsed = read_request(versions, max_rows, body)
    prediction = parsed.live.predictor(parsed.rows)
    check_finite(jax.tree.leaves(prediction))
    judgement = stages.judge(parsed.live, prediction, parsed.request.levels)
    stages.count_answer(parsed.live, prediction, judgement)
    answer = Answer(parsed.live, prediction, judgement)
    return encode_response(parsed, own_id, [Share(answer, slice(0, len(parsed.rows)))])


def _rows(share: Share, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    columns = share.answer.make_once(_COLUMNS, _columns)
    return response.make_rows({field: columns[field][share.rows] for field in fields}, fields)


def _columns(answer: Answer) -> dict[str, list[Any]]:
    return response.make_columns(answer.live.bundle.manifest.model, answer.prediction, answer.judgement)
