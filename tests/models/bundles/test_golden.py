"""A bundle of each released schema stays loadable, and answers as it did (`docs/compatibility.md`)."""

import numpy as np
import pytest

from abstain.models.bundles.bundle import load
from abstain.models.bundles.manifest import READ_SCHEMA_VERSIONS
from abstain.models.decisions.judging import judge
from tests.helpers.paths import PROJECT

GOLDEN = PROJECT / "tests" / "data" / "golden"


def test_a_bundle_is_kept_of_every_schema_that_is_read():
    """And of no other schema."""
    assert sorted(int(folder.name) for folder in GOLDEN.iterdir() if folder.is_dir()) == sorted(READ_SCHEMA_VERSIONS)


def test_the_bundle_of_schema_1_answers_as_it_did():
    """Every file is verified against the manifest, and three rows get the numbers that were written down with it."""
    bundle = load(GOLDEN / "1")
    prediction = bundle.predictor((8,))(np.array([[-0.5], [0.0], [0.5]]))
    judgement = judge(bundle.calibration, prediction)
    np.testing.assert_allclose(prediction.summary.mean, [-0.2774898, -0.15646935, -0.03902027], rtol=1e-5)
    np.testing.assert_allclose(prediction.scores["std"], [0.01490533, 0.02433065, 0.03332669], rtol=1e-5)
    assert (bundle.manifest.schema_version, bundle.manifest.draws, bundle.calibration.rows) == (1, 3, 120)
    assert (judgement.percentile, judgement.decision, judgement.reject.tolist()) == (99.0, "std", [False] * 3)


def test_the_bundle_of_schema_2_answers_as_it_did():
    """A combined decision on reference rows: three rows of the law, and one far beyond the training rows."""
    bundle = load(GOLDEN / "2")
    prediction = bundle.predictor((8,))(np.array([[-0.5], [0.0], [0.5], [3.0]]))
    judgement = judge(bundle.calibration, prediction)
    np.testing.assert_allclose(prediction.summary.mean, [0.07208814, 0.15304819, -0.1161284, -0.97832745], rtol=1e-5)
    combined = judgement.scores["combined"]
    np.testing.assert_allclose(combined.value, [0.66760794, 0.30615799, 0.43958677, 2.71296734], rtol=1e-4)
    assert combined.threshold[0] == pytest.approx(1.5474481, rel=1e-4)
    assert (bundle.manifest.schema_version, bundle.calibration.rows, bundle.calibration.reference_rows) == (2, 120, 8)
    assert (judgement.percentile, judgement.reject.tolist()) == (95.0, [False, False, False, True])
