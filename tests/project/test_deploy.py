"""What an operator starts from: rules that fire and do not, a dashboard that shows something, by a real Prometheus."""

import json
import math
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from abstain.models.bundles.bundle import read_published
from abstain.models.bundles.rollouts import Options, start_rollout
from abstain.service.access.api_keys import add_key
from abstain.training.calibrate import calibrate_version
from abstain.training.config.reading import read_config
from abstain.training.fit import load_dataset
from tests.helpers.paths import CONFIGS, PROJECT
from tests.helpers.processes import PATIENCE, children, until
from tests.helpers.servers import Server, start_server, stop_server, wait_until_ready

DEPLOY = PROJECT / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
CASES = sorted((DEPLOY / "prometheus" / "tests").glob("*.yml"))
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "abstain.json"
GUIDE = PROJECT / "docs" / "monitoring.md"

METRIC = re.compile(r"\b((?:\w+:)?abstain_\w+(?::\w+)?|up|ALERTS)\b(?:{([^}]*)})?")
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
WORDS = {
    "absent",
    "and",
    "avg",
    "count",
    "group",
    "group_left",
    "histogram_quantile",
    "increase",
    "max",
    "min",
    "or",
    "rate",
    "resets",
    "sqrt",
}
WORDS |= {"sum", "time", "unless", "vector"}
EVERYWHERE = {"job", "instance"}


def read(path: Path) -> dict:
    """A YAML file."""
    return yaml.safe_load(path.read_text("utf-8"))


def rules(kind: str) -> dict[str, dict]:
    """All `alert`s or all `record`s by name."""
    return {rule[kind]: rule for group in read(RULES)["groups"] for rule in group["rules"] if kind in rule}


def panels() -> list[dict]:
    """The dashboard's panels, as committed."""
    return json.loads(DASHBOARD.read_text("utf-8"))["panels"]


def queries() -> list[tuple[str, dict]]:
    """Every query of every panel, with the panel's title."""
    return [(panel["title"], target) for panel in panels() for target in panel.get("targets", [])]


def marks() -> dict[str, str]:
    """The query of each annotation."""
    return {mark["name"]: mark["expr"] for mark in json.loads(DASHBOARD.read_text("utf-8"))["annotations"]["list"]}


def promtool(*arguments: str | Path) -> None:
    """Fails with what promtool says; skips where there is none."""
    if not shutil.which("promtool"):
        pytest.skip("promtool is not installed (Debian: prometheus)")
    result = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_takes_the_configuration(tmp_path):
    """With its rules, as promtool reads them, which looks for the file of the key too."""
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert "/keys/prometheus.key" in config
    (tmp_path / "prometheus.key").write_text("abstain_key")
    shutil.copy(RULES, tmp_path)
    (tmp_path / "prometheus.yml").write_text(config.replace("/keys/", f"{tmp_path}/"))
    promtool("check", "config", "--lint-fatal", tmp_path / "prometheus.yml")
    promtool("check", "rules", "--lint-fatal", RULES)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_alerts_fire_where_they_must_and_nowhere_else(file):
    """Over simulated time."""
    promtool("test", "rules", file)


def test_every_alert_has_a_case_that_fires_and_one_that_does_not():
    """No alert is left untested, and no case is of an alert that is gone."""
    fires, quiet = set(), set()
    for file in CASES:
        for case in (case for test in read(file)["tests"] for case in test["alert_rule_test"]):
            (fires if case["exp_alerts"] else quiet).add(case["alertname"])
    assert fires == quiet == set(rules("alert"))


def test_every_alert_says_what_to_do():
    """How bad it is, what it is, what to do, and a section of the guide; and the guide has no section of any other."""
    alerts = rules("alert")
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert rule["annotations"]["runbook_url"] == f"docs/monitoring.md#{name.lower()}"
    assert set(re.findall(r"^### (Abstain\w+)$", GUIDE.read_text("utf-8"), re.MULTILINE)) == set(alerts)


def simulated(rejected: np.ndarray, rows: np.ndarray, quiet: range, firing: tuple[int, ...] = ()) -> dict:
    """A case for promtool: of streams of rejected rows a minute, none alerts at the quiet minutes, all at the others."""
    series = []
    for stream, (counts, per_minute) in enumerate(zip(rejected, rows, strict=True)):
        labels = f'job="abstain",instance="a:1",model="m{stream}",version="1"'
        values = " ".join(map(str, np.cumsum([0, *counts])))
        series += [
            {"series": f"abstain_expected_reject_ratio{{{labels}}}", "values": f"0.01x{len(counts)}"},
            {"series": f"abstain_rows_total{{{labels}}}", "values": f"0+{per_minute}x{len(counts)}"},
            {"series": f'abstain_rejected_total{{{labels},reason="std"}}', "values": values},
        ]
    expr = 'count(ALERTS{alertname="AbstainRejectsMuch",alertstate="firing"})'
    cases = [{"expr": expr, "eval_time": f"{minute}m", "exp_samples": []} for minute in quiet]
    everyone = [{"labels": "{}", "value": len(rows)}]
    cases += [{"expr": expr, "eval_time": f"{minute}m", "exp_samples": everyone} for minute in firing]
    return {"interval": "1m", "input_series": series, "promql_expr_test": cases}


def test_half_an_hour_of_digits_is_quiet_and_letters_are_not(tmp_path):
    """240 drawn streams, of 25 to 2,000 rows a minute, for each of which the calibration part drew its own rate.

    With one row in five a letter, of which the plainest model finds a third, all of at least 200 rows a minute alert
    within a quarter of an hour.
    """
    draw = np.random.default_rng(6)
    rows = np.repeat([25, 50, 200, 2000], 60)
    # The rate of one split of 1,000 calibration rows, at percentile 99.
    rate = draw.beta(10, 991, len(rows))
    digits = draw.binomial(rows, rate, (30, len(rows))).T
    letters = draw.binomial(rows, 0.8 * rate + 0.2 * 0.32, (20, len(rows))).T
    many = rows >= 200
    tests = [
        simulated(digits, rows, range(1, 31)),
        simulated(np.hstack([digits, letters])[many], rows[many], range(1, 31), firing=(45, 50)),
    ]
    file = tmp_path / "drawn.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", file)


def test_the_dashboard_is_what_its_code_writes(monkeypatch):
    """Whoever changes the code writes the file anew."""
    monkeypatch.syspath_prepend(DEPLOY / "grafana")  # as for a program, whose folder comes first
    module = runpy.run_path(str(DEPLOY / "grafana" / "dashboard.py"))
    assert module["text"]() == DASHBOARD.read_text("utf-8"), "run python deploy/grafana/dashboard.py"


def test_panels_explain_themselves_and_do_not_overlap():
    """Each has a title, a sentence on what one sees, a unit and a query; none covers another or leaves the page."""
    covered = Counter()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            covered.update((x, y) for y in range(place["y"], place["y"] + place["h"]))
        if panel["type"] != "row":
            assert len(panel["description"]) > 40, panel["title"]
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["targets"]
    assert set(covered.values()) == {1}
    for key in ("id", "title"):
        values = [panel[key] for panel in panels()]
        assert len(set(values)) == len(values)


def test_compose_names_what_there_is():
    """Folders that it mounts exist, images are of one version, ports are this machine's, and hosts are its services."""
    services = read(DEPLOY / "compose.yaml")["services"]
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]) or name == "abstain", service["image"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for mount in service["volumes"]:
            if mount.startswith("./"):
                assert (DEPLOY / mount.split(":")[0]).is_dir(), mount
    assert services["abstain"]["environment"]["ABSTAIN_KEYS"] == "/keys/keys.json"
    for name in ("abstain", "prometheus"):
        assert "./keys:/keys:ro" in services[name]["volumes"]
    [job] = read(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert job["authorization"]["credentials_file"] == "/keys/prometheus.key"
    assert [config["targets"] for config in job["static_configs"]] == [["abstain:3000"]]
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = read(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = read(provisioning / "dashboards" / "abstain.yaml")["providers"]
    folder = provider["options"]["path"]
    assert f"./grafana/dashboards:{folder}:ro" in services["grafana"]["volumes"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/{DASHBOARD.name}"


def test_docker_takes_the_compose_file():
    """As its client reads it, where the client can."""
    command = ["docker", "compose"]
    if not shutil.which("docker") or subprocess.run([*command, "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    subprocess.run([*command, "-f", DEPLOY / "compose.yaml", "config", "--quiet"], check=True, timeout=PATIENCE)


def metrics_of(expr: str) -> list[tuple[str, dict[str, str]]]:
    """The metrics of a PromQL expression, each with the labels that choose of it, and their values."""
    return [(name, dict(re.findall(r'(\w+)[=!]~?"([^"]*)"', chosen))) for name, chosen in METRIC.findall(expr)]


def grouped_by(expr: str) -> set[str]:
    """The labels that a PromQL expression groups or matches by."""
    return {label for labels in GROUPING.findall(expr) for label in re.findall(r"\w+", labels)}


def words_of(expr: str) -> set[str]:
    """What is left of a PromQL expression without its metrics, labels and durations: its functions and operators."""
    bare = re.sub(r"\[[^]]*]|offset \w+", "", GROUPING.sub("", METRIC.sub("", expr)))
    return set(re.findall(r"[a-zA-Z_:][\w:]*", bare))


def expressions() -> list[str]:
    """The queries that the tests send to Prometheus."""
    rule = [rule["expr"] for kind in ("alert", "record") for rule in rules(kind).values()]
    return [*rule, *(target["expr"] for _, target in queries()), *marks().values()]


@dataclass(frozen=True)
class Serving:
    """A server, the key for its metrics, and one for predictions."""

    server: Server
    folder: Path
    reader: str
    key: str

    def metrics(self) -> str:
        """The response of `/metrics`."""
        headers = {"X-API-Key": self.reader}
        return httpx.get(f"{self.server.url}/metrics", headers=headers, timeout=PATIENCE).text


@pytest.fixture(scope="module")
def serving(store, tmp_path_factory):
    """Two workers with `digits`, and with a `wave` whose decision has two parts."""
    folder = tmp_path_factory.mktemp("watched")
    root = folder / "store"
    shutil.copytree(store / "digits", root / "digits")
    shutil.copytree(store / "wave" / "1", root / "wave" / "1")
    calibrate_version(root, "wave:1", "wave", ("novelty_share=0.5",), report=False)
    keys = folder / "keys.json"
    reader, key = add_key(keys, "prometheus", ("metrics",)), add_key(keys, "app", ("predict",))
    manifests = read_published(root, "digits", 1), read_published(root, "digits", 2)
    start_rollout(root, manifests, Options("shadow", 1.0))
    server = start_server(root, folder, workers=2, TMPDIR=str(folder), ABSTAIN_KEYS=str(keys))
    yield Serving(server, folder, reader, key)
    stop_server(server)


def test_every_name_and_label_is_one_that_a_server_has(serving):
    """What rules and panels choose and group by is in `/metrics`; bounds of buckets, too."""
    for model, row in (("digits", [16] * 64), ("wave", [9.0])):
        httpx.post(
            f"{serving.server.url}/predict",
            json={"inputs": [row] * 300, "model": model, "percentile": 50},
            headers={"X-API-Key": serving.key},
            timeout=PATIENCE,
        ).raise_for_status()
    assert until(lambda: "abstain_drift_psi{" in serving.metrics())
    assert until(lambda: "abstain_rollout_log_e_value{" in serving.metrics())
    labels = {"up": EVERYWHERE, "ALERTS": EVERYWHERE | {"alertname", "alertstate"}}
    labels |= {name: grouped_by(rule["expr"]) for name, rule in rules("record").items()}
    bounds: dict[str, set[str]] = {}
    families: dict[str, str] = {}
    for family in text_string_to_metric_families(serving.metrics()):
        for sample in family.samples:
            families[sample.name] = family.name
            labels[sample.name] = labels.get(sample.name, EVERYWHERE) | sample.labels.keys()
            bounds.setdefault(sample.name, set()).add(sample.labels.get("le", ""))
    seen = set()
    for expr in expressions():
        assert words_of(expr) <= WORDS, expr
        found = metrics_of(expr)
        for name, chosen in found:
            assert name in labels, expr
            assert chosen.keys() <= labels[name], expr
            assert "le" not in chosen or chosen["le"] in bounds[name], expr
        assert grouped_by(expr) <= {label for name, _ in found for label in labels[name]}, expr
        seen |= {families.get(name) for name, _ in found}
    assert set(families.values()) - seen == set(), "a metric that no rule and no panel looks at"


@dataclass(frozen=True)
class Watched:
    """A server, and a Prometheus that reads it every second."""

    server: Server
    url: str
    began: float
    key: str
    """For predictions."""

    def ask(self, expr: str, *, over_time: bool = False) -> list[dict]:
        """The series of an expression: their labels, and their finite values now or since the beginning."""
        parameters = {"query": expr} | ({"start": self.began, "end": time.time(), "step": 1} if over_time else {})
        answer = httpx.get(f"{self.url}/api/v1/query{'_range' * over_time}", params=parameters, timeout=PATIENCE).json()
        assert answer["status"] == "success", (expr, answer)
        series = []
        for one in answer["data"]["result"]:
            values = [float(value) for _, value in one.get("values", [one.get("value")])]
            series.append({"labels": one["metric"], "values": [value for value in values if math.isfinite(value)]})
        return [one for one in series if one["values"]]

    def number(self, expr: str) -> float:
        """The one value of an expression; 0 if there is none yet."""
        series = self.ask(expr)
        return series[0]["values"][0] if series else 0.0


def start_prometheus(folder: Path, server: Server) -> tuple[subprocess.Popen[bytes], str]:
    """The committed configuration, but of this server and every second."""
    config = read(DEPLOY / "prometheus" / "prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    job = config["scrape_configs"][0]
    assert Path(job["authorization"]["credentials_file"]).name == "prometheus.key"
    job["authorization"]["credentials_file"] = str(folder / "prometheus.key")
    job["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'series'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    return process, f"http://{address}"


@pytest.fixture(scope="module")
def watched(serving):
    """Two workers, and a Prometheus that has read them."""
    if not shutil.which("prometheus"):
        pytest.skip("prometheus is not installed")
    server, folder = serving.server, serving.folder
    (folder / "prometheus.key").write_text(serving.reader + "\n")
    process, url = start_prometheus(folder, server)
    try:
        watched = Watched(server, url, time.time(), serving.key)
        ready = until(lambda: answers(url) and watched.number('up{job="abstain"}') == 1)
        assert ready, (folder / "prometheus.log").read_text()
        yield watched
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE)


def answers(url: str) -> bool:
    """Whether a Prometheus has begun."""
    try:
        return httpx.get(f"{url}/-/ready", timeout=PATIENCE).status_code == 200
    except httpx.TransportError:
        return False


class Sender:
    """Sends rows and counts the rows that were sent and how they were judged."""

    def __init__(self, watched: Watched) -> None:
        # A connection for each request: on a loaded machine the server would close one that waits.
        self._client = httpx.Client(
            base_url=watched.server.url,
            headers={"X-API-Key": watched.key},
            timeout=PATIENCE,
            limits=httpx.Limits(max_keepalive_connections=0),
        )
        self.sent: Counter[tuple[str, ...]] = Counter()
        self._began = time.time()

    def predict(self, rows: np.ndarray, model: str) -> None:
        """By `/predict`."""
        body = {"inputs": rows.tolist(), "model": model, "fields": ["reject"]}
        response = self._client.post("/predict", json=body)
        assert response.status_code == 200, response.text
        self._count("/predict", model, [row["reject"] for row in response.json()["predictions"]])

    def infer(self, rows: np.ndarray, model: str) -> None:
        """By the Open Inference Protocol."""
        tensor = {"name": "inputs", "shape": rows.shape, "datatype": "FP32", "data": rows.ravel().tolist()}
        body = {"inputs": [tensor], "outputs": [{"name": "reject"}]}
        response = self._client.post(f"/v2/models/{model}/infer", json=body)
        assert response.status_code == 200, response.text
        self._count("/v2/models/{model}/infer", model, response.json()["outputs"][0]["data"])

    def mistake(self) -> None:
        """A row that is too short."""
        response = self._client.post("/predict", json={"inputs": [[1, 2]], "model": "digits"})
        assert response.status_code == 400
        self.sent["requests", "/predict", "400"] += 1

    def _count(self, route: str, model: str, rejects: list[bool]) -> None:
        self.sent["requests", route, "200"] += 1
        self.sent["rows", model] += len(rejects)
        self.sent["rejected", model] += sum(rejects)

    def counted(self, watched: Watched) -> Counter[tuple[str, ...]]:
        """The same counts since this sender began, as Prometheus has them of all workers."""
        counts: Counter[tuple[str, ...]] = Counter()
        for what, *labels in self.sent:
            match what:
                case "requests":
                    series = f'abstain_requests_total{{route="{labels[0]}",code="{labels[1]}"}}'
                case _:
                    series = f'abstain_{what}_total{{model="{labels[0]}"}}'
            before = watched.number(f"sum({series} @ {self._began:.3f})")
            counts[what, *labels] = int(watched.number(f"sum({series})") - before)
        return counts


@dataclass(frozen=True)
class Rows:
    """What is sent: digits and points of a wave that no fit has seen, and letters."""

    digits: np.ndarray
    letters: np.ndarray
    wave: np.ndarray

    def send(self, sender: Sender, number: int, letters: int) -> None:
        """A round: twenty digits, of which some are letters, by either door, ten points, and now and then a mistake."""
        mixed = part(self.digits, number, 20)
        mixed[:letters] = part(self.letters, number, letters)
        (sender.infer if number % 3 == 0 else sender.predict)(mixed, "digits")
        sender.predict(part(self.wave, number, 10), "wave")
        if number % 10 == 0:
            sender.mistake()


def part(rows: np.ndarray, number: int, size: int) -> np.ndarray:
    """The next rows, and the first again after the last."""
    return np.take(rows, range(size * number, size * (number + 1)), axis=0, mode="wrap")


@pytest.fixture(scope="module")
def rows() -> Rows:
    """The demo's letter B upright, mirrored and upside down, each dot a little lighter or darker."""
    letter = np.array(runpy.run_path(str(PROJECT / "examples" / "demo.py"))["LETTER_B"], float)
    letters = np.tile([letter, np.fliplr(letter), np.flipud(letter)], (50, 1, 1)).reshape(150, 64)
    letters = np.clip(letters + np.random.default_rng(0).integers(-1, 2, letters.shape) * (letters > 0), 0, 16)
    digits, wave = (
        load_dataset(read_config(CONFIGS / name), None).test.x for name in ("digits-vi.toml", "wave-nuts.toml")
    )
    return Rows(digits.reshape(len(digits), -1).astype(float), letters, wave)


def send_while_scraped(watched: Watched, sender: Sender, rows: Rows, scrapes: int, letters: int) -> None:
    """Sends until Prometheus has read the server so many times more."""
    count = "count_over_time(up[10m])"
    until_then, number = watched.number(count) + scrapes, 0
    while watched.number(count) < until_then:
        rows.send(sender, number, letters)
        number += 1


def alerting(watched: Watched) -> set[str]:
    """Alerts whose condition holds."""
    return {one["labels"]["alertname"] for one in watched.ask("ALERTS")}


def test_prometheus_sees_what_was_sent_and_every_panel_shows_it(watched, rows):
    """Digits, then one letter in five rows, then a worker's death; counts are exact, and no query comes back empty."""
    sender = Sender(watched)
    send_while_scraped(watched, sender, rows, scrapes=8, letters=0)
    assert until(lambda: sender.counted(watched) == sender.sent), (sender.counted(watched), sender.sent)
    assert "AbstainRejectsMuch" not in alerting(watched)

    send_while_scraped(watched, sender, rows, scrapes=12, letters=4)
    assert until(lambda: {"AbstainRejectsMuch", "AbstainDrift"} <= alerting(watched)), alerting(watched)

    victim = min(children(watched.server.process.pid))
    os.kill(victim, signal.SIGKILL)
    for number in range(5):
        rows.send(sender, number, letters=4)
    # A killed process lives until its memory is returned.
    assert until(lambda: victim not in children(watched.server.process.pid))
    wait_until_ready(watched.server)
    send_while_scraped(watched, sender, rows, scrapes=3, letters=4)
    assert until(lambda: sender.counted(watched) == sender.sent), (sender.counted(watched), sender.sent)
    for counter in (
        "rows_total",
        "rejected_total",
        "requests_total",
        "request_seconds_bucket",
        "score_percentile_bucket",
    ):
        [falls] = watched.ask(f"sum(resets(abstain_{counter}[10m]))")
        assert falls["values"] == [0]

    for title, target in queries():
        expr = substituted(target["expr"])
        series = watched.ask(expr, over_time=not target["instant"])
        assert series, f"{title}: {expr}: no data"
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            assert all(label in one["labels"] for one in series), f"{title}: no {label}: {expr}"
    for name, expr in marks().items():
        assert watched.ask(substituted(expr), over_time=True) or name != "Version begins"


def substituted(expr: str) -> str:
    """A query as Grafana asks it with everything chosen, of a server that is read every second."""
    for variable, value in (("$__rate_interval", "10s"), ("$model", ".+"), ("$version", ".+")):
        expr = expr.replace(variable, value)
    assert "$" not in expr
    return expr
