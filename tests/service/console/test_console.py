"""The console over HTTP: the page and its files, the facts of a version, and reports.

`test_console_browser.py` tests it in a browser.
"""

import json
import re
import shutil
from dataclasses import replace

import httpx
import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from abstain.models.bundles.manifest import read_manifest
from abstain.models.decisions.judging import judge
from abstain.models.errors import BundleError, UnknownModel
from abstain.service.console import read_pages, route_template
from abstain.service.console.descriptions import classes, describe, reliability
from abstain.service.live_versions import LiveVersions
from abstain.service.plans import make_plan, read_stored
from abstain.service.version_table import entries_of
from abstain.training.config.reading import read_config
from abstain.training.fit import load_dataset
from tests.helpers.json_trees import ERROR_KEYS
from tests.helpers.paths import CONFIGS, PROJECT
from tests.helpers.processes import PATIENCE
from tests.helpers.prometheus import of, read
from tests.helpers.reports import diagram_points

FOLDER = PROJECT / "service" / "console"
VERSION = "/console/models/digits/versions/1"


@pytest.fixture(scope="module")
def client(server):
    """A client with one connection."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


def directives(response: httpx.Response) -> dict[str, str]:
    """The response's Content-Security-Policy."""
    parts = response.headers["content-security-policy"].split(";")
    return {name: rest for name, _, rest in (part.strip().partition(" ") for part in parts)}


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_page_is_served_at_the_root(client):
    """HTML at `/`; every file that it names is served."""
    page = client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.content == (FOLDER / "index.html").read_bytes()
    named = re.findall(r'(?:src|href)="(console/[^"]+)"', page.text)
    assert len(named) >= 4
    for address in named:
        assert client.get(f"/{address}").status_code == 200, address


def test_every_module_that_is_imported_is_served(client):
    """Each as a script; the chart library is that of its package."""
    for path in FOLDER.glob("*.js"):
        for name in [path.name, *re.findall(r'from "\./([^"]+)"', path.read_text("utf-8"))]:
            found = client.get(f"/console/{name}")
            assert (found.status_code, found.headers["content-type"]) == (200, "text/javascript; charset=utf-8"), name
    assert client.get("/console/uPlot.esm.js").content == (FOLDER / "uplot" / "uPlot.esm.js").read_bytes()
    assert "MIT" in (FOLDER / "uplot" / "LICENSE").read_text("utf-8")


def test_the_page_may_load_nothing_from_elsewhere(client):
    """No script or style from another host, and none inside the page."""
    for path in ("/", "/console/app.js", VERSION):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        policy = directives(client.get(path))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert not any("unsafe" in sources or "http" in sources for sources in policy.values())
    page = client.get("/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


def test_the_files_contain_no_address_of_another_host():
    """Except SVG's namespace."""
    for path in [*FOLDER.glob("*.js"), *FOLDER.glob("*.css"), *FOLDER.glob("*.html"), *FOLDER.glob("*.svg")]:
        assert set(re.findall(r"https?://[^\s\"']+", path.read_text("utf-8"))) <= {"http://www.w3.org/2000/svg"}


def test_an_unchanged_file_is_not_sent_again(client):
    """Its ETag shows that it is unchanged; changed files have another."""
    first = client.get("/console/app.js")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    again = client.get("/console/app.js", headers={"If-None-Match": tag})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/console/app.js", headers={"If-None-Match": '"another"'}).status_code == 200
    assert len({page.etag for page in read_pages().values()}) == len(read_pages())


def test_head_has_the_headers_of_get(client):
    """Without the body."""
    for path in ("/", "/console/console.css", VERSION, f"{VERSION}/report.html"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        same = ("content-type", "content-length", "etag", "content-security-policy")
        assert [head.headers[name] for name in same] == [get.headers[name] for name in same]


@pytest.mark.parametrize(
    "path",
    [
        "/console", "/console/", "/console/nope.js", "/console/__init__.py", "/console/described.py",
        "/console/README.md", "/console/../settings.py", "/console/..%2fsettings.py", "/console/%2e%2e/settings.py",
        "/console/uplot/uPlot.esm.js",
        "/console/..%5csettings.py", "/console//etc/passwd", "/console/%00", "/console/index.html%00.js",
        "/console/models/digits/versions/1/manifest.json", "/console/models/digits/versions/1/../../labels.json",
    ],
)  # fmt: skip
def test_no_other_file_is_reached(server, path):
    """Not with another name, nor with a path that leads to another folder."""
    host, port = server.address
    with httpx.Client(base_url=f"http://{host}:{port}", timeout=PATIENCE) as client:
        request = client.build_request("GET", "/")
        request.url = httpx.URL(scheme="http", host=host, port=port, raw_path=path.encode())
        response = client.send(request)
    assert response.status_code == (400 if "%00" in path else 404)
    assert list(response.json()) == ERROR_KEYS


def test_other_methods_than_get_are_refused(client):
    """405 with the allowed methods."""
    for path in ("/", "/console/app.js", VERSION):
        response = client.post(path)
        assert response.status_code == 405
        assert "GET" in response.headers["allow"]


def test_the_metrics_have_few_routes(server):
    """One label for each route, whatever file, model or version a request names."""
    assert route_template("/console/app.js") == route_template("/console/nope") == "/console/{file}"
    assert route_template("/console/models/a/versions/1") == "/console/models/{model}/versions/{version}"
    assert route_template("/predict") is None
    assert route_template("/console/models/a/versions/1/nope") is None
    before = read(server)
    for path in ("/", "/console/app.js", "/console/nope", VERSION, "/console/models/nope/versions/9"):
        httpx.get(f"{server.url}{path}", timeout=PATIENCE)
    after = read(server)
    for route, code, times in (
        ("/", "200", 1),
        ("/console/{file}", "200", 1),
        ("/console/{file}", "404", 1),
        ("/console/models/{model}/versions/{version}", "200", 1),
        ("/console/models/{model}/versions/{version}", "404", 1),
    ):
        found = [of(samples, "abstain_requests_total", route=route, code=code) for samples in (before, after)]
        assert found[1] - found[0] == times, route


# ---- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "wave"])
def test_the_description_of_a_version_is_that_of_its_bundle(client, name, request):
    """Names, settings and thresholds of the manifest; the distribution of every score of the calibration rows."""
    bundle = request.getfixturevalue(name)
    manifest, calibration = bundle.manifest, bundle.calibration
    description = client.get(f"/console/models/{name}/versions/1").json()
    assert (description["name"], description["version"], description["digest"]) == (name, 1, manifest.digest)
    assert description["task"] == manifest.model.likelihood_functions.task
    assert tuple(description["class_names"]) == manifest.model.class_names
    assert tuple(description["feature_shape"]) == manifest.model.feature_shape
    assert (description["decision"], description["percentile"]) == (
        manifest.calibration.decision,
        manifest.calibration.percentile,
    )
    assert description["metrics"] == manifest.model_dump(mode="json")["metrics"]
    assert description["report"] is True
    thresholds = {score: facts["threshold"] for score, facts in description["scores"].items()}
    assert thresholds == manifest.calibration.thresholds
    for score, facts in description["scores"].items():
        values = np.sort(calibration.all_scores[score])
        expected = np.quantile(values, np.linspace(0, 1, 101), method="lower")
        np.testing.assert_allclose(facts["quantiles"], expected, rtol=1e-12)


def test_features_have_the_ranges_of_the_training_rows(digits, wave, client):
    """Pixels from 0 to 16; a column with its range and its middle."""
    pixels = client.get("/console/models/digits/versions/1").json()["features"]
    assert len(pixels) == 64
    assert (min(pixel["low"] for pixel in pixels), max(pixel["high"] for pixel in pixels)) == (0, 16)
    (point,) = client.get("/console/models/wave/versions/1").json()["features"]
    assert -1 <= point["low"] < point["typical"] < point["high"] <= 1
    (without,) = describe("wave", 1, replace(wave, feature_scores=None))["features"]
    shift, scale = wave.manifest.model.preprocessing.shift[0], wave.manifest.model.preprocessing.scale[0]
    assert without["low"] <= shift <= without["high"]
    assert without["high"] - without["low"] >= scale
    assert without["missing"] is point["missing"] is None
    assert describe("wave", 1, replace(wave, feature_scores=None))["ranges"] == "estimated"
    assert client.get("/console/models/wave/versions/1").json()["ranges"] == "training"


def test_the_report_and_the_console_show_the_same_reliability(digits, store, client):
    """The console has the points of the report's diagram, which are of the test part."""
    bins = client.get(VERSION).json()["reliability"]
    points = diagram_points((store / "digits" / "1" / "report.html").read_text("utf-8"))
    assert [(one["confidence"], one["accuracy"]) for one in bins] == [
        pytest.approx(point, abs=1e-3) for point in points
    ]
    dataset = load_dataset(read_config(CONFIGS / "digits-vi.toml"), None)
    mean = np.asarray(digits.predictor((256,))(dataset.test.x).summary.mean, np.float64)
    rows = np.array([one["rows"] for one in bins])
    assert rows.sum() == len(mean)
    for column, expected in (("confidence", mean.max(axis=1)), ("accuracy", mean.argmax(axis=1) == dataset.test.y)):
        assert np.average([one[column] for one in bins], weights=rows) == pytest.approx(expected.mean())


@pytest.mark.parametrize(
    "stored",
    [
        "absent",
        "many",
        None,
        {"rows": [3]},
        {"rows": [3], "confidence": [0.5], "accuracy": []},
        {"rows": [], "confidence": [], "accuracy": []},
        {"rows": [3], "confidence": ["<b>"], "accuracy": [0.5]},
    ],
)
def test_reliability_is_whole_or_none(digits, wave, stored):
    """A regression has no diagram, nor has a manifest with incomplete or invalid bins."""
    assert reliability(wave.manifest) is None
    metrics = {key: value for key, value in digits.manifest.metrics.items() if key != "reliability"}
    if stored != "absent":
        metrics["reliability"] = stored
    assert reliability(digits.manifest.model_copy(update={"metrics": metrics})) is None


def test_the_table_of_classes_counts_the_test_rows(digits, client):
    """Rows, predictions, recall and precision are those of scikit-learn."""
    dataset = load_dataset(read_config(CONFIGS / "digits-vi.toml"), None)
    predicted = np.asarray(digits.predictor((256,))(dataset.test.x).summary.mean).argmax(axis=1)
    table = client.get(VERSION).json()["classes"]
    assert [own["name"] for own in table] == list(digits.manifest.model.class_names)
    assert [own["rows"] for own in table] == np.bincount(dataset.test.y, minlength=10).tolist()
    assert [own["predicted"] for own in table] == np.bincount(predicted, minlength=10).tolist()
    precision, recall, *_ = precision_recall_fscore_support(dataset.test.y, predicted, labels=range(10))
    assert [own["accuracy"] for own in table] == pytest.approx(recall.tolist())
    assert [own["precision"] for own in table] == pytest.approx(precision.tolist())


@pytest.mark.parametrize(
    "stored", [None, {"rows": [1]}, {name: [1] for name in ("rows", "predicted", "accuracy", "precision")}]
)
def test_the_table_of_classes_is_whole_or_none(digits, wave, stored):
    """A regression, an older bundle and an invalid table have none."""
    assert classes(wave.manifest) is None
    metrics = digits.manifest.metrics | {"classes": stored}
    assert classes(digits.manifest.model_copy(update={"metrics": metrics})) is None


def test_the_threshold_shown_is_the_one_that_decides(digits, client):
    """The response and the description have the same threshold for every score."""
    row = np.zeros((1, 8, 8))
    answer = client.post("/predict", json={"inputs": row.tolist(), "model": "digits:1"}).json()["predictions"][0]
    description = client.get(VERSION).json()
    assert {name: score["threshold"] for name, score in answer["scores"].items()} == {
        name: facts["threshold"] for name, facts in description["scores"].items()
    }
    decisions = judge(digits.calibration, digits.predictor((8,))(row.astype(np.float32)))
    assert bool(decisions.reject[0]) is answer["reject"]


@pytest.mark.parametrize(
    ("name", "version", "error"),
    [
        ("nope", "1", "expected one of digits, wave"),
        ("digits", "99", "expected 1, found 99"),
        ("digits", "0", "expected name, name:version or name@label"),
        ("digits", "stable", "expected name, name:version or name@label"),
        ("digits", "1%3A1", "expected name, name:version or name@label"),
        ("..%2e", "1", "expected name, name:version or name@label"),
        (".", "1", "no such route"),
    ],
)
def test_an_unknown_version_is_404(client, name, version, error):
    """The error lists the known ones."""
    response = client.get(f"/console/models/{name}/versions/{version}")
    assert response.status_code == 404
    assert error in response.json()["error"]


# ---- reports ---------------------------------------------------------------------------------------------------------


def test_a_report_is_served_as_it_was_published(client, store):
    """For every version in the store, served or not; it cannot run scripts."""
    for version in (1, 2):
        response = client.get(f"/console/models/digits/versions/{version}/report.html")
        assert response.status_code == 200
        assert response.content == (store / "digits" / str(version) / "report.html").read_bytes()
        policy = directives(response)
        assert policy["default-src"] == "'none'"
        assert "sandbox" in policy
        assert "script-src" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["nope/versions/1", "digits/versions/99", "digits/versions/..", "..%2f/versions/1"])
def test_a_missing_report_is_404(client, path):
    """For an unknown model or version, or a path in their place."""
    assert client.get(f"/console/models/{path}/report.html").status_code == 404


def test_a_report_that_was_changed_is_not_served(store, tmp_path):
    """Its hash is compared with that of the manifest."""
    from abstain.service.console import _read_report

    shutil.copytree(store / "wave" / "1", tmp_path / "1")
    assert _read_report(tmp_path / "1") == (store / "wave" / "1" / "report.html").read_bytes()
    (tmp_path / "1" / "report.html").write_text("<script>alert(1)</script>")
    with pytest.raises(BundleError, match=r"report\.html: is damaged or was altered"):
        _read_report(tmp_path / "1")
    (tmp_path / "1" / "report.html").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        _read_report(tmp_path / "1")


def test_only_folders_of_the_store_are_found(store):
    """By name and version."""
    serving = LiveVersions(store)
    plan = make_plan(read_stored(store))
    serving._table = serving._new_table(plan, entries_of(plan))
    assert serving.folder("digits:2") == store / "digits" / "2"
    assert read_manifest(serving.folder("wave:1")).name == "wave"
    for text in ("digits:3", "nope:1", "../digits:1", "digits:1/..", ""):
        with pytest.raises(UnknownModel):
            serving.folder(text)


def test_every_number_of_the_description_is_finite(digits):
    """JSON has no NaN: a browser would refuse the whole description."""
    described = describe("digits", 1, digits)
    assert json.loads(json.dumps(described, allow_nan=False))["calibration_rows"] == digits.calibration.rows
