"""What the tests of this folder share."""

import pytest

from abstain.service import live_versions


@pytest.fixture(autouse=True)
def one_program(monkeypatch):
    """Compiles a single batch size, as these tests predict nothing."""
    monkeypatch.setattr(live_versions, "BUCKETS", (1,))
