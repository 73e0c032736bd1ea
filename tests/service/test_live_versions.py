"""How versions are loaded and listed: unexpected errors, and what is read for which request."""

import asyncio
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from abstain.models.bundles import store as stores
from abstain.models.errors import UnknownModel
from abstain.service import live_versions, memory
from abstain.service.errors import HTTPError
from abstain.service.http import build_app
from abstain.service.live_versions import LiveVersions
from abstain.service.monitoring import metrics
from abstain.service.process import Process, Traffic
from abstain.service.settings import Settings
from tests.helpers.paths import PROJECT

GOLDEN = PROJECT / "tests" / "data" / "golden" / "1"


@pytest.fixture
def root(tmp_path) -> Path:
    """A store with one version of one model."""
    shutil.copytree(GOLDEN, tmp_path / "store" / "golden" / "1")
    return tmp_path / "store"


class _Defect:
    """A metric with a bug."""

    def labels(self, *_):
        raise RuntimeError("a bug")


def test_the_progress_of_loading_is_reported(root):
    """Each version: that it is read, compiled and ready; one that fails is never reported as ready."""
    shutil.copytree(root / "golden" / "1", root / "other" / "1")
    told: list[str] = []
    LiveVersions(root).load_all(buckets=(1,), progress=told.append)
    assert told[0] == "reading golden:1, 1 of 2"
    assert "compiling golden:1" in told
    (ready,) = (line for line in told if "ready" in line)
    assert re.fullmatch(r"golden:1 is ready, compiled in \d+\.\d s", ready)
    assert "reading other:1, 2 of 2" in told


def test_memory_is_returned_by_the_allocator(monkeypatch):
    """By the name that glibc has for it."""
    calls: list[int] = []
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _name: SimpleNamespace(malloc_trim=calls.append))
    memory.trim()
    assert calls == [0]


def test_an_unknown_model_lists_some_of_many(root):
    """Twenty names at most, and the nearest name."""
    serving = LiveVersions(root)
    serving.load_all(buckets=(1,))
    entries = serving._table.entries
    names = {f"model-{number}": entries["golden"] for number in range(25)}
    serving._table = replace(serving._table, entries=names | entries)
    with pytest.raises(UnknownModel) as caught:
        serving.find("goldne")
    text = str(caught.value)
    assert text.startswith("model: expected one of model-0, model-1, ")
    assert ", model-19, 6 more (GET /models), found 'goldne'; did you mean 'golden'?" in text


def test_an_unexpected_error_makes_a_version_fail(root, monkeypatch, caplog):
    """It does not stay in the state loading: listing and readiness give the reason, and the log the traceback."""
    monkeypatch.setattr(metrics, "MODEL_INFO", _Defect())
    serving = LiveVersions(root)
    serving.load_all(buckets=(1,))
    assert serving.reasons_not_ready() == ["golden:1: a bug"]
    with pytest.raises(HTTPError, match="golden:1 is failed: a bug"):
        serving.find("golden")
    (record,) = (record for record in caplog.records if "golden:1 cannot be served: a bug" in record.getMessage())
    assert record.exc_info


def test_an_unexpected_error_of_the_store_is_the_reason(root, monkeypatch, caplog):
    """Its thread does not end without a word."""

    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(stores, "versions", fail)
    serving = LiveVersions(root)
    serving.load_all(buckets=(1,), on_ready=lambda: pytest.fail("the server is not ready"))
    assert serving.reasons_not_ready() == ["RuntimeError"]
    (record,) = (record for record in caplog.records if "the store cannot be read" in record.getMessage())
    assert record.exc_info


def test_only_the_listing_reads_manifests(root, monkeypatch):
    """The ready versions are known: a route of one model reads, and verifies, nothing from the disk."""
    shutil.copytree(root / "golden" / "1", root / "other" / "1")
    serving = LiveVersions(root)
    serving.load_all(buckets=(1,))
    read = []
    real = live_versions.read_published
    monkeypatch.setattr(live_versions, "read_published", lambda *version: read.append(version[1]) or real(*version))
    assert [(live.name, live.version) for live in serving.ready_versions()] == [("golden", 1)]
    assert read == []
    assert [(version.name, version.state) for version in serving.list_versions()] == [
        ("golden", "ready"),
        ("other", "failed"),
    ]
    assert read == ["other"]


def test_the_metadata_of_a_model_do_not_read_the_store(root, monkeypatch):
    """`GET /v2/models/M` and its statistics and configuration: by a store whose other model is not ready."""
    shutil.copytree(root / "golden" / "1", root / "other" / "1")
    serving = LiveVersions(root)
    serving.load_all(buckets=(1,))
    process, settings = Process(1, 1, root), Settings(store=root)
    app = build_app(settings, process, Traffic(), serving, lambda *_: None, lambda *_: None)

    def fail(*_):
        raise AssertionError("a manifest was read")

    async def get(path):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get(path)

    monkeypatch.setattr(live_versions, "read_published", fail)
    for path in ("/v2/models/golden", "/v2/models/golden/config", "/v2/models/golden/stats", "/v2/models/stats"):
        assert asyncio.run(get(path)).status_code == 200
    assert asyncio.run(get("/v2/models/golden")).json()["versions"] == ["1"]
