"""`abstain predict --url`: a server's predictions for the rows of a file are those of the command without a server."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import abstain
from abstain.service.client.facts import ModelColumn
from abstain.service.commands.predict_url import read_rows
from tests.helpers.prediction_files import read_predictions

IMAGES = np.random.default_rng(0).integers(0, 17, (30, 8, 8)).astype(np.float64)
POINTS = np.random.default_rng(1).uniform(-3, 4, (40, 1))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The rows in files, by the name of their model."""
    folder = tmp_path_factory.mktemp("rows")
    np.savez(folder / "digits.npz", x=IMAGES)
    pd.DataFrame({"where": POINTS[:, 0]}).to_csv(folder / "wave.csv", index=False)
    return folder


@pytest.mark.parametrize(
    ("model", "data", "end"),
    [
        ("digits@stable", "digits.npz", ".csv"),
        ("wave", "wave.csv", ".jsonl"),
    ],
)
def test_the_file_is_that_of_the_command_without_a_server(run, store, server, files, tmp_path, model, data, end):
    """The same columns, words and flags, and the same numbers but for the rounding of other batch sizes."""
    paths = {"store": tmp_path / f"offline{end}", "url": tmp_path / f"online{end}"}
    for (option, out), where in zip(paths.items(), (store, server.url), strict=True):
        options = ["--out", out, f"--{option}", where, "--percentile", 95]
        code, printed, err = run("predict", model, "--data", files / data, *options)
        assert code == 0, err
        found = read_predictions(out)["reject"]
        assert err == f"rejected: {sum(found)} of {len(found)} rows"
        assert (
            printed
            == f"{model.partition('@')[0].partition(':')[0]}:1 predicted {len(read_predictions(out)['reject'])} rows into {out}\n"
        )
    offline, online = map(read_predictions, paths.values())
    assert list(online) == list(offline)
    for name, values in offline.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(online[name], values, rtol=1e-4, atol=1e-5, err_msg=name)
        else:
            assert online[name] == values, name


def test_the_result_as_json(run, server, files, tmp_path):
    """The same keys as without a server."""
    out = tmp_path / "out.csv"
    code, printed, _ = run("predict", "wave", "--data", files / "wave.csv", "--out", out, "--url", server.url, "--json")
    assert code == 0
    assert json.loads(printed) == {"model": "wave", "version": 1, "rows": 40, "out": str(out)}


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--url", "http://127.0.0.1:9", "--timeout", "0.2"], 1, "no connection: "),
        (["--url", "nowhere"], 1, "url: expected a URL such as https://models.example.org:3000, found 'nowhere'"),
        (["--url", "URL", "--fdr", "0.05"], 2, "Invalid value for --fdr: needs the model's calibration"),
        (["--url", "URL", "--store", "other"], 2, "Invalid value for --store: has no effect with --url"),
        (["--timeout", "5"], 2, "Invalid value for --timeout: has an effect only with --url"),
        (["--url", "URL", "--timeout", "0"], 2, "Invalid value for --timeout: expected seconds above 0, found 0"),
        (["--tls-ca", "a.crt"], 2, "Invalid value for --tls-ca: has an effect only with --url"),
        (["--url", "URL", "--max-error", "0.1"], 1, "max_error: expected no max_error, because this model"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_is_written(run, server, files, tmp_path, options, code, text):
    """Usage with exit code 2; an error of the server or of the connection with 1."""
    out = tmp_path / "out.csv"
    options = [server.url if option == "URL" else option for option in options]
    found, _, err = run("predict", "wave", "--data", files / "wave.csv", "--out", out, *options)
    assert (found, text in err) == (code, True), err
    assert not out.exists()


def test_the_rejected_rows_are_counted_whatever_is_written(run, server, files, tmp_path):
    """The fields that are counted are asked for, and not written."""
    out = tmp_path / "out.csv"
    options = ["--out", out, "--url", server.url, "--fields", "mean"]
    code, _, err = run("predict", "wave", "--data", files / "wave.csv", *options)
    assert code == 0, err
    assert re.fullmatch(r"rejected: \d+ of 40 rows", err)
    assert [*read_predictions(out)] == ["mean"]


def test_the_key_is_read_from_the_environment(run, server, files, tmp_path, monkeypatch):
    """And is not shown if it is wrong."""
    monkeypatch.setenv("ABSTAIN_API_KEY", "a secret with spaces")
    code, _, err = run(
        "predict", "wave", "--data", files / "wave.csv", "--out", tmp_path / "a.csv", "--url", server.url
    )
    assert code == 1
    assert "key: expected printable ASCII without spaces" in err
    assert "secret" not in err


def test_a_table_is_read_by_the_models_columns(tmp_path):
    """Text of numbers becomes numbers with gaps, a category stays text; other columns are left out."""
    path = tmp_path / "rows.csv"
    path.write_text("town,note,age,since\nUlm,a,31,2024-03-01\n,b,,\nBonn,c, 4.5 ,2024-03-01T10:00\n")
    columns = (
        ModelColumn(name="age"),
        ModelColumn(name="town", kind="category", categories=("Bonn", "Ulm")),
        ModelColumn(name="since", kind="date"),
    )
    table, _ = read_rows(path, columns)
    assert table.column_names == ["age", "town", "since"]
    np.testing.assert_array_equal(table["age"].to_numpy(), [31, np.nan, 4.5])
    assert table["town"].to_pylist() == ["Ulm", None, "Bonn"]
    assert table["since"].to_pylist()[:2] == ["2024-03-01", None]
    path.write_text("age\n1\n")
    with pytest.raises(abstain.DataError, match="columns are missing: expected town, since, found age"):
        read_rows(path, columns)
    path.write_text("since\n2024-03-01T10:00\n2024-03-01T10:00Z\n")
    with pytest.raises(abstain.DataError, match="row 1: column 'since' mixes times with and without an offset"):
        read_rows(path, columns[2:])
