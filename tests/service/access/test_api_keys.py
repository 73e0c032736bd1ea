"""API keys: a file of names and hashes; commands make, list and revoke keys, and a running server reloads the file."""

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
    """The path of a file of keys that does not exist yet."""
    return tmp_path / "deep" / "keys.json"


def test_a_key_is_printed_once_and_stored_as_its_hash(run, path):
    """`new` prints only the key; only its owner can read the file, which does not contain it; `list` has names and scopes."""
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


def test_a_rate_is_stored_and_listed(run, path):
    """In requests per second; an invalid rate is refused and makes no key."""
    assert run("key", "new", "app", "--scope", "predict", "--rate", "2.5", "--keys", path)[0] == 0
    code, out, _ = run("key", "list", "--keys", path, "--json")
    assert (code, json.loads(out)["keys"][0]["rate"]) == (0, 2.5)
    assert "2.5/s" in run("key", "list", "--keys", path)[1]
    for rate in ("0", "-1", "nan", "inf", "1e9"):
        code, _, err = run("key", "new", "other", "--scope", "predict", "--rate", rate, "--keys", path)
        assert code == 2
        assert "expected a number from 1e-06 to 1e+06, found" in err
    assert [key.name for key in read_keys(path).keys] == ["app"]


def test_the_command_says_how_to_use_a_key(run, path, monkeypatch):
    """The server uses a file of keys only if ABSTAIN_KEYS is set."""
    monkeypatch.delenv("ABSTAIN_KEYS", raising=False)
    assert f"started with ABSTAIN_KEYS={path}" in run("key", "new", "app", "--scope", "read", "--keys", path)[2]
    monkeypatch.setenv("ABSTAIN_KEYS", str(path))
    assert run("key", "new", "other", "--scope", "read")[2] == ""


def test_a_change_of_keys_keeps_the_mode_of_the_file(path):
    """A container's user may need to read it."""
    add_key(path, "a", ("read",))
    path.chmod(0o644)
    add_key(path, "b", ("read",))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_change_of_keys_keeps_a_link(path):
    """The file that a server reads by its own name loses the revoked key."""
    add_key(path, "a", ("read",))
    link = path.with_name("link.json")
    link.symlink_to(path)
    add_key(link, "b", ("read",))
    revoke_key(link, "a")
    assert link.is_symlink()
    assert [key.name for key in read_keys(path).keys] == ["b"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_change_of_keys_keeps_the_owner_of_the_file(path):
    """Root revokes a key; the server, another user, can still read the file, and so refuses the key."""
    add_key(path, "a", ("read",))
    os.chown(path, 65534, 65534)
    revoke_key(path, "a")
    facts = path.stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (65534, 65534, 0o600)


def test_a_rate_that_is_almost_zero_is_refused(run, path):
    """The time between two of its requests would be infinite."""
    code, _, err = run("key", "new", "a", "--scope", "read", "--rate", "1e-320", "--keys", path)
    assert (code, "expected a number from 1e-06 to 1e+06" in err) == (2, True)
    with pytest.raises(ConfigError, match="rate"):
        add_key(path, "a", ("read",), 1e-320)


def test_keys_differ_and_names_are_unique(run, path):
    """A name that is in use is refused, and its key is unchanged."""
    first, second = add_key(path, "a", ("predict",)), add_key(path, "b", ("predict",))
    assert first != second
    code, _, err = run("key", "new", "a", "--scope", "read", "--keys", path)
    assert (code, "expected a name that no other key has, found a" in err) == (1, True)
    assert read_keys(path).find(first.encode()).scopes == ("predict",)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (
            ("new", "a", "--scope", "everything"),
            2,
            "expected one of predict, read, metrics, feedback, admin, found 'everything'",
        ),
        (("new", "a"), 2, "--scope"),
        (("new", "a b", "--scope", "read"), 1, "name: expected 1 to 64 letters, digits"),
        (("new", "b", "--scope", "read", "--rate", "0"), 2, "expected a number from 1e-06 to 1e+06, found 0"),
        (("revoke", "b"), 1, "unknown key: expected one of a, found b"),
        (("revoke", "A"), 1, "unknown key: expected one of a, found A"),
    ],
)
def test_invalid_arguments_are_refused(run, path, arguments, code, text):
    """The file is unchanged."""
    add_key(path, "a", ("read",))
    before = path.read_bytes()
    found, _, err = run("key", *arguments, "--keys", path)
    assert (found, text in err) == (code, True), err
    assert path.read_bytes() == before


def test_many_writers_lose_no_key(path):
    """A lock lets one process at a time change the file."""
    writers = [threading.Thread(target=add_key, args=(path, f"k{number}", ("read",))) for number in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert {key.name for key in read_keys(path).keys} == {f"k{number}" for number in range(12)}


def folder(path):
    """Replaces the file by a folder."""
    path.unlink()
    path.mkdir()


def pipe(path):
    """Replaces the file by a pipe without a writer."""
    path.unlink()
    os.mkfifo(path, 0o600)


SPOILED = {
    "absent": (lambda path: path.unlink(), "keys cannot be read: found No such file"),
    "a folder": (folder, "expected a regular file of at most"),
    "a pipe": (pipe, "expected a regular file of at most"),
    "for others to write": (
        lambda path: path.chmod(0o666),
        "expected a file or folder that only its owner may write to",
    ),
    "no JSON": (lambda path: path.write_text("{"), "Invalid JSON"),
    "huge": (
        lambda path: path.write_bytes(b" " * (keys_module.MAX_FILE_BYTES + 1)),
        "expected a regular file of at most",
    ),
    "a list": (lambda path: path.write_text("[]"), "expected "),
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
def test_an_invalid_file_is_refused_at_the_start_and_ignored_later(path, monkeypatch, how):
    """A server does not start with it; a running one keeps its keys, so that an error changes nobody's access."""
    key = add_key(path, "a", ("read",))
    monkeypatch.setattr(keys_module, "CHECK_SECONDS", 0.0)
    running = KeyFile(path)
    spoil, text = SPOILED[how]
    spoil(path)
    with pytest.raises(ConfigError, match=text):
        KeyFile(path)
    assert running.current().find(key.encode()).name == "a"


def test_a_running_server_reloads_the_file(path, monkeypatch):
    """It accepts new keys and refuses revoked ones after at most a second; not every request reads the file."""
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


def test_a_file_is_read_again_after_only_its_mode_is_repaired(path, monkeypatch, caplog):
    """A key that was revoked while others could write to the file is then refused; the fault is logged once."""
    key = add_key(path, "a", ("read",))
    monkeypatch.setattr(keys_module, "CHECK_SECONDS", 0.0)
    running = KeyFile(path)
    revoke_key(path, "a")
    path.chmod(0o666)
    assert [running.current().find(key.encode()).name for _ in range(3)] == ["a"] * 3
    assert sum("the keys are not reloaded" in record.message for record in caplog.records) == 1
    path.chmod(0o600)
    assert running.current().find(key.encode()) is None


def test_every_key_is_compared_whichever_is_sent(monkeypatch):
    """Each comparison takes constant time, so the time of a response does not depend on the key."""
    compared = []
    honest = keys_module.hmac.compare_digest
    monkeypatch.setattr(keys_module.hmac, "compare_digest", lambda *pair: compared.append(pair) or honest(*pair))
    secrets = [f"key {number}".encode() for number in range(5)]
    keys = Keys(
        keys=tuple(
            Key(name=f"k{number}", sha256=keys_module.hashlib.sha256(secret).hexdigest(), scopes=("read",))
            for number, secret in enumerate(secrets)
        )
    )
    for key in (*secrets, b"", b"another", np.random.default_rng(0).bytes(5000)):
        compared.clear()
        keys.find(key)
        assert len(compared) == 5
