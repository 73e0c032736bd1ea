"""A bundle that an earlier abstain wrote stays loadable, and answers as it did."""

import numpy as np

from models.bundle import load
from models.calibration import judge
from tests.conftest import PROJECT

GOLDEN = PROJECT / "tests" / "data" / "golden"


def test_the_golden_bundle_loads_and_answers_as_it_did():
    """Every file is verified against the manifest, and three rows get the numbers that were written down with it."""
    bundle = load(GOLDEN)
    prediction = bundle.predictor((8,))(np.array([[-0.5], [0.0], [0.5]]))
    judgement = judge(bundle.calibration, prediction)
    np.testing.assert_allclose(prediction.summary.mean, [-0.2774898, -0.15646935, -0.03902027], rtol=1e-5)
    np.testing.assert_allclose(prediction.scores["std"], [0.01490533, 0.02433065, 0.03332669], rtol=1e-5)
    assert (bundle.manifest.schema_version, bundle.manifest.draws, bundle.calibration.rows) == (1, 3, 120)
    assert (judgement.percentile, judgement.decision, judgement.reject.tolist()) == (99.0, "std", [False] * 3)
