"""A bundle is read to the last bit, or refused with the name of the damaged file."""

import shutil
from pathlib import Path

import jax
import numpy as np
import orjson
import pytest

from abstain.models.bundles.bundle import load, write_arrays
from abstain.models.bundles.manifest import (
    DataRecord,
    Manifest,
    MethodRecord,
    read_manifest,
    verify_files,
    write_manifest,
)
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.records import Calibration
from abstain.models.errors import BundleError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.feature_score_records import FeatureScores, Mahalanobis, Range
from abstain.models.prediction.feature_scores import shapes_of
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.prediction.temperature import Recalibration, RecalibrationChoice
from abstain.models.tables.columns import Column
from abstain.training.calibration.record import calibration_record
from tests.helpers.records import altered

MODEL = Model(
    network=MLPSpec(hidden=(2,)),
    likelihood="normal",
    preprocessing=Preprocessing(
        shift=(0.1 + 0.2, 0.0),
        scale=(1 / 3, 1.0),
        columns=(Column(name="länge", missing=1e-17), Column(name="kind", categories=("a", "b"), missing=1.0)),
        target_scale=np.pi,
    ),
    feature_shape=(2,),
    feature_names=("länge", "kind"),
    target_name="wärme",
)


def draws_of(model, size=3):
    """Draws with every float32 that is easily lost: −0, the smallest, the largest."""
    rng = np.random.default_rng(0)
    draws = jax.tree.map(lambda leaf: rng.normal(size=(size, *leaf.shape)).astype(np.float32), model.parameter_shapes())
    draws["noise"][:] = [1e-45, 3.4028235e38, 0.1]
    draws["network"]["Dense_1"]["bias"][:] = [[-0.0], [np.float32(1) + np.finfo(np.float32).eps], [-1e-45]]
    return draws


def numbers(seed, rows=150, dtype=np.float32):
    """Normal numbers, in no order."""
    return np.random.default_rng(seed).normal(size=rows).astype(dtype)


CALIBRATION = Calibration(
    scores={"std": numbers(1), "total_std": numbers(2), "mahalanobis": numbers(4)},
    nonconformity=numbers(3, dtype=np.float64),
    decision=Decision(scores=("std", "mahalanobis"), rule="weighted", weights=(0.1 + 0.2, 1.0)),
    percentile=97.5,
    coverage=0.9,
    intervals="quantiles",
    reference={"std": numbers(5, 40), "total_std": numbers(6, 40), "mahalanobis": numbers(7, 40)},
)
RECALIBRATION = Recalibration(kind="variance", factor=1 / 3)
FEATURE_SCORES = FeatureScores(
    np.array([0, 2], np.int32),
    {
        "mahalanobis": Mahalanobis(
            *(
                numbers(seed, np.prod(shape)).reshape(shape)
                for seed, shape in enumerate([(2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 1, 2), (2, 2)])
            )
        ),
        "range": Range(np.array([-0.0, 1e-45], np.float32), np.array([3.4028235e38, 1.0], np.float32)),
    },
)


def manifest_of(shapes_of_scores=None, **changes):
    """A manifest for the model, calibration and feature scores above."""
    record = Manifest(
        name="toy",
        version=1,
        created="2026-11-22T13:00:00+00:00",
        model=MODEL,
        draws=3,
        method=MethodRecord(kind="vi", settings={"steps": 400, "rates": [0.1, None]}),
        calibration=calibration_record(CALIBRATION, RECALIBRATION, ()),
        densities=shapes_of(FEATURE_SCORES) if shapes_of_scores is None else shapes_of_scores,
        diagnostics={"elbo": [-1.5, 0.1 + 0.2]},
        metrics={"rmse": 1 / 3},
        data=DataRecord(
            source="toy.csv", settings={}, fingerprint="sha256:0", train_rows=9, calibration_rows=150, test_rows=5
        ),
        seed=0,
        packages={"jax": "0.10.2"},
        git_commit=None,
    )
    return record.model_copy(update=changes)


def write_bundle(folder, draws=None, calibration=CALIBRATION, feature_scores=FEATURE_SCORES, record=None, **changes):
    """A bundle in a new folder; its hashes are right whatever it holds."""
    folder.mkdir()
    write_arrays(folder, Posterior(MODEL, draws_of(MODEL) if draws is None else draws), calibration, feature_scores)
    (folder / "report.html").write_text("<p>Report")
    return write_manifest(folder, manifest_of(**changes, **({} if record is None else {"calibration": record})))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A bundle that no test may change."""
    folder = tmp_path_factory.mktemp("bundle") / "1"
    write_bundle(folder)
    return folder


@pytest.fixture
def bundle(original, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(original, tmp_path / "1"))


def files_of(folder):
    """Every file of a bundle, the manifest among them."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refusal(folder):
    """What `load` says of a bundle that it refuses."""
    with pytest.raises(BundleError) as error:
        load(folder)
    return str(error.value)


def bits(array):
    """An array's type, shape and bytes."""
    return array.dtype, array.shape, array.tobytes()


def test_a_round_trip_is_exact_to_the_bit(original):
    """Draws, scores, nonconformity and every word of the manifest are what was written."""
    loaded = load(original)
    assert {type(leaf) for leaf in jax.tree.leaves(loaded.posterior.draws)} == {np.ndarray}
    assert jax.tree.map(bits, loaded.posterior.draws) == jax.tree.map(bits, draws_of(MODEL))
    found = loaded.calibration
    terms = ("decision", "percentile", "coverage", "per_class", "sets", "intervals", "labels", "rows")
    assert [getattr(found, term) for term in terms] == [getattr(CALIBRATION, term) for term in terms]
    assert {name: bits(values) for name, values in found.scores.items()} == {
        name: bits(values) for name, values in CALIBRATION.scores.items()
    }
    assert bits(found.nonconformity) == bits(CALIBRATION.nonconformity)
    assert bits(loaded.feature_scores.members) == bits(FEATURE_SCORES.members)
    assert jax.tree.map(bits, loaded.feature_scores.records) == jax.tree.map(bits, FEATURE_SCORES.records)
    assert loaded.manifest.calibration.recalibration == RECALIBRATION
    assert loaded.posterior.model == MODEL
    assert loaded.manifest.model_copy(update={"files": {}, "digest": ""}) == manifest_of()


def test_a_bundle_can_be_moved(bundle, tmp_path):
    """Nothing in a bundle knows where it lies."""
    expected = load(bundle).manifest
    assert load(Path(shutil.move(bundle, tmp_path / "elsewhere"))).manifest == expected


def test_the_manifest_lists_every_other_file(original):
    """What is not listed would not be checked."""
    listed = set(read_manifest(original).files)
    assert listed == {path.relative_to(original).as_posix() for path in files_of(original)} - {"manifest.json"}
    assert "report.html" in listed
    assert {name.split("/")[0] for name in listed} == {"draws", "calibration", "densities", "report.html"}


def test_the_manifest_returned_is_the_one_on_disk(tmp_path):
    """`write_manifest` returns what `read_manifest` will; its digest is a sha256."""
    written = write_bundle(tmp_path / "1")
    assert written == read_manifest(tmp_path / "1")
    assert written.digest.startswith("sha256:")
    assert len(written.digest) == 71


def test_one_flipped_byte_is_refused_by_the_files_name(bundle):
    """In every file in turn, at its start, middle and end."""
    for path in files_of(bundle):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            damaged = bytearray(content)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            assert str(path) in refusal(bundle)
        path.write_bytes(content)
    assert load(bundle).manifest.name == "toy"


def test_a_file_cut_short_is_refused_by_its_name(bundle):
    """Every file in turn: without its last byte, its second half, and all of it."""
    for path in files_of(bundle):
        content = path.read_bytes()
        for length in (len(content) - 1, len(content) // 2, 0):
            path.write_bytes(content[:length])
            assert str(path) in refusal(bundle)
        path.write_bytes(content)


def test_a_missing_file_is_refused_by_its_name(bundle):
    """Every file in turn."""
    for path in files_of(bundle):
        content = path.read_bytes()
        path.unlink()
        assert str(path) in refusal(bundle)
        path.write_bytes(content)


def test_every_byte_of_the_manifest_counts(bundle):
    """No byte of it can be changed, even one that leaves the JSON and its meaning whole."""
    path = bundle / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x20]) + content[place + 1 :])
        with pytest.raises(BundleError) as error:
            read_manifest(bundle)
        assert str(path) in str(error.value)


def test_a_refusal_says_what_was_expected_and_found(bundle):
    """File, expected and found hash, and what to do."""
    path = bundle / "report.html"
    expected = read_manifest(bundle).files["report.html"]
    path.write_text("")
    assert refusal(bundle) == (
        f"{path}: is damaged or was altered: expected sha256 {expected}, "
        "found sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855; "
        "fit the model again, or restore the bundle from a copy"
    )
    path.unlink()
    assert refusal(bundle).startswith(f"{path}: is missing: expected sha256 {expected}, found no file")


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 1}', b"{} {}"]
)
def test_what_is_no_manifest_is_refused_by_its_name(bundle, content):
    """Empty, other JSON, no JSON, endless JSON: an error that names the file, never a traceback."""
    (bundle / "manifest.json").write_bytes(content)
    assert refusal(bundle).startswith(f"{bundle / 'manifest.json'}: ")


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    """Nothing is a bundle that has no manifest."""
    assert refusal(tmp_path / "7").startswith(f"{tmp_path / '7' / 'manifest.json'}: cannot be read: found No such file")


def rewrite(folder, **changes):
    """Puts other values into manifest.json, as another version of abstain would have."""
    path = folder / "manifest.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | changes, option=orjson.OPT_SORT_KEYS))
    return path


@pytest.mark.parametrize("version", [0, 3, "1", True])
def test_another_schema_version_is_refused(bundle, version):
    """File, field, expected, found: the older, the newer, and a word that is no number."""
    path = rewrite(bundle, schema_version=version)
    assert refusal(bundle) == (
        f"{path}: schema_version: expected 1 or 2, found {version}; "
        "fit the model again with this version of abstain, or serve it with the version that wrote it"
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": "zero"}, "seed"),
        ({"seed": 10**19}, "manifest.json"),
        ({"extra": 1}, "extra"),
        ({"model": {}}, "model.network"),
        ({"calibration": {"rows": 1}}, "calibration.decision"),
    ],
)
def test_a_wrong_field_is_refused_by_name(bundle, change, field):
    """The schema's own version, and yet a field it does not know, or cannot be."""
    path = rewrite(bundle, **change)
    assert refusal(bundle).startswith(f"{path}: ")
    assert field in refusal(bundle)


@pytest.mark.parametrize("name", ["../1/report.html", "draws/../../secret", "/etc/hostname", "", ".", ".."])
def test_paths_out_of_the_bundle_are_refused(bundle, name):
    """A manifest, though signed, makes the loader read nothing outside its folder."""
    listed = read_manifest(bundle).files
    with pytest.raises(BundleError) as error:
        verify_files(bundle, manifest_of(files=listed | {name: listed["report.html"]}))
    assert str(error.value) == (
        f"{bundle / 'manifest.json'}: files: expected paths inside the bundle, found {name}; {BundleError.usual_fix}"
    )


def test_a_link_in_place_of_a_file_is_refused(bundle, tmp_path):
    """Even if its target has the right bytes."""
    shutil.move(bundle / "report.html", tmp_path / "report.html")
    (bundle / "report.html").symlink_to(tmp_path / "report.html")
    assert refusal(bundle).startswith(
        f"{bundle / 'report.html'}: is no regular file: expected a regular file, found a symbolic link; "
    )


def changed(path, change):
    """The draws, one leaf of them changed."""
    draws = draws_of(MODEL)
    *parents, last = path
    branch = draws
    for key in parents:
        branch = branch[key]
    if change is None:
        del branch[last]
    else:
        branch[last] = change(branch[last])
    return draws


KERNEL = ("network", "Dense_0", "kernel")


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        (
            changed(KERNEL, lambda leaf: leaf[:, :2]),
            "network.Dense_0.kernel: expected float32 [draws, 3, 2], found float32 [3, 2, 2]",
        ),
        (
            changed(KERNEL, lambda leaf: leaf.astype(np.float64)),
            "network.Dense_0.kernel: expected float32 [draws, 3, 2], found float64 [3, 3, 2]",
        ),
        (
            changed(KERNEL, lambda leaf: leaf.astype(np.int32)),
            "network.Dense_0.kernel: expected float32 [draws, 3, 2], found int32 [3, 3, 2]",
        ),
        (changed(KERNEL, lambda leaf: leaf * np.nan), "network.Dense_0.kernel: expected finite numbers, found NaN"),
        (changed(("noise",), lambda leaf: leaf + np.inf), "noise: expected finite numbers, found NaN or an infinity"),
        (changed(("noise",), None), "parameters do not fit the network: expected ["),
        (
            changed(("noise",), lambda leaf: leaf[:2]),
            "draws: expected one number of draws, at least 1, found [(2,), (3",
        ),
        (draws_of(MODEL) | {"extra": np.zeros(3, np.float32)}, "'extra'"),
    ],
    ids=["shape", "float64", "int32", "nan", "inf", "missing", "uneven", "superfluous"],
)
def test_draws_that_do_not_fit_the_model_are_refused(tmp_path, draws, message):
    """Hashes right, contents wrong: leaf, expected, found."""
    write_bundle(tmp_path / "1", draws)
    found = refusal(tmp_path / "1")
    assert found.startswith(f"{tmp_path / '1' / 'draws'}: ")
    assert message in found


def test_another_number_of_draws_than_the_manifests_is_refused(tmp_path):
    """The manifest says how many draws there are, and must be right."""
    write_bundle(tmp_path / "1", draws=jax.tree.map(lambda leaf: leaf[:2], draws_of(MODEL)))
    assert refusal(tmp_path / "1") == f"{tmp_path / '1'}: draws: expected 3, found 2; {BundleError.usual_fix}"


@pytest.mark.parametrize(
    ("scores", "nonconformity"),
    [
        ({"std": numbers(1)}, numbers(3)),
        ({"std": numbers(1), "mahalanobis": numbers(2), "vim": numbers(2)}, numbers(3)),
        ({"std": numbers(1), "mahalanobis": numbers(2) * np.nan}, numbers(3)),
        ({"std": numbers(1), "mahalanobis": numbers(2)[:90]}, numbers(3)),
        ({"std": numbers(1), "mahalanobis": numbers(2)[:, None]}, numbers(3)),
        ({"std": numbers(1), "mahalanobis": numbers(2)}, numbers(3) + np.inf),
    ],
    ids=["missing", "unknown", "nan", "length", "shape", "nonconformity inf"],
)
def test_calibration_that_cannot_be_right_is_refused(tmp_path, scores, nonconformity):
    """Hashes right, contents wrong: refused by the folder's name, as damage to the bundle."""
    write_bundle(tmp_path / "1", calibration=altered(CALIBRATION, scores=scores, nonconformity=nonconformity))
    assert refusal(tmp_path / "1").startswith(f"{tmp_path / '1' / 'calibration'}: ")


def test_plain_scores_of_augmented_rows_are_kept_and_checked(tmp_path):
    """They are read to the bit; with other scores, another length or no numbers they are refused by name."""
    plain = {name: values + 1 for name, values in CALIBRATION.scores.items()}
    write_bundle(tmp_path / "1", calibration=altered(CALIBRATION, plain_scores=plain))
    found = load(tmp_path / "1").calibration.plain_scores
    assert {name: bits(values) for name, values in found.items()} == {
        name: bits(values) for name, values in plain.items()
    }
    first = next(iter(plain))
    for place, wrong in enumerate(
        ({first: plain[first]}, plain | {first: plain[first][:9]}, plain | {first: plain[first] * np.nan})
    ):
        folder = tmp_path / f"wrong-{place}"
        write_bundle(folder, calibration=altered(CALIBRATION, plain_scores=wrong))
        assert refusal(folder).startswith(f"{folder / 'calibration'}: plain")


def test_the_rows_that_set_the_radius_are_kept_and_checked(tmp_path):
    """They are read to the bit; another number than the manifest's, or a row that there is not, is refused by name."""
    own = altered(CALIBRATION, radius_rows=np.arange(10, 150))
    choice = RecalibrationChoice(rows=10, radius_rows=140, least_gain=2.0, least_deviation=2.0)
    record = calibration_record(own, RECALIBRATION, ()).model_copy(update={"recalibration_choice": choice})
    assert record.coverage_bounds != calibration_record(CALIBRATION, RECALIBRATION, ()).coverage_bounds

    def written(name, calibration, **changes):
        terms = record.model_copy(update={"recalibration_choice": choice.model_copy(update=changes)})
        write_bundle(tmp_path / name, calibration=calibration, record=terms)
        return tmp_path / name

    assert bits(load(written("1", own)).calibration.radius_rows) == bits(own.radius_rows)
    start = "calibration: radius_rows: expected "
    assert f"{start}140 rows, found none" in refusal(written("2", CALIBRATION))
    assert f"{start}no array, found one" in refusal(written("3", own, radius_rows=None))
    assert f"{start}139 rows, found (140,)" in refusal(written("4", own, radius_rows=139))
    assert f"{start}different whole numbers" in refusal(written("5", altered(own, radius_rows=np.arange(140) + 11)))
    assert "recalibration_choice: expected at most 150 rows, the calibration part, found 151" in refusal(
        written("6", own, rows=11)
    )


def test_calibration_rows_are_as_many_as_the_manifest_says(tmp_path):
    """It says it for people and for the bounds."""
    terms = calibration_record(CALIBRATION, RECALIBRATION, ()).model_copy(update={"rows": 151})
    write_bundle(tmp_path / "1")
    write_manifest(tmp_path / "1", manifest_of().model_copy(update={"calibration": terms}))
    assert refusal(tmp_path / "1").endswith(f"calibration: rows: expected 151, found 150; {BundleError.usual_fix}")


def test_a_range_of_other_features_than_the_models_is_refused(tmp_path):
    """One that broadcasts over them, though the manifest lists it so."""
    narrow = Range(np.zeros(1, np.float32), np.ones(1, np.float32))
    feature_scores = with_feature_score("range", narrow)
    write_bundle(tmp_path / "1", feature_scores=feature_scores, shapes_of_scores=shapes_of(feature_scores))
    assert refusal(tmp_path / "1").endswith(
        f"densities: range.low: expected 2 features, found (1,); {BundleError.usual_fix}"
    )


def with_feature_score(name, record, members=FEATURE_SCORES.members):
    """The feature scores, with one record replaced."""
    return FeatureScores(
        members, {key: value for key, value in (FEATURE_SCORES.records | {name: record}).items() if value}
    )


WHITENING = FEATURE_SCORES.records["mahalanobis"]


@pytest.mark.parametrize(
    ("feature_scores", "message"),
    [
        (
            with_feature_score("mahalanobis", WHITENING._replace(mean=WHITENING.mean[:1])),
            "mahalanobis.mean: expected finite",
        ),
        (
            with_feature_score("mahalanobis", WHITENING._replace(mean=WHITENING.mean * np.nan)),
            "mahalanobis.mean: expected",
        ),
        (with_feature_score("mahalanobis", WHITENING._replace(mean=np.zeros((2, 2)))), "found float64 (2, 2)"),
        (with_feature_score("mahalanobis", None), "densities: expected"),
        (with_feature_score("range", None), "densities: expected"),
        (with_feature_score("input_range", FEATURE_SCORES.records["range"]), "densities: expected"),
        (
            FeatureScores(np.array([0, 3], np.int32), FEATURE_SCORES.records),
            "members: expected draws from 0 to 2, found [0 3]",
        ),
        (
            FeatureScores(np.array([-1], np.int32), FEATURE_SCORES.records),
            "members: expected draws from 0 to 2, found [-1]",
        ),
        (
            FeatureScores(np.array([0.0], np.float32), FEATURE_SCORES.records),
            "members: expected draws from 0 to 2, found [0.]",
        ),
    ],
    ids=["shape", "nan", "float64", "missing", "no range", "superfluous", "beyond", "negative", "no whole number"],
)
def test_feature_scores_that_do_not_fit_the_manifest_are_refused(tmp_path, feature_scores, message):
    """Hashes right, contents wrong: the array, what the manifest and the draws make one expect, and what was found."""
    write_bundle(tmp_path / "1", feature_scores=feature_scores)
    found = refusal(tmp_path / "1")
    assert found.startswith(f"{tmp_path / '1' / 'densities'}: ")
    assert message in found


@pytest.mark.parametrize(
    ("name", "fields"), [("flow", {"low": (2,), "high": (2,)}), ("knn", {"low": (2,), "high": (2,)})]
)
def test_unknown_feature_scores_are_refused(tmp_path, name, fields):
    """A name that this version does not have, or a record with other fields, is refused although the manifest lists it."""
    feature_scores = with_feature_score(name, FEATURE_SCORES.records["range"])
    write_bundle(
        tmp_path / "1", feature_scores=feature_scores, shapes_of_scores=shapes_of(FEATURE_SCORES) | {name: fields}
    )
    assert refusal(tmp_path / "1").startswith(f"{tmp_path / '1' / 'densities'}: densities: ")


def test_a_bundle_without_feature_scores_has_none(tmp_path):
    """As older bundles: no folder, nothing listed, and nothing required."""
    own = Calibration(scores={"std": numbers(1)}, nonconformity=numbers(3))
    write_arrays(tmp_path, Posterior(MODEL, draws_of(MODEL)), own, None)
    terms = calibration_record(own, Recalibration(), ())
    write_manifest(tmp_path, manifest_of({}).model_copy(update={"calibration": terms}))
    assert not (tmp_path / "densities").exists()
    assert load(tmp_path).feature_scores is None


@pytest.mark.parametrize("folder", ["draws", "calibration", "densities"])
def test_a_folder_that_is_no_checkpoint_is_refused_by_name(tmp_path, folder):
    """Hashes of nonsense, right as they are, do not make it loadable."""
    write_bundle(tmp_path / "1")
    for path in files_of(tmp_path / "1" / folder):
        path.write_bytes(b"nonsense")
    write_manifest(tmp_path / "1", manifest_of())
    assert refusal(tmp_path / "1").startswith(f"{tmp_path / '1' / folder}: cannot be restored: found ")
