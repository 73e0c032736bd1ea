"""`abstain push` and `abstain pull`, and the commands that read and move labels in a store elsewhere."""

import json
import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import abstain
from abstain.models.bundles.manifest import read_manifest
from abstain.models.bundles.remote.objects import open_objects
from abstain.models.bundles.remote.url import RemoteURL
from abstain.models.bundles.store import set_label, versions
from tests.helpers.golden_versions import damage_version, publish_golden
from tests.helpers.object_server import ObjectServer


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions of `golden`, the first `stable`."""
    root = tmp_path_factory.mktemp("local")
    publish_golden(root, 1.0)
    publish_golden(root, 2.0)
    set_label(root, "golden", 1, "stable")
    return root


def test_push_and_pull(run, local, store_url: RemoteURL, tmp_path):
    """There and back, by a label; the second time there is nothing to do; --json says the same."""
    assert run("push", "golden@stable", store_url, "--store", local)[:2] == (0, f"golden:1 is in {store_url} now\n")
    assert run("push", "golden:1", store_url, "--store", local)[:2] == (0, f"golden:1 is in {store_url} already\n")
    code, out, err = run("pull", "golden", store_url, "--store", tmp_path / "copy", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"model": "golden", "version": 1, "store": str(store_url), "state": "copied"}
    first, copy = (read_manifest(root / "golden" / "1") for root in (local, tmp_path / "copy"))
    assert first == copy
    assert run("pull", "golden:1", store_url, "--store", tmp_path / "copy")[1] == (
        f"golden:1 is in {tmp_path / 'copy'} already\n"
    )


def test_folders_are_stores_elsewhere_too(run, local, tmp_path):
    """By `file://` or by their path."""
    target = tmp_path / "shared"
    assert run("push", "golden:2", f"file://{target}", "--store", local)[0] == 0
    assert run("pull", "golden", target, "--store", tmp_path / "own")[0] == 0
    assert versions(tmp_path / "own", "golden") == [2]
    assert run("push", "golden:2", target, "--store", local)[1] == f"golden:2 is in {target} already\n"


def test_damaged_versions_are_not_copied(run, local, store_url: RemoteURL, tmp_path):
    """The file is named, and the store stays empty."""
    shutil.copytree(local, tmp_path / "local")
    damage_version(tmp_path / "local", 2)
    code, _, err = run("push", "golden:2", store_url, "--store", tmp_path / "local")
    assert (code, "is damaged or was altered" in err) == (1, True)
    assert open_objects(store_url).entries() == ([], {})
    code, _, err = run("push", "golden:2", tmp_path / "shared", "--store", tmp_path / "local")
    assert (code, "is damaged or was altered" in err, (tmp_path / "shared").exists()) == (1, True, False)


def test_only_signed_versions_are_copied_if_keys_are_set(run, local, store_url: RemoteURL, tmp_path, monkeypatch):
    """An unsigned one is neither pushed nor pulled; a signed one is, with its signature."""
    shutil.copytree(local, tmp_path / "local")
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    public.write_bytes(key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))
    assert run("push", "golden:2", store_url, "--store", tmp_path / "local")[0] == 0
    assert run("sign", "golden:1", "--key", private, "--store", tmp_path / "local")[0] == 0
    monkeypatch.setenv("ABSTAIN_TRUSTED_KEYS", str(public))
    code, _, err = run("push", "golden:2", tmp_path / "shared", "--store", tmp_path / "local")
    assert (code, "is not signed" in err) == (1, True)
    code, _, err = run("pull", "golden:2", store_url, "--store", tmp_path / "own")
    assert (code, "is not signed" in err, versions(tmp_path / "own", "golden")) == (1, True, [])
    assert run("push", "golden:1", store_url, "--store", tmp_path / "local")[0] == 0
    assert run("pull", "golden:1", store_url, "--store", tmp_path / "own")[0] == 0
    assert run("verify", "golden:1", "--key", public, "--store", tmp_path / "own")[0] == 0


def test_another_version_of_the_number_is_refused(run, local, store_url: RemoteURL, tmp_path):
    """Neither way is a version replaced."""
    publish_golden(tmp_path, 3.0)
    assert run("push", "golden:1", store_url, "--store", local)[0] == 0
    for command in ("push", "pull"):
        code, _, err = run(command, "golden:1", store_url, "--store", tmp_path)
        assert (code, "golden/1: the number is taken by another version" in err) == (1, True)


def test_labels_of_a_store_elsewhere(run, local, store_url: RemoteURL):
    """Listed, shown, moved and moved back, as those of a folder."""
    for reference in ("golden:1", "golden:2"):
        run("push", reference, store_url, "--store", local)
    assert run("label", "golden:1", "stable", "--store", store_url)[:2] == (0, "golden@stable is golden:1\n")
    assert run("label", "golden:2", "stable", "--store", store_url)[:2] == (0, "golden@stable is golden:2\n")
    assert run("rollback", "golden", "--store", store_url)[:2] == (0, "golden@stable is golden:1\n")
    code, out, _ = run("models", "--store", store_url, "--json")
    (model,) = json.loads(out)["models"]
    assert (code, [(each["version"], each["labels"]) for each in model["versions"]]) == (0, [(1, ["stable"]), (2, [])])
    code, out, err = run("show", "golden", "--store", store_url, "--json")
    assert (code, json.loads(out)["digest"]) == (0, read_manifest(local / "golden" / "1").digest), err
    assert abstain.load("golden:2", store=str(store_url)).version == 2
    code, _, err = run("show", "other", "--store", store_url)
    assert (code, "no model named 'other'" in err, str(store_url) in err) == (1, True, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fit", "digits-vi", "--store", "s3://b-1/x"), "abstain push MODEL s3://b-1/x"),
        (("prune", "--store", "s3://b-1/x"), "expected a folder for this command, found s3://b-1/x"),
        (("models", "--store", "hf://org/repo"), "found hf://, which is not supported"),
        (("push", "golden", "s3://id:key@b-1"), "more than a bucket and a prefix"),
        (("pull", "golden", "s3://b-1/x"), "no credentials: expected one of AWS_ACCESS_KEY_ID"),
        (("serve", "--store", "s3://b-1/x"), "no credentials: expected one of AWS_ACCESS_KEY_ID"),
    ],
)
def test_what_is_refused(run, monkeypatch, arguments, said):
    """In one line, before any request is sent."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    code, _, err = run(*arguments)
    assert (code, said in err) == (1, True), err


def test_python_refuses_to_fit_into_a_bucket():
    """A folder named `s3:` is not made."""
    with pytest.raises(abstain.ConfigError, match="abstain push MODEL s3://b-1/x"):
        abstain.fit({"name": "x"}, store="s3://b-1/x")


def test_the_store_is_away(run, local, store_url: RemoteURL, object_server: ObjectServer, tmp_path, monkeypatch):
    """One line, which names the store and what to check."""
    monkeypatch.setenv("ABSTAIN_CACHE", str(tmp_path))
    object_server.door.close()
    code, _, err = run("push", "golden:1", store_url, "--store", local)
    assert (code, f"{store_url}/golden/1/manifest.json: cannot be read" in err) == (1, True), err
    assert "check that the store can be reached from here" in err
    code, _, err = run("serve", "--store", store_url)
    assert (code, "nothing was copied from it before" in err, f"{store_url}: cannot be read" in err) == (1, True, True)
