"""Keys: a file of names and hashes, made, listed and revoked by the command, and followed by a running server."""

import json
import os
import stat
import threading

import numpy as np
import pytest

from abstain.models.errors import ConfigError
from abstain.service.access import api_keys as keys_module
from abstain.service.access.api_keys import Key, KeyFile, Keys, add_key, read_keys, revoke_key


@pytest.fixture
def path(tmp_path):
    """Where a file of keys is to be."""
    return tmp_path / "deep" / "keys.json"


def test_a_key_is_printed_once_and_kept_as_its_hash(run, path):
    """`new` prints nothing but the key; the file is its owner's alone and does not hold it; `list` tells names and scopes."""
    code, out, _ = run("key", "new", "app", "--scope", "predict", "--scope", "read", "--keys", path)
    key = out.strip()
    assert (code, len(key) > 40) == (0, True)
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir() if not entry.name.endswith(".lock")] == ["keys.json"]
    assert read_keys(path).find(key.encode()).scopes == ("predict", "read")
    code, out, _ = run("key", "list", "--keys", path, "--json")
    assert [(entry["name"], entry["scopes"]) for entry in json.loads(out)["keys"]] == [("app", ["predict", "read"])]
    assert "sha256" not in out
    assert run("key", "revoke", "app", "--keys", path)[:2] == (0, "app is revoked\n")
    assert read_keys(path).find(key.encode()) is None


def test_a_rate_is_kept_and_shown(run, path):
    """Requests a second; what is no rate is refused, and makes no key."""
    assert run("key", "new", "app", "--scope", "predict", "--rate", "2.5", "--keys", path)[0] == 0
    code, out, _ = run("key", "list", "--keys", path, "--json")
    assert (code, json.loads(out)["keys"][0]["rate"]) == (0, 2.5)
    assert "2.5/s" in run("key", "list", "--keys", path)[1]
    for rate in ("0", "-1", "nan", "inf", "1e9"):
        code, _, err = run("key", "new", "other", "--scope", "predict", "--rate", rate, "--keys", path)
        assert code == 2
        assert "expected a number above 0, at most 1e+06, found" in err
    assert [key.name for key in read_keys(path).keys] == ["app"]


def test_what_to_do_with_a_key_is_said(run, path, monkeypatch):
    """A file of keys alone guards nothing: the server must be told of it."""
    monkeypatch.delenv("ABSTAIN_KEYS", raising=False)
    assert f"started with ABSTAIN_KEYS={path}" in run("key", "new", "app", "--scope", "read", "--keys", path)[2]
    monkeypatch.setenv("ABSTAIN_KEYS", str(path))
    assert run("key", "new", "other", "--scope", "read")[2] == ""


def test_a_file_that_others_may_read_stays_so(path):
    """As a container's user must; a change of keys writes another file, with the mode of the old one."""
    add_key(path, "a", ("read",))
    path.chmod(0o644)
    add_key(path, "b", ("read",))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_keys_differ_and_names_are_unique(run, path):
    """A name that is there is refused, and stays as it was."""
    first, second = add_key(path, "a", ("predict",)), add_key(path, "b", ("predict",))
    assert first != second
    code, _, err = run("key", "new", "a", "--scope", "read", "--keys", path)
    assert (code, "expected a name that no key has, found a" in err) == (1, True)
    assert read_keys(path).find(first.encode()).scopes == ("predict",)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (
            ("new", "a", "--scope", "everything"),
            2,
            "expected one of predict, read, metrics, feedback, admin, found 'everything'",
        ),
        (("new", "a"), 2, "--scope"),
        (("new", "a b", "--scope", "read"), 1, "name: expected 1 to 64 letters, digits"),
        (("revoke", "b"), 1, "no such key: expected one of a, found b"),
    ],
)
def test_wrong_wishes_are_refused_in_words(run, path, arguments, code, told):
    """And change nothing."""
    add_key(path, "a", ("read",))
    before = path.read_bytes()
    found, _, err = run("key", *arguments, "--keys", path)
    assert (found, told in err) == (code, True), err
    assert path.read_bytes() == before


def test_many_writers_lose_no_key(path):
    """They take turns."""
    writers = [threading.Thread(target=add_key, args=(path, f"k{place}", ("read",))) for place in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {key.name for key in read_keys(path).keys} == {f"k{place}" for place in range(12)}


def folder(path):
    """A folder in its place."""
    path.unlink()
    path.mkdir()


def pipe(path):
    """A pipe in its place, that nobody writes to."""
    path.unlink()
    os.mkfifo(path, 0o600)


SPOILED = {
    "absent": (lambda path: path.unlink(), "keys cannot be read: found No such file"),
    "a folder": (folder, "expected a file of at most"),
    "a pipe": (pipe, "expected a file of at most"),
    "for others to write": (
        lambda path: path.chmod(0o666),
        "expected a file or folder that only its owner may write to",
    ),
    "no JSON": (lambda path: path.write_text("{"), "Invalid JSON"),
    "huge": (lambda path: path.write_bytes(b" " * (keys_module.LARGEST_FILE + 1)), "expected a file of at most"),
    "a list": (lambda path: path.write_text("[]"), "expected Input should be"),
    "another word": (lambda path: path.write_text('{"keyes": []}'), "keyes"),
    "a name twice": (
        lambda path: path.write_text(json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "scopes": ["read"]}] * 2})),
        "key names must be unique",
    ),
    "no scope": (
        lambda path: path.write_text(json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "scopes": []}]})),
        "scopes",
    ),
    "a key for a hash": (
        lambda path: path.write_text(json.dumps({"keys": [{"name": "a", "sha256": "abstain_x", "scopes": ["read"]}]})),
        "sha256",
    ),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_spoiled_file_is_refused_at_the_start_and_ignored_later(path, monkeypatch, how):
    """A server does not start with it; one that runs goes on with the keys it has, so that no slip lets anybody in or out."""
    key = add_key(path, "a", ("read",))
    monkeypatch.setattr(keys_module, "CHECK_SECONDS", 0.0)
    running = KeyFile(path)
    spoil, told = SPOILED[how]
    spoil(path)
    with pytest.raises(ConfigError, match=told):
        KeyFile(path)
    assert running.current().find(key.encode()).name == "a"


def test_a_running_server_follows_the_file(path, monkeypatch):
    """New keys are taken and revoked ones refused, after at most a second; the file is not read for every request."""
    moment = [1000.0]
    monkeypatch.setattr(keys_module.time, "monotonic", lambda: moment[0])
    first = add_key(path, "a", ("read",))
    running = KeyFile(path)
    second = add_key(path, "b", ("read",))
    revoke_key(path, "a")
    assert running.current().find(first.encode())
    moment[0] += keys_module.CHECK_SECONDS
    assert running.current().find(first.encode()) is None
    assert running.current().find(second.encode()).name == "b"


def test_a_file_that_is_mended_by_its_mode_alone_is_read(path, monkeypatch, caplog):
    """A key revoked while others could write to the file is refused once they cannot; the fault is logged once."""
    key = add_key(path, "a", ("read",))
    monkeypatch.setattr(keys_module, "CHECK_SECONDS", 0.0)
    running = KeyFile(path)
    revoke_key(path, "a")
    path.chmod(0o666)
    assert [running.current().find(key.encode()).name for _ in range(3)] == ["a"] * 3
    assert sum("the keys stay as they were" in record.message for record in caplog.records) == 1
    path.chmod(0o600)
    assert running.current().find(key.encode()) is None


def test_every_key_is_compared_whichever_is_presented(monkeypatch):
    """In constant time each, so that the time of an answer depends on no key."""
    compared = []
    honest = keys_module.hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda *pair: compared.append(pair) or honest(*pair))
    presented = [f"key {place}".encode() for place in range(5)]
    known = Keys(
        keys=tuple(
            Key(name=f"k{place}", sha256=keys_module.hashlib.sha256(key).hexdigest(), scopes=("read",))
            for place, key in enumerate(presented)
        )
    )
    for key in (*presented, b"", b"another", np.random.default_rng(0).bytes(5000)):
        compared.clear()
        known.find(key)
        assert len(compared) == 5
