"""How versions are loaded: an unexpected error is logged, and is a reason why the server is not ready."""

import shutil
from pathlib import Path

import pytest

from abstain.models.bundles import store as stores
from abstain.service.errors import HTTPError
from abstain.service.live_versions import LiveVersions
from abstain.service.monitoring import metrics
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

    def fail(_store):
        raise RuntimeError

    monkeypatch.setattr(stores, "model_names", fail)
    serving = LiveVersions(root)
    serving.load_all(buckets=(1,), on_ready=lambda: pytest.fail("the server is not ready"))
    assert serving.reasons_not_ready() == ["RuntimeError"]
    (record,) = (record for record in caplog.records if "the store cannot be read" in record.getMessage())
    assert record.exc_info
