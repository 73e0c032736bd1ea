"""The store: versions and labels on disk, published whole or not at all, by many writers, some of which die."""

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abstain.models.bundles.labels import MOST_LABELS
from abstain.models.bundles.references import LABEL_PATTERN, NAME_PATTERN, Reference, parse_reference
from abstain.models.bundles.store import (
    LOCK,
    model_names,
    publish,
    read_labels,
    resolve,
    rollback,
    served_versions,
    set_label,
    versions,
)
from abstain.models.errors import StoreError, UnknownModel
from abstain.models.files.locks import hold
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE


def write(folder):
    """A bundle's files, for a store that does not look into them."""
    (folder / "draws").mkdir()
    (folder / "draws" / "a").write_text("draws")


def seal(folder, version):
    """A manifest."""
    (folder / "manifest.json").write_text(str(version))


def publish_some(store, name="toy", count=1):
    """Publishes versions; their numbers."""
    return [publish(store, name, write, seal) for _ in range(count)]


def leftovers(store, name="toy"):
    """The entries of a model's folder except its versions, labels and lock."""
    return sorted(path.name for path in (store / name).iterdir() if path.name.startswith(".") and path.name != LOCK)


def test_versions_count_from_one(tmp_path):
    """Each model has its own numbers, and ten comes after nine; what was written is there, and nothing else."""
    assert (model_names(tmp_path / "store"), list(tmp_path.iterdir())) == ([], [])
    assert publish_some(tmp_path, "toy", 11) == versions(tmp_path, "toy") == list(range(1, 12))
    assert (publish_some(tmp_path, "other"), versions(tmp_path, "nosuch")) == ([1], [])
    assert (model_names(tmp_path), resolve(tmp_path, "toy")) == (["other", "toy"], ("toy", 11))
    assert (tmp_path / "toy" / "3" / "draws" / "a").read_text() == "draws"
    assert (tmp_path / "toy" / "3" / "manifest.json").read_text() == "3"
    assert leftovers(tmp_path) == []


def test_what_is_no_version_is_not_listed(tmp_path):
    """Files, other folders, and numbers abstain would not write."""
    publish_some(tmp_path)
    for name in ("0", "01", "1.5", "-1", "latest", ".hidden", "२"):
        (tmp_path / "toy" / name).mkdir()
    (tmp_path / "toy" / "7").write_text("a file")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".git" / "1").mkdir(parents=True)
    assert (versions(tmp_path, "toy"), model_names(tmp_path)) == ([1], ["toy"])


@pytest.mark.parametrize("stage", ["write", "seal"])
@pytest.mark.parametrize("failure", [ValueError("diverged"), KeyboardInterrupt()])
def test_a_failing_writer_leaves_nothing(tmp_path, stage, failure):
    """Its error is raised, no version is listed, no file stays, and the next one gets the number."""

    def fail(folder, version=None):
        (folder / "half").write_text("half")
        raise failure

    stages = {"write": write, "seal": seal, stage: fail}
    with pytest.raises(type(failure)):
        publish(tmp_path, "toy", stages["write"], stages["seal"])
    assert (leftovers(tmp_path), versions(tmp_path, "toy"), model_names(tmp_path)) == ([], [], [])
    assert publish_some(tmp_path) == [1]


def test_a_store_that_cannot_be_written_says_so(tmp_path):
    """The folder, and the system's reason."""
    (tmp_path / "store").write_text("a file where the store should be")
    with pytest.raises(StoreError) as error:
        publish_some(tmp_path / "store")
    assert str(error.value).startswith(f"{tmp_path / 'store' / 'toy'}: cannot be written: found ")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".hidden", "a b", "é", "x" * 65, "a\n", "a:1", "a@b"])
def test_a_model_cannot_have_any_name(tmp_path, name):
    """Names that would leave the store, hide in it or read as a reference are refused before anything is written."""
    with pytest.raises(StoreError, match=r"^name: expected 1 to 64 letters, .* the first a letter or digit, found '"):
        publish_some(tmp_path / "store", name)
    assert list(tmp_path.iterdir()) == []


PUBLISHER = """
import sys
from pathlib import Path
from abstain.models.bundles.store import publish
def write(folder):
    (folder / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
for _ in range(int(sys.argv[2])):
    print(publish(Path(sys.argv[1]), "toy", write, lambda folder, version: None))
"""


def start(store, count=1, stdin=subprocess.PIPE):
    """Another process that publishes, and in each writing waits for the end of its input."""
    command = [sys.executable, "-c", PUBLISHER, store, str(count)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, text=True, cwd=PROJECT)


def test_threads_that_publish_at_once_get_different_versions(tmp_path):
    """Sixteen publications by eight threads: 1 to 16, each whole."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: publish(tmp_path, "toy", write, seal), range(16)))
    assert sorted(found) == versions(tmp_path, "toy") == list(range(1, 17))
    assert {(tmp_path / "toy" / str(n) / "manifest.json").read_text() for n in found} == {str(n) for n in found}
    assert leftovers(tmp_path) == []


def test_processes_that_publish_at_once_get_different_versions(tmp_path):
    """Three processes, five versions each: 1 to 15."""
    writers = [start(tmp_path, 5, subprocess.DEVNULL) for _ in range(3)]
    output = "".join(writer.communicate(timeout=PATIENCE)[0] for writer in writers)
    found = [int(word) for word in output.split() if word != "writing"]
    assert sorted(found) == versions(tmp_path, "toy") == list(range(1, 16))
    assert leftovers(tmp_path) == []


def test_a_killed_writer_leaves_no_version_and_is_swept(tmp_path):
    """Killed in the middle of its writing: not listed, and gone with the next publication."""
    with start(tmp_path) as writer:
        assert writer.stdout.readline() == "writing\n"
        writer.kill()
    assert (len(leftovers(tmp_path)), versions(tmp_path, "toy"), model_names(tmp_path)) == (1, [], [])
    assert publish_some(tmp_path) == [1]
    assert leftovers(tmp_path) == []


def test_a_slow_writer_is_neither_swept_nor_waited_for(tmp_path):
    """While one writes, another publishes; the slow one then gets the next number."""
    with start(tmp_path) as writer:
        assert writer.stdout.readline() == "writing\n"
        assert publish_some(tmp_path, count=2) == [1, 2]
        assert len(leftovers(tmp_path)) == 1
        assert writer.communicate(timeout=PATIENCE)[0] == "3\n"
    assert (tmp_path / "toy" / "3" / "half").read_text() == "half"
    assert leftovers(tmp_path) == []


def test_a_leftover_that_vanishes_while_it_is_swept_does_no_harm(tmp_path, monkeypatch):
    """Another writer that fails removes its own draft, maybe just as it is looked at."""
    publish_some(tmp_path)
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([folder / pattern.replace("*", "gone")]))
    assert publish_some(tmp_path) == [2]


@settings(deadline=None)
@given(
    st.from_regex(NAME_PATTERN, fullmatch=True),
    st.none() | st.integers(1, 999_999_999),
    st.from_regex(LABEL_PATTERN, fullmatch=True),
)
def test_the_three_forms_of_a_reference(name, version, label):
    """`name`, `name:version` and `name@label`, for every name, version and label there can be."""
    assert parse_reference(name) == Reference(name, None, None)
    assert parse_reference(f"{name}@{label}") == Reference(name, None, label)
    if version:
        assert parse_reference(f"{name}:{version}") == Reference(name, version, None)


BAD = ["", " ", "..", "../x", "a/b", "/a", ".a", "a\n", "a b", "a:", "a:0", "a:01", "a:-1", "a:1.5", "a:x", "a:1@b"]
BAD += ["a@", "a@1", "a@b/c", "a@b@c", "a:1:2", ":1", "@stable", "a:9999999999", "a:٣", "x" * 65, "a\0", "%2e%2e"]


@pytest.mark.parametrize("text", BAD)
def test_anything_else_is_no_reference(tmp_path, text):
    """Refused before the file system is used, with the three forms and what was found."""
    for ask in (parse_reference, lambda text: resolve(tmp_path, text)):
        with pytest.raises(UnknownModel) as error:
            ask(text)
        found = repr(text) if len(repr(text)) <= 60 else repr(text)[:59] + "…"
        expected = f"no such model: expected name, name:version or name@label, found {found}"
        assert str(error.value) == expected


def test_a_bare_name_is_stable_or_else_the_newest(tmp_path):
    """`name` without and with `@stable`; `name:version`; `name@label`."""
    publish_some(tmp_path, count=3)
    assert resolve(tmp_path, "toy") == ("toy", 3)
    set_label(tmp_path, "toy", 1, "canary")
    assert resolve(tmp_path, "toy") == ("toy", 3)
    set_label(tmp_path, "toy", 2, "stable")
    found = [resolve(tmp_path, text)[1] for text in ("toy", "toy:3", "toy@canary", "toy@stable")]
    assert found == [2, 3, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tyo", "no model named 'tyo': expected other, toy, found 'tyo'; did you mean 'toy'?"),
        ("toy:3", "toy has no version 3: expected 1, 2, found 3"),
        ("toy@stable", "toy has no label 'stable': expected canary, found stable"),
        ("other@canary", "other has no label 'canary'; abstain label other:VERSION LABEL sets one"),
    ],
)
def test_an_error_names_what_is_missing_and_what_exists(tmp_path, text, message):
    """Unknown models, versions and labels, and those there are."""
    publish_some(tmp_path, "toy", 2)
    publish_some(tmp_path, "other")
    set_label(tmp_path, "toy", 1, "canary")
    with pytest.raises(UnknownModel) as error:
        resolve(tmp_path, text)
    assert str(error.value).removeprefix(f"{tmp_path}: ") == message


def test_labels_move_and_stable_rolls_back_twice(tmp_path):
    """Each rollback puts back what was stable before, until there is nothing before; other labels stay."""
    publish_some(tmp_path, count=3)
    for version, label in ((1, "stable"), (2, "canary"), (2, "stable"), (3, "stable"), (3, "stable"), (3, "canary")):
        set_label(tmp_path, "toy", version, label)
    assert [rollback(tmp_path, "toy"), rollback(tmp_path, "toy")] == [2, 1]
    assert read_labels(tmp_path, "toy").labels == {"stable": 1, "canary": 3}
    with pytest.raises(StoreError, match="toy has no previous stable version; set the label yourself"):
        rollback(tmp_path, "toy")
    assert resolve(tmp_path, "toy") == ("toy", 1)


def test_labels_are_json_that_others_can_read(tmp_path):
    """The file is what the documentation shows, readable by all, and no draft is left."""
    publish_some(tmp_path, count=2)
    for version in (1, 2, 2):
        set_label(tmp_path, "toy", version, "stable")
    path = tmp_path / "toy" / "labels.json"
    assert orjson.loads(path.read_bytes()) == {"labels": {"stable": 2}, "previous": {"stable": [1]}}
    assert path.stat().st_mode & 0o777 == 0o644
    assert leftovers(tmp_path) == []


def test_a_vanished_version_is_rolled_over(tmp_path):
    """Rollback skips versions that are gone."""
    publish_some(tmp_path, count=3)
    for version in (1, 2, 3):
        set_label(tmp_path, "toy", version, "stable")
    shutil.rmtree(tmp_path / "toy" / "2")
    assert rollback(tmp_path, "toy") == 1


def test_rolling_back_to_where_one_is_is_no_rollback(tmp_path):
    """Stable was 1, 2, and 1 again; 2 is gone: nothing else is left to put back, and the error reports it."""
    publish_some(tmp_path, count=2)
    for version in (1, 2, 1):
        set_label(tmp_path, "toy", version, "stable")
    shutil.rmtree(tmp_path / "toy" / "2")
    with pytest.raises(StoreError, match="toy has no previous stable version"):
        rollback(tmp_path, "toy")


def test_stable_rolls_back_and_forth_as_it_was_moved(tmp_path):
    """Stable was 1, 2, and 1 again: rolled back it is 2, and rolled back twice it is 1."""
    publish_some(tmp_path, count=2)
    for version in (1, 2, 1):
        set_label(tmp_path, "toy", version, "stable")
    assert [rollback(tmp_path, "toy"), rollback(tmp_path, "toy")] == [2, 1]


def test_a_label_at_a_vanished_version_is_refused_not_guessed(tmp_path):
    """If `@stable` is gone, a bare name is not silently the newest version."""
    publish_some(tmp_path, count=2)
    set_label(tmp_path, "toy", 1, "stable")
    shutil.rmtree(tmp_path / "toy" / "1")
    for text in ("toy", "toy@stable"):
        with pytest.raises(UnknownModel, match="toy has no version 1: expected 2, found 1"):
            resolve(tmp_path, text)


def test_a_labelled_number_is_not_given_to_another_bundle(tmp_path):
    """The newest version is removed by hand: what is published next does not slip under its labels."""
    publish_some(tmp_path, count=2)
    set_label(tmp_path, "toy", 2, "canary")
    shutil.rmtree(tmp_path / "toy" / "2")
    (published,) = publish_some(tmp_path)
    assert read_labels(tmp_path, "toy").labels.get("canary") != published


@pytest.mark.parametrize("version", [0, -1, 3])
def test_a_label_points_at_a_version_that_exists(tmp_path, version):
    """No other number is taken, and nothing is written."""
    publish_some(tmp_path, count=2)
    with pytest.raises(UnknownModel, match=f"toy has no version {version}: expected 1, 2, found {version}"):
        set_label(tmp_path, "toy", version, "stable")
    assert not (tmp_path / "toy" / "labels.json").exists()


@pytest.mark.parametrize("label", ["", "1", "a b", "a/b", "../x", "x" * 33, "é", "a\n"])
def test_a_label_cannot_be_any_word(tmp_path, label):
    """A label that no reference could name is refused."""
    publish_some(tmp_path)
    with pytest.raises(StoreError, match=r"^label: expected 1 to 32 letters, .* the first a letter, found '"):
        set_label(tmp_path, "toy", 1, label)


def test_a_model_without_versions_has_nothing_to_label_or_roll_back(tmp_path):
    """Unknown models are named, and no folder is made for them."""
    with pytest.raises(UnknownModel, match="toy has no version 1; toy has no versions; publish one"):
        set_label(tmp_path, "toy", 1, "stable")
    with pytest.raises(UnknownModel, match="no model named 'toy'"):
        rollback(tmp_path, "toy")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "is not JSON"),
        (b'{"labels": {"stable"', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[]", ""),
        (b'{"labels": {"stable": "1"}}', "labels.stable"),
        (b'{"labels": {"stable": 0}}', "labels.stable"),
        (b'{"labels": {"stable": true}}', "labels.stable"),
        (b'{"labels": {"stable": 1.5}}', "labels.stable"),
        (b'{"labels": ["stable"]}', "labels"),
        (b'{"previous": {"stable": [1, null]}}', "previous.stable.1"),
        (b'{"aliases": {}}', "unknown key 'aliases': expected one of "),
    ],
)
def test_damaged_labels_are_refused_by_file_and_field(tmp_path, content, field):
    """Never guessed, never overwritten: resolving, labelling and rolling back all name the file and what to do."""
    publish_some(tmp_path)
    path = tmp_path / "toy" / "labels.json"
    path.write_bytes(content)
    asks = (
        lambda: resolve(tmp_path, "toy"),
        lambda: set_label(tmp_path, "toy", 1, "stable"),
        lambda: rollback(tmp_path, "toy"),
    )
    for ask in asks:
        with pytest.raises(StoreError) as error:
            ask()
        assert str(error.value).startswith(f"{path}: {field}")
        assert "correct the file, or remove it and set the labels again with abstain label toy:VERSION LABEL" in str(
            error.value
        )
    assert path.read_bytes() == content


def test_labelling_waits_for_the_models_lock(tmp_path):
    """Two that label at once take turns: neither's label is lost."""
    publish_some(tmp_path)
    labels = [f"label-{i}" for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda label: set_label(tmp_path, "toy", 1, label), labels))
    assert read_labels(tmp_path, "toy").labels == dict.fromkeys(labels, 1)


def test_readers_need_no_lock(tmp_path):
    """A writer that holds the model's lock for ever keeps no one from resolving."""
    publish_some(tmp_path)
    set_label(tmp_path, "toy", 1, "stable")
    with hold(tmp_path / "toy" / LOCK):
        assert (resolve(tmp_path, "toy@stable"), served_versions(tmp_path, "toy")) == (("toy", 1), [1])


def test_served_are_stable_and_every_labelled_version(tmp_path):
    """Without `@stable` the newest, and whatever else has a label."""
    publish_some(tmp_path, count=4)
    assert served_versions(tmp_path, "toy") == [4]
    set_label(tmp_path, "toy", 2, "canary")
    assert served_versions(tmp_path, "toy") == [2, 4]
    set_label(tmp_path, "toy", 1, "stable")
    assert served_versions(tmp_path, "toy") == [1, 2]


def test_a_model_has_so_many_labels_and_no_more(tmp_path):
    """One label too many is refused and changes nothing; those that are there can still be moved."""
    publish_some(tmp_path, count=2)
    for place in range(MOST_LABELS):
        set_label(tmp_path, "toy", 1, f"label{place}")
    with pytest.raises(
        StoreError, match=r"labels\.json: labels: expected at most 256, found 257; move an existing label"
    ):
        set_label(tmp_path, "toy", 1, "another")
    set_label(tmp_path, "toy", 2, "label7")
    labels = read_labels(tmp_path, "toy").labels
    assert (len(labels), labels["label7"], "another" in labels) == (MOST_LABELS, 2, False)
