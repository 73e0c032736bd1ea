"""The metrics for Prometheus: names and labels, sums over workers, and numbers that match the requests."""

import os
import signal
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.processes import PATIENCE, children, wait_for
from tests.helpers.prometheus import of, predict, read

MODEL = {"model", "version"}
CONTRACT = {
    "abstain_requests_total": ("counter", {"route", "code"}),
    "abstain_request_seconds": ("histogram", {"route"}),
    "abstain_rows_total": ("counter", MODEL),
    "abstain_rejected_total": ("counter", MODEL | {"reason"}),
    "abstain_entropy_nats": ("histogram", MODEL),
    "abstain_mutual_information_nats": ("histogram", MODEL),
    "abstain_score_percentile": ("histogram", MODEL | {"score"}),
    "abstain_batch_rows": ("histogram", MODEL),
    "abstain_queue_seconds": ("histogram", set()),
    "abstain_compiles_total": ("counter", set()),
    "abstain_model_sound": ("gauge", MODEL),
    "abstain_model_info": ("gauge", MODEL | {"digest", "method", "draws"}),
    "abstain_expected_reject_ratio": ("gauge", MODEL),
    "abstain_model_loads_total": ("counter", MODEL | {"outcome"}),
    "abstain_drift_log_martingale": ("gauge", MODEL | {"score"}),
    "abstain_drift_alarm_level": ("gauge", MODEL | {"score"}),
    "abstain_drift_crossed_timestamp_seconds": ("gauge", MODEL | {"score"}),
    "abstain_drift_rows": ("gauge", MODEL),
    "abstain_drift_ks": ("gauge", MODEL | {"score"}),
    "abstain_drift_ks_p_value": ("gauge", MODEL | {"score"}),
    "abstain_drift_psi": ("gauge", MODEL | {"score"}),
    "abstain_workers": ("gauge", set()),
    "abstain_workers_ready": ("gauge", set()),
    "abstain_worker_memory_bytes": ("gauge", {"worker"}),
    "abstain_worker_cpu_seconds": ("gauge", {"worker"}),
}
OF_A_MODEL = {
    path + what
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    for what in ("", "/infer", "/ready", "/config", "/stats")
}
ROUTES = {
    "/predict",
    "/models",
    "/models/{model}",
    "/livez",
    "/readyz",
    "/metrics",
    "/docs.json",
    "/schema.json",
    "/",
    "/console/{file}",
    "/console/models/{model}/versions/{version}",
    "/console/models/{model}/versions/{version}/report.html",
    "other",
    *OF_A_MODEL,
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/stats",
    "/v2/repository/index",
    "/v2/repository/models/{model}/load",
    "/v2/repository/models/{model}/unload",
    "/admin/models/{model}/label",
}


@contextmanager
def paused(pid: int):
    """Stops a process for a while, so that the other workers serve the requests."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """Rows for `digits`, many of which are rejected."""
    return np.random.default_rng(0).integers(0, 17, (60, 64))


@pytest.fixture
def traffic(server, noise) -> None:
    """Sends requests to both models; some rows are rejected, and one request is refused."""
    for model, rows in (("digits", noise), ("wave", np.linspace(-9, 9, 50)[:, None])):
        predict(server, rows, model, percentile=50)
    predict(server, noise[:, 1:], "digits")


@pytest.mark.usefixtures("traffic")
def test_the_metrics_are_those_of_the_contract(server):
    """Name, type and labels of each metric; there are no others."""
    predict(server, np.zeros((300, 1)), "wave")  # one worker then has enough rows for the statistics of the window
    wait_for(lambda: any(name == "abstain_drift_psi" for name, _ in read(server)))
    families = text_string_to_metric_families(httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text)
    found = {}
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert len(labels) == 1, f"{name} has samples with different labels"
        assert family.documentation
        found[name] = (family.type, set(*labels))
    assert found == CONTRACT


def test_the_response_is_prometheus_text(server):
    """Scrapers read its content type."""
    assert (
        httpx.get(f"{server.url}/metrics", timeout=PATIENCE).headers["content-type"].startswith("text/plain; version=")
    )


@pytest.mark.usefixtures("traffic")
def test_the_models_are_listed_by_name_and_version(server, digits, wave):
    """One info metric of 1 for each served version, for any number of workers; each worker loads each version once."""
    samples = read(server)
    infos = {dict(labels)["model"]: dict(labels) for name, labels in samples if name == "abstain_model_info"}
    assert infos == {
        bundle.manifest.name: {
            "model": bundle.manifest.name,
            "version": "1",
            "digest": bundle.manifest.digest,
            "method": bundle.manifest.method.kind,
            "draws": str(bundle.manifest.draws),
        }
        for bundle in (digits, wave)
    }
    assert {value for (name, _), value in samples.items() if name == "abstain_model_info"} == {1.0}
    for model in ("digits", "wave"):
        assert of(samples, "abstain_model_loads_total", model=model, version="1", outcome="loaded") >= 2
    assert of(samples, "abstain_model_loads_total", outcome="failed") == 0


def test_rows_and_their_statistics_add_up(server, noise):
    """The increases of rows, rejections, entropies and percentiles match the responses."""
    before = read(server)
    rows = [
        row for part in np.split(noise, [1, 3, 10]) for row in predict(server, part, "digits").json()["predictions"]
    ]
    after = read(server)

    def increase(name: str, **labels: str) -> float:
        return of(after, name, **labels) - of(before, name, **labels)

    assert increase("abstain_rows_total", model="digits", version="1") == 60
    assert increase("abstain_rows_total", model="wave") == 0
    rejected = sum(row["reject"] for row in rows)
    assert rejected > 0
    assert increase("abstain_rejected_total", model="digits", reason="mutual_information") == rejected
    assert increase("abstain_batch_rows_count", model="digits") == 4
    assert increase("abstain_batch_rows_sum", model="digits") == 60
    for name, field in (("entropy_nats", "entropy"), ("mutual_information_nats", "mutual_information")):
        values = [row[field] for row in rows]
        assert increase(f"abstain_{name}_count", model="digits") == 60
        assert increase(f"abstain_{name}_sum", model="digits") == pytest.approx(sum(values), rel=1e-6)
        below = sum(value <= 0.4 for value in values)
        assert increase(f"abstain_{name}_bucket", model="digits", le="0.4") == below
    for score in ("std", "entropy", "mutual_information", "max_probability"):
        percentiles = [row["scores"][score]["percentile"] for row in rows]
        total = increase("abstain_score_percentile_sum", model="digits", score=score)
        assert total == pytest.approx(sum(percentiles), rel=1e-6)
        assert increase("abstain_score_percentile_bucket", model="digits", score=score, le="99.0") == sum(
            percentile <= 99 for percentile in percentiles
        )


def test_requests_are_counted_by_route_and_code(server, noise):
    """Each response is counted once and timed; refusals have their own codes."""
    wrong = noise[:1, 1:]
    before = read(server)
    for _ in range(3):
        predict(server, noise[:1], "digits")
        predict(server, wrong, "digits")
        predict(server, noise[:1], "nope")
        httpx.get(f"{server.url}/predict", timeout=PATIENCE)
        httpx.post(f"{server.url}/predict", content="x", headers={"Content-Type": "text/plain"}, timeout=PATIENCE)
        httpx.get(f"{server.url}/models", timeout=PATIENCE)
        httpx.get(f"{server.url}/nothing/here", timeout=PATIENCE)
    after = read(server)
    for route, code in (
        ("/predict", "200"), ("/predict", "400"), ("/predict", "404"), ("/predict", "405"), ("/predict", "415"),
        ("/models", "200"), ("other", "404"),
    ):  # fmt: skip
        counts = [of(samples, "abstain_requests_total", route=route, code=code) for samples in (before, after)]
        assert counts[1] - counts[0] == 3, (route, code)
    for route in ("/predict", "/models", "other"):
        counted = [of(samples, "abstain_requests_total", route=route) for samples in (before, after)]
        timed = [of(samples, "abstain_request_seconds_count", route=route) for samples in (before, after)]
        assert timed[1] - timed[0] == counted[1] - counted[0]


def test_counters_of_both_workers_add_up(server, noise):
    """While one worker is stopped, the other serves, and vice versa: each reports the sum."""
    one, other = sorted(children(server.process.pid))
    before = of(read(server), "abstain_rows_total", model="digits")
    with paused(one):
        for _ in range(3):
            predict(server, noise[:5], "digits")
        assert of(read(server), "abstain_rows_total", model="digits") - before == 15
    with paused(other):
        for _ in range(2):
            predict(server, noise[:4], "digits")
        assert of(read(server), "abstain_rows_total", model="digits") - before == 23
    with paused(one):
        assert of(read(server), "abstain_rows_total", model="digits") - before == 23


def test_nothing_compiles_after_ready(server, noise):
    """For any number of rows, levels, nesting and errors, in both workers, the count is constant."""
    before = of(read(server), "abstain_compiles_total")
    assert before >= 20, "two workers, two models, five buckets"
    many = np.resize(noise, (600, 64))
    points = np.linspace(-5, 5, 600)[:, None]
    for pid in children(server.process.pid):
        with paused(pid):
            for size in (1, 2, 3, 7, 8, 9, 31, 33, 127, 129, 255, 257, 600):
                assert predict(server, many[:size], "digits").status_code == 200
                assert predict(server, points[:size], "wave").status_code == 200
            assert predict(server, many[:5].reshape(5, 8, 8), "digits").status_code == 200
            assert predict(server, many[:5] / 3, "digits", percentile=77.7, coverage=0.3).status_code == 200
            assert predict(server, many[:5], "digits", fields=["std", "label"]).status_code == 200
            assert predict(server, points[:5] * 1e30, "wave").status_code in {200, 400}
            assert predict(server, many[:5, :3], "digits").status_code == 400
            assert predict(server, many[:5], "digits", percentile=99.99).status_code == 400
            assert predict(server, many[:5], "nope").status_code == 404
            for path in ("models", "readyz", "docs.json", "schema.json", "metrics", "none"):
                httpx.get(f"{server.url}/{path}", timeout=PATIENCE)
    assert of(read(server), "abstain_compiles_total") == before


def test_no_label_has_a_value_from_a_request(server, noise):
    """Unknown routes, models, methods, headers and bodies add no sample."""

    def strange(word: str) -> None:
        for method in ("GET", "POST", "PUT", "BREW"):
            for path in (f"/{word}", f"/predict/{word}", f"/v2/models/{word}/infer", f"/models?name={word}"):
                httpx.request(
                    method, f"{server.url}{path}", headers={"X-Request-Id": word, "User-Agent": word}, timeout=PATIENCE
                )
        for name in (word, f"digits@{word}", f"digits:{len(word) + 9}", f"../{word}"):
            predict(server, noise[:1], name)
        predict(server, noise[:1], "digits", fields=[word])
        predict(server, noise[:1], "digits", **{word: 1})
        for name in ("digits", "digits:1", "digits@stable"):
            predict(server, noise[:1], name)

    strange("first")
    read(server)  # which is a request too
    before = set(read(server))
    for number in range(5):
        strange(f"strange{'x' * number}")
    after = set(read(server))
    assert after == before
    assert {dict(labels)["route"] for name, labels in after if name == "abstain_requests_total"} <= ROUTES
    assert not any("first" in value for _, labels in after for _, value in labels)
