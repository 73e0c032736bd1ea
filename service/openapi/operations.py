"""The routes: what each one takes, and every status that it may respond with."""

from __future__ import annotations

from typing import Any

from abstain.service.json_objects import HEADER_LENGTH
from abstain.service.openapi.forms import INTEGER, STRING, Schema, array, described, ref
from abstain.service.openapi.schemas import SETTINGS
from abstain.service.predict.table_bodies import ARROW, CSV, QUERY

TAGS = {
    "predictions": "Predictions with a reject flag",
    "models": "What is served",
    "control": "Load, unload and label models; needs a key with the scope admin",
    "server": "Health, metrics and descriptions",
    "open inference": "Open Inference Protocol v2, as KServe and Triton speak it",
    "console": "The page for people; not an interface for programs",
}
JSON = "application/json"
BINARY = "application/octet-stream"
_REASONS = {
    304: "The client already has it (ETag)",
    400: "The request is malformed, or a row or parameter is wrong",
    401: "No key, an unknown key, or an invalid token",
    403: "The key does not have the scope, or a web page of another origin sent the request",
    404: "No such model, version or file is served",
    413: "The body is too long",
    415: "The media type or the compression is not supported",
    421: "The host name is not this server's",
    429: "The queue is full, or the key exceeds its rate",
    500: "A fault of the server; its log has the id",
    503: "The version is not ready, the server is stopping, or the identity provider cannot be reached",
    504: "No result in time",
}
_HEADERS = {
    401: {"WWW-Authenticate": {"schema": STRING}},
    429: {"Retry-After": {"schema": INTEGER, "description": "seconds"}},
    503: {"Retry-After": {"schema": INTEGER, "description": "seconds; not always sent"}},
}
GUARD = (401, 403, 421, 429, 500, 503)
"""Statuses of every route that may need a key; the identity provider of tokens may be unreachable."""
OPEN = (403, 421, 500)
"""Statuses of the console's files: hosts and origins are checked, keys are not."""
COMPUTING = (400, 404, 413, 415, 504)
_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "required": False,
    "description": "returned as `id`, and in the server's log",
    "schema": STRING,
}
_MODEL = described(STRING, "`name`, `name:version` or `name@label`")
_PATH_VALUES: dict[str, Schema] = {"model": _MODEL, "version": INTEGER, "file": STRING}


def _body(schema: Schema, media_type: str = JSON) -> dict[str, Any]:
    return {media_type: {"schema": schema}}


def _response(status: int, content: dict[str, Any] | None, text: str | None = None) -> dict[str, Any]:
    response: dict[str, Any] = {"description": text or _REASONS[status]}
    if content:
        response["content"] = content
    if status in _HEADERS:
        response["headers"] = _HEADERS[status]
    return response


def _operation(
    name: str,
    tag: str,
    summary: str,
    content: dict[str, Any],
    statuses: tuple[int, ...],
    *,
    body: dict[str, Any] | None = None,
    body_required: bool = True,
    parameters: tuple[str, ...] = (),
    special: dict[int, dict[str, Any] | None] | None = None,
    guarded: bool = True,
) -> dict[str, Any]:
    """Describes an operation.

    Args:
        name: the name of a generated client's method.
        content: the bodies of a 200 by media type.
        statuses: those of errors.
        special: bodies of statuses that are no `Error`.
        guarded: whether it may need a key.
    """
    own = special or {}
    responses = {"200": _response(200, content, "Success")}
    for status in sorted({*statuses, *own}):
        responses[str(status)] = _response(status, own[status] if status in own else _body(ref("Error")))
    operation: dict[str, Any] = {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "parameters": [
            *({"name": path, "in": "path", "required": True, "schema": _PATH_VALUES[path]} for path in parameters),
            _REQUEST_ID,
        ],
        "responses": responses,
    }
    if body:
        operation["requestBody"] = {"required": body_required, "content": body}
    if not guarded:
        operation["security"] = []
    return operation


def _of_a_model(path: str, suffix: str, parameters: tuple[str, ...]) -> dict[str, Any]:
    """Describes the routes of a model, or of one of its versions, under `/v2`."""
    tag, found = "open inference", (400, 404, *GUARD)
    infer = _body(ref("InferRequest")) | _body({"type": "string", "format": "binary"}, BINARY)
    answer = _body(ref("InferResponse")) | _body({"type": "string", "format": "binary"}, BINARY)
    lengths = {
        "name": HEADER_LENGTH,
        "in": "header",
        "required": False,
        "description": "the length of the JSON, if binary data follows",
        "schema": INTEGER,
    }
    post = _operation(
        f"infer{suffix}",
        tag,
        "Predict a tensor of rows",
        answer,
        (*COMPUTING, *GUARD),
        body=infer,
        parameters=parameters,
    )
    post["parameters"] = [*post["parameters"], lengths]
    gets = {
        "": ("modelMetadata", "Inputs and outputs with their types", "ModelMetadata"),
        "/ready": ("modelReady", "Whether a version is served", "ModelReady"),
        "/config": ("modelConfig", "Triton's configuration of a model", "ModelConfig"),
        "/stats": ("modelStatistics", "Counts and durations of requests", "Statistics"),
    }
    return {f"{path}/infer": {"post": post}} | {
        f"{path}{end}": {
            "get": _operation(f"{name}{suffix}", tag, summary, _body(ref(schema)), found, parameters=parameters)
        }
        for end, (name, summary, schema) in gets.items()
    }


def _pages() -> dict[str, Any]:
    """Describes the console's page and files."""
    html, version = _body(STRING, "text/html"), ("model", "version")
    unchanged: dict[int, dict[str, Any] | None] = {304: None}
    files = {
        media_type: {"schema": STRING} for media_type in ("text/javascript", "text/css", "text/html", "image/svg+xml")
    }
    return {
        "/": {"get": _operation("console", "console", "The console", html, OPEN, special=unchanged, guarded=False)},
        "/console/{file}": {
            "get": _operation(
                "consoleFile",
                "console",
                "A file of the console",
                files,
                (400, 404, *OPEN),
                parameters=("file",),
                special=unchanged,
                guarded=False,
            )
        },
        "/console/models/{model}/versions/{version}": {
            "get": _operation(
                "consoleVersion",
                "console",
                "What the console shows of a version",
                _body(ref("ConsoleVersion")),
                (400, 404, *GUARD),
                parameters=version,
                special=unchanged,
            )
        },
        "/console/models/{model}/versions/{version}/report.html": {
            "get": _operation(
                "report",
                "console",
                "The report of a fit",
                html,
                (400, 404, *GUARD),
                parameters=version,
                special=unchanged,
            )
        },
    }


def _server() -> dict[str, Any]:
    """Describes health, metrics and descriptions."""
    readiness: dict[int, dict[str, Any] | None] = {503: _body(ref("Readiness"))}
    anything = _body({"type": "object", "additionalProperties": True})
    return {
        "/livez": {
            "get": _operation("live", "server", "Whether the worker runs", _body(ref("Live")), (500,), guarded=False)
        },
        "/readyz": {
            "get": _operation(
                "ready",
                "server",
                "Whether every worker is ready",
                _body(ref("Readiness")),
                (500,),
                special=readiness,
                guarded=False,
            )
        },
        "/metrics": {"get": _operation("metrics", "server", "Prometheus metrics", _body(STRING, "text/plain"), GUARD)},
        "/docs.json": {"get": _operation("openapi", "server", "This document", anything, GUARD)},
        "/schema.json": {
            "get": _operation("bentomlSchema", "server", "The description for BentoML's Python client", anything, GUARD)
        },
    }


def _protocol() -> dict[str, Any]:
    """Describes the routes of the Open Inference Protocol."""
    tag, model, version = "open inference", "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    return {
        "/v2": {"get": _operation("serverMetadata", tag, "Name and extensions", _body(ref("ServerMetadata")), GUARD)},
        "/v2/health/live": {
            "get": _operation("serverLive", tag, "Whether the worker runs", _body(ref("Live")), (500,), guarded=False)
        },
        "/v2/health/ready": {
            "get": _operation(
                "serverReady",
                tag,
                "Whether every worker is ready",
                _body(ref("ServerReady")),
                (500, 503),
                guarded=False,
            )
        },
        "/v2/models/stats": {
            "get": _operation("allStatistics", tag, "Statistics of all models", _body(ref("Statistics")), GUARD)
        },
        "/v2/repository/index": {
            "post": _operation(
                "repositoryIndex",
                tag,
                "Every version with its state",
                _body(array(ref("IndexEntry"))),
                (400, 413, *GUARD),
                body=_body(ref("IndexRequest")),
                body_required=False,
            )
        },
        **_of_a_model(model, "", ("model",)),
        **_of_a_model(version, "Version", ("model", "version")),
    }


def _control() -> dict[str, Any]:
    """Describes the routes that need a key with the scope `admin`."""
    failures = (400, 404, 413, 504, *GUARD)

    def load(name: str, summary: str) -> dict[str, Any]:
        body = _body(ref("LoadRequest"))
        operation = _operation(
            name, "control", summary, {}, failures, body=body, body_required=False, parameters=("model",)
        )
        return {"post": operation}

    return {
        "/v2/repository/models/{model}/load": load("loadModel", "Serve what the store asks for of a model, now"),
        "/v2/repository/models/{model}/unload": load("unloadModel", "Stop serving a model"),
        "/admin/models/{model}/label": {
            "post": _operation(
                "moveLabel",
                "control",
                "Move a label in the store, and wait until it is followed",
                _body(ref("LabelResponse")),
                failures,
                body=_body(ref("LabelRequest")),
                parameters=("model",),
            )
        },
    }


def _predict() -> dict[str, Any]:
    """Describes `POST /predict`: rows in JSON, or a table with the settings in the URL."""
    file = _body({"type": "string", "format": "binary"}, ARROW)
    post = _operation(
        "predict",
        "predictions",
        "Predict rows",
        _body(ref("PredictResponse")),
        (*COMPUTING, *GUARD),
        body=_body(ref("PredictRequest")) | _body(STRING, CSV) | file,
    )
    settings = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": f"only for a table as the body: {SETTINGS[name]['description']}",
            "schema": {key: rule for key, rule in SETTINGS[name].items() if key != "description"},
            # Separated by commas.
            **({"style": "form", "explode": False} if name == "fields" else {}),
        }
        for name in QUERY
    ]
    return {**post, "parameters": [*post["parameters"], *settings]}


PATHS: dict[str, Any] = {
    "/predict": {"post": _predict()},
    "/models": {
        "get": _operation(
            "listModels", "models", "Every version in the store, with its state", _body(ref("Models")), GUARD
        )
    },
    "/models/{model}": {
        "get": _operation(
            "getModel", "models", "A served version", _body(ref("Model")), (400, 404, *GUARD), parameters=("model",)
        )
    },
    "/models/{model}/rollout": {
        "get": _operation(
            "getRollout",
            "models",
            "The rollout of a model, and what is known of it",
            _body(ref("Rollout")),
            (400, 404, *GUARD),
            parameters=("model",),
        )
    },
    **_server(),
    **_protocol(),
    **_control(),
    **_pages(),
}
"""Every path, and its operations by method."""
