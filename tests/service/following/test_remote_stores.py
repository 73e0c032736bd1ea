"""A server of a store elsewhere: it serves from the mirror, follows labels, and goes on while the store is away."""

import json
from pathlib import Path

import httpx
import pytest

from abstain.models.bundles.remote.labels import set_remote_label
from abstain.models.bundles.remote.mirror import AWAY, Mirror
from abstain.models.bundles.remote.objects import Objects, open_objects
from abstain.models.bundles.remote.publish import push
from abstain.models.bundles.remote.url import RemoteURL
from abstain.service.following.generation import write_record
from abstain.service.following.orders import Order
from tests.helpers.following import Server, serve
from tests.helpers.golden_versions import publish_golden
from tests.helpers.object_server import ObjectServer
from tests.helpers.processes import until
from tests.helpers.servers import start_server, stop_server


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of `golden`."""
    root = tmp_path_factory.mktemp("local")
    for scale in (1.0, 1.1):
        publish_golden(root, scale)
    return root


@pytest.fixture
def objects(store_url: RemoteURL, local: Path) -> Objects:
    """A store on the server, with version 1 of `golden`, `stable`."""
    objects = open_objects(store_url)
    push(objects, "golden", 1, local / "golden" / "1")
    set_remote_label(objects, "golden", 1, "stable")
    return objects


def follow(mirror: Mirror, server: Server) -> None:
    """Has the mirror look until it has copied everything, and the server follow."""
    mirror.settle()
    server.follower.settle()


def test_the_server_goes_on_while_the_store_is_away(objects, object_server: ObjectServer, local, tmp_path):
    """It says so, and follows when the store is back; a version that is damaged there leaves the old one."""
    mirror = Mirror(objects, tmp_path / "store")
    mirror.settle()
    with serve(tmp_path, mirror=mirror) as server:
        object_server.door.close()
        follow(mirror, server)
        assert server.answers() == [1, 1]
        versions = server.workers[0].versions
        assert versions.shortcomings() == [AWAY]
        assert versions.list_models()["why"] == AWAY
        object_server.door.open()
        push(objects, "golden", 2, local / "golden" / "2")
        set_remote_label(objects, "golden", 2, "stable")
        follow(mirror, server)
        assert server.answers() == [2, 2]
        assert versions.shortcomings() == []
        assert "why" not in versions.list_models()


def test_a_start_without_the_store_serves_what_the_mirror_has(objects, object_server: ObjectServer, tmp_path):
    """Also if the process is another one than that which filled it."""
    Mirror(objects, tmp_path / "store").settle()
    object_server.door.close()
    mirror = Mirror(objects, tmp_path / "store")
    mirror.look()
    with serve(tmp_path, mirror=mirror) as server:
        assert server.answers() == [1, 1]
        assert server.workers[0].versions.shortcomings() == [AWAY]


def test_a_version_that_cannot_be_copied_is_named(objects, object_server: ObjectServer, local, tmp_path):
    """The old one is served; clients learn no address of the store."""
    mirror = Mirror(objects, tmp_path / "store")
    mirror.settle()
    with serve(tmp_path, mirror=mirror) as server:
        push(objects, "golden", 2, local / "golden" / "2")
        name = sorted(json.loads((local / "golden" / "2" / "manifest.json").read_bytes())["files"])[0]
        objects.put(f"golden/2/{name}", b"other bytes")
        set_remote_label(objects, "golden", 2, "stable")
        follow(mirror, server)
        assert server.answers() == [1, 1]
        state, why = server.state(2)
        assert (state, "cannot be copied" in why, name in why) == ("failed", True, True)
        assert "s3://" not in why


def test_an_order_waits_for_the_copy(objects, local, tmp_path):
    """An order is answered when the mirror has looked since, copied what is new, and the workers serve it."""
    mirror = Mirror(objects, tmp_path / "store")
    mirror.settle()
    with serve(tmp_path, mirror=mirror) as server:
        mirror.start(0, lambda: {(key.name, key.version) for key in server.follower.plan.keys})
        server.follower.start(0)
        push(objects, "golden", 2, local / "golden" / "2")
        set_remote_label(objects, "golden", 2, "stable")
        write_record(server.folder / "order-x.json", Order(kind="look", model="golden"))
        assert until((server.folder / "done-x.json").exists)
        assert server.answers() == [2, 2]


def test_a_real_server_of_a_bucket(objects, object_server: ObjectServer, store_url: RemoteURL, local, tmp_path):
    """Started by a URL: answers while the store is away, says so, and follows a label that is moved afterwards."""
    cache = tmp_path / "cache"
    server = start_server(
        str(store_url),
        tmp_path,
        ABSTAIN_CACHE=str(cache),
        ABSTAIN_REFRESH_SECONDS="0.2",
    )
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:

            def version() -> int:
                response = client.post("/predict", json={"inputs": [[0.5]], "model": "golden"})
                assert response.status_code == 200, response.text
                return response.json()["model"]["version"]

            assert version() == 1
            assert (cache / store_url.folder_name / "golden" / "1" / "manifest.json").exists()
            object_server.door.close()
            assert until(lambda: AWAY in client.get("/readyz").json()["why"])
            assert (version(), client.get("/readyz").status_code) == (1, 200)
            object_server.door.open()
            push(objects, "golden", 2, local / "golden" / "2")
            set_remote_label(objects, "golden", 2, "stable")
            assert until(lambda: version() == 2)
            assert until(lambda: client.get("/readyz").json()["why"] == [])
    finally:
        stop_server(server)
