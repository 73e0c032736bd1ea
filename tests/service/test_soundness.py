"""A version with shortfalls is served with a warning, and refused if the operator requires sound versions.

The session's `wave` has shortfalls, because its chains are much too short. `digits` is sound.
"""

import os
import shutil
import threading

import httpx
import pytest

from abstain.models.bundles.manifest import read_manifest
from abstain.models.bundles.shortfalls import texts
from abstain.models.bundles.store import set_label
from abstain.service.errors import HTTPError
from abstain.service.live_versions import LiveVersions
from tests.helpers.processes import PATIENCE


@pytest.fixture(scope="module")
def shortfalls(store):
    """The shortfalls of `wave`."""
    found = texts(read_manifest(store / "wave" / "1").shortfalls)
    assert found
    assert read_manifest(store / "digits" / "1").shortfalls == ()
    return found


def load(root, **settings):
    """Loads the versions of a store; also returns whether the server would be ready."""
    serving, ready = LiveVersions(root, **settings), threading.Event()
    serving.load_all(buckets=(1,), on_ready=ready.set)
    return serving, ready.is_set()


def versions(serving):
    """Every version in the listing, by name and number."""
    return {
        (model["name"], version["version"]): version
        for model in serving.list_models()["models"]
        for version in model["versions"]
    }


def test_the_listing_shows_which_versions_are_sound(server, shortfalls):
    """`GET /models` has `sound` and the shortfalls of the manifest; both versions are ready."""
    listed = {
        model["name"]: model["versions"]
        for model in httpx.get(f"{server.url}/models", timeout=PATIENCE).json()["models"]
    }
    digits, wave = listed["digits"][0], listed["wave"][0]
    assert (digits["state"], digits["sound"], digits["shortfalls"]) == ("ready", True, [])
    assert (wave["state"], wave["sound"], wave["shortfalls"]) == ("ready", False, list(shortfalls))


def test_the_metric_and_the_log_report_shortfalls(server, shortfalls, wave):
    """A gauge of 0 or 1, and a warning at load, which names the digest."""
    text = httpx.get(f"{server.url}/metrics", timeout=PATIENCE).text
    assert 'abstain_model_sound{model="digits",version="1"} 1.0' in text
    assert 'abstain_model_sound{model="wave",version="1"} 0.0' in text
    log = server.log.read_text()
    assert f"wave:1 ({wave.manifest.digest}) is served although it failed publication checks: " in log
    assert shortfalls[-1] in log
    assert not [line for line in log.splitlines() if line.startswith("digits:1 ") and "is served although" in line]


def test_the_open_inference_protocol_reports_shortfalls(server, shortfalls):
    """In the reason of the repository index, and in the parameters of the configuration."""
    index = {
        (entry["name"], entry["version"]): entry
        for entry in httpx.post(f"{server.url}/v2/repository/index", timeout=PATIENCE).json()
    }
    assert index["digits", "1"]["reason"] == ""
    assert index["wave", "1"]["state"] == "READY"
    assert "failed publication checks: " in index["wave", "1"]["reason"]
    assert shortfalls[0] in index["wave", "1"]["reason"]
    config = httpx.get(f"{server.url}/v2/models/wave/config", timeout=PATIENCE).json()
    assert shortfalls[0][:20] in config["parameters"]["shortfalls"]["string_value"]


@pytest.mark.parametrize("label", [None, "stable"], ids=["newest", "labelled by force"])
def test_require_sound_refuses_such_a_version_and_serves_the_others(store, tmp_path, shortfalls, label):
    """Its state is `refused` with the reason; requests for it get 503; the server is ready without it."""
    root = tmp_path / "store"
    for version in ("digits/1", "wave/1"):
        shutil.copytree(store / version, root / version)
    if label:
        set_label(root, "wave", 1, label)
    serving, ready = load(root, require_sound=True)
    assert ready
    assert serving.reasons_not_ready() == []
    assert serving.find("digits").version == 1
    refused = versions(serving)["wave", 1]
    assert (refused["state"], refused["sound"]) == ("refused", False)
    assert refused["why"].startswith("failed publication checks: ")
    assert shortfalls[0] in refused["why"]
    for name in ("wave", "wave:1", *(["wave@stable"] if label else [])):
        with pytest.raises(HTTPError, match="wave:1 is refused: failed publication checks") as error:
            serving.find(name)
        assert error.value.status == 503


def test_a_server_that_has_refused_everything_never_becomes_ready(store, tmp_path):
    """It reports the reason, as with an empty or a damaged store."""
    shutil.copytree(store / "wave" / "1", tmp_path / "wave" / "1")
    serving, ready = load(tmp_path, require_sound=True)
    assert not ready
    (why,) = serving.reasons_not_ready()
    assert why.startswith("wave:1: failed publication checks: ")


def test_the_command_ends_if_all_versions_are_refused(run, store, tmp_path, monkeypatch):
    """Exit code 1 and the reason, with the option and with the environment variable."""
    shutil.copytree(store / "wave", tmp_path / "wave")
    code, _, error = run("serve", "--store", tmp_path, "--require-sound")
    assert code == 1
    assert f"{tmp_path}: no version to serve: found wave:1 is refused: it failed publication checks: " in error
    monkeypatch.setenv("ABSTAIN_REQUIRE_SOUND", "true")
    assert run("serve", "--store", tmp_path)[0] == 1


@pytest.mark.parametrize(("options", "passed"), [(("--require-sound",), "1"), ((), "0")])
def test_the_command_passes_the_option_to_the_server(run, store, monkeypatch, options, passed):
    """In the environment, which `bentoml serve` reads as well; refused versions are reported before the start."""
    started = []

    def execv(*_):
        started.append(os.environ["ABSTAIN_REQUIRE_SOUND"])
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", execv)
    monkeypatch.setattr("abstain.service.commands.serve._check_port", lambda *_: None)
    monkeypatch.setattr("os.environ", dict(os.environ))
    code, _, output = run("serve", "--store", store, *options)
    assert (code, started) == (0, [passed])
    assert ("wave:1 is refused" in output) == bool(options)
    assert ("loading digits:1, wave:1" in output) != bool(options)
