"""The configs of tables: each fits rows of the form it was written for, and names the column that is out of range."""

import numpy as np
import pytest

from abstain.models.bundles.bundle import load
from abstain.models.decisions.judging import judge
from abstain.service.predict.response import make_columns
from abstain.training.calibration.pipeline import choose_decision
from abstain.training.config.reading import read_config
from abstain.training.evaluate import evaluate_version
from abstain.training.fit import fit
from benchmarks.tabular import TASKS, write
from tests.helpers.fits import silent
from tests.helpers.paths import CONFIGS

SHORTER = {
    "letters": ("steps=150", "starts=1", "method.chain_method='sequential'", "hidden=[16]"),
    "gas-drift": ("steps=150", "starts=1", "method.chain_method='sequential'", "hidden=[16]"),
    "wine-red": ("warmup=20", "samples=20", "leapfrogs=5", "chains=2", "hidden=[4]"),
}


def stand_in(name, rng):
    """Random rows under the names, shapes and dtypes of the public arrays."""
    if name == "wine-red":
        names = np.array([f"measurement {place}" for place in range(11)])
        red, white = (rng.normal(size=(400, 11)) + shift for shift in (0, 3))
        quality = lambda x: np.clip(np.round(5 + x[:, 0]), 3, 9).astype(np.uint8)  # noqa: E731
        return {
            "x_red": red,
            "y_red": quality(red),
            "x_white": white,
            "y_white": quality(white),
            "feature_names": names,
        }
    if name == "letters":
        y = np.arange(1_000, dtype=np.uint8) % 26
        x = np.clip(rng.integers(0, 16, (26, 16))[y] + rng.integers(-1, 2, (1_000, 16)), 0, 15).astype(np.uint8)
        letters = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
        return {"x": x, "y": y, "class_names": letters, "feature_names": np.array([f"m{place}" for place in range(16)])}
    y, batch = rng.integers(0, 6, 800).astype(np.uint8), np.repeat([1, 2, 3, 6], 200).astype(np.uint8)
    x = np.float32(rng.normal(size=(6, 128))[y] + rng.normal(size=(800, 128)) / 4 + batch[:, None])
    return {"x": x * 1e4, "y": y, "batch": batch, "class_names": np.array([f"gas {c}" for c in range(6)])}


@pytest.fixture(scope="module", params=sorted(TASKS))
def fitted(request, tmp_path_factory):
    """A config's name, its bundle, its store and the files that the benchmark cuts, from a stand-in of the set."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    np.savez(folder / TASKS[name].file, **stand_in(name, np.random.default_rng(0)))
    known, strange = write(name, TASKS[name], folder, folder / "cut", seed=0)
    shorter = (*SHORTER[name], "calibration_size=100", "draws=8", "reports=1")
    fit(read_config(CONFIGS / f"{name}.toml", shorter), str(known), folder / "store", silent, report=False)
    return name, load(folder / "store" / name / "1"), folder / "store", known, strange


def test_the_benchmarks_files_are_fitted_and_evaluated_by_the_default_decision(fitted):
    """The three-part split of the file is the bundle's, and every strange set is judged by the default combination."""
    name, bundle, store, known, strange = fitted
    assert bundle.calibration.decision == choose_decision(
        read_config(CONFIGS / f"{name}.toml").calibration, bundle.manifest.model
    )
    with np.load(known) as file:
        assert bundle.manifest.data.test_rows == len(file["y_test"])
        assert bundle.manifest.data.train_rows + 100 == len(file["y_train"])
    evaluated = evaluate_version(
        store, name, str(known), None, {part: str(path) for part, path in strange.items()}
    ).to_json()
    assert [*evaluated["ood"]] == [*strange]
    assert all(0 <= found["reject"]["detection"] <= 1 for found in evaluated["ood"].values())


def test_a_column_out_of_its_range_is_named(fitted):
    """One training row with one column far off is rejected, and a reason says which column."""
    _, bundle, _, known, _ = fitted
    model, column = bundle.manifest.model, 5
    with np.load(known) as file:
        row = file["x_train"][:1].astype(np.float32)
        reach = float(np.ptp(file["x_train"][:, column].astype(np.float32)))
    row[0, column] += 50 * reach
    prediction = bundle.predictor((1,))(row)
    columns = make_columns(model, prediction, judge(bundle.calibration, prediction))
    called = model.feature_names[column] if model.feature_names else f"feature {column}"
    assert columns["reject"] == [True]
    assert [reason for reason in columns["reasons"][0] if "range" in reason] == [
        f"range above its 99th percentile: {called}"
    ]


def test_what_is_held_out_is_in_no_part_that_a_model_learns_from(tmp_path):
    """Letters, batches and wines that are strange are cut off whole, and every row is in one file."""
    for name, task in TASKS.items():
        arrays = stand_in(name, np.random.default_rng(1))
        cut = task.cut(arrays, 3)
        known, strange = (
            len(cut.known["y_train"]) + len(cut.known["y_test"]),
            sum(len(s["x"]) for s in cut.strange.values()),
        )
        assert known + strange == sum(len(value) for key, value in arrays.items() if key in {"x", "x_red", "x_white"})
        learned = {row.tobytes() for part in ("x_train", "x_test") for row in cut.known[part]}
        assert not [row for part in cut.strange.values() for row in part["x"] if row.tobytes() in learned]
    assert "".join(TASKS["letters"].cut(stand_in("letters", np.random.default_rng(1)), 0).known["class_names"]) == (
        "ABCEFGIJKMNOQRSUVWYZ"
    )
