"""Groups of training rows, and that no stored array of a bundle holds a row."""

import jax
import numpy as np
import pytest

from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.training.calibration.feature_scores import fit_feature_scores, round_outwards
from abstain.training.calibration.grouping import BLOCK, LEAST, group_means, without_small
from abstain.training.config.priors import PriorConfig
from abstain.training.data.rows import Rows
from abstain.training.inference.bnn import BNN

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("rows", "most"), [(4, 10), (9, 10), (100, 10), (103, 100), (2 * BLOCK + 1, 4_000)])
def test_groups_have_the_rows_they_must_and_hold_every_row_once(rows, most):
    """There are at most the requested number of groups of at least five rows; the weighted mean of their means is the rows' mean."""
    x = RNG.normal(size=(rows, 2))
    means = group_means(x, most)
    size = max(LEAST, -(-rows // most))
    assert max(1, rows // (2 * size)) <= len(means) <= max(1, min(most, rows // LEAST))
    assert np.abs(means).max() <= np.abs(x).max()


def test_rows_of_a_group_are_near_each_other():
    """Twenty tight bunches of five rows are twenty groups: every mean is a bunch's own."""
    centres = 10 * RNG.normal(size=(20, 3))
    rows = RNG.permutation(np.repeat(centres, 5, axis=0) + 1e-3 * RNG.normal(size=(100, 3)))
    means = group_means(rows, 100)
    distances = np.linalg.norm(means[:, None] - centres, axis=2)
    assert sorted(distances.argmin(axis=1)) == list(range(20))
    assert distances.min(axis=1).max() < 2e-3


def test_small_clusters_are_joined_to_the_nearest_large_one():
    """Row by row; where none is large, all rows are one."""
    rows = np.concatenate([np.zeros((6, 1)), np.full((6, 1), 10.0), [[2.0], [7.0]]])
    labels = np.array([0] * 6 + [3] * 6 + [1, 1])
    assert without_small(labels, rows).tolist() == [0] * 6 + [3] * 6 + [0, 3]
    assert without_small(np.arange(4), rows[:4]).tolist() == [0] * 4


def test_a_range_is_rounded_outwards_by_little():
    """No end is a row's value, none is farther off than 1/64 of the width; a constant is all rows' and stays."""
    x = RNG.normal(size=(200, 50)) * 10.0 ** RNG.integers(-3, 4, 50)
    low, high = round_outwards(x.min(axis=0), x.max(axis=0))
    width = np.ptp(x, axis=0)
    for off in (x.min(axis=0) - low, high - x.max(axis=0)):
        assert (off > 0).all()
        assert (off <= width / 64).all()
        # Uniform in steps of 1/128 to 1/64 of the width.
        assert np.median(off / width) > 1 / 512
    assert [float(ends[0]) for ends in round_outwards(np.array([7.0]), np.array([7.0]))] == [7.0, 7.0]


@pytest.mark.parametrize("likelihood", ["categorical", "normal"])
def test_no_stored_array_holds_a_training_row(likelihood):
    """Banks, cluster centres and class means, taken back to the inputs' space, are a tenth of a deviation from every row.

    Among the rows are two outliers and a class of one row, whose mean it would be.
    """
    x = RNG.normal(size=(300, 8))
    x[:2] *= 10
    y = np.append(RNG.integers(0, 2, 299), 2)
    classes = ("a", "b", "c") if likelihood == "categorical" else ()
    model = Model(
        network=MLPSpec(hidden=(4,)),
        likelihood=likelihood,
        preprocessing=Preprocessing(shift=tuple(x.mean(axis=0)), scale=tuple(x.std(axis=0))),
        feature_shape=(8,),
        class_names=classes,
    )
    start = BNN(model, PriorConfig()).start
    draws = BNN(model, PriorConfig()).draws(np.stack([start(jax.random.key(seed)) for seed in range(3)]))
    records = fit_feature_scores(Posterior(model, draws), Rows(x, y if classes else y.astype(float)), 0).records
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    stored = {"subspace": records["subspace"].means, "local": _inputs_of(records["local_subspace"], "centres")}
    if likelihood == "normal":
        stored["input_knn"] = _inputs_of(records["input_knn"], "bank")
        assert len(stored["input_knn"]) == 60
    for name, points in stored.items():
        distances = np.sqrt(((points[:, None] - z) ** 2).mean(axis=2))
        assert distances.min() > 0.1, name
    ends = np.concatenate([records["range"].low, records["range"].high])
    assert np.abs(ends[:, None] - np.tile(x.T, (2, 1))).min() > 1e-5


def _inputs_of(record, field):
    """Points of a projected space, back among the inputs."""
    points = getattr(record, field)
    points = points.T if field == "centres" else points
    return points @ record.components.T + record.mean
