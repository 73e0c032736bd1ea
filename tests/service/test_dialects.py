"""Files of a model are read by the dialect of its training file where they alone are not certain, by every command."""

import json

import httpx
import numpy as np
import pytest

import abstain
from abstain.models.bundles.bundle import load
from abstain.models.files.reading import FileDialect
from abstain.training.calibrate import read_calibration_rows
from abstain.training.config.reading import config_from_dict
from abstain.training.evaluate import rows_to_test
from abstain.training.fit import fit
from tests.helpers.crew import serving
from tests.helpers.fits import silent

SIZES = ("10,5", "11,5", "XL")
ROWS = [(1.5, "10,5"), (2.25, "11,5"), (None, "XL"), (9.125, "10,5")]


def write(path, rows, delimiter=";", mark=",", gap="-9", text=str, **columns):
    """A file of widths with three decimals, sizes, and other columns."""
    lines = [delimiter.join(["width", "size", *columns])]
    for row, (width, size) in enumerate(rows):
        number = gap if width is None else f"{width:.3f}".replace(".", mark)
        lines.append(delimiter.join([number, text(size), *(values[row] for values in columns.values())]))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with `rings`, fitted on a file of semicolons and decimal commas, with sizes as categories."""
    folder = tmp_path_factory.mktemp("dialects")
    rng = np.random.default_rng(0)
    widths, codes = rng.uniform(0, 10, 160), rng.integers(0, 3, 160)
    kinds = np.array(["low", "high"])[(widths + 2 * codes > 7).astype(int)]
    rows = list(zip(widths, np.array(SIZES)[codes], strict=True))
    write(folder / "rings.csv", rows, kind=kinds)
    data = {"target": "kind", "categorical": ["size"], "na_values": ["-9"], "calibration_size": 40, "test_size": 20}
    config = config_from_dict(
        {
            "name": "rings",
            "likelihood": "categorical",
            "draws": 4,
            "data": data,
            "network": {"kind": "mlp", "hidden": [4]},
            "method": {"kind": "vi", "steps": 60, "reports": 1},
            "calibration": {"percentile": 90, "decision": ["entropy"]},
        }
    )
    fit(config, str(folder / "rings.csv"), folder / "store", silent, report=False)
    return folder / "store"


@pytest.fixture(scope="module")
def url(store, tmp_path_factory):
    """A server of the store."""
    with serving(store, tmp_path_factory.mktemp("rings-server")) as found:
        yield found


def test_a_bundle_has_the_dialect_of_its_source_and_the_names_of_its_categories(store):
    """A size that is a category keeps its comma, although most sizes look like numbers."""
    manifest = load(store / "rings" / "1").manifest
    assert manifest.data.dialect == FileDialect(delimiter=";", decimal=",")
    assert manifest.model.preprocessing.columns[1].categories == SIZES


def test_predict_reads_an_uncertain_file_as_the_fit_read_its_own(store, url, run, tmp_path):
    """`1,500` could be a number of thousands; by a server, too. A certain file of another dialect is read as it is."""
    wide = [(width and 1 + width, size) for width, size in ROWS]
    files = {
        "uncertain": write(tmp_path / "a.csv", wide),
        "points": write(tmp_path / "b.csv", wide, mark="."),
        "commas": write(tmp_path / "c.csv", wide, ",", ".", "", lambda size: f'"{size}"'),
        "numbers": write(tmp_path / "d.csv", wide, ",", ".", "", lambda size: size.replace(",", ".")),
    }
    files["points"].write_text(files["points"].read_text().replace("2.500", "2.5"))
    answers = {}
    for name, path in files.items():
        for option, where in (("--store", store), ("--url", url)):
            out = tmp_path / "out.jsonl"
            code, _, err = run("predict", "rings", "--data", path, "--out", out, option, where)
            assert code == 0, err
            answers[name, option] = [json.loads(line) for line in out.read_text().splitlines()]
    first = answers.pop(("uncertain", "--store"))
    assert [row["reasons"] for row in first if "size" in str(row["reasons"])] == []
    for name, rows in answers.items():
        for row, expected in zip(rows, first, strict=True):
            np.testing.assert_allclose(row["probabilities"], expected["probabilities"], rtol=1e-5, err_msg=str(name))
            assert (row["label"], row["reject"]) == (expected["label"], expected["reject"])


def test_a_file_that_no_dialect_explains_is_refused_with_advice_about_the_file(store, url, run, tmp_path):
    """The keys of the fit cannot be changed any more, so no advice names them."""
    (tmp_path / "a.csv").write_text("width;size\n1.500;XL\n2.250;XL\n")
    for option, where in (("--store", store), ("--url", url)):
        options = ["--data", tmp_path / "a.csv", "--out", tmp_path / "out.jsonl", option, where]
        code, _, err = run("predict", "rings", *options)
        assert (code, "data." in err) == (1, False), err
        assert (
            "row 0: column 'width': expected a decimal comma, found '1.500'; write the file as the data of the fit: "
            in err
        )
        assert "cells separated by semicolons, and numbers with a decimal comma" in err


def test_evaluate_and_calibrate_read_an_uncertain_file_as_the_fit_read_its_own(store, tmp_path):
    """Rows with targets."""
    rows = ROWS * 30
    write(tmp_path / "new.csv", [(width and 1 + width, size) for width, size in rows], kind=["low", "high"] * 60)
    manifest = load(store / "rings" / "1").manifest
    expected = [[width and 1 + width, SIZES.index(size)] for width, size in ROWS]
    evaluated, _ = rows_to_test(manifest, str(tmp_path / "new.csv"))
    calibrated = read_calibration_rows(manifest, str(tmp_path / "new.csv")).calibration
    for found in (evaluated, calibrated):
        np.testing.assert_array_equal(found.x[:4], np.array(expected, float))


def test_a_size_is_one_category_at_every_door(url):
    """As text with a comma or a point, and as a number."""
    bodies = [
        ("application/json", json.dumps({"records": [{"width": 1.5, "size": size}]})) for size in ("10,5", "10.5", 10.5)
    ]
    bodies += [("text/csv", "size;width\n10,5;1,500\n"), ("text/csv", 'size,width\n"10,5",1.5\n')]
    answers = []
    for kind, body in bodies:
        response = httpx.post(f"{url}/predict", content=body, headers={"Content-Type": kind})
        assert response.status_code == 200, response.text
        answers.append(response.json()["predictions"][0])
    assert all(answer == answers[0] for answer in answers)


def test_a_server_says_how_files_are_read(url):
    """Only what the fit set or found; a client's records have it."""
    stated = {"dialect": {"delimiter": ";", "decimal": ","}, "na_values": ["-9"]}
    assert httpx.get(f"{url}/models/rings").json()["reading"] == stated
    with abstain.Client(url) as client:
        assert client.model("rings").reading == stated
