"""The rows of an import, its model, and settings that mean nothing for it."""

import numpy as np
import pytest

from abstain.models.errors import AbstainError, ConfigError, DataError
from abstain.training.config.imports import check_import, read_import_dict
from abstain.training.data.dataset import split, split_again
from abstain.training.data.sources import read_source
from abstain.training.import_posterior import calibration_settings, keep_draws
from abstain.training.importing.held_out import read_held_out, read_training_rows
from abstain.training.importing.model import build_model
from tests.helpers.imported_networks import rows_of


def config_of(**tables):
    """The config of an import."""
    return read_import_dict({"name": "own", **tables})


def saved(path, **arrays):
    """The path of an .npz."""
    np.savez(path, **arrays)
    return str(path)


def refusal(kind, call, *arguments, **options):
    """The text of the error."""
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    return str(caught.value)


def test_all_rows_are_held_out(tmp_path):
    """One part calibrates, the other one tests; the same file is recognised later, and another one is not."""
    where, config = saved(tmp_path / "rows.npz", **rows_of(3, count=100)), config_of(data={"test_size": 30})
    dataset = read_held_out(config, where)
    assert (len(dataset.train), len(dataset.calibration), len(dataset.test)) == (0, 70, 30)
    together = np.concatenate([dataset.calibration.x, dataset.test.x])
    np.testing.assert_array_equal(np.sort(together, axis=0), np.sort(rows_of(3, count=100)["x"], axis=0))
    source = read_source(where, config.data, classify=True)
    again = split_again(source, config.data, 0, dataset.fingerprint)
    np.testing.assert_array_equal(again.test.x, dataset.test.x)
    assert split_again(source, config.data, 1, dataset.fingerprint) is None
    fitted = split(source, config.data, 0)
    assert len(split_again(source, config.data, 0, fitted.fingerprint).train) == len(fitted.train) > 0


def test_a_file_may_have_both_parts_but_no_training_rows(tmp_path):
    """Training rows come apart, because only they may be known to the network."""
    own = rows_of(3, count=60)
    parts = {f"{name}_{part}": own[name] for part in ("calibration", "test") for name in ("x", "y")}
    dataset = read_held_out(config_of(), saved(tmp_path / "parts.npz", **parts))
    assert (len(dataset.calibration), len(dataset.test)) == (60, 60)
    more = parts | {"x_train": own["x"], "y_train": own["y"]}
    text = refusal(DataError, read_held_out, config_of(), saved(tmp_path / "more.npz", **more))
    assert "found x_train, x_calibration, x_test; pass the training rows apart, with --train" in text


def test_classes_are_in_the_order_of_the_outputs(tmp_path):
    """Names that are not 0, 1, … need the order; a class without a row keeps its output."""
    rows = rows_of(3, count=90)
    words = np.array(["low", "mid", "high"])[rows["y"]]
    where = saved(tmp_path / "words.npz", x=rows["x"], y=words)
    text = refusal(ConfigError, read_held_out, config_of(), where)
    assert "posterior.class_names: expected the classes in the order of the network's outputs" in text
    assert "found the classes high, low, mid" in text
    names = ("never", "low", "mid", "high")
    dataset = read_held_out(config_of(posterior={"class_names": names}), where)
    assert dataset.source.class_names == names
    expected = 1 + read_held_out(config_of(), saved(tmp_path / "codes.npz", **rows)).test.y
    np.testing.assert_array_equal(dataset.test.y, expected)
    text = refusal(ConfigError, read_held_out, config_of(posterior={"class_names": names[:3]}), where)
    assert "without high; name each output of the network as the rows name the class" in text


def test_gaps_are_refused(tmp_path):
    """By row and column."""
    lines = ["a,b,y", *(f"{i / 10},{'' if i == 4 else i % 7},{i % 2}" for i in range(40))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    text = refusal(DataError, read_held_out, config_of(data={"target": "y"}), str(tmp_path / "rows.csv"))
    assert "row 4, column 'b': expected a number" in text
    assert "found a gap; fill the gaps as for the training, or remove the rows" in text


def test_columns_that_are_not_numbers_are_refused(tmp_path):
    """How the network was given them is not known."""
    lines = ["a,colour,day,y", *(f"{i / 10},{'rgb'[i % 3]},2024-03-{i % 28 + 1:02},{i % 2}" for i in range(40))]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    config = config_of(data={"target": "y"}, network={"kind": "mlp"})
    dataset = read_held_out(config, str(tmp_path / "rows.csv"))
    text = refusal(DataError, build_model, config, dataset)
    assert "columns: expected numbers, as the network takes them, found 'colour' (category), 'day' (date)" in text


def test_training_rows_must_be_others(tmp_path):
    """Those of the labelled file, of another shape, or too few are refused; rows of a coarse table may repeat."""
    rows = rows_of(3, count=100)
    config, where = config_of(network={"kind": "mlp", "hidden": [4]}), saved(tmp_path / "rows.npz", **rows)
    dataset = read_held_out(config, where)
    model = build_model(config, dataset)
    read = lambda **arrays: read_training_rows(config, model, dataset, saved(tmp_path / "train.npz", **arrays))  # noqa: E731
    assert len(read(**rows_of(3, count=50, seed=1))) == 50
    assert "found 20 of its 100 rows; remove them from one of the files" in refusal(
        DataError, read, x=rows["x"][:20], y=rows["y"][:20]
    )
    assert "feature shape: expected (2,), as in" in refusal(DataError, read, x=np.ones((20, 3)), y=np.arange(20) % 3)
    assert "expected two or more, as x and y, found none or one" in refusal(DataError, read, x=rows["x"][:1], y=[0])
    coarse = {name: (np.round(array) if name == "x" else array) for name, array in rows.items()}
    dataset = read_held_out(config, saved(tmp_path / "coarse.npz", **coarse))
    assert len(read(x=np.round(rows_of(3, count=60, seed=1)["x"]), y=np.arange(60) % 3)) == 60


@pytest.mark.parametrize(
    ("tables", "text"),
    [
        ({"data": {"inputs": "standardize"}}, 'data.inputs: expected "none": an imported network has its own scaling'),
        ({"data": {"calibration_size": 10}}, "data.calibration_size: expected none for an import, found 10"),
        ({"data": {"class_weights": "balanced"}}, "data.class_weights: expected none for an import"),
        ({"data": {"categorical": ["colour"]}}, "data.categorical: expected none for an import"),
        (
            {"likelihood": "normal"},
            "posterior.noise: expected the standard deviation of the noise, which the likelihood normal has: the name of the "
            "array with its draws, or one number, found no noise; pass it by name or as a number (--noise sigma, --noise 0.3)",
        ),
        (
            {"posterior": {"noise": "sigma"}},
            "posterior.noise: expected nothing: the likelihood categorical does not use it",
        ),
        ({"posterior": {"target_scale": 2.0}}, "posterior.target_scale: expected nothing"),
        (
            {"likelihood": "heteroscedastic_normal", "posterior": {"noise": 0.1}},
            "the likelihood heteroscedastic_normal does not use it",
        ),
        (
            {"likelihood": "normal", "posterior": {"noise": 1.0, "class_names": ["a"]}},
            "posterior.class_names: expected nothing",
        ),
        ({"posterior": {"class_names": ["a", "a"]}}, "posterior.class_names: expected each name once"),
    ],
)
def test_settings_without_a_meaning_are_refused(tables, text):
    """Of the fit, of another likelihood, or in contradiction."""
    assert text in refusal(ConfigError, check_import, config_of(**tables))


@pytest.mark.parametrize("table", ["method", "prior"])
def test_the_tables_of_inference_are_unknown(table):
    """Nothing is inferred."""
    with pytest.raises(ConfigError, match=table):
        config_of(**{table: {"kind": "vi"}})


@pytest.mark.parametrize(
    ("posterior", "text"),
    [
        ({"input_scale": 0.0}, "posterior: scale: expected a number above 0"),
        ({"input_scale": [1.0, -1.0]}, "posterior: scale: expected a number above 0"),
        ({"input_shift": [1.0, 2.0, 3.0]}, "posterior: shift: expected one number, or 2"),
    ],
)
def test_a_scaling_that_does_not_fit_is_refused(tmp_path, posterior, text):
    """Not above 0, or for other features."""
    config = config_of(posterior=posterior, network={"kind": "mlp"})
    dataset = read_held_out(config, saved(tmp_path / "rows.npz", **rows_of(3)))
    assert text in refusal(AbstainError, build_model, config, dataset)


def test_without_training_rows_one_score_of_the_predictions_decides(tmp_path):
    """The default's, or the one that is named; feature scores and combinations need training rows."""
    config = config_of(network={"kind": "mlp"})
    model = build_model(config, read_held_out(config, saved(tmp_path / "rows.npz", **rows_of(3))))

    def settings(has_train=False, **calibration):
        return calibration_settings(config_of(calibration=calibration).calibration, model, has_train=has_train)

    assert (settings().decision, settings(has_train=True).decision) == ("energy", None)
    assert settings(decision="entropy").decision == "entropy"
    for decision in ("knn", ["entropy", "energy"]):
        text = refusal(ConfigError, settings, decision=decision)
        assert (
            "expected one score of the predictions, because feature scores and combinations need training rows" in text
        )
    assert "calibration.combine: expected nothing" in refusal(ConfigError, settings, combine="min")
    assert "calibration.densities" in refusal(ConfigError, settings, densities={"shift": 1})


def test_more_draws_than_there_are_cannot_be_kept():
    """The source's number is told."""
    text = refusal(ConfigError, keep_draws, {"network": np.zeros((3, 2))}, 4)
    assert "draws: expected at most the 3 draws of the source, found 4; lower it" in text
