"""Plans: what a server serves, given its store, the versions that fail, and what it served before."""

import os
import shutil

import pytest

from abstain.models.bundles import store
from abstain.models.bundles.store import set_label
from abstain.service.plans import Failure, Key, StoredModel, describe_changes, make_plan, read_stored
from tests.helpers.paths import PROJECT

GOLDEN = PROJECT / "tests" / "data" / "golden" / "1"
BROKEN = Failure(state="failed", why="damaged")


def stored(present, labels=None, **stamps):
    """A model of a store; the stamp of version 3 is "3" unless `v3` says otherwise."""
    wanted = set((labels or {}).values()) | (set() if "stable" in (labels or {}) else {max(present)})
    stamps = {version: stamps.get(f"v{version}", str(version)) for version in wanted & set(present)}
    return StoredModel(present=tuple(present), labels=labels or {}, stamps=stamps)


def plan_of(model, before=None, **failed):
    """The planned model after `before`, when the versions `v3="3"` (with this stamp) failed."""
    known = {Key("m", int(version[1:]), stamp): BROKEN for version, stamp in failed.items()}
    return make_plan({"m": model}, known, before)


def test_a_bare_name_is_the_newest_version_or_the_stable_one():
    """Labelled versions are served too; others are not."""
    assert plan_of(stored([1, 2, 3])).models["m"].served == {3: "3"}
    plan = plan_of(stored([1, 2, 3, 4], {"stable": 2, "next": 4})).models["m"]
    assert (plan.default, plan.served) == (2, {2: "2", 4: "4"})


def test_a_label_moves_only_to_a_version_that_was_loaded():
    """If the new target failed, requests get the old one, and the plan says why."""
    first = plan_of(stored([1, 2], {"stable": 1}))
    second = plan_of(stored([1, 2], {"stable": 2}), first, v2="2").models["m"]
    assert (second.default, second.served, second.served_labels) == (1, {1: "1"}, {"stable": 1})
    assert (second.labels, second.failures) == ({"stable": 2}, {2: BROKEN})


def test_changes_are_described():
    """A line for each name that gets another version; nothing for what stays or cannot be served."""
    first = plan_of(stored([1], {"stable": 1}))
    second = plan_of(stored([1, 2, 3], {"stable": 1, "next": 2, "later": 3}), first, v3="3")
    assert describe_changes(second, first) == ["m@next is m:2 from now on"]
    third = plan_of(stored([1, 2], {"stable": 2, "next": 2}), second)
    assert describe_changes(third, second) == ["m@stable is m:2 from now on", "m is m:2 from now on"]
    assert describe_changes(third.model_copy(update={"models": {}}), third) == ["m is not served any more"]
    assert describe_changes(third, third) == []


def test_a_bare_name_keeps_its_version_if_the_newest_failed():
    """Also over several failed versions; a version that loads is taken."""
    first = plan_of(stored([1]))
    second = plan_of(stored([1, 2]), first, v2="2")
    third = plan_of(stored([1, 2, 3]), second, v2="2", v3="3")
    assert [plan.models["m"].default for plan in (first, second, third)] == [1, 1, 1]
    assert plan_of(stored([1, 2, 3, 4]), third, v2="2", v3="3").models["m"].default == 4


def test_at_the_start_a_failed_target_has_no_substitute():
    """Nothing is known of an older version: the failure is answered, not some other version."""
    plan = plan_of(stored([1, 2], {"stable": 2, "next": 1}), v2="2").models["m"]
    assert (plan.default, plan.served_labels["stable"], plan.served) == (2, 2, {1: "1"})


def test_a_substitute_must_still_be_in_the_store():
    """A version whose folder was removed is not served any more."""
    first = plan_of(stored([1, 2], {"stable": 1}))
    assert plan_of(stored([2], {"stable": 2}), first, v2="2").models["m"].served == {}


def test_replaced_files_are_a_new_version():
    """They are loaded although the number is the same; if they fail, the loaded ones stay."""
    first = plan_of(stored([1]))
    again = plan_of(stored([1], v1="other"), first)
    assert again.keys == {Key("m", 1, "other")}
    kept = plan_of(stored([1], v1="other"), first, v1="other").models["m"]
    assert (kept.served, kept.failures) == ({1: "1"}, {1: BROKEN})


def test_a_version_that_failed_is_not_its_own_substitute():
    """The first plan may hold a version that no worker could load."""
    first = plan_of(stored([1]))
    assert plan_of(stored([1]), first, v1="1").models["m"].served == {}


def test_a_label_without_its_version_is_said():
    """And hides no other version."""
    plan = plan_of(stored([1], {"next": 7})).models["m"]
    assert plan.failures[7].why == "next: no such version of m in the store"
    assert plan.served == {1: "1"}


def test_labels_that_cannot_be_read_change_nothing():
    """At the start nothing is served of this model; later what was served before."""
    damaged = StoredModel(present=(1, 2), why="labels.json is not JSON")
    assert plan_of(damaged).models["m"].failures[1].why == "labels.json is not JSON"
    before = plan_of(stored([1], {"stable": 1}))
    after = plan_of(damaged, before).models["m"]
    assert (after.served, after.default, after.why) == ({1: "1"}, 1, "labels.json is not JSON")


def test_unloaded_models_are_not_planned():
    """Nor is anything said of them."""
    assert make_plan({"m": stored([1])}, unloaded=frozenset({"m"})).models == {}


def test_a_model_that_cannot_be_read_concerns_no_other(tmp_path, monkeypatch):
    """For example a folder of another user."""
    for name in ("mine", "theirs"):
        shutil.copytree(GOLDEN, tmp_path / name / "1")
    versions = store.versions

    def read(root, name):
        if name == "theirs":
            raise PermissionError(13, "Permission denied")
        return versions(root, name)

    monkeypatch.setattr(store, "versions", read)
    found = read_stored(tmp_path)
    assert (found["mine"].present, found["mine"].why) == ((1,), None)
    assert (found["theirs"].present, found["theirs"].why) == ((), f"{tmp_path / 'theirs'}: Permission denied")


def test_a_store_is_read_as_it_is(tmp_path):
    """The stamp of a version changes with its manifest and its signature; a folder that is away is an error."""
    root = tmp_path / "store"
    with pytest.raises(FileNotFoundError):
        read_stored(root)
    shutil.copytree(GOLDEN, root / "golden" / "1")
    first = read_stored(root)["golden"]
    assert (first.present, first.labels, [*first.stamps]) == ((1,), {}, [1])
    assert read_stored(root)["golden"] == first
    (root / "golden" / "1" / "model.sig").write_text("signature")
    signed = read_stored(root)["golden"]
    assert signed.stamps != first.stamps
    os.utime(root / "golden" / "1" / "manifest.json")
    assert read_stored(root)["golden"].stamps != signed.stamps
    shutil.copytree(GOLDEN, root / "golden" / "2")
    set_label(root, "golden", 1, "stable")
    now = read_stored(root)["golden"]
    assert (now.present, now.labels, [*now.stamps]) == ((1, 2), {"stable": 1}, [1])
    (root / "golden" / "labels.json").write_text("{")
    assert "is not JSON" in read_stored(root)["golden"].why
