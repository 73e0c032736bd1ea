"""`abstain init`: the configs that it writes are fitted as they are, and say why; what cannot give a model is refused."""

import csv
import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from abstain.models.bundles.bundle import load
from abstain.models.errors import ConfigError, DataError
from abstain.training.calibration.pipeline import check_calibration_settings
from abstain.training.config.reading import read_config
from abstain.training.fit import build_model, build_problem, fit, load_dataset
from abstain.training.initialize import initialize, summary_lines
from tests.helpers.fits import silent

RNG = np.random.default_rng(0)
NAMES = [
    "a.b",
    'the "best"',
    "it's",
    "länge ↑",
    "back\\slash",
    "[data]",
    "# no",
    "tab\there",
    "{x}",
    "a,b",
    "new\nline",
]


def write(path: Path, columns: dict) -> Path:
    """Writes columns as a CSV; None is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def days(rows: int, start: str = "2020-01-01") -> list[str]:
    """Consecutive days."""
    first = datetime.date.fromisoformat(start)
    return [str(first + datetime.timedelta(days=day)) for day in range(rows)]


def numbers(rows: int) -> list[float]:
    """Normal numbers of three digits."""
    return RNG.normal(size=rows).round(3).tolist()


def words(rows: int, of: str = "red green blue") -> list[str]:
    """Words at random."""
    return RNG.choice(of.split(), rows).tolist()


def with_gaps(values: list, every: int = 7) -> list:
    """The values with gaps."""
    return [None if row % every == 3 else value for row, value in enumerate(values)]


def noisy(values: list[float]) -> list[float]:
    """A number that depends on another one."""
    return (np.array(values) + RNG.normal(size=len(values))).round(3).tolist()


def tables() -> dict[str, dict]:
    """Tables of many shapes, each with the target `y`."""
    x = {rows: numbers(rows) for rows in (30, 40, 119, 120, 200, 499, 500, 799, 2_000)}
    sizes = {f"{rows} rows": {"x": x[rows], "z": numbers(rows), "y": noisy(x[rows])} for rows in x}
    n = 600
    classes = ["good" if value > 0 else "poor" for value in noisy(numbers(n))]
    return sizes | {
        "one feature": {"x": x[200], "y": noisy(x[200])},
        "categories alone": {"a": words(n), "b": words(n, "yes no"), "y": words(n, "one two three")},
        "dates and gaps": {
            "day": days(n),
            "x": with_gaps(numbers(n)),
            "colour": with_gaps(words(n)),
            "y": classes,
        },
        "booleans": {
            "b": words(n, "True False"),
            "c": words(n, "true false"),
            "x": numbers(n),
            "y": words(n, "True False"),
        },
        "ids and constants": {
            "": range(n),
            "rowid": range(1, n + 1),
            "uuid": [f"{row:x}-{row * 7919 % 1009}" for row in range(n)],
            "notes": [f"text {row // 2}" for row in range(n)],
            "same": ["x"] * n,
            "zero": [0] * n,
            "empty": [None] * n,
            "rarely": [1.5 * row if row % 300 == 0 else None for row in range(n)],
            "x": numbers(n),
            "y": classes,
        },
        "few categories in many rows": {
            "town": words(n, " ".join(f"t{i}" for i in range(100))),
            "x": numbers(n),
            "y": classes,
        },
        "imbalanced": {"x": numbers(n), "y": ["rare"] * 6 + ["rarer"] + ["common"] * (n - 7)},
        "offset": {
            "x": [1.7e9 + value for value in numbers(n)],
            "y": [1.7e9 + 10 * value for value in noisy(numbers(n))],
        },
        "seconds with zero for a gap": {
            "t": [0 if row % 5 == 0 else 1_700_000_000 + row * 37 % 500 for row in range(n)],
            "x": numbers(n),
            "y": noisy(numbers(n)),
        },
        "skewed": {"x": x[2_000], "y": np.exp(noisy(x[2_000])).round(4).tolist()},
        "counts": {"x": numbers(n), "y": RNG.poisson(4, n).tolist()},
        "whole classes": {"x": numbers(n), "y": RNG.choice([10, 20, 30], n).tolist()},
        "groups": {"patient": np.repeat(np.arange(60), 10).tolist(), "x": numbers(n), "y": classes},
        "one large group": {
            "patient": [0] * 400 + np.repeat(np.arange(1, 21), 10).tolist(),
            "x": numbers(n),
            "y": classes,
        },
        "sorted by a feature": {"town": sorted(words(n, "a b c d e f g h i j k l")), "x": numbers(n), "y": classes},
        "names": {name: numbers(n) if index % 2 else words(n) for index, name in enumerate(NAMES)} | {"y": classes},
        "a name of many parts": {".".join("abcdefgh" * 5): words(n), "x": numbers(n), "y": classes},
    }


TABLES = tables()


@pytest.mark.parametrize("shape", TABLES)
def test_the_config_is_accepted_as_it_is(shape, tmp_path, monkeypatch):
    """By the reader of configs, and by all stages of a fit that come before the first step."""
    monkeypatch.chdir(tmp_path)
    write(Path("a table.csv"), TABLES[shape])
    written = initialize(Path("a table.csv"), "y")
    assert written.path == Path("a-table.toml")
    config = read_config(written.path)
    dataset = load_dataset(config, None)
    model = build_model(config, dataset)
    check_calibration_settings(config.calibration, model, dataset.calibration.y)
    build_problem(config, model, dataset)
    assert len(dataset.train) >= 14
    used = {column.name for column in model.preprocessing.columns}
    features = written.proposal.features
    assert used == {*features.numbers, *features.dates, *features.categorical}
    assert used | {*features.drop} | {features.split.column if features.split else "y", "y"} == {*TABLES[shape]}


def proposed(shape: dict, tmp_path: Path, target: str = "y"):
    """The proposal for a table, and the text of its config."""
    written = initialize(write(tmp_path / "table.csv", shape), target, tmp_path / "table.toml", force=True)
    return written.proposal, written.path.read_text("utf-8")


def test_what_cannot_be_a_feature_is_dropped_with_the_reason(tmp_path):
    """Ids, constants and empty columns."""
    proposal, text = proposed(TABLES["ids and constants"], tmp_path)
    assert proposal.features.numbers == ("x",)
    assert proposal.features.drop == {
        "": "an index that a program wrote into the file",
        "rowid": "an id: it numbers the rows",
        "uuid": "an id: every row has another value",
        "notes": "text with 300 different values in 600 rows: too few rows for each",
        "same": "constant: 'x' in all rows",
        "zero": "constant: '0' in all rows",
        "empty": "it has no value",
        "rarely": "only 2 of 600 rows have a value",
    }
    for name, why in proposal.features.drop.items():
        (line,) = [line for line in text.splitlines() if line.strip().startswith(f'"{name}",')]
        assert line.endswith(f"# {why}")


def test_a_column_with_few_values_is_dropped_in_a_small_table_too(tmp_path):
    """Two of 100 rows are no small share, but the training part may have neither; ten values are kept."""
    shape = {
        "x": [(i * 37) % 100 / 7 for i in range(100)],
        "two": [i if i in {33, 73} else None for i in range(100)],
        "nine": ["ab"[i % 2] if i < 9 else None for i in range(100)],
        "ten": ["ab"[i // 2 % 2] if i < 10 else None for i in range(100)],
        "y": ["ab"[i % 2] for i in range(100)],
    }
    proposal, text = proposed(shape, tmp_path)
    assert proposal.features.drop["two"] == "only 2 of 100 rows have a value"
    assert proposal.features.drop["nine"] == "only 9 of 100 rows have a value"
    assert "# only 2 of 100 rows have a value" in text
    assert set(proposal.features.drop) == {"two", "nine"}


def test_a_column_that_float32_cannot_hold_is_dropped(tmp_path):
    """As the fit would refuse it."""
    proposal, _ = proposed(TABLES["seconds with zero for a gap"], tmp_path)
    assert proposal.features.drop["t"].startswith("too fine for float32: ")


def test_leaks_and_copies_are_dropped(tmp_path):
    """A copy of the target in other words, a number computed from it, and a second column that says the same."""
    n = 400
    y = words(n, "lived died")
    kind = words(n)
    table = {
        "alive": ["yes" if value == "lived" else "no" for value in y],
        "code": [(1.5 if value == "lived" else 7.0) for value in y],
        "kind": kind,
        "kind_id": [{"red": 3, "green": 1, "blue": 2}[value] for value in kind],
        "x": numbers(n),
        "y": y,
    }
    proposal, _ = proposed(table, tmp_path)
    assert {name: why.split()[0] for name, why in proposal.features.drop.items()} == {
        "alive": "leak?",
        "code": "leak?",
        "kind_id": "says",
    }
    hours = RNG.uniform(2, 20, n).round(2)
    proposal, _ = proposed({"asleep": hours, "awake": 24 - hours, "x": noisy(hours), "y": hours * 60}, tmp_path)
    assert [*proposal.features.drop] == ["asleep", "awake"]


def test_a_feature_that_tells_the_target_alone_is_kept_if_there_is_no_other(tmp_path):
    """A noiseless function of one number is no leak: there would be nothing to learn from."""
    x = RNG.permutation(np.linspace(-2, 2, 300))
    proposal, text = proposed({"x": x, "y": 3 * x + 1}, tmp_path)
    assert proposal.features.numbers == ("x",)
    assert "# - 'x' tells 'y' almost without error: is it known before?" in text


@pytest.mark.parametrize(
    ("shape", "likelihood"),
    [
        ("booleans", "bernoulli"),
        ("categories alone", "categorical"),
        ("whole classes", "categorical"),
        ("counts", "normal"),
        ("offset", "normal"),
        ("skewed", "heteroscedastic_normal"),
    ],
)
def test_the_likelihood_fits_the_target(shape, likelihood, tmp_path):
    """Two classes, more classes, numbers, and numbers that vary more where they are large."""
    proposal, text = proposed(TABLES[shape], tmp_path)
    assert proposal.task.likelihood == likelihood
    assert f'likelihood = "{likelihood}"' in text
    assert ("looks like a count" in text) == (shape == "counts")


@pytest.mark.parametrize(
    ("rows", "percentile", "calibration"),
    [(30, 90, 10), (119, 90, 24), (120, 95, 30), (499, 95, 100), (500, 99, 120), (799, 99, 120), (2_000, 99, 320)],
)
def test_the_percentile_fits_the_calibration_rows(rows, percentile, calibration, tmp_path):
    """The 99th needs 99 calibration rows, the 95th 19 and the 90th 9."""
    proposal, _ = proposed(TABLES[f"{rows} rows"], tmp_path)
    config = read_config(tmp_path / "table.toml")
    assert config.calibration.percentile == proposal.parts.percentile == percentile
    assert len(load_dataset(config, None).calibration) == calibration


def test_too_few_rows_for_any_percentile_are_refused_with_numbers(tmp_path):
    """29 rows are."""
    table = {"x": numbers(29), "y": numbers(29)}
    with pytest.raises(DataError, match=r"at least 30: 9 calibration rows for the 90th percentile.*found 29"):
        initialize(write(tmp_path / "t.csv", table), "y", tmp_path / "t.toml")
    assert not (tmp_path / "t.toml").exists()


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (["x"] * 60, "target 'y'.*at least two classes.*found the value 'x' in every row"),
        ([None] * 60, "target 'y'.*found only gaps"),
        ([f"name {row}" for row in range(60)], "target 'y'.*text with 60 different values in 60 rows"),
        (days(60), "target 'y'.*found dates"),
    ],
)
def test_a_target_that_cannot_be_predicted_is_refused(column, text, tmp_path):
    """A constant, an empty column, free text and dates."""
    with pytest.raises(DataError, match=text):
        initialize(write(tmp_path / "t.csv", {"x": numbers(60), "y": column}), "y", tmp_path / "t.toml")


def test_a_table_without_a_usable_feature_is_refused_with_the_reasons(tmp_path):
    """It names each column."""
    table = {"id": range(60), "same": [1] * 60, "y": numbers(60)}
    with pytest.raises(
        DataError, match="none that can be used: 'id': an id: it numbers the rows; 'same': constant: '1'"
    ):
        initialize(write(tmp_path / "t.csv", table), "y", tmp_path / "t.toml")


def test_groups_and_times_split_the_rows_where_names_and_values_agree(tmp_path):
    """A group by its name, a time by its dates; rows sorted by an ordinary feature are only a remark."""
    proposal, text = proposed(TABLES["groups"], tmp_path)
    assert proposal.features.split[:2] == ("group", "patient")
    assert "stratify" not in text
    proposal, _ = proposed(TABLES["dates and gaps"], tmp_path)
    assert proposal.features.split[:2] == ("time", "day")
    proposal, text = proposed(TABLES["sorted by a feature"], tmp_path)
    assert proposal.features.split is None
    assert '# group = "town"' in text
    assert "town" in proposal.features.categorical
    assert proposed(TABLES["one large group"], tmp_path)[0].features.split is None


def test_features_that_grow_with_the_time_of_the_split_are_dropped(tmp_path):
    """Later rows would always be outside of their range."""
    n = 600
    table = {"day": days(n), "year": [day[:4] for day in days(n)], "x": numbers(n), "y": numbers(n)}
    assert proposed(table, tmp_path)[0].features.drop == {
        "year": "it rises or falls with 'day': in later rows, it is always outside the range of the training part"
    }


def test_rare_classes_and_repeated_rows_are_named(tmp_path):
    """With their numbers; the class with one row is why the parts are not stratified."""
    proposal, text = proposed(TABLES["imbalanced"], tmp_path)
    assert "# - classes with few rows: rarer (1), rare (6);" in text
    assert not proposal.stratify
    assert "# two classes" not in text
    assert "3 classes: common (593), rare (6), rarer (1)" in text
    x = RNG.permutation(300)
    x = np.append(x, x[:5]) / 7
    _, text = proposed({"x": x, "y": x}, tmp_path)
    assert "# - 5 rows repeat an earlier row" in text


@pytest.mark.parametrize(
    ("counts", "few"),
    [
        ({"a": 20, "b": 19}, ""),
        ({"1": 15, "2": 15, "3": 14}, ""),
        ({"a": 30, "b": 9}, "b (9)"),
        ({"a": 30, "b": 10}, ""),
        ({"a": 60, "b": 21}, ""),
        (dict.fromkeys("abcdefghijklmnopqrst", 2), "t (2)"),
    ],
)
def test_balanced_classes_of_a_small_table_are_not_rare(counts, few, tmp_path):
    """A class is rare beside the others; but one with too few rows for three parts is always named."""
    y = [name for name, count in counts.items() for _ in range(count)]
    notes = proposed({"x": numbers(len(y)), "y": y}, tmp_path)[0].notes
    assert [few in note for note in notes if "few rows" in note] == ([True] if few else [])


def test_counts_stand_apart_from_values_that_are_numbers(tmp_path):
    """The text of each value, and its rows in brackets; the same for gaps."""
    y, room = [2] * 30 + [3] * 30, ["room 7"] * 20 + ["room 8"] * 40
    _, text = proposed({"x": with_gaps(numbers(60)), "room": room, "y": y}, tmp_path)
    assert "two classes: 2 (30), 3 (30)" in text
    assert "# room 8 (40), room 7 (20)" in text
    assert "# gaps, filled with the median: x (9)" in text


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (["a"] * 70 + ["b"] * 30, "the training part has one class only, 'a': nothing can be learned"),
        ((["a", "b"] * 35) + ["c"] * 30, "the training part has no row of 'c', which cannot be learned"),
        (["a", "b"] * 50, None),
    ],
)
def test_a_class_that_the_training_part_lacks_is_named(labels, note, tmp_path):
    """Later rows are of another class; the note names the key that separates them."""
    written = initialize(
        write(tmp_path / "t.csv", {"day": days(100), "x": numbers(100), "y": labels}), "y", tmp_path / "t.toml"
    )
    assert written.proposal.features.split.column == "day"
    found = [text for text in written.proposal.notes if "training part" in text]
    assert found == ([] if note is None else [f"{note}; without time = 'day', rows are split at random"])
    assert all(f"# - {text}" in written.path.read_text() for text in found)
    assert all(f"note: {text}" in summary_lines(written) for text in found)


def test_parquet_types_are_described(tmp_path):
    """Booleans, integers with gaps and lists; the list is dropped with its reason."""
    n = 200
    table = pa.table(
        {
            "flag": RNG.random(n) < 0.5,
            "whole": pa.array([None if row % 9 == 0 else row % 5 for row in range(n)], pa.int64()),
            "list": [[1, 2]] * n,
            "kind": pa.array(words(n)).dictionary_encode(),
            "y": numbers(n),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    proposal = initialize(tmp_path / "t.parquet", "y", tmp_path / "t.toml").proposal
    assert proposal.features.numbers == ("whole",)
    assert [*proposal.features.categorical] == ["flag", "kind"]
    assert [*proposal.features.drop] == ["list"]
    assert proposal.features.drop["list"].startswith("it cannot be read: expected numbers, text, ")
    assert proposal.gaps["whole"] == 23


def test_the_command_lists_the_columns_and_never_replaces_a_config(run, tmp_path, monkeypatch):
    """Without a target, with a misspelt one, and with a config that exists."""
    monkeypatch.chdir(tmp_path)
    write(Path("t.csv"), {"size": numbers(60), "colour": words(60), "y": numbers(60)})
    code, _, err = run("init", "t.csv")
    assert code == 1
    assert "'size' (numbers from -" in err
    assert "'colour' (text, 3 different values)" in err
    assert "did you mean 'colour'?" in run("init", "t.csv", "--target", "color")[2]
    assert run("init", "t.csv", "--target", "y")[:2] == (0, "t.toml\n")
    code, _, err = run("init", "t.csv", "--target", "y")
    assert (code, "--force" in err) == (1, True)
    Path("t.toml").write_text("mine")
    assert run("init", "t.csv", "--target", "y", "--force")[0] == 0
    assert read_config(Path("t.toml")).data.target == "y"
    assert "no table: expected a file that ends in" in run("init", "t.npz", "--target", "y")[2]


SHORTER = ("steps=200", "starts=1", "draws=20", "reports=1")


@pytest.mark.parametrize("shape", ["30 rows", "names"])
def test_a_config_is_fitted(shape, tmp_path):
    """As it stands but for fewer steps: the least number of rows, and names that TOML must quote."""
    proposal, _ = proposed(TABLES[shape], tmp_path)
    config = read_config(tmp_path / "table.toml", SHORTER)
    fit(config, None, tmp_path / "store", silent)
    model = load(tmp_path / "store" / "table" / "1").manifest.model
    assert {*model.feature_names} == {*TABLES[shape]} - {"y", *proposal.features.drop}


def test_a_config_that_exists_is_told_before_the_file_is_read(tmp_path):
    """A missing file of data, and a config that exists."""
    with pytest.raises(DataError, match="cannot be read"):
        initialize(tmp_path / "none.csv", "y", tmp_path / "t.toml")
    (tmp_path / "t.toml").touch()
    path = write(tmp_path / "t.csv", {"x": numbers(60), "y": numbers(60)})
    with pytest.raises(ConfigError, match="--force"):
        initialize(path, "y", tmp_path / "t.toml")
