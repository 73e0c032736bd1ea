"""Equal rows get equal predictions: in every batch size, with any other rows, and on processors that round differently."""

import os
import subprocess
import sys

import numpy as np
import pytest

from abstain.models.bundles.bundle import load
from abstain.models.decisions.judging import judge
from abstain.training.config.config import Config
from abstain.training.fit import fit
from tests.helpers.fits import silent
from tests.helpers.paths import PROJECT

ROWS = 1_500
ANSWERS = """
import os, sys
import numpy as np
# Which cores XLA's threads may run on decides how many there are.
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[3])])
from pathlib import Path
from abstain.models.bundles.bundle import load
from abstain.models.decisions.judging import judge
bundle = load(Path(sys.argv[1]))
judgement = judge(bundle.calibration, bundle.predictor((32,))(np.load(sys.argv[2])))
p_values = judgement.scores[judgement.decision].p_value
np.savez(sys.stdout.buffer, reject=judgement.reject, p_value=p_values, members=judgement.members)
"""


@pytest.fixture(scope="module")
def passengers(tmp_path_factory):
    """A bundle of a table with few distinct rows, at percentile 90; the folder of its version, and its distinct rows."""
    folder = tmp_path_factory.mktemp("passengers")
    rng = np.random.default_rng(0)
    rank, sex = rng.choice(3, ROWS, p=[0.24, 0.21, 0.55]), rng.integers(0, 2, ROWS)
    relatives, port = np.minimum(rng.geometric(0.6, ROWS) - 1, 5), rng.choice(3, ROWS, p=[0.72, 0.19, 0.09])
    x = np.stack([rank, sex, relatives, port], axis=1).astype(np.float32)
    y = (rng.random(ROWS) < 1 / (1 + np.exp(0.8 * rank + 0.3 * relatives - 2.5 * sex))).astype(int)
    np.savez(folder / "table.npz", x=x, y=y)
    config = Config.model_validate(
        {
            "name": "passengers",
            "draws": 10,
            "network": {"kind": "mlp", "hidden": [16]},
            "method": {"kind": "vi", "steps": 200, "learning_rate": 1e-2, "reports": 1},
            "calibration": {"percentile": 90.0, "sets": "aps"},
        }
    )
    fit(config, str(folder / "table.npz"), folder, silent, report=False)
    return folder / "passengers" / "1", np.unique(x, axis=0)


def answers(bundle, rows, bucket):
    """Verdict, p-value of the decision and prediction set of each row."""
    judgement = judge(bundle.calibration, bundle.predictor((bucket,))(rows))
    return judgement.reject, judgement.scores[judgement.decision].p_value, judgement.members


def test_equal_rows_get_equal_answers_in_every_batch_size(passengers):
    """Distinct rows in another order, and so among others, in batches of 1 to 128, against batches of 256."""
    folder, rows = passengers
    bundle = load(folder)
    first = answers(bundle, rows, 256)
    assert 0 < first[0].sum() < len(rows)
    order = np.random.default_rng(1).permutation(len(rows))
    for bucket in (1, 8, 32, 128):
        for found, expected in zip(answers(bundle, rows[order], bucket), first, strict=True):
            np.testing.assert_array_equal(found, expected[order])


def spread_out(rng, rows):
    """Rows all over the place."""
    return rng.normal(size=(rows, 3))


def clustered(rng, rows):
    """Rows of switches, with noise of a ten-thousandth."""
    return rng.integers(0, 2, (rows, 3)) + 1e-4 * rng.normal(size=(rows, 3))


@pytest.mark.parametrize(
    ("draw", "terms"),
    [
        (
            spread_out,
            {"network.hidden": [8], "method.kind": "laplace", "method.subset": "last_layer", "method.steps": 400},
        ),
        (clustered, {"network.hidden": [16], "network.activation": "relu", "method.kind": "vi", "method.steps": 300}),
    ],
)
def test_distinct_rows_get_the_same_verdict_in_every_batch_size(draw, terms, tmp_path):
    """Where nearly all features lie within the subspaces of their clusters, or have many neighbours at nearly the same distance.

    Before, 4 % of the first verdicts differed, and 5 % of the second: rounding chose the cluster, and the neighbour.
    """
    rng = np.random.default_rng(11)
    x = draw(rng, 1_500)
    np.savez(tmp_path / "table.npz", x=x, y=(x[:, 0] + 0.3 * x[:, 1] > x[:, 0].mean()).astype(int))
    config = {"name": "plain", "draws": 5, "seed": 11, "calibration": {"percentile": 90.0}}
    config |= {"network": {"kind": "mlp"}, "method": {"reports": 1}}
    for key, value in terms.items():
        table, name = key.split(".")
        config[table][name] = value
    fit(Config.model_validate(config), str(tmp_path / "table.npz"), tmp_path, silent, report=False)
    bundle = load(tmp_path / "plain" / "1")
    rows = draw(rng, 3_000).astype(np.float32)
    one, many = answers(bundle, rows, 1), answers(bundle, rows, 256)
    assert 150 < many[0].sum() < 600
    # A verdict may differ where a score lies at its threshold to within rounding: one row in 10,000.
    assert (one[0] != many[0]).sum() <= 3
    assert (one[1] != many[1]).mean() < 0.01


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the cores of a process cannot be chosen here")
def test_equal_rows_get_equal_answers_on_another_processor(passengers, tmp_path):
    """The same bundle under the oldest instruction set and one thread, with other rounding of products."""
    folder, rows = passengers
    np.save(tmp_path / "rows.npy", rows)
    command = [sys.executable, "-c", ANSWERS, str(folder), str(tmp_path / "rows.npy"), "1"]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2",
        "PYTHONPATH": str(PROJECT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
    }
    ran = subprocess.run(command, capture_output=True, timeout=300, check=True, env=environment, cwd=PROJECT)
    (tmp_path / "answers.npz").write_bytes(ran.stdout)
    found = np.load(tmp_path / "answers.npz")
    expected = dict(zip(("reject", "p_value", "members"), answers(load(folder), rows, 32), strict=True))
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
