"""Categories that the training part lacks, from the config to answers: fitted, rejected, said and counted at every door."""

import io
import json
import math

import numpy as np
import orjson
import pandas
import pyarrow
import pyarrow.csv
import pyarrow.ipc
import pytest

import abstain
from abstain.models.bundles.bundle import load
from abstain.models.bundles.manifest import Manifest
from abstain.models.bundles.trained_rows import read_trained
from abstain.models.decisions.judging import judge
from abstain.models.errors import ConfigError, DataError, InputError
from abstain.service.batches import Answer, Share
from abstain.service.live import Live
from abstain.service.monitoring import metrics
from abstain.service.predict.request import parse_predict, rows_of_request, texts_of_request
from abstain.service.predict.routes import ParsedRequest, encode_response
from abstain.service.predict.table_bodies import ARROW, CSV, rows_of_body
from abstain.service.python_rows import rows_of, unseen_texts_of
from abstain.service.rollouts.routing import Choice
from abstain.service.rows import check_rows
from abstain.training import publish
from abstain.training.calibrate import choose_inputs, read_calibration_rows, update_manifest
from abstain.training.calibration.pipeline import calibrate_posterior
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.config.config import recorded_settings
from abstain.training.config.data import DataConfig
from abstain.training.config.reading import config_from_dict, read_config
from abstain.training.data.sources import read_inputs
from abstain.training.evaluate import evaluate_version
from abstain.training.fit import fit, load_dataset
from tests.helpers.fits import silent

ROWS = 400
CONFIG = """
name = "colours"
draws = 20
[data]
source = "{source}"
target = "y"
categorical = ["c", "d"]
time = "t"
[network]
kind = "mlp"
hidden = [8]
[method]
kind = "vi"
steps = 200
batch_size = 64
reports = 2
[calibration]
percentile = 90.0
"""


def table(rows=ROWS, seed=0):
    """Rows in the order of time: the last fifth is the test part, a fifth of the others before it the calibration part."""
    rng = np.random.default_rng(seed)
    a, c = rng.normal(size=rows), rng.choice(["red", "blue"], rows)
    noise = rng.normal(scale=0.3, size=rows)
    y = np.where(a + (c == "red") + noise > 0, "yes", "no")
    return pandas.DataFrame({"t": np.arange(rows), "a": a, "c": c, "d": rng.choice(["x", "y", "z"], rows), "y": y})


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A store with a model whose training part lacks two colours: `teal` of 2 calibration rows, `green` of 3 test rows."""
    folder = tmp_path_factory.mktemp("colours")
    frame = table()
    frame.loc[[260, 300], "c"] = "teal"
    frame.loc[[330, 350, 370], "c"] = "green"
    frame.to_csv(folder / "colours.csv", index=False)
    (folder / "colours.toml").write_text(CONFIG.format(source=folder / "colours.csv"))
    with pytest.MonkeyPatch.context() as patch:
        # The report, most of the time of this fit, says nothing of its own about categories.
        patch.setattr(publish, "write_report", lambda *_: ())
        fit(read_config(folder / "colours.toml"), None, folder / "store", silent)
    return folder


@pytest.fixture(scope="module")
def bundle(colours):
    """The version that the fit published."""
    return load(colours / "store" / "colours" / "1")


@pytest.fixture(scope="module")
def live(bundle):
    """The version as a server has it."""
    return Live("colours", 1, bundle, bundle.predictor((8,)))


def test_the_categories_are_those_of_the_training_part(colours, bundle):
    """The others are named in a note; calibration rows with one are counted, and the expected rate is the stated one."""
    column = bundle.manifest.model.preprocessing.columns[1]
    assert (column.categories, column.unseen) == (("blue", "red"), "reject")
    note = next(note for note in bundle.manifest.notes if note.startswith("c: "))
    assert "2 calibration rows and 3 test rows" in note
    assert "'green' (3), 'teal' (2); the model rejects them" in note
    record = bundle.manifest.calibration
    assert (record.unseen_rows, record.rows) == (2, 64)
    assert record.expected_reject_rate == pytest.approx(0.1)
    assert record.thresholds["unseen"] == 0
    assert not any("more rows than stated" in note for note in bundle.manifest.notes)
    assert "unseen" not in bundle.manifest.data.settings


def test_one_row_of_a_file_is_rejected_with_its_reason_and_the_others_are_answered_as_ever(colours, run):
    """As in alibi-detect #193, where one unseen category in 150 rows failed the whole file."""
    frame = table(150, seed=1)
    frame.loc[77, ["c", "d"]] = ["green", "=w"]
    answers = []
    for name, rows in (
        ("with", frame),
        ("without", frame.assign(c=frame["c"].replace("green", "red"), d=table(150, seed=1)["d"])),
    ):
        rows.to_csv(colours / f"{name}.csv", index=False)
        code, _, errors = run(
            "predict", "colours", "--data", colours / f"{name}.csv", "--out", colours / f"{name}.jsonl",
            "--store", colours / "store",
        )  # fmt: skip
        assert code == 0, errors
        answers.append([json.loads(line) for line in (colours / f"{name}.jsonl").read_text().splitlines()])
    unseen, known = answers
    row = unseen.pop(77)
    assert unseen == [answer for index, answer in enumerate(known) if index != 77]
    assert row["reject"]
    assert row["reasons"][:2] == ["c: 'green' was not in training", "d: '=w' was not in training"]
    assert row["scores"]["unseen"]["value"] == 2
    assert row["scores"]["combined"]["p_value"] == pytest.approx(3 / 65)
    assert not any("training" in reason for answer in unseen for reason in answer["reasons"])


def test_a_frame_has_the_same_answers(colours):
    """Arrays hold codes, of which −1 is none."""
    model = abstain.load("colours", store=colours / "store")
    frame = table(5, seed=2)
    frame.loc[3, "c"] = "green"
    predictions = model.predict(frame)
    assert predictions.reasons[3][0] == "c: 'green' was not in training"
    assert predictions.reject[3]
    np.testing.assert_array_equal(predictions.scores["unseen"].value, [0, 0, 0, 1, 0])
    assert predictions.to_pandas()["reasons"][3].startswith("c: 'green' was not in training")
    with pytest.raises(InputError, match=r"\(c\).*a category's code \(0 = blue, 1 = red\), found -1"):
        model.predict([[0.5, -1, 0]])


def test_a_request_names_the_category_if_it_has_its_text(live):
    """A row without a text has the general reason; other rows of a request do not change by a bit."""
    body = b'{"inputs": [[0.1, 0, 1], [0.2, 1, 2], [0.3, 0, 0]]}'
    request = parse_predict(body, 10)
    model = live.bundle.manifest.model
    seen = check_rows(request.inputs, request.plain, model, 10)
    unseen = seen.copy()
    unseen[1, 1] = -1

    def answer(rows, texts):
        prediction = live.predictor(rows)
        decided = Answer(live, prediction, judge(live.bundle.calibration, prediction))
        metrics.record_unseen(live.name, live.version, model, prediction)
        parsed = ParsedRequest(
            Choice(live), rows, request, ("label", "probabilities", "reject", "reasons", "scores"), texts
        )
        return json.loads(encode_response(parsed, "id", [Share(decided, slice(0, 3))]))["predictions"]

    known, unnamed, named = answer(seen, {}), answer(unseen, {}), answer(unseen, {(1, 1): "JP"})
    assert unnamed[1]["reasons"][0] == "c: a category that was not in training"
    assert named[1]["reasons"][0] == "c: 'JP' was not in training"
    for rows in (unnamed, named):
        assert rows[1]["reject"]
        assert [rows[0], rows[2]] == [known[0], known[2]]
    assert 'abstain_unseen_total{column="c",model="colours",version="1"} 2.0' in metrics.exposition().decode()
    with pytest.raises(InputError, match="found -1"):
        check_rows([[0.1, -1, 1]], True, model, 10)


def test_every_form_of_a_request_with_names_has_the_category(live):
    """Records, lists, a CSV body, an Arrow stream, and records in Python."""
    model = live.bundle.manifest.model
    rows = [{"d": "x", "c": color, "a": 0.5} for color in ("red", "JP", None)]
    table = pyarrow.Table.from_pylist(rows)
    csv, arrow = io.BytesIO(), io.BytesIO()
    pyarrow.csv.write_csv(table, csv)
    with pyarrow.ipc.new_stream(arrow, table.schema) as stream:
        stream.write_table(table)
    forms = [{"records": rows}, {"columns": ["d", "c", "a"], "data": [list(row.values()) for row in rows]}]
    requests = [parse_predict(orjson.dumps(form), 10) for form in forms]
    found = [rows_of_request(request, model, 10) for request in requests]
    texts = [texts_of_request(request, model, x) for request, x in zip(requests, found, strict=True)]
    for body, kind in ((csv, CSV), (arrow, ARROW)):
        x, own = rows_of_body(body.getvalue(), kind, model, 10)
        found.append(x)
        texts.append(own)
    found.append(rows_of(rows, model))
    texts.append(unseen_texts_of(rows, model, found[-1]))
    for x, own in zip(found, texts, strict=True):
        np.testing.assert_array_equal(x, np.float32([[0.5, 1, 0], [0.5, -1, 0], [0.5, np.nan, 0]]))
        assert own == {(1, 1): "JP"}


def test_the_network_sees_none_of_the_categories(live):
    """The block of the column is all zeros, so every known category has another prediction."""
    rows = np.float32([[0.1, code, 0] for code in (-1, 0, 1)])
    means = np.asarray(live.predictor(rows).summary.mean)
    assert len(np.unique(means[:, 0])) == 3
    assert np.isfinite(means).all()


def test_evaluate_counts_the_rows_by_column_and_finds_the_test_part_again(colours):
    """Also an OOD set whose rows all have an unseen category, which is detected completely."""
    strange = table(20, seed=3).assign(c="green")
    strange.to_csv(colours / "strange.csv", index=False)
    result = evaluate_version(
        colours / "store", "colours", str(colours / "colours.csv"), None, {"green": str(colours / "strange.csv")}
    )
    assert result.rows == ROWS // 5
    assert result.to_json()["unseen"] == {"c": 3}
    assert any("80 rows" in note and "3 in c" in note for note in result.notes)
    assert result.ood["green"].decision.detected.share == 1
    assert result.ood["green"].decision.separation.auroc > 0.9


def test_a_calibration_on_more_unseen_rows_than_the_rate_says_so(colours, bundle):
    """A fifth of the new rows is unseen: all of them are rejected, no other row is, and nothing is hidden."""
    rows = table(200, seed=4)
    rows.loc[:39, "c"] = "green"
    rows.to_csv(colours / "new.csv", index=False)
    settings = bundle.manifest.calibration.settings
    config = CalibrationConfig.model_validate(settings)
    trained = read_trained(colours / "store" / "colours" / "1", bundle.manifest.files)
    material = read_calibration_rows(bundle.manifest, str(colours / "new.csv"), trained)
    basis = choose_inputs(bundle, config, material, "new.csv")
    calibrated = calibrate_posterior(
        config, bundle.posterior, basis.feature_scores, basis.calibration, basis.reference, 0
    )
    new = update_manifest(bundle, calibrated, config, material, "colours:1", None)
    record = new.calibration
    assert (record.unseen_rows, record.expected_reject_rate) == (40, pytest.approx(0.2))
    assert Manifest.model_validate_json(new.model_dump_json()).calibration == record
    low, high = record.reject_rate_bounds
    assert low < 0.2 < high
    note = next(note for note in new.notes if note.startswith("it rejects more rows than stated"))
    assert "about 20.00%, not 10.00%, because 40 of 200 calibration rows" in note
    x = np.array([[value, code, 0] for value in np.linspace(-2, 2, 5) for code in (-1, 0)])
    judgement = judge(calibrated.calibration, calibrated.predictor(x))
    np.testing.assert_array_equal(judgement.reject, x[:, 1] == -1)


@pytest.mark.parametrize(
    ("unseen", "found"),
    [("missing", math.nan), ("reject", -1.0), ({"c": "missing"}, math.nan), ({"d": "missing"}, -1.0)],
)
def test_a_column_can_count_them_as_gaps(colours, unseen, found):
    """The setting of the column, or of all columns; what is not the default is recorded."""
    config = read_config(colours / "colours.toml")
    config = config.model_copy(update={"data": DataConfig(**config.data.model_dump(exclude={"unseen"}), unseen=unseen)})
    dataset = load_dataset(config, None)
    assert set(np.unique(dataset.train.x[:, 1])) == {0, 1}
    for part, rows in ((dataset.calibration, 2), (dataset.test, 3)):
        np.testing.assert_array_equal(part.x[~np.isin(part.x[:, 1], [0, 1]), 1], [found] * rows)
    assert recorded_settings(config)["data"].get("unseen", "reject") == unseen


def test_a_column_can_refuse_them(colours, bundle):
    """At the fit and, as in earlier versions, in every file."""
    with pytest.raises(DataError, match=r"'c'.*'green' \(3\), 'teal' \(2\).*set data.unseen to"):
        load_dataset(read_config(colours / "colours.toml", ("unseen=refuse",)), None)
    model = bundle.manifest.model
    columns = tuple(column.model_copy(update={"unseen": "refuse"}) for column in model.preprocessing.columns)
    earlier = model.model_copy(update={"preprocessing": model.preprocessing.model_copy(update={"columns": columns})})
    with pytest.raises(DataError, match="holds a category the model was not trained on"):
        read_inputs(str(colours / "colours.csv"), earlier)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("unseen=keep", '"reject", "missing" or "refuse", or one of these by column'),
        ('unseen={c="keep"}', '"reject", "missing" or "refuse", or one of these by column'),
        ("unseen={}", '"reject", "missing" or "refuse", or one of these by column'),
        ('unseen={e="missing"}', "columns of categories: c, d, found e"),
        ('unseen={a="missing"}', "columns of categories: c, d, found a"),
    ],
)
def test_settings_without_effect_are_refused(colours, override, message):
    """A word that is none, a table without columns, a column without categories."""
    with pytest.raises(ConfigError) as refused:
        load_dataset(read_config(colours / "colours.toml", (override,)), None)
    assert message in str(refused.value)


def test_the_data_without_categories_has_no_such_setting():
    """Nor do arrays."""
    with pytest.raises(ConfigError, match=r"data\.unseen"):
        load_dataset(config_from_dict({"name": "digits", "data": {"source": "digits", "unseen": "missing"}}), None)
