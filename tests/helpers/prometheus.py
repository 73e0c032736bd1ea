"""Reads samples of `/metrics`, and sends requests that change them."""

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.processes import PATIENCE
from tests.helpers.servers import Server

Sample = tuple[str, frozenset[tuple[str, str]]]


def read(server: Server) -> dict[Sample, float]:
    """Every sample of `/metrics`, over a new connection."""
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(samples: dict[Sample, float], name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    return sum(value for (metric, own), value in samples.items() if metric == name and set(labels.items()) <= own)


def predict(server: Server, rows: np.ndarray, model: str, **more) -> httpx.Response:
    """The response of `POST /predict` over a new connection."""
    return httpx.post(f"{server.url}/predict", json={"inputs": rows.tolist(), "model": model, **more}, timeout=PATIENCE)
