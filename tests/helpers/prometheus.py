"""Samples of `/metrics`, and requests that move them."""

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.processes import PATIENCE
from tests.helpers.servers import Server

Sample = tuple[str, frozenset[tuple[str, str]]]


def read(server: Server) -> dict[Sample, float]:
    """Every sample of `/metrics`, read over a new connection."""
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(samples: dict[Sample, float], name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    return sum(value for (found, has), value in samples.items() if found == name and set(labels.items()) <= has)


def ask(server: Server, rows: np.ndarray, model: str, **more) -> httpx.Response:
    """The answer over a new connection."""
    return httpx.post(f"{server.url}/predict", json={"inputs": rows.tolist(), "model": model, **more}, timeout=PATIENCE)
