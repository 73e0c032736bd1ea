"""Services for comparison over HTTP: two as a user would write them, and two that compute nothing.

    Empty       BentoML, decodes the rows and answers a constant
    Plain       BentoML, the ensemble by `vmap` over draws as they are stored
    Batchable   the same with BentoML's adaptive batching; a batch is padded to a few sizes, or each would compile
    bare        an ASGI application for uvicorn: orjson decodes the body, a constant is answered

All take `{"inputs": [[784 floats]]}` at `/predict`. The networks are those of ours: 100 draws of 784-64-64-10. They
answer with mean, standard deviations and the entropies, and with no score, threshold or p-value.
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

# The access log of ours is off; a line a request would be counted against the others.
QUIET: dict[str, Any] = {"access": {"enabled": False}}
logging.getLogger("bentoml.access").setLevel(logging.ERROR)


@bentoml.service(workers=1, logging=QUIET)
class Empty:
    """The framework and nothing else."""

    @bentoml.api
    async def predict(self, inputs: np.ndarray) -> dict[str, Any]:  # noqa: ARG002 - decoded all the same
        """Returns a constant without a thread, which makes it a seventh faster."""
        return CONSTANT


@bentoml.service(workers=1, logging=QUIET)
class Plain:
    """An ensemble, one request a call."""

    def __init__(self) -> None:
        self.call = ensemble()

    @bentoml.api
    def predict(self, inputs: np.ndarray) -> dict[str, Any]:
        """The predictions of all draws for every row."""
        return {name: values.tolist() for name, values in answered(self.call, inputs).items()}


@bentoml.service(workers=1, logging=QUIET)
class Batchable:
    """An ensemble, requests gathered by BentoML."""

    def __init__(self) -> None:
        self.call = ensemble()

    @bentoml.api(batchable=True, max_batch_size=BUCKETS[-1], max_latency_ms=10_000)
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """The same, side by side: an answer that BentoML can cut must be one array."""
        return np.column_stack(list(answered(self.call, inputs).values()))


def ensemble() -> Callable[[np.ndarray], dict[str, Any]]:
    """Random draws, sample axis first; compiled for every size before the service is ready."""
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
        probabilities = jax.vmap(jax.vmap(network, (None, 0)), (0, None))(draws, rows)
        mean = probabilities.mean(0)
        entropy = -(mean * jnp.log(mean)).sum(-1)
        expected = -(probabilities * jnp.log(probabilities)).sum(-1).mean(0)
        return {"probabilities": mean, "std": probabilities.std(0), "entropy": entropy, "expected_entropy": expected}

    on_device = jax.device_put(draws)

    def answer(rows: np.ndarray) -> dict[str, Any]:
        return jax.device_get(call(on_device, rows))

    for size in BUCKETS:
        answer(np.zeros((size, SIZES[0]), np.float32))
    return answer


def answered(call: Callable[[np.ndarray], dict[str, Any]], inputs: np.ndarray) -> dict[str, Any]:
    """Predicts any number of rows up to the largest size."""
    padded = np.zeros((next(size for size in BUCKETS if size >= len(inputs)), SIZES[0]), np.float32)
    padded[: len(inputs)] = inputs
    return {name: values[: len(inputs)] for name, values in call(padded).items()}


async def bare(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Decodes what it is sent, and says the same to all."""
    if scope["type"] != "http":
        return
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if body:
        orjson.loads(body)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(_CONSTANT)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _CONSTANT})
