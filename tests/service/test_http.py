"""The HTTP contract of a healthy server: the form of its responses, and that their numbers are right.

The oracle is a simple program: a Python loop over the draws, with one matrix product after another in float64.
"""

import http.client
import json
import math
import re
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction

import httpx
import numpy as np
import pytest
import uvicorn

from abstain.models.bundles.shortfalls import texts
from abstain.models.bundles.store import set_label
from abstain.models.errors import StoreError
from abstain.models.prediction.feature_scores import FEATURE_SCORES_BY_TASK
from abstain.models.prediction.scores import SCORES
from abstain.service.http import build_app
from abstain.service.live_versions import LiveVersions
from abstain.service.predict.response import FIELDS
from abstain.service.process import Process, Traffic
from abstain.service.settings import Settings
from abstain.training.config.reading import read_config
from abstain.training.fit import load_dataset
from tests.helpers.json_trees import ERROR_KEYS, numbers, words
from tests.helpers.paths import CONFIGS
from tests.helpers.processes import PATIENCE, until

SIZES = (1, 2, 7, 8, 9, 33, 300)


@pytest.fixture(scope="module")
def client(server):
    """A client with one connection."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Digits of the test part, alternating with rows of noise."""
    test_digits = load_dataset(read_config(CONFIGS / "digits-vi.toml"), None).test.x[:150]
    noise = np.random.default_rng(0).integers(0, 17, test_digits.shape)
    return np.stack([test_digits, noise], axis=1).reshape(-1, 8, 8).astype(np.float64)


@pytest.fixture(scope="module")
def points() -> np.ndarray:
    """Inputs of `wave`, inside the range of its data and far outside."""
    return np.random.default_rng(1).uniform(-3, 4, (300, 1))


def predict(client: httpx.Client, rows: np.ndarray | list, model: str, **more) -> dict:
    """The response of `POST /predict`."""
    inputs = rows.tolist() if isinstance(rows, np.ndarray) else rows
    response = client.post("/predict", json={"inputs": inputs, "model": model, **more})
    assert response.status_code == 200, response.text
    return response.json()


def predictions(client: httpx.Client, rows: np.ndarray | list, model: str, **more) -> list[dict]:
    """The predictions of the response."""
    return predict(client, rows, model, **more)["predictions"]


def entropy(probabilities: np.ndarray) -> np.ndarray:
    """The entropy over the last axis, in nats."""
    return -np.sum(np.where(probabilities > 0, probabilities * np.log(np.maximum(probabilities, 1e-300)), 0), axis=-1)


def outputs(bundle, row: np.ndarray, draw: int, activation) -> np.ndarray:
    """The outputs of the network with one draw's parameters for one row: a simple forward pass in float64."""
    preprocessing = bundle.manifest.model.preprocessing
    hidden = (row.ravel() - np.array(preprocessing.shift)) / np.array(preprocessing.scale)
    layers = bundle.posterior.draws["network"]
    for number in range(len(layers)):
        kernel, bias = (np.float64(layers[f"Dense_{number}"][name][draw]) for name in ("kernel", "bias"))
        hidden = hidden @ kernel + bias
        if number < len(layers) - 1:
            hidden = activation(hidden)
    return hidden


def naive_digit(bundle, row: np.ndarray) -> dict:
    """The prediction of a classification row, by a loop over the draws."""
    draws = []
    for draw in range(bundle.posterior.size):
        logits = outputs(bundle, row, draw, lambda x: np.maximum(x, 0))
        exponentials = np.exp(logits - logits.max())
        draws.append(exponentials / exponentials.sum())
    mean, spread = np.mean(draws, axis=0), np.std(draws, axis=0)
    aleatoric = np.mean([entropy(p) for p in draws])
    return {
        "probabilities": mean,
        "std": spread,
        "entropy": entropy(mean),
        "aleatoric_entropy": aleatoric,
        "mutual_information": entropy(mean) - aleatoric,
        "scores": {
            "std": spread.max(),
            "entropy": entropy(mean),
            "mutual_information": entropy(mean) - aleatoric,
            "max_probability": 1 - mean.max(),
        },
    }


def naive_wave(bundle, row: np.ndarray) -> dict:
    """The prediction of a regression row, by a loop over the draws."""
    preprocessing = bundle.manifest.model.preprocessing
    scale = preprocessing.target_scale
    means, variances = [], []
    for draw in range(bundle.posterior.size):
        means.append(preprocessing.target_shift + scale * outputs(bundle, row, draw, np.tanh)[0])
        variances.append((scale * np.float64(bundle.posterior.draws["noise"][draw])) ** 2)
    aleatoric, epistemic = np.mean(variances), np.var(means)
    total = aleatoric + epistemic
    return {
        "mean": np.mean(means),
        "std": math.sqrt(total),
        "aleatoric_std": math.sqrt(aleatoric),
        "epistemic_std": math.sqrt(epistemic),
        "entropy": 0.5 * math.log(2 * math.pi * math.e * total),
        "scores": {"std": math.sqrt(epistemic), "total_std": math.sqrt(total)},
        "mixture": (np.array(means), np.sqrt(variances)),
    }


def rank(rows: int, level: float) -> int:
    """⌈(rows + 1)·level⌉, from the level's decimal digits."""
    return math.ceil((rows + 1) * Fraction(str(level)))


def test_a_classification_response_has_the_fields_of_the_contract(client, digits, images):
    """Every field of the contract with its type, and no other."""
    response = client.post(
        "/predict", json={"inputs": images[:3].tolist(), "model": "digits"}, headers={"X-Request-Id": "a-1"}
    )
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    rows = answer.pop("predictions")
    assert answer == {
        "id": "a-1",
        "model": {"name": "digits", "version": 1, "digest": digits.manifest.digest},
        "percentile": 99.0,
        "coverage": 0.9,
        "draws": 20,
    }
    assert len(rows) == 3
    for row in rows:
        assert list(row) == list(FIELDS["classification"])
        assert row["label"] == digits.manifest.model.class_names[row["index"]]
        assert row["index"] == int(np.argmax(row["probabilities"]))
        assert len(row["probabilities"]) == len(row["std"]) == 10
        assert isinstance(row["reject"], bool)
        assert set(row["prediction_set"]) <= set(digits.manifest.model.class_names)
        assert set(row["scores"]) == {*SCORES["classification"], *FEATURE_SCORES_BY_TASK["classification"]}
        for score in row["scores"].values():
            assert {key: type(value) for key, value in score.items()} == dict.fromkeys(
                ("value", "percentile", "threshold", "p_value"), float
            ) | {"extrapolated": bool}


def test_a_regression_response_has_the_fields_of_the_contract(client, wave, points):
    """Every field of the contract with its type, and no other."""
    answer = predict(client, points[:3], "wave")
    rows = answer.pop("predictions")
    assert len(answer.pop("id")) >= 16
    assert answer == {
        "model": {"name": "wave", "version": 1, "digest": wave.manifest.digest},
        "percentile": 99.0,
        "coverage": 0.9,
        "draws": 30,
    }
    for row in rows:
        assert list(row) == list(FIELDS["regression"])
        assert list(row["quantiles"]) == ["0.025", "0.5", "0.975"]
        assert row["quantiles"]["0.025"] < row["quantiles"]["0.5"] < row["quantiles"]["0.975"]
        assert row["interval"][0] < row["mean"] < row["interval"][1]
        assert set(row["scores"]) == {*SCORES["regression"], *FEATURE_SCORES_BY_TASK["regression"]}
        assert {type(row[field]) for field in ("mean", "std", "aleatoric_std", "epistemic_std", "entropy")} == {float}


@pytest.mark.parametrize("size", SIZES)
def test_digits_equal_a_naive_loop_over_the_draws(client, digits, images, size):
    """With any batch size, every row equals a loop in Python within 1e-5."""
    found = predictions(client, images[:size], "digits")
    assert len(found) == size
    for row, answer in zip(images, found, strict=False):
        expected = naive_digit(digits, row)
        for field, value in expected.items():
            if field != "scores":
                np.testing.assert_allclose(answer[field], value, atol=1e-5)
        for name, value in expected["scores"].items():
            assert answer["scores"][name]["value"] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_wave_equals_a_naive_loop_over_the_draws(client, wave, points, size):
    """The same for a regression; its quantiles must invert the mixture's distribution function."""
    found = predictions(client, points[:size], "wave")
    assert len(found) == size
    for row, answer in zip(points, found, strict=False):
        expected = naive_wave(wave, row)
        for field in ("mean", "std", "aleatoric_std", "epistemic_std", "entropy"):
            assert answer[field] == pytest.approx(expected[field], abs=1e-5)
        for name, value in expected["scores"].items():
            assert answer["scores"][name]["value"] == pytest.approx(value, abs=1e-5)
        means, stds = expected["mixture"]
        for level, value in answer["quantiles"].items():
            mass = np.mean([0.5 * (1 + math.erf(z / math.sqrt(2))) for z in (value - means) / stds])
            assert mass == pytest.approx(float(level), abs=1e-4)


def test_the_last_rows_of_a_long_request_are_predicted_as_the_first(client, images):
    """More rows than the largest bucket are computed in parts, and returned in order."""
    rows = np.concatenate([images, images[::-1]])
    found = predictions(client, rows, "digits")
    for answer, mirrored in zip(found[:300], found[:299:-1], strict=True):
        assert words(answer) == words(mirrored)
        np.testing.assert_allclose(numbers(answer), numbers(mirrored), rtol=1e-6, atol=1e-6)


def test_pixels_may_have_any_type_and_nesting(client, images):
    """Integers and floats, nested rows and flat ones, and both in one request."""
    reference = predictions(client, images[:8], "digits")
    integers = images[:8].astype(int)
    for rows in (integers, integers.reshape(8, 64), images[:8].reshape(8, 64)):
        assert predictions(client, rows, "digits") == reference
    mixed = [row.ravel().tolist() if number % 2 else row.astype(int).tolist() for number, row in enumerate(images[:8])]
    assert predictions(client, mixed, "digits") == reference


def test_fields_select_the_fields_of_predictions(client, images):
    """Each field alone and several in any order: the same values as in the full response, in the requested order."""
    full = predictions(client, images[:4], "digits")
    for fields in (*([field] for field in FIELDS["classification"]), ["reject", "label", "std"]):
        selected = predictions(client, images[:4], "digits", fields=fields)
        assert [list(row) for row in selected] == [fields] * 4
        assert selected == [{field: row[field] for field in fields} for row in full]


@pytest.mark.parametrize("model", ["digits", "wave"])
@pytest.mark.parametrize("percentile", [50, 90.0, 95.5, 99, 99.8])
def test_thresholds_and_p_values_follow_from_the_calibration_part(client, model, percentile, images, points, request):
    """Computed simply from the bundle's arrays; `reject` means that the decision score is above threshold + τ."""
    bundle = request.getfixturevalue(model)
    calibration, target_scale = bundle.calibration, bundle.manifest.model.preprocessing.target_scale
    units = {"relative_mahalanobis": 500, "vim": 100, "subspace": 100}
    units |= {"std": target_scale, "total_std": target_scale} if model == "wave" else {}
    rows = {"digits": images, "wave": points}[model][:40]
    answer = predict(client, rows, model, percentile=percentile)
    assert answer["percentile"] == percentile
    rejected = 0
    for row in answer["predictions"]:
        for name, score in row["scores"].items():
            split = sorted(calibration.scores[name].tolist())
            assert score["threshold"] == split[rank(len(split), percentile / 100) - 1]
            tolerance = max(1e-4 * abs(score["value"]), 1e-6 * units.get(name, 1))
            expected = (1 + sum(value >= score["value"] - tolerance for value in split)) / (len(split) + 1)
            assert score["p_value"] == expected
            assert score["percentile"] == pytest.approx(100 * (1 - expected), abs=1e-9)
        decision = row["scores"][calibration.decision.name]
        tolerance = max(1e-4 * decision["value"], 1e-6 * units.get(calibration.decision.name, 1))
        assert row["reject"] is (decision["value"] - tolerance > decision["threshold"])
        ordinal = {50: "50th", 90.0: "90th", 95.5: "95.5th", 99: "99th", 99.8: "99.8th"}[percentile]
        reason = f"{calibration.decision.name} above its {ordinal} percentile"
        assert row["reasons"] == ([reason] if row["reject"] else [])
        rejected += row["reject"]
    if percentile == 50:
        assert 0 < rejected < 40, "rows that are rejected and rows that are not are both needed here"


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.9, 0.99])
def test_prediction_sets_follow_from_the_calibration_part(client, digits, images, coverage):
    """The classes with 1 − probability within the conformal radius, the most probable first."""
    split = digits.calibration.ascending_nonconformity
    radius = split[rank(len(split), coverage) - 1]
    answer = predict(client, images[:60], "digits", coverage=coverage)
    assert answer["coverage"] == coverage
    for row in answer["predictions"]:
        p = np.float32(row["probabilities"])
        inside = [index for index in np.argsort(-p, kind="stable") if 1 - p[index] <= radius]
        assert row["prediction_set"] == [digits.manifest.model.class_names[index] for index in inside]


@pytest.mark.parametrize("coverage", [0.1, 0.5, 0.9, 0.99])
def test_intervals_follow_from_the_calibration_part(client, wave, points, coverage):
    """The mean, plus and minus the conformal radius times the total standard deviation."""
    split = wave.calibration.ascending_nonconformity
    radius = float(split[rank(len(split), coverage) - 1])
    for row in predictions(client, points[:60], "wave", coverage=coverage):
        low, high = row["mean"] - radius * row["std"], row["mean"] + radius * row["std"]
        assert row["interval"] == pytest.approx([low, high], abs=1e-5)


def test_the_models_own_levels_are_the_default(client, images, digits):
    """A request without percentile and coverage gets the same as one that names the model's own."""
    own = digits.manifest.calibration
    explicit = predictions(client, images[:5], "digits", percentile=own.percentile, coverage=own.coverage)
    assert explicit == predictions(client, images[:5], "digits")


def test_strange_rows_are_rejected_and_familiar_ones_are_not(client, images):
    """At the model's own percentile, about one digit in a hundred is rejected, and noise much more often."""
    found = predictions(client, images, "digits")
    digits, noise = (np.mean([row["reject"] for row in found[start::2]]) for start in (0, 1))
    assert digits <= 0.06
    assert noise > digits + 0.1


@pytest.mark.parametrize("model", ["digits", "wave"])
def test_every_number_is_finite_and_the_identities_hold(client, model, images, points):
    """For rows up to float32's limit: no NaN, probabilities that sum to 1, variances that add up."""
    shape = {"digits": (64,), "wave": (1,)}[model]
    random = np.random.default_rng(3)
    strange = [np.full(shape, value) for value in (0.0, -0.0, 1e-45, 1e4, -1e6, 1e15, -1e30, 3e38)]
    rows = np.array([*strange, *(random.normal(0, 10.0**power, shape) for power in range(-6, 30, 3))])
    for row in predictions(client, rows, model):
        assert np.isfinite(numbers(row)).all()
        assert all(0 < score["p_value"] <= 1 for score in row["scores"].values())
        if model == "digits":
            assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
            assert row["mutual_information"] >= 0
            assert row["entropy"] == pytest.approx(row["aleatoric_entropy"] + row["mutual_information"], abs=1e-6)
            assert row["entropy"] == pytest.approx(float(entropy(np.array(row["probabilities"]))), abs=1e-5)
        else:
            assert row["std"] ** 2 == pytest.approx(row["aleatoric_std"] ** 2 + row["epistemic_std"] ** 2, rel=1e-5)


@pytest.mark.parametrize("name", ["digits", "digits:1", "digits@stable"])
def test_a_model_can_be_named_in_three_ways(client, images, digits, name):
    """All three select the stable version, although the store has a newer one."""
    answer = predict(client, images[:1], name)
    assert answer["model"] == {"name": "digits", "version": 1, "digest": digits.manifest.digest}


def test_the_newest_version_of_an_unlabelled_model_is_served(client, points, wave):
    """`wave` has no label."""
    assert predict(client, points[:1], "wave:1")["model"] == predict(client, points[:1], "wave")["model"]


def test_the_id_is_that_of_the_client_or_random(client, points):
    """The response returns the first 200 characters of `X-Request-Id`; without it, each response has its own id."""
    body = {"inputs": points[:1].tolist(), "model": "wave"}
    for own in ("7f9c", "a b/c=+", "x" * 500, '"quoted"', "42"):
        assert client.post("/predict", json=body, headers={"X-Request-Id": own}).json()["id"] == own[:200]
    random = [client.post("/predict", json=body).json()["id"] for _ in range(20)]
    assert len(set(random)) == 20
    assert all(isinstance(one, str) and len(one) >= 16 for one in random)


def test_an_id_beyond_ascii_is_returned_in_utf8(client, points):
    """The bytes of a header are Latin-1 by the standard, and JSON is UTF-8."""
    content = json.dumps({"inputs": points[:1].tolist(), "model": "wave"})
    headers = [(b"Content-Type", b"application/json"), (b"X-Request-Id", b"caf\xe9")]
    response = client.post("/predict", content=content, headers=headers)
    assert json.loads(response.content.decode("utf-8"))["id"] == "café"


def test_concurrent_clients_get_their_own_responses(server, client, images):
    """Sixteen clients send valid and invalid requests at once; each gets the right response to its own request."""
    expected = predictions(client, images, "digits", fields=["probabilities"])

    def send_requests(number: int) -> None:
        random = np.random.default_rng(number)
        with httpx.Client(base_url=server.url, timeout=PATIENCE) as own:
            for turn in range(12):
                own_id = f"{number}-{turn}"
                chosen = random.integers(0, len(images), random.integers(1, 12))
                inputs = images[chosen].tolist()
                if turn % 3 == 2:
                    inputs[-1][7][7] = f"cell {own_id}"
                response = own.post(
                    "/predict",
                    json={"inputs": inputs, "model": "digits", "fields": ["probabilities"]},
                    headers={"X-Request-Id": own_id},
                )
                if turn % 3 == 2:
                    assert response.status_code == 400
                    where = f"inputs[{len(chosen) - 1}][7][7]"
                    error = f"{where}: expected a number, found the string 'cell {own_id}'"
                    found = {"expected": "a number", "found": f"the string 'cell {own_id}'", "fix": None}
                    own_error = {"error": error, "code": "invalid_input", "where": where, "id": own_id}
                    assert response.json() == own_error | found
                else:
                    assert response.json()["id"] == own_id
                    found = numbers(response.json()["predictions"])
                    np.testing.assert_allclose(found, numbers([expected[row] for row in chosen]), rtol=1e-6, atol=1e-6)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(send_requests, range(16)))


def test_live_and_ready_are_reported_in_json(client):
    """200 from both routes, with both workers counted."""
    assert client.get("/livez").json() == {"live": True}
    response = client.get("/readyz")
    assert (response.status_code, response.json()["ready"]) == (200, True)
    assert response.json() == {"ready": True, "workers_ready": 2, "workers": 2, "why": []}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/models", "/metrics", "/docs.json", "/schema.json"])
def test_routes_for_get_also_accept_head(client, path):
    """Probes and proxies use it."""
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")


def test_the_models_are_listed(client, digits, wave, store):
    """Names, versions, labels, digests, methods, states and soundness; a version that is not served is idle."""
    second = json.loads((store / "digits" / "2" / "manifest.json").read_text())
    shared = {"why": None, "sound": True, "shortfalls": []}
    short = {"sound": False, "shortfalls": texts(wave.manifest.shortfalls)}
    assert client.get("/models").json() == {
        "models": [
            {
                "name": "digits",
                "rollout": None,
                "versions": [
                    {
                        "version": 1,
                        "labels": ["stable"],
                        "served_as": ["stable"],
                        "digest": digits.manifest.digest,
                        "method": "vi",
                    }
                    | {"state": "ready", **shared},
                    {"version": 2, "labels": [], "served_as": [], "digest": second["digest"], "method": "vi"}
                    | {"state": "idle", **shared},
                ],
            },
            {
                "name": "wave",
                "rollout": None,
                "versions": [
                    {"version": 1, "labels": [], "served_as": [], "digest": wave.manifest.digest, "method": "nuts"}
                    | {"state": "ready", **shared, **short}
                ],
            },
        ]
    }


def test_the_api_has_two_descriptions(client):
    """`/docs.json` is an OpenAPI document, `/schema.json` is for BentoML's clients; both have the six keys of rows of numbers."""
    keys = {"inputs", "model", "percentile", "coverage", "max_error", "fields"}
    openapi = client.get("/docs.json").json()
    assert openapi["openapi"].startswith("3.")
    operation = openapi["paths"]["/predict"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    named = openapi["components"]["schemas"]
    forms = [named[form["$ref"].rsplit("/", 1)[1]] for form in named[schema["$ref"].rsplit("/", 1)[1]]["oneOf"]]
    assert [form["required"] for form in forms] == [["inputs"], ["records"], ["columns", "data"]]
    assert set(forms[0]["properties"]) == keys
    document = client.get("/schema.json").json()
    (route,) = [route for route in document["routes"] if route["route"] == "/predict"]
    assert set(route["input"]["properties"]) == keys


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/nope", "/predict/", "/predict/x", "/Predict", "/v1/predict"])
def test_an_unknown_route_is_404_in_json(client, method, path):
    """For any method; the error names the route."""
    response = client.request(method, path)
    assert response.status_code == 404
    assert response.json()["error"] == (
        f"no such route: {path}; predictions are at POST /predict and POST /v2/models/NAME/infer; the console is at /"
    )


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_predict_accepts_only_post(client, method):
    """405 with the allowed method, in the header and in the text."""
    response = client.request(method, "/predict")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"] == f"method: expected POST, found {method}"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/models", "/metrics"])
def test_routes_for_get_refuse_post(client, path):
    """405 with the allowed methods."""
    response = client.post(path, json={})
    assert response.status_code == 405
    assert set(response.headers["allow"].split(", ")) == {"GET", "HEAD"}
    assert response.json()["error"].startswith("method: expected ")


def test_a_response_does_not_wait_for_another_clients_slow_body(server, client, points):
    """A client that sends half a body and pauses does not delay other clients."""
    resume = threading.Event()

    def slowly():
        yield b'{"model":"wave",'
        resume.wait(20)
        yield b'"inputs":[[1]]}'

    with ThreadPoolExecutor(4) as pool:
        slow = [
            pool.submit(
                httpx.post,
                f"{server.url}/predict",
                content=slowly(),
                headers={"Content-Type": "application/json"},
                timeout=PATIENCE,
            )
            for _ in range(4)
        ]
        assert len(predictions(client, points[:1], "wave")) == 1
        assert not any(future.done() for future in slow)
        resume.set()
        assert {future.result().status_code for future in slow} == {200}


@contextmanager
def running(app):
    """Serves an application with uvicorn in a thread; gives the address."""
    config = uvicorn.Config(app, port=0, log_level="critical")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()
        server.should_exit = True
        thread.join(10)


def build(folder, traffic, bentoml_app):
    """The application of a worker whose store is empty."""
    process, versions = Process(1, 1, folder), LiveVersions(folder)
    return build_app(Settings(store=folder), process, traffic, versions, bentoml_app, lambda *_: None)


@pytest.fixture
def broken(tmp_path):
    """The address of an application with two bugs: BentoML's description of the API raises, with a query another error."""

    async def fail(scope, *_) -> None:
        raise RuntimeError("a secret of the server") if scope["query_string"] else StoreError("a bug")

    with running(build(tmp_path, Traffic(), fail)) as address:
        yield address


@pytest.mark.parametrize("path", ["/predict", "/v2/models/wave/infer"])
@pytest.mark.parametrize("size", [2, 5_000_000])
def test_a_draining_server_refuses_a_body_of_any_size_without_a_reset(tmp_path, path, size):
    """Clients that write the whole body before they read get the 503; the server then closes the connection."""
    traffic = Traffic()
    traffic.draining = True
    content, headers = b" " * size, {"Content-Type": "application/json"}
    with running(build(tmp_path, traffic, lambda *_: None)) as (host, port):
        response = httpx.post(f"http://{host}:{port}{path}", content=content, headers=headers, timeout=PATIENCE)
        assert (response.status_code, response.json()["code"]) == (503, "draining")
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE)
        connection.request("POST", path, content, headers)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (503, "draining")
        assert answer.headers.get_all("Connection") == ["close"]
        assert answer.headers["Retry-After"] == "1"
        connection.close()


def test_a_bug_is_500_without_details(broken):
    """JSON without the exception's text; the connection stays open, or the response says that it closes."""
    connection = http.client.HTTPConnection(*broken, timeout=PATIENCE)
    connection.request("GET", "/schema.json?again")
    response = connection.getresponse()
    content = json.loads(response.read())
    assert response.status == 500
    assert content["error"] == "unexpected RuntimeError; the server's log has the details"
    if response.headers.get("Connection") != "close":
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("path", ["/schema.json?again", "/schema.json"])
@pytest.mark.parametrize("headers", [{}, {"X-Request-Id": "mine-1"}, {"X-Request-Id": "y" * 500}])
def test_the_id_of_a_fault_is_in_the_log(broken, caplog, path, headers):
    """The log line of a 500 holds the id of its response, so that an operator finds the traceback of a client's report."""
    response = httpx.get(f"http://{broken[0]}:{broken[1]}{path}", headers=headers, timeout=PATIENCE)
    own = response.json()["id"]
    assert response.status_code == 500
    assert own == headers["X-Request-Id"][:200] if headers else re.fullmatch("[0-9a-f]{32}", own)
    assert until(lambda: any(f"(id {own})" in record.getMessage() for record in caplog.records))
    (record,) = (record for record in caplog.records if f"(id {own})" in record.getMessage())
    assert record.exc_info


def test_the_name_of_the_only_model_is_optional(store, tmp_path):
    """If one model is served; a label adds a served version."""
    alone = tmp_path / "store"
    (alone / "digits").mkdir(parents=True)
    for version in ("1", "2"):
        shutil.copytree(store / "digits" / version, alone / "digits" / version)
    serving = LiveVersions(alone)
    serving.load_all(buckets=(1,))
    assert (serving.find(None).name, serving.find(None).version) == ("digits", 2)
    set_label(alone, "digits", 1, "stable")
    set_label(alone, "digits", 2, "canary")
    labelled = LiveVersions(alone)
    labelled.load_all(buckets=(1,))
    assert labelled.find(None).version == labelled.find("digits").version == labelled.find("digits@stable").version == 1
    assert labelled.find("digits@canary").version == labelled.find("digits:2").version == 2
    assert labelled.reasons_not_ready() == []


@pytest.mark.parametrize(
    ("method", "path", "content", "code", "where"),
    [
        ("POST", "/predict", b"[]", "invalid_input", "body"),
        ("POST", "/predict", b'{"inputs": [[1]], "model": "nope"}', "unknown_model", "model"),
        ("POST", "/predict", b'{"inputs": [["x"]], "model": "wave"}', "invalid_input", "inputs[0][0]"),
        ("POST", "/predict", b'{"inputs": [[1]], "model": "wave", "percentile": 99.9}', "calibration_too_small", None),
        ("POST", "/v2/models/nope/infer", b"{}", "unknown_model", "model"),
        ("POST", "/v2/models/wave/infer", b'{"inputs": []}', "invalid_input", "inputs"),
        ("GET", "/predict", b"", "method_not_allowed", None),
        ("GET", "/nope", b"", "not_found", None),
    ],
)
def test_an_error_has_a_code_a_field_and_an_id(client, method, path, content, code, where):
    """For programs: the code is stable, `where` names the invalid field, `id` is the client's or a random one."""
    headers = {"Content-Type": "application/json", "X-Request-Id": "mine-1"}
    found = client.request(method, path, content=content, headers=headers).json()
    assert list(found) == ERROR_KEYS
    assert (found["code"], found["where"], found["id"]) == (code, where, "mine-1")
    other = client.request(method, path, content=content, headers={"Content-Type": "application/json"}).json()
    assert re.fullmatch("[0-9a-f]{32}", other["id"])
