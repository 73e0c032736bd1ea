"""Services for comparison over HTTP: two as a user would write them, and two that compute nothing.

    Empty       BentoML, decodes the rows and returns a constant
    Plain       BentoML, the ensemble by `vmap` over draws as they are stored
    Batchable   the same with BentoML's adaptive batching; batches are padded to a few sizes, so that few are compiled
    bare        an ASGI application for uvicorn: decodes the body with orjson and returns a constant

All accept `{"inputs": [[784 floats]]}` at `/predict`. The networks are the same as abstain's: 100 draws of 784-64-64-10. They
return the mean, standard deviations and entropies, but no score, threshold or p-value.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import bentoml
import numpy as np
import orjson

DRAWS, SIZES = 100, (784, 64, 64, 10)
BUCKETS = (1, 8, 32)
CONSTANT = {"label": "8", "probabilities": [0.1] * 10, "entropy": 2.3, "reject": False}
_CONSTANT = orjson.dumps(CONSTANT)

# abstain has no access log; writing a line per request would slow the others down.
QUIET: dict[str, Any] = {"access": {"enabled": False}}
logging.getLogger("bentoml.access").setLevel(logging.ERROR)


@bentoml.service(workers=1, logging=QUIET)
class Empty:
    """A service that only decodes requests."""

    @bentoml.api
    async def predict(self, inputs: np.ndarray) -> dict[str, Any]:  # noqa: ARG002 - BentoML decodes it
        """Returns a constant; `async` needs no thread, and is a seventh faster."""
        return CONSTANT


@bentoml.service(workers=1, logging=QUIET)
class Plain:
    """An ensemble that computes one request per call."""

    def __init__(self) -> None:
        self.call = ensemble()

    @bentoml.api
    def predict(self, inputs: np.ndarray) -> dict[str, Any]:
        """Returns the predictions for every row."""
        return {name: values.tolist() for name, values in predict_padded(self.call, inputs).items()}


@bentoml.service(workers=1, logging=QUIET)
class Batchable:
    """An ensemble with batches that BentoML makes."""

    def __init__(self) -> None:
        self.call = ensemble()

    @bentoml.api(batchable=True, max_batch_size=BUCKETS[-1], max_latency_ms=10_000)
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Returns the predictions as one array, because BentoML can split only one array."""
        return np.column_stack(list(predict_padded(self.call, inputs).values()))


def ensemble() -> Callable[[np.ndarray], dict[str, Any]]:
    """Makes a function of random draws, sample axis first, and compiles it for every size."""
    import jax  # noqa: PLC0415 - in workers only
    import jax.numpy as jnp  # noqa: PLC0415

    rng = np.random.default_rng(0)
    draws = [
        (
            rng.normal(0, inputs**-0.5, (DRAWS, inputs, outputs)).astype(np.float32),
            np.zeros((DRAWS, outputs), np.float32),
        )
        for inputs, outputs in pairwise(SIZES)
    ]

    def network(draw: Any, row: Any) -> Any:
        for kernel, bias in draw[:-1]:
            row = jax.nn.relu(row @ kernel + bias)
        return jax.nn.softmax(row @ draw[-1][0] + draw[-1][1])

    @jax.jit
    def call(draws: Any, rows: Any) -> dict[str, Any]:
        """Returns the mean, standard deviation and entropies of each row."""
        probabilities = jax.vmap(jax.vmap(network, (None, 0)), (0, None))(draws, rows)
        mean = probabilities.mean(0)
        entropy = -(mean * jnp.log(mean)).sum(-1)
        expected = -(probabilities * jnp.log(probabilities)).sum(-1).mean(0)
        return {"probabilities": mean, "std": probabilities.std(0), "entropy": entropy, "expected_entropy": expected}

    on_device = jax.device_put(draws)

    def predict(rows: np.ndarray) -> dict[str, Any]:
        return jax.device_get(call(on_device, rows))

    for size in BUCKETS:
        predict(np.zeros((size, SIZES[0]), np.float32))
    return predict


def predict_padded(call: Callable[[np.ndarray], dict[str, Any]], inputs: np.ndarray) -> dict[str, Any]:
    """Predicts any number of rows up to the largest size."""
    padded = np.zeros((next(size for size in BUCKETS if size >= len(inputs)), SIZES[0]), np.float32)
    padded[: len(inputs)] = inputs
    return {name: values[: len(inputs)] for name, values in call(padded).items()}


async def bare(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Decodes the body of a request and responds with a constant."""
    if scope["type"] != "http":
        return
    body, has_more = b"", scope["method"] == "POST"
    while has_more:
        message = await receive()
        body += message.get("body", b"")
        has_more = message.get("more_body", False)
    if body:
        orjson.loads(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_CONSTANT)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _CONSTANT})
