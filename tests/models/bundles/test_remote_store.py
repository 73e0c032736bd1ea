"""A store on a real S3 server: uploads, labels, the mirror; and what happens when requests fail or bytes are wrong."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import obstore
import orjson
import pytest

from abstain.models.bundles.labels import Labels, dump_labels
from abstain.models.bundles.listing import digest_of, dumped
from abstain.models.bundles.manifest import read_manifest, verify_files, write_manifest
from abstain.models.bundles.remote.download import download_version
from abstain.models.bundles.remote.labels import rollback_remote, set_remote_label
from abstain.models.bundles.remote.mirror import AWAY, Mirror
from abstain.models.bundles.remote.moves import start_rollout
from abstain.models.bundles.remote.objects import Objects, open_objects
from abstain.models.bundles.remote.publish import publish_remote, push
from abstain.models.bundles.remote.rollouts import end_in, status_in, write_evidence_in
from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.bundles.remote.versions import read_remote_labels, resolve_remote, whole_versions
from abstain.models.bundles.rollout_evidence import ServerEvidence, StoredEvidence
from abstain.models.bundles.rollouts import Options, now, read_rollout
from abstain.models.bundles.store import model_names, read_labels, versions
from abstain.models.decisions.comparison import PAIRED, weigh
from abstain.models.errors import BundleError, StoreError, UnknownModel
from tests.helpers.golden_versions import GOLDEN, publish_golden
from tests.helpers.object_server import ObjectServer


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of `golden`."""
    root = tmp_path_factory.mktemp("local")
    publish_golden(root, 1.0)
    publish_golden(root, 2.0)
    return root


@pytest.fixture
def objects(store_url: RemoteURL) -> Objects:
    """An empty store on the server."""
    return open_objects(store_url)


def push_golden(objects: Objects, local: Path, *numbers: int) -> None:
    """Uploads versions of `golden`."""
    for number in numbers:
        push(objects, "golden", number, local / "golden" / str(number))


def put(objects: Objects, path: str, content: bytes) -> None:
    """Writes an object past all rules, as somebody else may."""
    obstore.put(objects._store, path, content)


def seal(folder: Path, version: int) -> None:
    """Writes the manifest of a small version, of one file."""
    write_manifest(folder, read_manifest(GOLDEN).model_copy(update={"name": "golden", "version": version}))


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Calls functions at the same time; returns their results."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [*pool.map(run, calls)]


def test_the_server_keeps_conditions(objects):
    """Of eight writers at once one gets a name, and one change; other tests rely on it."""

    def create(path: str, own: int) -> Callable[[], bool]:
        return lambda: objects.put_if_absent(path, b"%d" % own)

    def replace(path: str, own: int, tag: str) -> Callable[[], bool]:
        return lambda: objects.put_if_unchanged(path, b"new %d" % own, tag)

    for number in range(10):
        path = f"x{number}"
        assert sum(at_once(*(create(path, own) for own in range(8)))) == 1
        tag = objects.get(path, 10).tag
        assert sum(at_once(*(replace(path, own, tag) for own in range(8)))) == 1


def test_a_version_goes_there_and_back(objects, local, tmp_path):
    """The copy is equal, byte for byte; a second upload changes nothing."""
    folder = local / "golden" / "2"
    steps = []
    assert push(objects, "golden", 2, folder, lambda done, of: steps.append((done, of))) == "copied"
    assert steps[-1] == (len(steps), len(steps))
    assert push(objects, "golden", 2, folder) == "unchanged"
    assert resolve_remote(objects, "golden") == ("golden", 2)
    download_version(objects, tmp_path, "golden", 2)
    copy = tmp_path / "golden" / "2"
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(path.relative_to(copy) for path in copy.rglob("*") if path.is_file())
    assert all((copy / file).read_bytes() == (folder / file).read_bytes() for file in files)


def test_a_signature_that_is_added_later_is_uploaded(objects, local, tmp_path):
    """Only the signature is uploaded then, and it is downloaded with the version."""
    shutil.copytree(local / "golden" / "1", tmp_path / "golden" / "1")
    folder = tmp_path / "golden" / "1"
    push(objects, "golden", 1, folder)
    mirror = Mirror(objects, tmp_path / "mirror", signatures=True)
    mirror.settle()
    (folder / "model.sig").write_bytes(b"a signature")
    assert push(objects, "golden", 1, folder) == "signed"
    mirror.look()
    assert (tmp_path / "mirror" / "golden" / "1" / "model.sig").read_bytes() == b"a signature"
    verify_files(tmp_path / "mirror" / "golden" / "1", read_manifest(folder))


def test_another_version_of_the_same_number_is_refused(objects, local, tmp_path):
    """A manifest holds the number, so no other number is chosen."""
    push_golden(objects, local, 1)
    publish_golden(tmp_path, 3.0)
    with pytest.raises(StoreError, match=r"golden/1: the number is taken by another version: .*publish yours again"):
        push(objects, "golden", 1, tmp_path / "golden" / "1")


def test_publishers_at_once_get_different_numbers(objects):
    """Each claim is a put-if-absent; the versions are whole."""

    def publish() -> list[int]:
        return [
            publish_remote(objects, "golden", lambda folder: (folder / "x").write_bytes(b"x") and None, seal)
            for _ in range(3)
        ]

    found = [number for numbers in at_once(publish, publish, publish) for number in numbers]
    assert sorted(found) == [*range(1, 10)]
    assert whole_versions(objects, "golden") == [*range(1, 10)]


def test_half_an_upload_is_no_version(objects, object_server, local, tmp_path):
    """It is not listed, and the next number is another; the same version may be uploaded again."""
    push_golden(objects, local, 1)
    calls = []

    def close(done: int, _of: int) -> None:
        calls.append(done)
        object_server.door.close()

    with pytest.raises(StoreError, match="golden/2"):
        push(objects, "golden", 2, local / "golden" / "2", close)
    assert calls
    object_server.door.open()
    assert whole_versions(objects, "golden") == [1]
    with pytest.raises(UnknownModel, match="golden has no version 2"):
        download_version(objects, tmp_path, "golden", 2)
    assert not (tmp_path / "golden" / "2").exists()
    mirror = Mirror(objects, tmp_path / "mirror")
    mirror.settle()
    assert versions(tmp_path / "mirror", "golden") == [1]
    assert publish_remote(objects, "golden", lambda folder: (folder / "x").write_bytes(b"x") and None, seal) == 3
    push_golden(objects, local, 2)
    assert whole_versions(objects, "golden") == [1, 2, 3]


def test_large_files_move_in_parts(objects, tmp_path):
    """A file that is larger than a part of an upload, and than several of a download."""
    content = np.random.default_rng(0).bytes(9 * 2**20 + 1)
    publish_remote(objects, "golden", lambda folder: (folder / "x").write_bytes(content) and None, seal)
    download_version(objects, tmp_path, "golden", 1)
    assert (tmp_path / "golden" / "1" / "x").read_bytes() == content


def test_changes_of_labels_at_once_lose_none(objects, local):
    """Each writer finds its label, whoever wrote at the same time."""
    push_golden(objects, local, 1)
    labels = [f"label{number}" for number in range(6)]
    at_once(*(lambda label=label: set_remote_label(objects, "golden", 1, label) for label in labels))
    assert read_remote_labels(objects, "golden")[0].labels == dict.fromkeys(labels, 1)


@pytest.mark.parametrize(
    ("text", "expected"), [("golden", 1), ("golden@stable", 1), ("golden@next", 2), ("golden:2", 2)]
)
def test_references_mean_what_they_mean_in_a_folder(objects, local, text, expected):
    """By the labels that there are; what does not exist is named as there."""
    push_golden(objects, local, 1, 2)
    set_remote_label(objects, "golden", 1, "stable")
    set_remote_label(objects, "golden", 2, "next")
    assert resolve_remote(objects, text) == ("golden", expected)
    with pytest.raises(UnknownModel, match="golden has no version 3: expected 1, 2"):
        resolve_remote(objects, "golden:3")
    with pytest.raises(UnknownModel, match=r"golden has no label 'nxt'.*did you mean 'next'"):
        resolve_remote(objects, "golden@nxt")
    with pytest.raises(UnknownModel, match=r"no model named 'goldn'.*did you mean 'golden'"):
        resolve_remote(objects, "goldn")


def test_labels_and_rollback_are_those_of_a_folder(objects, local):
    """The same record, and the same rules."""
    push_golden(objects, local, 1, 2)
    for version in (1, 2, 2):
        set_remote_label(objects, "golden", version, "stable")
    assert read_remote_labels(objects, "golden")[0] == Labels(labels={"stable": 2}, previous={"stable": [1]})
    assert rollback_remote(objects, "golden") == 1
    with pytest.raises(StoreError, match="golden has no previous stable version"):
        rollback_remote(objects, "golden")
    with pytest.raises(UnknownModel, match="golden has no version 3"):
        set_remote_label(objects, "golden", 3, "stable")
    with pytest.raises(StoreError, match="label: expected 1 to 32"):
        set_remote_label(objects, "golden", 1, "../x")


def test_wrong_bytes_are_refused_by_the_name_of_the_file(objects, local, tmp_path):
    """A version with one altered file gets no name in a local store; the mirror keeps what it has."""
    push_golden(objects, local, 1, 2)
    set_remote_label(objects, "golden", 1, "stable")
    mirror = Mirror(objects, tmp_path / "mirror")
    mirror.settle()
    name = sorted(read_manifest(local / "golden" / "2").files)[-1]
    content = bytearray((local / "golden" / "2" / name).read_bytes())
    content[len(content) // 2] ^= 1
    put(objects, f"golden/2/{name}", bytes(content))
    with pytest.raises(BundleError) as caught:
        download_version(objects, tmp_path / "pulled", "golden", 2)
    assert f"golden/2/{name}: is damaged or was altered" in str(caught.value)
    assert versions(tmp_path / "pulled", "golden") == []
    set_remote_label(objects, "golden", 2, "stable")
    mirror.settle()
    assert mirror.faults["golden", 2].startswith(f"it cannot be copied from the store: golden/2/{name}: is damaged")
    assert versions(tmp_path / "mirror", "golden") == [1]
    assert read_labels(tmp_path / "mirror", "golden").labels == {"stable": 2}


def altered(local: Path, **changes: object) -> bytes:
    """The manifest of version 2 with other contents and the digest of these."""
    content = orjson.loads((local / "golden" / "2" / "manifest.json").read_bytes()) | changes
    return dumped({**content, "digest": digest_of(content)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": {"../../x": "0" * 64}}, "expected paths inside the bundle"),
        ({"files": {"/etc/x": "0" * 64}}, "expected paths inside the bundle"),
        ({"files": {"labels": "0" * 64}}, "golden/2/labels: is missing"),
        ({"files": {}}, "expected 1 to 10,000 files"),
        ({"files": {"x": "../y"}}, "files"),
        ({"version": 3}, "expected golden:2, found 'golden:3'"),
        ({"name": "../other"}, "name"),
    ],
)
def test_hostile_manifests_are_refused(objects, local, tmp_path, changes, said):
    """Nothing is written outside of the draft, which is removed."""
    put(objects, "golden/2/manifest.json", altered(local, **changes))
    with pytest.raises(BundleError, match=said):
        download_version(objects, tmp_path, "golden", 2)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".lock"]


def test_names_that_are_none_are_not_there(objects, local, tmp_path):
    """Objects with other names are neither listed nor downloaded."""
    push_golden(objects, local, 1)
    for path in (
        ".hidden/1/manifest.json",
        "golden/07/manifest.json",
        "golden/x/manifest.json",
        "golden/1/more",
        "x y/1/a",
    ):
        put(objects, path, b"{}")
    mirror = Mirror(objects, tmp_path / "mirror")
    mirror.settle()
    assert (mirror.why, model_names(tmp_path / "mirror")) == (None, ["golden"])
    assert versions(tmp_path / "mirror", "golden") == [1]
    assert not (tmp_path / "mirror" / "golden" / "1" / "more").exists()


def test_large_labels_are_not_read(objects, local, tmp_path):
    """An object is read only up to a limit; other models are served on."""
    push_golden(objects, local, 1)
    put(objects, "golden/labels.json", b" " * (2**20 + 1))
    with pytest.raises(StoreError, match=r"labels.json: is too large: expected at most 1,048,576 bytes"):
        read_remote_labels(objects, "golden")
    publish_golden(tmp_path / "local", name="other")
    push(objects, "other", 1, tmp_path / "local" / "other" / "1")
    mirror = Mirror(objects, tmp_path / "mirror")
    mirror.settle()
    assert (mirror.why, model_names(tmp_path / "mirror")) == (AWAY, ["other"])


def test_the_mirror_has_what_labels_ask_for(objects, local, tmp_path):
    """The newest without `stable`, then what labels point at, and the version of a rollback; what is gone there goes here."""
    root = tmp_path / "mirror"
    mirror = Mirror(objects, root)
    push_golden(objects, local, 1)
    mirror.settle()
    assert versions(root, "golden") == [1]
    push_golden(objects, local, 2)
    mirror.settle()
    assert versions(root, "golden") == [2]
    set_remote_label(objects, "golden", 1, "stable")
    put(objects, "golden/rollout.json", b'{"kept": "as it is"}')
    mirror.look([("golden", 2)])
    mirror.settle()
    assert (versions(root, "golden"), read_labels(root, "golden").labels) == ([1, 2], {"stable": 1})
    assert (root / "golden" / "rollout.json").read_bytes() == b'{"kept": "as it is"}'
    obstore.delete(objects._store, [f"golden/{path}" for path in objects.sizes("golden", 99) if path.startswith("2/")])
    obstore.delete(objects._store, "golden/rollout.json")
    mirror.settle()
    assert versions(root, "golden") == [1]
    assert not (root / "golden" / "rollout.json").exists()


def test_another_server_of_the_mirror_keeps_it_from_being_pruned(objects, local, tmp_path):
    """What one server does not need, another one may serve."""
    first, second = Mirror(objects, tmp_path), Mirror(objects, tmp_path)
    push_golden(objects, local, 1)
    first.settle()
    push_golden(objects, local, 2)
    first.settle()
    assert versions(tmp_path, "golden") == [1, 2]
    second.close()
    first.settle()
    assert versions(tmp_path, "golden") == [2]


def test_two_servers_fill_one_mirror(objects, local, tmp_path):
    """Whichever is faster; neither takes the other's copy for a fault."""
    push_golden(objects, local, 1, 2)
    set_remote_label(objects, "golden", 1, "other")
    mirrors = [Mirror(objects, tmp_path) for _ in range(3)]
    at_once(*(mirror.settle for mirror in mirrors))
    assert [(mirror.why, mirror.faults) for mirror in mirrors] == [(None, {})] * 3
    assert versions(tmp_path, "golden") == [1, 2]


@pytest.mark.parametrize("mode", ["refuse", "emptied"])
def test_the_mirror_stays_when_the_store_is_away(objects, object_server: ObjectServer, local, tmp_path, mode, caplog):
    """Also if the bucket is empty; it says so once, and goes on when the store is back."""
    push_golden(objects, local, 1)
    set_remote_label(objects, "golden", 1, "stable")
    mirror = Mirror(objects, tmp_path)
    mirror.settle()
    paths = [f"golden/{path}" for path in objects.sizes("golden", 99)]
    if mode == "refuse":
        object_server.door.close()
    else:
        obstore.delete(objects._store, paths)
    for _ in range(3):
        mirror.settle()
    assert mirror.why == AWAY
    assert len([record for record in caplog.records if AWAY in record.message]) == 1
    assert (versions(tmp_path, "golden"), read_labels(tmp_path, "golden").labels) == ([1], {"stable": 1})
    object_server.door.open()
    push_golden(objects, local, 1)
    put(objects, "golden/labels.json", dump_labels(Labels(labels={"stable": 1})))
    mirror.settle()
    assert mirror.why is None


def test_a_connection_that_is_cut_is_tried_again(objects, object_server: ObjectServer, local, tmp_path):
    """The answer to a request ends in its middle."""
    push_golden(objects, local, 1)
    object_server.door.cut_after = 100
    download_version(objects, tmp_path, "golden", 1)
    assert object_server.door.cut_after is None
    verify_files(tmp_path / "golden" / "1", read_manifest(local / "golden" / "1"))


def test_a_version_that_was_replaced_is_downloaded_again(objects, local, tmp_path):
    """Somebody removed it in the store, and uploaded another one of its number."""
    push_golden(objects, local, 1)
    mirror = Mirror(objects, tmp_path / "mirror")
    mirror.settle()
    mirror.close()
    obstore.delete(objects._store, [f"golden/{path}" for path in objects.sizes("golden", 99)])
    publish_golden(tmp_path / "other", 5.0)
    push_golden(objects, tmp_path / "other", 1)
    Mirror(objects, tmp_path / "mirror").settle()
    copied, pushed = (tmp_path / folder / "golden" / "1" for folder in ("mirror", "other"))
    assert read_manifest(copied).digest == read_manifest(pushed).digest


def test_a_rollout_lies_in_the_store_elsewhere(objects, store_url, local, tmp_path):
    """Started, observed, copied by the mirror with its candidate, and promoted; nothing is changed past another's change."""
    push_golden(objects, local, 1, 2)
    set_remote_label(objects, "golden", 1, "stable")
    name, started = start_rollout(store_url, "golden:2", Options("shadow", 1.0))
    assert (name, started.baseline, started.candidate) == ("golden", 1, 2)
    with pytest.raises(StoreError, match="rollout of golden:2 is running"):
        start_rollout(store_url, "golden:2", Options("canary", 0.1))
    mirror = Mirror(objects, tmp_path / "mirror")
    mirror.settle()
    assert read_rollout(tmp_path / "mirror", "golden") == started
    assert versions(tmp_path / "mirror", "golden") == [1, 2]

    evidence = ServerEvidence(rejects=StoredEvidence.of(weigh(np.zeros(200), 0.05, PAIRED)), rows=200, updated=now())
    for server in ("0" * 32, "1" * 32):
        write_evidence_in(store_url, "golden", started, server, evidence)
    put(objects, f"golden/.evidence/{started.id}/notes.txt", b"not evidence")
    status = status_in(store_url, "golden")
    assert (status.servers, status.rejects.count, status.comparison.verdict) == (2, 400, "promote")

    with pytest.raises(StoreError, match="another rollout of golden was started"):
        end_in(store_url, "golden", "promote", by="server", own_id="f" * 32)
    ended = end_in(store_url, "golden", "promote", by="server", own_id=started.id)
    assert read_remote_labels(objects, "golden")[0].labels == {"stable": 2}
    assert status_in(store_url, "golden").rollout == ended
    mirror.settle()
    assert read_rollout(tmp_path / "mirror", "golden").outcome == ended.outcome


def test_two_commands_cannot_both_end_a_rollout(objects, store_url, local):
    """One says that it has ended; the other that it does not run any more, or was changed meanwhile."""
    push_golden(objects, local, 1, 2)
    set_remote_label(objects, "golden", 1, "stable")
    _, started = start_rollout(store_url, "golden:2", Options("canary", 0.1))

    def end() -> object:
        try:
            return end_in(store_url, "golden", "abort", by="command", own_id=started.id)
        except StoreError as error:
            return error

    results = at_once(end, end, end)
    assert sum(not isinstance(result, StoreError) for result in results) >= 1
    assert all(
        "no rollout" in str(result) or "changed the rollout" in str(result)
        for result in results
        if isinstance(result, StoreError)
    )
    assert status_in(store_url, "golden").rollout.outcome is not None
