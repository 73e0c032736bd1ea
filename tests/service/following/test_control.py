"""Routes for operators: labels, loading and unloading, and what they need."""

import asyncio
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from abstain.models.bundles.remote.labels import set_remote_label
from abstain.models.bundles.remote.mirror import Mirror
from abstain.models.bundles.remote.objects import open_objects
from abstain.models.bundles.remote.publish import push
from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.bundles.remote.versions import read_remote_labels
from abstain.models.bundles.store import set_label
from abstain.service.access.api_keys import add_key
from abstain.service.http import build_app
from abstain.service.process import Process, Traffic
from abstain.service.settings import Settings
from tests.helpers.documented import check
from tests.helpers.following import Server, serve
from tests.helpers.golden_versions import damage_version, publish_golden


@pytest.fixture
def root(tmp_path) -> Path:
    """A store with two versions, the first of them `stable`."""
    publish_golden(tmp_path / "store")
    publish_golden(tmp_path / "store", 1.1)
    set_label(tmp_path / "store", "golden", 1, "stable")
    return tmp_path / "store"


class Operator:
    """Sends requests to the first worker of a server that has keys, with the key of an operator."""

    def __init__(self, server: Server, folder: Path, store: Path | RemoteURL | None = None) -> None:
        keys = folder / "keys.json"
        self.keys = {scope: add_key(keys, scope, (scope,)) for scope in ("admin", "predict")}
        settings = Settings(store=store or server.root, keys=keys, hosts=("localhost",))
        process, versions = Process(1, len(server.workers), server.folder), server.workers[0].versions
        self._app = build_app(settings, process, Traffic(), versions, lambda *_: None, lambda *_: None)

    def post(self, path: str, body: object = None, key: str = "admin") -> httpx.Response:
        """The response to a request."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
                return await client.post(path, json={} if body is None else body, headers={"X-API-Key": self.keys[key]})

        response = asyncio.run(send())
        check(response)
        return response


@contextmanager
def operated(tmp_path: Path):
    """A server of two workers that follows orders, and its operator."""
    with serve(tmp_path) as server:
        server.follower.start(0)
        yield server, Operator(server, tmp_path)


def test_a_label_of_a_bucket_is_moved_there(root, tmp_path, store_url):
    """And followed, before the response; a version that the bucket does not have is refused."""
    objects, own = open_objects(store_url), tmp_path / "of-bucket"
    for version in (1, 2):
        push(objects, "golden", version, root / "golden" / str(version))
    set_remote_label(objects, "golden", 1, "stable")
    mirror = Mirror(objects, own / "store")
    mirror.settle()
    with serve(own, mirror=mirror) as server:
        mirror.start(0, lambda: {(key.name, key.version) for key in server.follower.plan.keys})
        server.follower.start(0)
        operator = Operator(server, tmp_path, store_url)
        response = operator.post("/admin/models/golden/label", {"label": "stable", "version": 2})
        assert response.json() == {"name": "golden", "label": "stable", "version": 2, "served": True}
        assert read_remote_labels(objects, "golden")[0].labels == {"stable": 2}
        assert server.answers() == [2, 2]
        assert operator.post("/admin/models/golden/label", {"label": "stable", "version": 3}).status_code == 404


def test_a_label_is_moved_and_followed(root, tmp_path):
    """The response comes when every worker answers by it."""
    with operated(tmp_path) as (server, operator):
        response = operator.post("/admin/models/golden/label", {"label": "stable", "version": 2})
        assert response.json() == {"name": "golden", "label": "stable", "version": 2, "served": True}
        assert server.answers() == [2, 2]
        new = publish_golden(root, 1.2)
        damage_version(root, new)
        response = operator.post("/admin/models/golden/label", {"label": "stable", "version": new})
        assert (response.status_code, "is damaged or was altered" in response.text) == (400, True)
        response = operator.post("/admin/models/golden/label", {"label": "next", "version": new})
        assert response.json()["served"] is False
        assert "is damaged or was altered" in response.json()["why"][0]
        assert server.answers() == [2, 2]


@pytest.mark.parametrize(
    ("body", "code", "error"),
    [
        ({"label": "stable"}, 400, "body: version: expected the number of a version, found null"),
        ({"label": "stable", "version": True}, 400, "expected the number of a version, found true"),
        ({"label": 3, "version": 1}, 400, "body: label: expected text, found the number 3"),
        ({"label": "no spaces", "version": 1}, 400, "label: expected 1 to 32 letters"),
        ({"label": "stable", "version": 9}, 404, "golden has no version 9"),
        ({"label": "stable", "version": 1, "forse": True}, 400, "forse"),
    ],
)
def test_labels_that_are_refused(operated_server, body, code, error):
    """The store is not changed."""
    server, operator = operated_server
    response = operator.post("/admin/models/golden/label", body)
    assert (response.status_code, error in response.text) == (code, True), response.text
    assert server.answers() == [1, 1]


@pytest.fixture(scope="module")
def operated_server(tmp_path_factory):
    """A server whose store these tests do not change."""
    folder = tmp_path_factory.mktemp("operated")
    publish_golden(folder / "store")
    with operated(folder) as pair:
        yield pair


def test_models_are_unloaded_and_loaded(root, tmp_path):
    """An unloaded model is unknown to requests, also after further looks at the store, until it is loaded."""
    with operated(tmp_path) as (server, operator):
        assert operator.post("/v2/repository/models/golden/unload").status_code == 200
        assert all("expected one of none" in answer for answer in server.answers())
        assert operator.post("/v2/repository/models/golden/unload").status_code == 404
        publish_golden(root, 1.2)
        assert operator.post("/v2/repository/models/other/load").status_code == 404
        assert all("expected one of none" in answer for answer in server.answers())
        assert operator.post("/v2/repository/models/golden/load", {"parameters": {}}).status_code == 200
        assert server.answers() == [1, 1]


def test_only_load_loads_an_unloaded_model(root, tmp_path):
    """A label is moved in the store, and said not to be served."""
    with operated(tmp_path) as (server, operator):
        operator.post("/v2/repository/models/golden/unload")
        response = operator.post("/admin/models/golden/label", {"label": "next", "version": 1})
        assert (response.json()["served"], response.json()["why"]) == (False, ["it is unloaded"])
        assert all("expected one of none" in answer for answer in server.answers())


def test_a_damaged_version_is_not_labelled_stable(root, tmp_path):
    """The error names no folder of the server."""
    with operated(tmp_path) as (_, operator):
        (root / "golden" / "2" / "manifest.json").write_text("{")
        response = operator.post("/admin/models/golden/label", {"label": "stable", "version": 2})
        assert response.status_code == 400
        assert str(tmp_path) not in response.text


def test_loading_says_what_cannot_be_served(root, tmp_path):
    """Triton's clients expect a failure, and the old version stays."""
    with operated(tmp_path) as (server, operator):
        set_label(root, "golden", 2, "stable")
        damage_version(root, 2)
        response = operator.post("/v2/repository/models/golden/load")
        assert (response.status_code, response.json()["code"]) == (400, "not_loaded")
        assert "golden:2: " in response.text
        assert server.answers() == [1, 1]


@pytest.mark.parametrize("path", ["/admin/models/golden/label", "/v2/repository/models/golden/load"])
def test_an_admin_key_is_needed(operated_server, path):
    """Another key does not do, and a server without keys refuses too."""
    server, operator = operated_server
    response = operator.post(path, {"label": "stable", "version": 1}, key="predict")
    assert (response.status_code, "the scope admin" in response.text) == (403, True)
    settings = Settings(store=server.root, hosts=("localhost",))
    versions = server.workers[0].versions
    operator_without = Operator.__new__(Operator)
    operator_without.keys = operator.keys
    operator_without._app = build_app(
        settings, Process(1, 2, server.folder), Traffic(), versions, lambda *_: None, lambda *_: None
    )
    response = operator_without.post(path, {"label": "stable", "version": 1})
    assert (response.status_code, "a server without keys" in response.text) == (403, True)
