"""Removing old versions: what is needed stays, and what is interrupted leaves no half version."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from abstain.models.bundles import retention
from abstain.models.bundles.in_use import claim_unused, mark_in_use
from abstain.models.bundles.retention import prune, removable_versions
from abstain.models.bundles.store import Labels, publish, rollback, set_label, versions
from abstain.models.errors import StoreError


def publish_empty(root: Path, count: int) -> None:
    """Publishes versions without content."""
    for _ in range(count):
        publish(root, "m", lambda _folder: None, lambda _folder, _version: None)


@pytest.mark.parametrize(
    ("labels", "keep", "expected"),
    [
        (Labels(), 1, [1, 2, 3, 4, 5]),
        (Labels(), 6, []),
        (Labels(), 9, []),
        (Labels(labels={"stable": 2, "next": 4}), 1, [1, 3, 5]),
        (Labels(labels={"stable": 4}, previous={"stable": [1, 3]}), 1, [1, 2, 5]),
        # The last earlier one is the current one, or gone: a rollback goes to the one before.
        (Labels(labels={"stable": 4}, previous={"stable": [1, 3, 4]}), 1, [1, 2, 5]),
        (Labels(labels={"stable": 4}, previous={"stable": [3, 7]}), 1, [1, 2, 5]),
    ],
)
def test_what_is_needed_stays(labels, keep, expected):
    """The newest ones, the labelled ones, and where a rollback would go."""
    assert removable_versions([1, 2, 3, 4, 5, 6], labels, keep) == expected


def test_a_rollback_works_after_pruning(tmp_path):
    """And the next version gets a new number."""
    publish_empty(tmp_path, 5)
    for version in (1, 2, 4):
        set_label(tmp_path, "m", version, "stable")
    assert prune(tmp_path, "m", 1, dry_run=True) == ([1, 3], [])
    assert versions(tmp_path, "m") == [1, 2, 3, 4, 5]
    assert prune(tmp_path, "m", 1) == ([1, 3], [])
    assert versions(tmp_path, "m") == [2, 4, 5]
    assert rollback(tmp_path, "m") == 2
    publish_empty(tmp_path, 1)
    assert versions(tmp_path, "m") == [2, 4, 5, 6]
    assert not list((tmp_path / "m").glob(".removed-*"))


def test_an_interrupted_removal_is_finished_later(tmp_path, monkeypatch):
    """The version is gone at once; the next writer removes what is left of it."""

    def fail(_path, **_more):
        raise OSError(5, "Input/output error")

    publish_empty(tmp_path, 3)
    with monkeypatch.context() as patch:
        patch.setattr(retention.shutil, "rmtree", fail)
        with pytest.raises(StoreError, match="cannot be removed"):
            prune(tmp_path, "m", 1)
    assert versions(tmp_path, "m") == [3]
    assert len(list((tmp_path / "m").glob(".removed-*"))) == 2
    set_label(tmp_path, "m", 3, "stable")
    assert not list((tmp_path / "m").glob(".removed-*"))


def test_a_version_in_use_stays(tmp_path, run):
    """Until its last user is gone; who wants to use one that is just being looked at waits for it."""
    for _ in range(3):
        publish(tmp_path, "m", lambda folder: (folder / "manifest.json").touch(), lambda _folder, _version: None)
    marks = [mark_in_use(tmp_path / "m" / "1") for _ in range(2)]
    assert None not in marks
    assert run("prune", "--keep", "1", "--dry-run", "--store", tmp_path)[1] == (
        "would remove m:2\nkept m:1, which a running server uses\n"
    )
    marks.pop()
    assert prune(tmp_path, "m", 1) == ([2], [1])
    marks.pop()
    with ThreadPoolExecutor() as pool:
        with claim_unused(tmp_path / "m" / "1") as unused:
            mark = pool.submit(mark_in_use, tmp_path / "m" / "1")
            time.sleep(0.05)
            assert (unused, mark.done()) == (True, False)
        assert mark.result() is not None
    assert prune(tmp_path, "m", 1) == ([], [1])
    del mark
    assert prune(tmp_path, "m", 1) == ([1], [])
    assert mark_in_use(tmp_path / "m" / "1") is None


def test_a_link_and_a_wrong_number_are_refused(tmp_path):
    """A link may lead out of the store."""
    publish_empty(tmp_path, 2)
    shutil.move(tmp_path / "m" / "1", tmp_path / "elsewhere")
    (tmp_path / "m" / "1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a symbolic link"):
        prune(tmp_path, "m", 1)
    assert (tmp_path / "elsewhere").is_dir()
    with pytest.raises(StoreError, match="expected at least 1, found 0"):
        prune(tmp_path, "m", 0)
