"""Splitting by groups, times and classes: what no two parts may share, what is refused, and which columns get a hint."""

import datetime

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from abstain.models.errors import ConfigError, DataError
from abstain.training.config.data import DataConfig
from abstain.training.data.dataset import split, split_again
from abstain.training.data.hints import array_hints, class_hints, split_hints
from abstain.training.data.rows import Rows, Source
from abstain.training.data.sources import read_source

RNG = np.random.default_rng(0)
GROUPS = np.repeat([f"p{number}" for number in range(40)], RNG.integers(3, 12, 40))
ROWS = np.arange(float(len(GROUPS)))


def read(path, *, classify=False, **terms):
    """The source in a file."""
    terms = {"target": "t"} | terms if path.suffix != ".npz" else terms
    return read_source(str(path), DataConfig(**terms), classify=classify)


def parts(path, seed=0, *, classify=False, **terms):
    """The three parts' row numbers; rows carry their number as their first feature, which is also the target."""
    terms = {"target": "t"} | terms if path.suffix != ".npz" else terms
    config = DataConfig(**terms)
    source = read(path, classify=classify, **terms)
    dataset = split(source, config, seed)
    again = split_again(source, config, seed, dataset.fingerprint)
    np.testing.assert_array_equal(again.test.x, dataset.test.x)
    return [rows.x[:, 0].astype(int) for rows in (dataset.train, dataset.calibration, dataset.test)]


def as_table(folder, ending=".csv", **columns):
    """A table with these columns, and `row` and `t`, the row's number."""
    numbers = np.arange(float(len(next(iter(columns.values())))))
    table = pa.table({"row": numbers, **columns, "t": numbers})
    path = folder / f"t{ending}"
    (csv.write_csv if ending == ".csv" else parquet.write_table)(table, str(path))
    return path


def as_npz(folder, **arrays):
    """An .npz of these arrays."""
    np.savez(folder / "t.npz", **arrays)
    return folder / "t.npz"


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".npz"])
@pytest.mark.parametrize("sizes", [(0.2, 0.2), (60, 50)])
def test_no_group_is_in_two_parts(tmp_path, ending, sizes):
    """Every row is in one part, all rows of a group in the same; a part has at least its share, less than a group more."""
    path = as_npz(tmp_path, x=ROWS, y=ROWS, who=GROUPS) if ending == ".npz" else as_table(tmp_path, ending, who=GROUPS)
    terms = {"group": "who", "calibration_size": sizes[0], "test_size": sizes[1]}
    found = parts(path, **terms)
    assert sorted(np.concatenate(found)) == list(range(len(GROUPS)))
    groups = [{*GROUPS[part]} for part in found]
    assert sum(map(len, groups)) == 40
    wanted = 50 if isinstance(sizes[1], int) else round(0.2 * len(GROUPS))
    assert wanted <= len(found[2]) < wanted + 12
    again, other = parts(path, **terms), parts(path, 1, **terms)
    assert np.array_equal(found[2], again[2])
    assert not np.array_equal(found[2], other[2])


def test_rows_without_their_group_are_not_those_of_the_fit():
    """The source of a model that was split by group."""
    rows = Rows(np.arange(20.0)[:, None], np.arange(20.0))
    assert split_again(Source("s", rows, None), DataConfig(group="g"), 0, "sha256:any") is None


def test_every_group_is_as_likely_to_be_tested_on_whatever_its_size():
    """Two groups of 90 rows among thirty of 2 rows are drawn first as often as small ones: 2 times in 32."""
    key = np.concatenate([np.repeat([0, 1], 90), np.repeat(np.arange(2, 32), 2)])
    rows = Rows(np.arange(float(len(key)))[:, None], np.arange(float(len(key))))
    source = Source("s", rows, None, key=key)
    config = DataConfig(group="g", test_size=1, calibration_size=1)
    small = sum(len(split(source, config, seed).test) == 2 for seed in range(400))
    # Binomial(400, 30/32): mean 375, standard deviation 4.8; five of them.
    assert 351 <= small <= 399


@pytest.mark.parametrize("kind", ["year", "epoch", "date", "datetime", "offset", "timestamp", "datetime64"])
def test_the_latest_rows_test_and_those_before_them_calibrate(tmp_path, kind):
    """However a time is written; rows of one time stay together at a cut, and the column is no feature."""
    days = RNG.permutation(np.repeat(np.arange(50), 4))
    moments = [datetime.datetime(2024, 1, 1) + datetime.timedelta(days=int(day)) for day in days]
    written = {
        "year": 1900 + days,
        "epoch": 1.7e9 + 86_400.0 * days,
        "date": [f"{moment:%Y-%m-%d}" for moment in moments],
        "datetime": [moment.isoformat(" ") for moment in moments],
        "offset": [
            moment.replace(tzinfo=datetime.UTC)
            .astimezone(datetime.timezone(datetime.timedelta(hours=n % 3)))
            .isoformat()
            for n, moment in enumerate(moments)
        ],
        "timestamp": pa.array(moments, pa.timestamp("s")),
        "datetime64": np.array(moments, "datetime64[s]"),
    }[kind]
    if kind == "datetime64":
        path = as_npz(tmp_path, x=np.arange(200.0), y=np.arange(200.0), when=written)
    else:
        path = as_table(tmp_path, ".parquet" if kind == "timestamp" else ".csv", when=written)
    train, calibration, test = (days[part] for part in parts(path, time="when", test_size=37, calibration_size=40))
    assert (len(test), len(calibration)) == (40, 40)
    assert train.max() < calibration.min() <= calibration.max() < test.min()
    if kind != "datetime64":
        assert read(path, time="when").feature_names == ("row",)


def test_every_part_has_each_classs_share(tmp_path):
    """Shares are as equal as whole rows allow; a class too rare for every part is named."""
    y = np.array(["common"] * 900 + ["some"] * 90 + ["rare"] * 10)
    path = as_npz(tmp_path, x=np.arange(1000.0), y=y)
    for part, size in zip(parts(path, classify=True, stratify=True), (640, 160, 200), strict=True):
        assert len(part) == size
        for label, share in (("common", 0.9), ("some", 0.09), ("rare", 0.01)):
            assert abs((y[part] == label).sum() - share * size) <= 1
    path = as_npz(tmp_path, x=np.arange(1001.0), y=np.append(y, "lonely"))
    with pytest.raises(DataError, match=r"data.test_size with data.stratify: .* found 1 rows of class 'lonely'.*merge"):
        parts(path, classify=True, stratify=True)


@pytest.mark.parametrize(
    ("terms", "classify", "message"),
    [
        ({"group": "a", "time": "b"}, True, "data.group and data.time: expected one of them"),
        ({"group": "a", "stratify": True}, True, "data.stratify and data.group: .*leave out stratify"),
        ({"time": "a", "stratify": True}, True, "data.stratify and data.time: .*leave out stratify"),
        ({"stratify": True}, False, "data.stratify: expected a likelihood of classes"),
        ({"group": "a", "drop": ("a",)}, True, "data.group: expected a column that data.drop does not name"),
        ({"time": "t"}, True, "data.time: expected a column that data.target does not name"),
        ({"group": "a", "categorical": ("a",)}, True, "data.group: .*data.categorical"),
    ],
)
def test_combinations_without_sense_are_refused(tmp_path, terms, classify, message):
    """Before a file is looked at, with what to leave out."""
    with pytest.raises(ConfigError, match=message):
        read_source(str(tmp_path / "nothing.csv"), DataConfig(**{"target": "t", **terms}), classify=classify)


def test_wrong_keys_are_refused_by_row(tmp_path):
    """A missing column or array, an empty cell, what is no time, and groups or times too few for three parts."""
    path = as_table(tmp_path, who=GROUPS, when=["2024-01-02"] * 3 + ["tuesday"] + ["2024-01-02"] * (len(GROUPS) - 4))
    for terms, message in [
        ({"group": "whose"}, r"data.group: expected one of row, who, when, t, found whose"),
        ({"time": "when", "drop": ("who",)}, r"column 'when': row 3: expected a number, or an ISO 8601 .*'tuesday'"),
    ]:
        with pytest.raises(DataError, match=message):
            parts(path, **terms)
    path = as_table(tmp_path, who=["a", "b", None, "c"])
    with pytest.raises(DataError, match=r"column 'who': row 2: .* found an empty cell"):
        parts(path, group="who")
    path = as_table(tmp_path, who=np.repeat(["a", "b"], 20))
    with pytest.raises(
        DataError, match=r"data.group: expected enough groups for three parts.* found 1 groups in 20 rows"
    ):
        parts(path, group="who")
    path = as_npz(tmp_path, x=ROWS, y=ROWS)
    with pytest.raises(DataError, match=r"data.group: expected an array who, one group a row, found x, y"):
        parts(path, group="who")
    with pytest.raises(DataError, match=r"who: expected shape \(\d+,\), one value a row"):
        parts(as_npz(tmp_path, x=ROWS, y=ROWS, who=GROUPS[:-1]), group="who")


def test_a_sources_own_parts_share_no_group(tmp_path):
    """Its own test rows are held against the others', and the calibration part is cut from the others by group."""
    order = RNG.permutation(len(GROUPS))
    mixed = {"x": ROWS, "y": ROWS, "who": GROUPS, "train_idx": order[None, :200], "test_idx": order[None, 200:]}
    with pytest.raises(DataError, match=r"data.group: .* to share no group, found \d+ groups in both"):
        parts(as_npz(tmp_path, **mixed), group="who")
    apart = np.isin(GROUPS, [f"p{number}" for number in range(8)])
    indices = {"train_idx": np.flatnonzero(~apart)[None], "test_idx": np.flatnonzero(apart)[None]}
    train, calibration, test = parts(as_npz(tmp_path, **(mixed | indices)), group="who")
    assert test.tolist() == np.flatnonzero(apart).tolist()
    assert not {*GROUPS[train]} & {*GROUPS[calibration]}
    own = {f"{name}_{part}": ROWS for name in "xy" for part in ("train", "test", "calibration")}
    with pytest.raises(ConfigError, match=r"data.group: expected a test or a calibration part to cut"):
        parts(as_npz(tmp_path, **own, who_train=GROUPS), group="who")


def test_the_note_of_a_split_says_how_many_groups_calibrate(tmp_path):
    """And by how much a new group's reject rate may exceed the stated one; a split by time says from when to when."""
    source = read(as_table(tmp_path, who=GROUPS), group="who")
    dataset = split(source, DataConfig(target="t", group="who"), 0)
    groups = len({*GROUPS[dataset.calibration.x[:, 0].astype(int)]})
    assert len(dataset.notes) == 1
    assert f"of {groups} groups" in dataset.notes[0]
    assert f"{100 / (groups + 1):.2g} percentage points" in dataset.notes[0]
    days = [f"2024-01-{1 + row // 10:02}" for row in range(200)]
    source = read(as_table(tmp_path, when=days), time="when")
    notes = split(source, DataConfig(target="t", time="when"), 0).notes
    assert "calibrated on rows from 2024-01-13 to 2024-0" in notes[0]


# ---- hints -----------------------------------------------------------------------------------------------------------

COUNT = 600
BLOCKS = np.repeat(np.arange(60), 10)
SHUFFLED = RNG.permutation(BLOCKS)


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("patient", SHUFFLED, "group"),
        ("PatientID", SHUFFLED, "group"),
        ("user_id", [f"u{n}" for n in SHUFFLED], "group"),
        ("run", BLOCKS, "group"),
        ("site", [f"s{n}" for n in BLOCKS], "group"),
        ("date", [f"2024-{1 + n % 12:02}-{1 + n % 28:02}" for n in range(COUNT)], "time"),
        ("recorded", [f"2024-01-{1 + n % 28:02}T10:00:00" for n in range(COUNT)], "time"),
        ("year", 1950 + np.arange(COUNT) // 10, "time"),
        ("event_timestamp", 1.7e9 + np.arange(COUNT), "time"),
    ],
)
def test_columns_that_look_like_groups_or_times_get_a_hint(name, values, kind):
    """A hint needs a name and values, or values in blocks; it names the key to set."""
    hints = split_hints({"a": pa.array(RNG.normal(size=COUNT)), name: pa.array(values)})
    assert len(hints) == 1
    assert f"data.{kind} = {name!r}" in hints[0]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("age", RNG.integers(18, 90, COUNT)),
        ("id", np.arange(COUNT)),
        ("user_type", np.array(["basic", "pro", "team"])[np.arange(COUNT) % 3]),
        ("sex", np.repeat(["f", "m"], COUNT // 2)),
        ("time_spent", RNG.exponential(size=COUNT)),
        ("years_employed", RNG.integers(0, 40, COUNT)),
        ("year_built", RNG.integers(1900, 2020, COUNT)),
        ("paid", RNG.integers(0, 2, COUNT)),
        ("width", np.sort(RNG.normal(size=COUNT))),
        ("acid", RNG.integers(0, 30, COUNT)),
        ("idle", RNG.integers(0, 30, COUNT)),
        ("update", np.array(["yes", "no"])[np.arange(COUNT) % 2]),
        ("empty", [None] * COUNT),
    ],
)
def test_ordinary_columns_get_none(name, values):
    """Measurements, few categories, row numbers, and names that only contain a word."""
    assert split_hints({name: pa.array(values)}) == ()


@pytest.mark.parametrize(
    ("labels", "hints"),
    [
        (RNG.integers(18, 90, COUNT), 1),
        ([f"{value:.1f}".replace("-0.0", "0.0") for value in RNG.normal(size=COUNT)], 1),
        (np.arange(COUNT) % 10, 0),
        ([f"class {n % 70}" for n in range(COUNT)], 0),
        (np.arange(100 * COUNT) % 100, 0),
    ],
)
def test_classes_that_look_like_a_number_get_a_hint(labels, hints, tmp_path):
    """Many different numbers with few rows each; not few classes, not words, not classes of hundreds of rows."""
    found = class_hints("price", [str(label) for label in np.unique(labels)], len(labels))
    assert len(found) == hints
    assert all('set likelihood = "normal"' in hint for hint in found)
    table = as_table(tmp_path, price=labels)
    assert read(table, classify=True, target="price").hints == found
    if np.asarray(labels).dtype.kind == "i":
        arrays = as_npz(tmp_path, x=np.zeros((len(labels), 2)), y=labels)
        assert read(arrays, classify=True).hints == tuple(hint.replace("price", "y") for hint in found)


def test_hints_are_given_where_no_key_is_set(tmp_path):
    """Features, dropped columns and arrays with one value a row give hints, unless the key is set."""
    path = as_table(tmp_path, patient=SHUFFLED)
    for terms, hints in (({}, 1), ({"drop": ("patient",)}, 1), ({"group": "patient"}, 0)):
        assert len(read(path, **terms).hints) == hints
    rows = Rows(np.zeros((COUNT, 1)), np.zeros(COUNT))
    assert len(array_hints({"x": rows.x, "y": rows.y, "subject": SHUFFLED}, (), rows)) == 1
    assert array_hints({"x": rows.x, "y": SHUFFLED}, (), rows) == ()
    assert len(array_hints({}, ("subject",), Rows(SHUFFLED[:, None].astype(float), rows.y))) == 1
