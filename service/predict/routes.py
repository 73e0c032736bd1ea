"""`POST /predict`: makes the body of a response from the body of a request: JSON, or a table."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import orjson
from jaxtyping import Float
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response

from abstain.models.bundles.data_record import reading_of_fit
from abstain.models.decisions.judging import check_limited
from abstain.models.errors import InputError, clip_repr
from abstain.models.tables.unseen import NO_TEXTS, UnseenTexts
from abstain.service.batcher import Batcher
from abstain.service.batches import Answer, Share, Stages
from abstain.service.errors import HTTPError
from abstain.service.live import Live
from abstain.service.live_versions import LiveVersions
from abstain.service.predict import response
from abstain.service.predict.request import PredictRequest, parse_predict, rows_of_request, texts_of_request
from abstain.service.predict.table_bodies import CSV, MEDIA_TYPES, QUERY, parse_query, rows_of_body
from abstain.service.process import Traffic
from abstain.service.responses import Handler, request_id
from abstain.service.rollouts.rollouts import Rollouts
from abstain.service.rollouts.routing import Choice
from abstain.service.rows import check_finite
from abstain.service.settings import Settings

PATH = "/predict"
LARGE_BODY = 64 * 1024
"""Longer bodies, in bytes, are decoded in a thread so that they do not block the event loop."""
Find = Callable[[str | None], Choice]
_COLUMNS = "predict"
_JSON = "application/json"
_ACCEPTED = (_JSON, *MEDIA_TYPES)


class ParsedRequest(NamedTuple):
    """A checked request.

    Attributes:
        choice: the version that responds, and the request's part in a rollout.
        texts: the unseen categories of the rows, where the request has their names.
    """

    choice: Choice
    rows: Float[np.ndarray, "rows ..."]
    request: PredictRequest
    fields: tuple[str, ...]
    texts: UnseenTexts = NO_TEXTS

    @property
    def live(self) -> Live:
        """The version that responds."""
        return self.choice.live

    def name_rows(self, error: InputError) -> InputError:
        """Changes the place of an error of the computation, `inputs[3]`, to the place of the row in this request."""
        if error.where is not None and error.where.startswith("inputs["):
            error.where = self.request.form + error.where.removeprefix("inputs")
        return error


def match_path(path: str) -> dict[str, str] | None:
    """Returns the path parameters of this route, which has none; None for any other path."""
    return {} if path == PATH else None


def make_handler(
    versions: LiveVersions,
    batcher: Batcher,
    rollouts: Rollouts,
    settings: Settings,
    traffic: Traffic,
    read_body: Callable[[Request, int], Awaitable[bytes]],
) -> Handler:
    """Makes the handler of `POST /predict`."""

    async def predict(request: Request) -> Response:
        traffic.refuse_if_draining()
        body = await read_body(request, settings.max_body_bytes)
        media_type = _media_type(request.headers.get("content-type", "none"))
        if media_type == _JSON:
            if request.scope["query_string"]:
                _refuse_settings(request.query_params)
            read = partial(read_request, max_rows=settings.max_rows, body=body)
        else:
            read = partial(
                read_table_request,
                max_rows=settings.max_rows,
                body=body,
                media_type=media_type,
                query=request.query_params,
            )
        with batcher.reserve(), rollouts.turn(request) as turn:
            find = partial(turn.choose, versions.choose)
            parsed = read(find) if len(body) <= LARGE_BODY else await asyncio.to_thread(read, find)
            levels = parsed.request.levels
            encode = turn.observe(parsed.rows, levels, partial(encode_response, parsed, request_id(request.scope)))
            try:
                content = await batcher.submit(parsed.live, parsed.rows, levels, encode)
            except InputError as error:
                raise parsed.name_rows(error) from None
        return Response(content, media_type="application/json")

    return predict


def read_request(find: Find, max_rows: int, body: bytes) -> ParsedRequest:
    """Reads and checks a body of `POST /predict`.

    Args:
        find: returns the version that responds to a request for a model.

    Raises:
        InputError: the body is not a request, or a row does not fit the model.
        UnknownModel: the model, version or label is not served.
        HTTPError: 503, the version is not ready.
    """
    request = parse_predict(body, max_rows)
    choice, fields = _find(find, request)
    model = choice.live.bundle.manifest.model
    rows = rows_of_request(request, model, max_rows)
    return ParsedRequest(choice, rows, request, fields, texts_of_request(request, model, rows))


def read_table_request(find: Find, max_rows: int, body: bytes, media_type: str, query: QueryParams) -> ParsedRequest:
    """Reads and checks a body that is a table; raises as `read_request` does."""
    request = parse_query(query)
    choice, fields = _find(find, request)
    manifest = choice.live.bundle.manifest
    rows, texts = rows_of_body(
        body, media_type, manifest.model, max_rows, reading_of_fit(manifest.data, manifest.model)
    )
    return ParsedRequest(choice, rows, request, fields, texts)


def _refuse_settings(query: QueryParams) -> None:
    """Refuses settings in the URL of a JSON body, which would have no effect; other parameters are ignored.

    Raises:
        InputError: names the first of them.
    """
    name = next((name for name in QUERY if name in query), None)
    if name is not None:
        raise InputError(
            name,
            where="query",
            expected="no settings in the URL of a JSON body",
            found=clip_repr(query[name]),
            fix="put it into the body",
        )


def _media_type(content_type: str) -> str:
    """Returns the media type of a body without its parameters.

    Raises:
        HTTPError: 415, `/predict` does not accept it.
    """
    if content_type in _ACCEPTED:
        return content_type
    media_type, _, parameters = content_type.lower().partition(";")
    media_type = media_type.strip()
    if media_type not in _ACCEPTED:
        expected = f"{', '.join(_ACCEPTED[:-1])} or {_ACCEPTED[-1]}"
        raise HTTPError(415, where="Content-Type", expected=expected, found=content_type)
    if media_type == CSV and _other_charset(parameters):
        raise HTTPError(415, where="Content-Type", expected=f"{CSV} in UTF-8", found=content_type)
    return media_type


def _other_charset(parameters: str) -> bool:
    _, given, charset = parameters.partition("charset=")
    return bool(given) and charset.partition(";")[0].strip(' "') not in {"utf-8", "us-ascii"}


def _find(find: Find, request: PredictRequest) -> tuple[Choice, tuple[str, ...]]:
    """Returns the version that responds to a request, and the fields of its predictions."""
    choice = find(request.model)
    live = choice.live
    calibration = live.bundle.calibration
    two_parts, interval = calibration.ambiguity is not None, calibration.targets is not None
    model = live.bundle.manifest.model
    fields = response.check_fields(model, request.fields, two_parts=two_parts, probability_interval=interval)
    check_limited(calibration, request.levels.percentile, request.levels.max_error)
    return choice, fields


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
    parsed = read_request(lambda text: Choice(versions.find(text)), max_rows, body)
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
