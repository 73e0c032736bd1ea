"""Bundles made to harm whoever loads them, their hashes right: each is refused by name, in bounded time and memory.

They are made by `hostile_bundles.py`.
"""

import os
import resource
import shutil
import signal
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import numpy as np
import orjson
import pytest

from abstain.models.bundles.bundle import load, load_published, read_published
from abstain.models.bundles.checkpoint import open_checkpoint, read_arrays, write_checkpoint
from abstain.models.bundles.manifest import read_manifest, verify_files
from abstain.models.bundles.plausible import BATCH_BYTES, batch_memory_claim, member_memory_claim
from abstain.models.bundles.store import LABELS, check_writable, model_names, read_labels, resolve
from abstain.models.bundles.trained_rows import FILE, read_trained
from abstain.models.decisions.judging import judge
from abstain.models.errors import BundleError, StoreError
from abstain.models.files.regular import check_contents, open_regular
from abstain.models.networks.architectures import LeNetSpec, MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.service.live_versions import LiveVersions
from abstain.service.loading import in_one_line
from tests.helpers.hostile_bundles import DRAWS, HOSTILE, HOSTILE_LABELS, database, put, put_arrays, sign
from tests.helpers.paths import PROJECT

SECONDS = 30
"""A refusal may take, on a busy machine; most take a hundredth of one."""
MEBIBYTES = 512
"""A refusal may take."""


@pytest.fixture
def hostile_store(store: Path, tmp_path: Path) -> Path:
    """A store with one version of digits that may be altered."""
    shutil.copytree(store / "digits" / "1", tmp_path / "store" / "digits" / "1")
    return tmp_path / "store"


@pytest.fixture
def bounded() -> Iterator[None]:
    """Fails what takes longer than `SECONDS`, or more memory than `MEBIBYTES`."""

    def give_up(*_: object) -> None:
        raise TimeoutError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    earlier = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, earlier)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEBIBYTES * 1024


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_by_name(hostile_store, bounded, name):
    """What, where, expected and found, and neither time nor memory."""
    alter, message = HOSTILE[name]
    folder = hostile_store / "digits" / "1"
    alter(folder)
    with pytest.raises(BundleError) as error:
        load_published(hostile_store, "digits", 1)
    assert message in str(error.value)
    assert str(error.value).isprintable()
    assert str(folder) in str(error.value)


def test_the_bundle_is_sound_before_it_is_altered(hostile_store):
    """And signing alone changes nothing: else every refusal above would prove nothing."""
    sign(hostile_store / "digits" / "1")
    assert load_published(hostile_store, "digits", 1).manifest.name == "digits"


def test_numbers_that_json_cannot_hold_are_refused(hostile_store, bounded):
    """An infinite scale, as a number too large for float64."""
    path = hostile_store / "digits" / "1" / "manifest.json"
    sign(path.parent, model__preprocessing__target_scale=123.5)
    path.write_bytes(path.read_bytes().replace(b"123.5", b"1e999"))
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        read_manifest(path.parent)


def test_a_promise_that_no_file_keeps_takes_no_memory(hostile_store, bounded):
    """A manifest and arrays that agree on hundreds of GB, in files of kilobytes."""
    folder, draws = hostile_store / "digits" / "1", 80_000
    keys = database(folder / DRAWS)
    for key in keys.list().result():
        if key.endswith(b"/.zarray"):
            head = orjson.loads(keys.read(key).result().value)
            head["shape"][0] = head["chunks"][0] = draws
            keys.write(key, orjson.dumps(head)).result()
    sign(folder, draws=draws)
    with pytest.raises(BundleError, match="draws: arrays: expected at most"):
        load(folder)


# ---- what would be computed ------------------------------------------------------------------------------------------


def test_models_of_ordinary_size_have_room(store):
    """A hundred wide layers, a LeNet, thousands of draws, a hundred draws of a thousand classes: a third of it at most."""
    classes = tuple(map(str, range(1000)))
    digits = load(store / "digits" / "1").manifest.densities
    of_classes = partial(Model, likelihood="categorical")
    models = [
        (of_classes(network=MLPSpec(hidden=(4096, 4096)), feature_shape=(784,), class_names=classes[:10]), 100),
        (of_classes(network=LeNetSpec(), feature_shape=(28, 28), class_names=classes[:10]), 100),
        (of_classes(network=LeNetSpec(channels=(32, 64)), feature_shape=(96, 96, 3), class_names=classes[:10]), 100),
        (of_classes(network=MLPSpec(), feature_shape=(784,), class_names=classes), 100),
        (Model(network=MLPSpec(), likelihood="normal", feature_shape=(10,)), 100_000),
        (Model(network=MLPSpec(hidden=()), likelihood="normal", feature_shape=(10_000,)), 1_000),
    ]
    for model, draws in models:
        for claim in (batch_memory_claim(model, draws, digits), member_memory_claim(model, 5)):
            assert claim.holds
            assert int(str(claim.found).partition(" ")[0].strip(",").replace(",", "")) < BATCH_BYTES / 3


def test_every_draws_features_are_no_members():
    """All of them would be kept at once, for the feature scores."""
    model = Model(network=MLPSpec(hidden=(1024,)), likelihood="normal", feature_shape=(1,))
    assert batch_memory_claim(model, 100_000, {}).holds
    assert not member_memory_claim(model, 100_000).holds


def test_an_older_calibration_is_prepared_before_the_first_request(tmp_path, bounded):
    """200,000 rows of schema 1, each ranked among the others: served in seconds, with nothing left for the first request."""
    folder = tmp_path / "store" / "wave" / "1"
    shutil.copytree(PROJECT / "tests" / "data" / "golden" / "1", folder)
    rows = 200_000
    scores = {name: np.random.default_rng(0).exponential(size=rows).astype(np.float32) for name in ("std", "total_std")}
    put_arrays(folder / "calibration", {"scores": scores, "nonconformity": scores["std"]})
    decision = {"scores": ["std", "total_std"], "rule": "min", "weights": []}
    sign(
        folder,
        name="wave",
        version=1,
        calibration__rows=rows,
        calibration__decision="combined",
        calibration__combination=decision,
    )
    serving = LiveVersions(tmp_path / "store")
    serving.load_all((8,))
    live = serving.find("wave")
    calibration = live.bundle.calibration
    assert {"ascending", "ascending_nonconformity", "evidence_maps"} <= vars(calibration).keys()
    assert judge(calibration, live.predictor(np.array([[0.0], [3.0]]))).decision == "combined"


# ---- the store -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [200, 300, 900])
def test_a_manifest_nested_deeply_ends_in_no_traceback(hostile_store, bounded, depth):
    """Of JSON, more levels are read than are written."""
    path = hostile_store / "digits" / "1" / "manifest.json"
    nested = b'"diagnostics": ' + b"[" * depth + b"]" * depth
    path.write_bytes(path.read_bytes().replace(b'"diagnostics": {', b'"diagnostics": {"deep": ' + nested[15:] + b","))
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        read_manifest(path.parent)


@pytest.mark.parametrize("name", HOSTILE_LABELS)
def test_hostile_labels_are_refused(hostile_store, bounded, name):
    """By name, and nothing waits for them."""
    make, found = HOSTILE_LABELS[name]
    make(hostile_store / "digits" / LABELS)
    with pytest.raises(StoreError) as error:
        read_labels(hostile_store, "digits")
    assert str(error.value).startswith(f"{hostile_store / 'digits' / LABELS}: {found}")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("linked", ["digits", "digits/1"])
def test_links_out_of_the_store_are_refused(hostile_store, tmp_path, linked):
    """A model's folder or a version's, though all in it is sound."""
    shutil.move(hostile_store / linked, tmp_path / "outside")
    (hostile_store / linked).symlink_to(tmp_path / "outside")
    for read in (read_published, load_published):
        with pytest.raises(StoreError, match="is a symbolic link: expected a folder, found a link"):
            read(hostile_store, "digits", 1)


def test_nothing_is_published_into_a_linked_folder(hostile_store):
    """It would not be served, so it is refused before the fit."""
    (hostile_store / "other").symlink_to(hostile_store / "digits")
    with pytest.raises(StoreError, match="other: is a symbolic link"):
        check_writable(hostile_store, "other")
    with pytest.raises(StoreError, match="other: is a symbolic link"):
        resolve(hostile_store, "other")


def test_trained_rows_that_grow_are_refused(hostile_store, bounded):
    """Hashes are written uncompressed; compressed ones may be a thousand times as large as their file."""
    folder = hostile_store / "digits" / "1"
    assert read_trained(folder, {FILE: ""}) is not None
    with zipfile.ZipFile(folder / FILE, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("key.npy", "w") as member:
        for _ in range(64):
            member.write(bytes(2**20))
    with pytest.raises(BundleError, match="cannot be read: found arrays that are compressed"):
        read_trained(folder, {FILE: ""})


def test_a_file_swapped_for_a_fifo_does_not_wait(tmp_path, bounded, monkeypatch):
    """Between the look at it and the opening."""
    path = tmp_path / "file"
    path.touch()
    regular = path.lstat()
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(Path, "lstat", lambda _: regular)
    with pytest.raises(BundleError, match="found a named pipe"):
        open_regular(path, BundleError)


# ---- what goes on ----------------------------------------------------------------------------------------------------


def test_sound_models_are_served_beside_hostile_ones(store, tmp_path, bounded):
    """One of each kind of harm, one model each: all say why, and the sound one answers."""
    shutil.copytree(store / "wave" / "1", tmp_path / "store" / "wave" / "1")
    kinds = (
        "a named pipe as manifest",
        "a named pipe as report",
        "256 TB",
        "a chunk that grows",
        "an index that grows",
        "scale 0",
    )
    for place, kind in enumerate(kinds):
        folder = tmp_path / "store" / f"hostile{place}" / "1"
        shutil.copytree(store / "digits" / "1", folder)
        sign(folder, name=f"hostile{place}")
        HOSTILE[kind][0](folder)
    os.mkfifo(tmp_path / "store" / "hostile0" / LABELS)
    (tmp_path / "store" / "linked").symlink_to(store / "digits")
    serving = LiveVersions(tmp_path / "store")
    serving.load_all((8,))
    prediction = serving.find("wave").predictor(np.zeros((1, 1)))
    assert np.isfinite(prediction.summary.mean).all()
    states = {model["name"]: model["versions"][0]["state"] for model in serving.list_models()["models"]}
    assert states.pop("wave") == "ready"
    assert states == {name: "failed" for name in model_names(tmp_path / "store") if name != "wave"}
    assert serving.reasons_not_ready() == []
    assert len(serving.shortcomings()) == len(kinds) + 2


def test_abstain_models_does_not_wait_for_a_fifo(hostile_store, bounded, run):
    """It says of the version what is wrong with it."""
    put("manifest.json", os.mkfifo)(hostile_store / "digits" / "1")
    code, out, _ = run("models", "--store", hostile_store)
    assert code == 0
    assert "is no regular file" in out


def test_arrays_are_read_as_orbax_reads_them(store, tmp_path):
    """To the bit, of every checkpoint of a classifier and a regression, and of shapes that neither has."""
    import orbax.checkpoint as ocp

    rng = np.random.default_rng(0)
    write_checkpoint(
        tmp_path / "own",
        {
            "scalar": np.float64(3) * np.ones(()),
            "large": rng.normal(size=(300, 1000)).astype(np.float32),
            "below": {
                "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
                "backwards": np.arange(6)[::-1],
            },
        },
    )
    versions = (store / "digits" / "1", store / "wave" / "1")
    parts = [version / part for version in versions for part in ("draws", "calibration", "densities")]
    for folder in (*parts, tmp_path / "own"):
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        found = read_arrays(folder, open_checkpoint(folder, check_contents(folder, files)))
        with ocp.StandardCheckpointer() as checkpointer:
            expected = checkpointer.restore(folder)
        described = [
            jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape, leaf.tobytes(), leaf.flags.writeable), tree)
            for tree in (found, expected)
        ]
        assert described[0] == described[1]


def test_a_published_bundle_passes_every_check(store):
    """The files that a fit leaves are exactly those listed."""
    for name in ("digits", "wave"):
        folder, manifest = store / name / "1", read_published(store, name, 1)
        verify_files(folder, manifest)
        present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert present == {*manifest.files, "manifest.json"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ROOT/digits/2/draws: damaged", "digits/2/draws: damaged"),
        ("ROOT: is a file", "the store: is a file"),
        ("expected one of /etc/abstain/a.pem, /home/me/b.pem", "expected one of a.pem, b.pem"),
        ("network, /home/me/nets.py: no class 'Nope'", "network, nets.py: no class 'Nope'"),
        ("a signature by '/keys/x/pub.pem'", "a signature by 'pub.pem'"),
        ("as https://login.example.org/a/b says, 3/4 of them", "as https://login.example.org/a/b says, 3/4 of them"),
    ],
)
def test_clients_get_names_of_files_but_no_folders_of_the_machine(tmp_path, text, message):
    """Paths in the store are relative to it."""
    serving = LiveVersions(tmp_path)
    assert serving.hide_folders(text.replace("ROOT", str(tmp_path))) == message


def test_what_a_manifest_says_is_one_printable_line_in_the_log():
    """It may hold line breaks, with which it would forge lines, and commands to a terminal."""
    assert in_one_line(["bad\n2026 [CRITICAL] forged \x1b[31m"]) == r"bad\n2026 [CRITICAL] forged \x1b[31m"
    assert in_one_line(["a\r", "b\u009b"]) == r"(1) a\r; (2) b\x9b"
