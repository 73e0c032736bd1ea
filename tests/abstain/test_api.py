"""`import abstain`: the numbers of `POST /predict`, its errors, tables, fits, and nothing imported before it is needed."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest

import abstain
from abstain.models.bundles.shortfalls import texts
from abstain.models.bundles.signatures import check_library
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.service.predict.response import FIELDS
from abstain.service.process import cores
from abstain.service.python_rows import rows_of
from abstain.training.config.config import Config
from abstain.training.config.reading import config_from_dict, read_config
from tests.helpers.paths import CONFIGS, PROJECT
from tests.helpers.processes import PATIENCE
from tests.helpers.servers import Server

IMAGES = np.random.default_rng(0).integers(0, 17, (300, 8, 8)).astype(np.float64)
POINTS = np.random.default_rng(1).normal(size=(40, 1)) * 3
TABLE = Model(
    network=MLPSpec(),
    likelihood="normal",
    preprocessing=Preprocessing(
        shift=(0.0, 0.0),
        scale=(1.0, 1.0),
        columns=(Column(name="age", missing=30), Column(name="town", categories=("Bonn", "Ulm"), missing=0)),
    ),
    feature_shape=(2,),
    feature_names=("age", "town"),
)


@pytest.fixture(scope="module")
def digits_model(store: Path) -> abstain.LoadedModel:
    """A classifier of 8×8 digits, by the label."""
    return abstain.load("digits@stable", store=store)


@pytest.fixture(scope="module")
def wave_model(store: Path) -> abstain.LoadedModel:
    """A regression of one feature."""
    return abstain.load("wave", store=str(store))


def answer(server: Server, rows: np.ndarray, model: str, **terms: float) -> dict:
    """The answer of `POST /predict`, whatever its status."""
    body = {"inputs": rows.tolist() if isinstance(rows, np.ndarray) else rows, "model": model, **terms}
    return httpx.post(f"{server.url}/predict", json=body, timeout=PATIENCE).json()


def as_http(answers: abstain.ClassificationPredictions | abstain.RegressionPredictions) -> list[dict]:
    """Predictions in the form of an answer over HTTP, number by number."""

    def field(name: str, row: int):
        values = getattr(answers, name)
        if name == "scores":
            return {
                score: {key: column[row].item() for key, column in vars(own).items() if column is not None}
                for score, own in values.items()
            }
        if name == "quantiles":
            return dict(zip(map(str, answers.quantile_levels), values[row].tolist(), strict=True))
        return list(values[row]) if isinstance(values, tuple) else values[row : row + 1].tolist()[0]

    task = "classification" if isinstance(answers, abstain.ClassificationPredictions) else "regression"
    return [{name: field(name, row) for name in FIELDS[task]} for row in range(len(answers))]


def refusal(call, *arguments, **options) -> str:
    """The text of the error that a call ends with."""
    with pytest.raises(abstain.AbstainError) as caught:
        call(*arguments, **options)
    return str(caught.value)


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


# ---- the numbers of the server ---------------------------------------------------------------------------------------


CASES = [
    *(("digits@stable", count, terms) for count in (1, 5, 300) for terms in ({}, {"percentile": 90, "coverage": 0.5})),
    *(("wave", count, terms) for count in (1, 40) for terms in ({}, {"percentile": 90})),
]


@pytest.fixture(scope="module")
def alone(store: Path, server: Server, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The answers to all cases of a Python without a server.

    It has as many threads as a worker of the server, and runs the same compiled programs: how numbers are rounded depends on
    both.
    """
    out = tmp_path_factory.mktemp("alone") / "answers.json"
    code = """
import json, os, sys
from pathlib import Path
import abstain
from abstain.service.compilation import keep_compiled
keep_compiled(Path(os.environ["ABSTAIN_COMPILED"]))
from tests.abstain.test_api import CASES, as_http, rows_for
answers = []
for name, count, terms in CASES:
    found = abstain.load(name, store=sys.argv[1]).predict(rows_for(name, count), **terms)
    answers.append({
        "model": {"name": found.name, "version": found.version, "digest": found.digest},
        "percentile": found.percentile,
        "coverage": found.coverage,
        "predictions": as_http(found),
    })
Path(sys.argv[2]).write_text(json.dumps(answers))
"""
    threads = str(max(1, cores() // 2))
    done = run_python(code, str(store), str(out), NPROC=os.environ.get("NPROC", threads))
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def rows_for(name: str, count: int) -> np.ndarray:
    """So many rows of a model."""
    return (POINTS if name == "wave" else IMAGES)[:count]


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: "-".join(map(str, CASES[case][:2])))
def test_the_numbers_are_those_of_the_server(alone, server, case):
    """Every field of `POST /predict`, to the bit: a single row, a bucket that is not full, and two batches."""
    name, count, terms = CASES[case]
    expected = answer(server, rows_for(name, count), name, **terms)
    assert len(alone[case]["predictions"]) == count
    assert alone[case] == {key: expected[key] for key in ("model", "percentile", "coverage", "predictions")}


def test_the_p_value_is_the_decisions(digits_model):
    """It belongs to the score that rejects."""
    answers = digits_model.predict(IMAGES[:20])
    np.testing.assert_array_equal(answers.p_value, answers.scores[answers.decision].p_value)
    assert answers.reject.any()
    assert answers.p_value[answers.reject].max() <= 1 - answers.percentile / 100


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: rows.tolist(),
        lambda rows: rows.reshape(len(rows), -1).tolist(),
        lambda rows: tuple(map(tuple, rows.reshape(len(rows), -1))),
        list,
        lambda rows: rows.astype(np.float32),
        lambda rows: rows.astype(np.uint8),
        np.asfortranarray,
        lambda rows: rows.astype(object),
        lambda rows: pa.table({f"{place}": column for place, column in enumerate(rows.reshape(len(rows), -1).T)}),
    ],
)
def test_rows_may_have_any_form(digits_model, form):
    """Nested or flat, lists, tuples, arrays of any type, lists of arrays, and a table: the same rows, the same numbers."""
    expected = digits_model.predict(IMAGES[:8])
    answers = digits_model.predict(form(IMAGES[:8]))
    np.testing.assert_array_equal(answers.probabilities, expected.probabilities)
    np.testing.assert_array_equal(answers.p_value, expected.p_value)


@pytest.mark.parametrize("number", [2**53 + 1, -(2**62) - 1, 2**24 + 1, 16777217.000000002, 1e-46])
def test_a_number_becomes_the_float32_that_it_is_over_http(number):
    """An array of integers is rounded as often as JSON's integers are."""
    pairs = Model(network=MLPSpec(), likelihood="normal", feature_shape=(2,))
    assert rows_of(np.array([[number, 0]]), pairs).tolist() == rows_of([[number, 0]], pairs).tolist()


def test_the_models_facts_are_the_manifests(digits_model, wave_model, digits, wave):
    """Name, version, digest, names, terms and shortfalls; and one line that says what it is."""
    for model, bundle in ((digits_model, digits), (wave_model, wave)):
        manifest = bundle.manifest
        assert (model.name, model.version, model.digest) == (manifest.name, manifest.version, manifest.digest)
        assert (model.class_names, model.feature_names) == (manifest.model.class_names, manifest.model.feature_names)
        assert (model.percentile, model.coverage) == (manifest.calibration.percentile, manifest.calibration.coverage)
        assert (model.shortfalls, model.draws, model.task) == (
            tuple(texts(manifest.shortfalls)),
            manifest.draws,
            manifest.model.likelihood_functions.task,
        )
        assert model.feature_shape == manifest.model.feature_shape
    assert repr(digits_model).startswith("LoadedModel(digits:1, classification of 10 classes, 20 draws, ")
    assert repr(wave_model).startswith("LoadedModel(wave:1, regression, 30 draws, ")


def test_predictions_are_frozen_and_readable(digits_model, wave_model):
    """No field can be replaced; `repr` shows the first rows, and how many are left."""
    answers = digits_model.predict(IMAGES[:7])
    with pytest.raises(dataclasses.FrozenInstanceError):
        answers.reject = answers.reject
    with pytest.raises(TypeError):
        answers.scores["std"] = answers.scores["std"]
    head, names, *rows, left = repr(answers).splitlines()
    assert head.startswith("ClassificationPredictions: digits:1, ")
    assert head.endswith(f"{answers.reject.sum()} of 7 rows rejected at the 99th percentile")
    assert names.split() == ["row", "label", "probability", "p_value", "reject", "reasons"]
    assert [row.split()[1] for row in rows] == answers.label[:5].tolist()
    assert left == "  … and 2 more"
    assert "interval" in repr(wave_model.predict([[0.5]])).splitlines()[1]


# ---- what is refused -------------------------------------------------------------------------------------------------

ROW = [0.0] * 64


@pytest.mark.parametrize(
    "rows",
    [
        [],
        "rows",
        [ROW[1:]],
        [ROW, [*ROW[1:], None]],
        [[True, *ROW[1:]]],
        [["1", *ROW[1:]]],
        [[1e39, *ROW[1:]]],
        [[10**400, *ROW[1:]]],
        [ROW, 3],
        [[ROW[:8]] * 7],
        [[{}, *ROW[1:]]],
    ],
)
def test_a_wrong_row_has_the_error_of_the_server(digits_model, server, rows):
    """The same text, which names the row and the feature."""
    assert refusal(digits_model.predict, rows) == answer(server, rows, "digits@stable")["error"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (np.full((3, 64), np.nan), "inputs[0][0]: expected a finite number within float32's range, found nan"),
        (np.ma.array(np.ones((1, 64)), mask=np.eye(1, 64)), "inputs[0][0]: expected a number, found null"),
        (np.ones((2, 63)), "inputs[0]: expected 64 numbers, found 63"),
        (np.ones(64), "inputs[0]: expected a list of 64 numbers, found the number 1.0"),
        (np.ones((0, 64)), "inputs: expected at least one row, found none"),
        (np.float64(3), "inputs: expected a list of rows, found the number 3.0"),
        (np.ones((1, 64), bool), "inputs[0][0]: expected a number, found true"),
        (np.ones((1, 64), complex), "inputs[0][0]: expected a number, found a value of type complex"),
        (np.array([["a"] * 64]), "inputs[0][0]: expected a number, found the string 'a'"),
        ({"a": 1}, "inputs: expected a list of rows, found an object"),
        (iter([ROW]), "inputs: expected a list of rows, found a value of type list_iterator"),
        (None, "inputs: expected a list of rows, found null"),
    ],
)
def test_a_wrong_array_is_refused(digits_model, rows, expected):
    """What has no form in JSON is refused in the same words."""
    with pytest.raises(abstain.InputError) as caught:
        digits_model.predict(rows)
    assert str(caught.value) == expected


def test_a_list_within_itself_is_refused(digits_model):
    """No walk through it goes on for ever."""
    rows: list = []
    rows.append(rows)
    assert "inputs[0]" in refusal(digits_model.predict, rows)


@pytest.mark.parametrize(
    "terms", [{"percentile": 0}, {"percentile": 100}, {"percentile": True}, {"coverage": 1}, {"coverage": "a"}]
)
def test_wrong_parameters_have_the_error_of_the_server(digits_model, server, terms):
    """A percentile or a coverage out of its range, or no number."""
    assert refusal(digits_model.predict, [ROW], **terms) == answer(server, [ROW], "digits", **terms)["error"]


def test_a_percentile_beyond_the_calibration_rows_is_refused(digits_model, server):
    """`CalibrationError`, with the number of rows that it needs; a number of numpy is a number."""
    with pytest.raises(abstain.CalibrationError) as caught:
        digits_model.predict([ROW], percentile=np.float32(99.9375))
    assert str(caught.value) == answer(server, [ROW], "digits", percentile=99.9375)["error"]


def test_what_is_not_in_the_store_is_refused(store, tmp_path):
    """A model, a version, a label; and a damaged file, by its name."""
    for text in ("letters", "digits:7", "digits@canary", "digits:one"):
        with pytest.raises(abstain.UnknownModel):
            abstain.load(text, store=store)
    copy = shutil.copytree(store / "wave", tmp_path / "wave")
    (copy / "1" / "report.html").write_text("altered")
    with pytest.raises(abstain.BundleError, match=r"report\.html"):
        abstain.load("wave", store=tmp_path)


def test_only_signed_versions_where_keys_are_trusted(store, tmp_path, monkeypatch):
    """Keys that are given, or named by `ABSTAIN_TRUSTED_KEYS`; an empty list is neither, and is refused."""
    check_library("this test")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    encoded = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    key = tmp_path / "key.pem"
    key.write_bytes(encoded)
    for given in (key, str(key), [key]):
        with pytest.raises(abstain.SignatureError):
            abstain.load("wave", store=store, trusted_keys=given)
    with pytest.raises(abstain.ConfigError, match="trusted_keys: expected at least one public key"):
        abstain.load("wave", store=store, trusted_keys=[])
    monkeypatch.setenv("ABSTAIN_TRUSTED_KEYS", str(key))
    with pytest.raises(abstain.SignatureError):
        abstain.load("wave", store=store)


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_to_pandas_has_the_columns_of_the_file(digits_model, wave_model, run, store, tmp_path):
    """Those that `abstain predict` writes, with the same values, and the decision's p-value."""
    pandas = pytest.importorskip("pandas")
    for model, rows in ((digits_model, IMAGES[:20]), (wave_model, POINTS)):
        np.savez(tmp_path / "rows.npz", x=rows)
        out = tmp_path / f"{model.name}.parquet"
        code, _, err = run("predict", model.name, "--data", tmp_path / "rows.npz", "--out", out, "--store", store)
        assert code == 0, err
        written, frame = pandas.read_parquet(out), model.predict(rows).to_pandas()
        assert [name for name in frame.columns if name != "p_value"] == list(written.columns)
        for name in written.columns:
            assert frame[name].tolist() == written[name].tolist(), name


def test_to_pandas_names_columns_by_class(digits_model):
    """As `abstain predict` does; by position if two classes have one name."""
    pytest.importorskip("pandas")
    found = digits_model.predict(IMAGES[:2])
    names = tuple("abcdefghij")
    frame = dataclasses.replace(found, class_names=names).to_pandas()
    np.testing.assert_array_equal(frame[[f"probabilities.{name}" for name in names]], found.probabilities)
    np.testing.assert_array_equal(frame[[f"std.{name}" for name in names]], found.std)
    assert "probabilities.9" in dataclasses.replace(found, class_names=(*names[:9], "a")).to_pandas()


def test_a_data_frame_is_read_by_the_names_of_its_columns():
    """Columns in another order and more of them, categories as text, gaps; the frame's index is no column."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"note": ["a", "b", "c"], "town": ["Ulm", "Bonn", None], "age": [31, None, 40]}, index=[7, 8, 9]
    )
    expected = [[31.0, 1.0], [None, 0.0], [40.0, None]]
    for given in (frame, frame.astype({"town": "category"}), pa.Table.from_pandas(frame)):
        rows = rows_of(given, TABLE)
        assert [[None if np.isnan(cell) else cell for cell in row] for row in rows.tolist()] == expected
        assert rows.dtype == np.float32


def test_records_are_rows_as_those_of_a_frame():
    """Dicts with the columns' names; None, NaN and NaT are missing values, and numpy's scalars are numbers and text."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"town": ["Ulm", None, "Bonn"], "age": [31, 2.5, None]})
    records = [
        {"town": np.str_("Ulm"), "age": np.int64(31)},
        {"age": np.float32(2.5), "town": None},
        {"town": "Bonn", "age": np.nan},
    ]
    for given in (records, tuple(records), frame.to_dict("records")):
        np.testing.assert_array_equal(rows_of(given, TABLE), rows_of(frame, TABLE))
    assert refusal(rows_of, [records[0], {"age": 31}], TABLE).startswith(
        "records[1]: columns are missing: expected town, found age; send null for a missing value"
    )
    assert refusal(rows_of, [{"age": "31", "town": "Ulm"}], TABLE).startswith(
        "records[0].age: expected a number, or null"
    )
    assert refusal(rows_of, [records[0], [31, 1]], TABLE).startswith(
        "records[1]: expected an object with a key for each"
    )


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"age": [31]}, "DataFrame: columns are missing: expected town, found age"),
        ({"age": [31], "town": ["Köln"]}, "row 0: column 'town' holds a category the model was not trained on"),
        ({"age": ["old"], "town": ["Ulm"]}, "DataFrame, row 0: column 'age' must be numeric: expected a number"),
        ({"age": [1e39], "town": ["Ulm"]}, "row 0: column 'age': expected a number within float32's range"),
        ({"age": [object()], "town": ["Ulm"]}, "DataFrame: cannot be read: expected columns of numbers or text"),
        ({"age": [], "town": []}, "DataFrame: rows: expected at least one row and one column, found 0 rows"),
        ({}, "DataFrame: rows: expected at least one row and one column, found 0 rows of 0 columns"),
    ],
)
def test_a_wrong_data_frame_is_refused_by_its_column(columns, expected):
    """A `DataError`, with the column, the row and what belongs there."""
    pandas = pytest.importorskip("pandas")
    with pytest.raises(abstain.DataError) as caught:
        rows_of(pandas.DataFrame(columns), TABLE)
    assert expected in str(caught.value)


def test_two_columns_of_one_name_are_refused():
    """A DataFrame may have them; which of the two is meant, nobody can know."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([[1, 2, "Ulm"]], columns=["age", "age", "town"])
    assert "column 'age': expected one column of that name, found 2" in refusal(rows_of, frame, TABLE)


def test_a_series_is_no_table(digits_model):
    """One column is not a list of rows."""
    pandas = pytest.importorskip("pandas")
    assert "inputs[0]: expected a list of 64 numbers" in refusal(digits_model.predict, pandas.Series([1.0, 2.0]))


def test_predictions_of_a_data_frame_have_its_index(digits_model):
    """So that they can be joined to the frame; a model of pixels takes the columns in their order."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(IMAGES[:5].reshape(5, -1), index=list("abcde")).iloc[::-1]
    answers = digits_model.predict(frame)
    np.testing.assert_array_equal(answers.probabilities, digits_model.predict(IMAGES[4::-1]).probabilities)
    joined = frame.join(answers.to_pandas())
    assert joined["label"].tolist() == answers.label.tolist()
    assert joined.index.tolist() == list("edcba")


def test_without_pandas_to_pandas_says_what_to_install(wave_model, monkeypatch):
    """And everything else works."""
    answers = wave_model.predict([[0.5]])
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert refusal(answers.to_pandas) == (
        "to_pandas needs a package that is not installed: found no pandas; pip install pandas"
    )
    assert len(wave_model.predict([[0.5]])) == 1


# ---- fit -------------------------------------------------------------------------------------------------------------


def test_a_fit_from_python_is_published(tmp_path):
    """The record names what was published, and where; progress is reported; the model can be loaded and predicts."""
    x = np.random.default_rng(2).normal(size=(400, 2))
    np.savez(tmp_path / "rows.npz", x=x, y=x @ [1.0, -2.0] + 0.1 * x[:, 0] ** 2)
    config = {
        "name": "plane",
        "likelihood": "normal",
        "draws": 4,
        "network": {"kind": "mlp", "hidden": [4]},
        "method": {"kind": "vi", "steps": 500},
        "calibration": {"percentile": 95.0},
    }
    reports: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, passage: str = "", **facts: float) -> None:
        reports.append((done, total, passage))

    store = tmp_path / "store"
    result = abstain.fit(config, overrides=["steps=60"], data=tmp_path / "rows.npz", store=store, progress=progress)
    assert (result.name, result.version, result.reference) == ("plane", 1, "plane:1")
    assert result.path == store / "plane" / "1"
    assert (result.path / "report.html").is_file()
    assert result.metrics["rmse"] > 0
    assert repr(result).startswith("FitResult(plane:1, ")
    assert (reports[0][1:], reports[-1]) == ((60, "vi"), (1, 1, "report and bundle"))
    model = abstain.load(result.reference, store=store)
    assert (model.shortfalls, model.draws, model.percentile) == (result.shortfalls, 4, 95.0)
    assert len(model.predict(x[:8])) == 8


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_dict_is_the_config_that_a_file_with_its_tables_is(path):
    """Also the dict that a `Config` writes of itself; overrides change a copy."""
    import tomllib

    content = tomllib.loads(path.read_text("utf-8"))
    config = read_config(path)
    assert config_from_dict(content) == config
    assert config_from_dict(config.model_dump()) == config
    assert config_from_dict(content, ("seed=5",)) == config.model_copy(update={"seed": 5})
    assert content == tomllib.loads(path.read_text("utf-8"))


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ("none.toml", (), "none.toml: cannot be read: found No such file or directory"),
        ({"name": "a", "stpes": 1}, (), "config: unknown key 'stpes': expected one of calibration, data"),
        ({"name": "a", "draws": "many"}, (), "config: draws: expected a valid integer, found 'many'"),
        ({"name": "a"}, ["stpes=1"], "--set stpes: expected a key of the config"),
        ({"name": "a"}, "draws=0", "config with 'draws=0': draws: expected a number greater than 0, found 0"),
        ({"name": "a", "seed": 2**70}, (), "config: seed: expected a whole number below"),
        ({"name": "a"}, (), "data.source: expected a path or an embedded set, found nothing"),
        (Config(name="a"), (), "data.source: expected a path or an embedded set, found nothing"),
    ],
)
def test_a_wrong_config_is_refused(config, overrides, expected, tmp_path):
    """By a file's path, a dict and a `Config`: the key, what was expected and what was found."""
    with pytest.raises(abstain.ConfigError) as caught:
        abstain.fit(config, overrides=overrides, store=tmp_path, progress=False)
    assert str(caught.value).startswith(expected)


def test_a_fit_allows_the_network_of_its_config(tmp_path, monkeypatch):
    """The config's author chose the code; the environment allows another module, and does not change."""
    from abstain.models.networks import allowed

    monkeypatch.setenv(allowed.MODULES, "others.net:Net")
    config = {"name": "own", "data": {"source": "digits"}, "network": {"kind": "module", "module": "nowhere.net:Net"}}
    text = refusal(abstain.fit, config, store=tmp_path, progress=False)
    assert "module 'nowhere.net' cannot be found" in text
    assert os.environ[allowed.MODULES] == "others.net:Net"


def test_without_trainings_packages_fit_says_what_to_install():
    """Where a package is missing, and where the whole stage is, as in a Bento; loading works."""
    for missing in ("numpyro", "abstain.training"):
        code = f"""
import sys
sys.modules[{missing!r}] = None
import abstain
try:
    abstain.fit("config.toml")
except abstain.ConfigError as error:
    print(error)
print(abstain.load.__name__)
"""
        done = run_python(code)
        assert done.returncode == 0, done.stderr
        error, loads = done.stdout.splitlines()
        assert error.startswith("abstain.fit needs")
        assert error.endswith("; pip install 'abstain[training]'")
        assert missing.removeprefix("abstain.") in error
        assert loads == "load"


# ---- what is imported, and what a type checker sees ------------------------------------------------------------------


def test_to_import_the_package_imports_nothing_else(store):
    """An environment that is set after `import abstain` counts for JAX; predictions need no web server and no training."""
    code = """
import os, sys
import abstain
heavy = ("jax", "numpy", "prometheus_client", "bentoml", "starlette", "pandas", "numpyro", "optax", "pydantic")
print(sorted({name.partition(".")[0] for name in sys.modules} & set(heavy)), [n for n in sys.modules if "abstain." in n])
assert set(abstain.__all__) <= set(dir(abstain))
abstain.AbstainError
print(sorted(set(sys.modules) & set(heavy)))
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_ENABLE_X64"] = "0"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
model = abstain.load("wave", store=os.environ["STORE"])
print(len(model.predict([[0.5]])), sys.modules["jax"].config.jax_default_matmul_precision)
print(sorted({name.partition(".")[0] for name in sys.modules} & (set(heavy) - {"jax", "numpy", "pydantic"})))
"""
    done = run_python(code, STORE=str(store))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[] []", "[]", "1 highest", "[]"]


def test_every_public_name_is_there():
    """Each name of `__all__` is imported when first used; every error is an `AbstainError`; another name raises AttributeError."""
    for name in abstain.__all__:
        assert getattr(abstain, name) is not None
    from abstain.models import errors

    ours = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert ours <= set(abstain.__all__)
    with pytest.raises(AttributeError, match="module 'abstain' has no attribute 'nonsense'"):
        _ = abstain.nonsense


SNIPPET = """
from pathlib import Path
import abstain
reveal_type(abstain.__version__)
model = abstain.load("digits@stable", store=Path("artifacts"))
reveal_type(model)
answers = model.predict([[0.0, 1.0]], percentile=95)
reveal_type(answers)
reveal_type(answers.reject)
reveal_type(answers.scores["std"].p_value)
if isinstance(answers, abstain.ClassificationPredictions):
    reveal_type(answers.probabilities)
else:
    reveal_type(answers.interval)
reveal_type(abstain.fit("a.toml", overrides=["draws=5"], progress=False).shortfalls)
abstain.fit({"name": "a"}, progress=lambda done, total, passage="", **facts: None)
try:
    pass
except abstain.UnknownModel as error:
    reveal_type(error)
abstain.nonsense
model.predict(5)
"""


def test_a_type_checker_knows_the_interface():
    """What pyright, strict, reveals of a user's program; a misspelt name and a wrong argument are errors."""
    pyright = Path(sys.executable).with_name("pyright")
    if not pyright.exists():
        pytest.skip("pyright is not installed here")
    program = PROJECT / "tests" / "abstain" / "_snippet.py"
    program.write_text(SNIPPET)
    try:
        done = subprocess.run(
            [pyright, "--outputjson", str(program)],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
    finally:
        program.unlink()
    found = json.loads(done.stdout)["generalDiagnostics"]
    revealed = [
        entry["message"].split('" is "')[1].rstrip('"') for entry in found if entry["severity"] == "information"
    ]
    assert revealed == [
        "str",
        "LoadedModel",
        "ClassificationPredictions | RegressionPredictions",
        *["ndarray[tuple[Any, ...], dtype[Any]]"] * 4,
        "tuple[str, ...]",
        "UnknownModel",
    ]
    errors = [(entry["range"]["start"]["line"], entry["rule"]) for entry in found if entry["severity"] == "error"]
    lines = SNIPPET.splitlines()
    assert [(lines[line], rule) for line, rule in errors if rule != "reportUnusedExpression"] == [
        ("abstain.nonsense", "reportAttributeAccessIssue"),
        ("model.predict(5)", "reportArgumentType"),
    ]
