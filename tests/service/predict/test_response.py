"""The fields of predictions: closed forms of ensembles that are known exactly, and the formulas of the calibration."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import Calibration
from abstain.models.errors import CalibrationError, InputError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Prediction, Predictor
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.prediction.scores import SCORES
from abstain.service.predict.response import FIELDS, check_fields, make_columns, make_rows

PROBABILITIES = np.array([[0.1, 0.9, 0.0625], [0.5, 0.5, 0.0625]])
"""The unnormalised probabilities of three classes, by two draws."""
MEANS, NOISES = np.array([1.0, 3.0]), np.array([0.5, 1.5])
"""The mean and noise of two draws, in units of the standardised target."""
SHIFT, SCALE = 10.0, 4.0
RANKS = 19


Predicted = tuple[Model, Prediction]
"""A model, and its prediction for two rows."""


def constant_model(likelihood: str, biases: np.ndarray, **more) -> Predicted:
    """An ensemble with the same prediction for every row: a layer of zeros, and a bias for each draw."""
    model = Model(network=MLPSpec(hidden=()), likelihood=likelihood, feature_shape=(1,), **more)
    kernel = np.zeros((len(biases), 1, biases.shape[1]), np.float32)
    draws = {"network": {"Dense_0": {"kernel": kernel, "bias": biases.astype(np.float32)}}}
    if likelihood == "normal":
        draws["noise"] = NOISES.astype(np.float32)
    return model, Predictor(Posterior(model, draws), (2,))(np.array([[0.0], [5.0]]))


def calibration_of(scores: dict[str, np.ndarray], nonconformity: np.ndarray, *decision: str) -> Calibration:
    """A calibration at the 90th percentile and coverage 0.5; the decision is `std` by default."""
    return Calibration(
        scores=scores,
        nonconformity=nonconformity,
        decision=Decision(scores=decision or ("std",)),
        percentile=90.0,
        coverage=0.5,
    )


def predictions(predicted: Predicted, calibration: Calibration, **levels: float) -> list[dict]:
    """The fields of the two rows."""
    model, prediction = predicted
    judgement = judge(calibration, prediction, **levels)
    return make_rows(make_columns(model, prediction, judgement), check_fields(model, None))


@pytest.fixture(scope="module")
def classifier() -> Predicted:
    """Two draws that disagree about the first two of three classes."""
    return constant_model("categorical", np.log(PROBABILITIES), class_names=("ant", "bee", "cat"))


@pytest.fixture(scope="module")
def regression() -> Predicted:
    """Two draws that disagree about mean and noise."""
    scaled = Preprocessing(target_shift=SHIFT, target_scale=SCALE)
    return constant_model("normal", MEANS[:, None], preprocessing=scaled)


@pytest.fixture(scope="module")
def evenly() -> Calibration:
    """A classifier's calibration: every score has 19 even steps from 0.05 to 0.95."""
    steps = (np.arange(1, RANKS + 1) / 20).astype(np.float32)
    return calibration_of(dict.fromkeys(SCORES["classification"], steps), steps)


@pytest.fixture(scope="module")
def tenths() -> Calibration:
    """A regression's calibration with steps of a tenth."""
    steps = np.arange(1, RANKS + 1) / 10
    return calibration_of(dict.fromkeys(SCORES["regression"], steps.astype(np.float32)), steps)


def entropy(probabilities: np.ndarray) -> float:
    """The entropy of a distribution, in nats."""
    return -float(sum(p * math.log(p) for p in probabilities if p > 0))


def test_a_classification_row_is_the_closed_form(classifier, evenly):
    """Mean, population standard deviation and the three entropies of two known draws."""
    draws = PROBABILITIES / PROBABILITIES.sum(axis=1, keepdims=True)
    mean, spread = draws.mean(axis=0), abs(draws[0] - draws[1]) / 2
    aleatoric = (entropy(draws[0]) + entropy(draws[1])) / 2
    first, second = predictions(classifier, evenly)
    assert first == second
    assert tuple(first) == FIELDS["classification"]
    assert (first["label"], first["index"]) == ("bee", 1)
    np.testing.assert_allclose(first["probabilities"], mean, atol=1e-6)
    np.testing.assert_allclose(first["std"], spread, atol=1e-6)
    assert first["entropy"] == pytest.approx(entropy(mean), abs=1e-6)
    assert first["aleatoric_entropy"] == pytest.approx(aleatoric, abs=1e-6)
    assert first["mutual_information"] == pytest.approx(entropy(mean) - aleatoric, abs=1e-6)
    values = {name: score["value"] for name, score in first["scores"].items()}
    assert values == pytest.approx(
        {
            "std": spread.max(),
            "entropy": entropy(mean),
            "expected_entropy": aleatoric,
            "mutual_information": entropy(mean) - aleatoric,
            "max_probability": 1 - mean.max(),
            "gen": sum((p * (1 - p)) ** 0.1 for p in mean),
            "energy": -math.log(1.0625),
            "variation_ratio": 0.5,
        },
        abs=1e-6,
    )


def test_a_regression_row_is_the_closed_form(regression, tenths):
    """The law of total variance, the normal's entropy and the interval, in the target's units."""
    aleatoric, epistemic = SCALE**2 * (NOISES**2).mean(), SCALE**2 * MEANS.var()
    mean, std = SHIFT + SCALE * MEANS.mean(), math.sqrt(aleatoric + epistemic)
    first, second = predictions(regression, tenths)
    assert first == second
    assert tuple(first) == FIELDS["regression"]
    assert first["mean"] == pytest.approx(mean, abs=1e-5)
    assert first["std"] == pytest.approx(std, abs=1e-5)
    assert first["aleatoric_std"] == pytest.approx(math.sqrt(aleatoric), abs=1e-5)
    assert first["epistemic_std"] == pytest.approx(math.sqrt(epistemic), abs=1e-5)
    assert first["entropy"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e * std**2), abs=1e-5)
    assert first["interval"] == pytest.approx([mean - std, mean + std], abs=1e-4)  # the 10th of 19 tenths is 1
    assert {name: score["value"] for name, score in first["scores"].items()} == pytest.approx(
        {"std": math.sqrt(epistemic), "total_std": std}, abs=1e-5
    )


def test_quantiles_invert_the_mixtures_distribution_function(regression, tenths):
    """Below each quantile, the mixture of the two normals has exactly the mass of its level."""
    quantiles = predictions(regression, tenths)[0]["quantiles"]
    assert list(quantiles) == ["0.025", "0.5", "0.975"]
    for level, value in quantiles.items():
        mass = np.mean(
            [
                0.5 * (1 + math.erf((value - SHIFT - SCALE * mean) / (SCALE * noise * math.sqrt(2))))
                for mean, noise in zip(MEANS, NOISES, strict=True)
            ]
        )
        assert mass == pytest.approx(float(level), abs=1e-5)


def test_a_bernoulli_model_predicts_two_classes(evenly):
    """One logit becomes the probabilities of both classes."""
    logits = np.array([[math.log(3)], [0.0]])
    first = predictions(constant_model("bernoulli", logits, class_names=("no", "yes")), evenly)[0]
    assert (first["label"], first["index"]) == ("yes", 1)
    np.testing.assert_allclose(first["probabilities"], [0.375, 0.625], atol=1e-6)
    np.testing.assert_allclose(first["std"], [0.125, 0.125], atol=1e-6)


@pytest.mark.parametrize("percentile", [5.0, 50.0, 62.5, 90.0, 95.0])
def test_a_threshold_is_the_conformal_rank(classifier, evenly, percentile):
    """The ⌈(n + 1)·P/100⌉-th smallest of 19 even steps, for every score."""
    rank = math.ceil((RANKS + 1) * Fraction(percentile) / 100)
    for score in predictions(classifier, evenly, percentile=percentile)[0]["scores"].values():
        assert score["threshold"] == np.float32(rank / 20)


def test_p_values_count_the_calibration_rows(classifier, evenly):
    """(1 + #{calibration ≥ s}) / (n + 1), one row at a time; the percentile is 100·(1 − p)."""
    for score in predictions(classifier, evenly)[0]["scores"].values():
        at_least = sum(step / 20 >= score["value"] for step in range(1, RANKS + 1))
        assert score["p_value"] == (1 + at_least) / (RANKS + 1)
        assert score["percentile"] == pytest.approx(100 * (1 - score["p_value"]), abs=1e-12)


def test_reject_is_the_decision_score_above_its_threshold(classifier, evenly):
    """The reason names the decision score and the requested percentile; a score equal to the threshold is not rejected."""
    value = predictions(classifier, evenly)[0]["scores"]["std"]["value"]
    exactly = np.sort(np.full(RANKS, value, np.float32))
    for steps, rejected in ((exactly, False), (exactly * (1 - 5e-5), False), (exactly * (1 - 2e-4), True)):
        calibration = calibration_of({**evenly.scores, "std": steps}, evenly.nonconformity)
        answer = predictions(classifier, calibration, percentile=91.0)[0]
        assert answer["reject"] is rejected
        assert answer["scores"]["std"]["p_value"] == ((1 if rejected else RANKS + 1) / (RANKS + 1))
        assert answer["reasons"] == (["std above its 91st percentile"] if rejected else [])


@pytest.mark.parametrize("decision", SCORES["classification"])
def test_only_the_decision_score_rejects(classifier, evenly, decision):
    """One score is above every calibration row; the row is rejected only if that score is the decision."""
    strange = {name: evenly.scores[name] if name != "entropy" else evenly.scores[name] / 100 for name in evenly.scores}
    above = {name: steps + 10 for name, steps in strange.items() if name != "entropy"}
    calibration = calibration_of(strange | above, evenly.nonconformity, decision)
    answer = predictions(classifier, calibration)[0]
    assert answer["reject"] is (decision == "entropy")
    assert answer["reasons"] == (["entropy above its 90th percentile"] if decision == "entropy" else [])


@pytest.mark.parametrize("coverage", [0.05, 0.3, 0.5, 0.65, 0.9, 0.95])
def test_a_prediction_set_holds_the_classes_that_fit(classifier, evenly, coverage):
    """Classes with 1 − probability within the conformal radius, the most probable first."""
    answer = predictions(classifier, evenly, coverage=coverage)[0]
    radius = np.float32(math.ceil((RANKS + 1) * Fraction(str(coverage))) / 20)
    members = [
        (name, p)
        for name, p in zip(("ant", "bee", "cat"), np.float32(answer["probabilities"]), strict=True)
        if 1 - p <= radius
    ]
    assert answer["prediction_set"] == [name for name, _ in sorted(members, key=lambda member: -member[1])]


def test_a_larger_coverage_never_removes_a_class(classifier, evenly):
    """The sets of growing coverages are nested, from empty to all classes."""
    sets = [predictions(classifier, evenly, coverage=level / 20)[0]["prediction_set"] for level in range(1, 20)]
    assert all(set(small) <= set(large) for small, large in itertools.pairwise(sets))
    assert (sets[0], sets[-1]) == ([], ["bee", "ant", "cat"])


def test_an_interval_grows_with_coverage(regression, tenths):
    """Its half width is the conformal radius times the total standard deviation."""
    for level in range(1, 20):
        answer = predictions(regression, tenths, coverage=level / 20)[0]
        low, high = answer["interval"]
        assert (low + high) / 2 == pytest.approx(answer["mean"], rel=1e-5)
        assert (high - low) / 2 == pytest.approx(level / 10 * answer["std"], rel=1e-5)


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        ({"percentile": 95.1}, r"the 95.1th percentile needs a larger .* at least 20 rows, found 19 rows"),
        ({"percentile": 99.9}, r"the 99.9th percentile needs a larger .* at least 999 rows, found 19 rows"),
        ({"coverage": 0.96}, r"coverage 0.96 needs a larger calibration part: expected at least 24 rows, found 19"),
    ],
)
def test_too_few_calibration_rows_are_refused_with_the_number_needed(classifier, evenly, levels, text):
    """Level / (1 − level) rows are needed, rounded up."""
    with pytest.raises(CalibrationError, match=text):
        predictions(classifier, evenly, **levels)


def test_the_fields_are_those_of_the_contract(classifier, regression):
    """All fields of the contract and no others, if none are requested."""
    assert set(check_fields(classifier[0], None)) == {
        *("label", "index", "probabilities", "std", "entropy", "aleatoric_entropy", "mutual_information"),
        *("reject", "reasons", "scores", "prediction_set"),
    }
    assert set(check_fields(regression[0], None)) == {
        *("mean", "std", "aleatoric_std", "epistemic_std", "entropy", "quantiles", "interval"),
        *("reject", "reasons", "scores"),
    }


def test_a_field_of_the_other_task_is_refused_by_name(classifier, regression):
    """The error lists the fields of the task, and suggests a similar one."""
    with pytest.raises(InputError, match=r"^fields: expected some of .*, found 'lable'; did you mean 'label'\?$"):
        check_fields(classifier[0], ("lable",))
    with pytest.raises(InputError, match=r"^fields: expected some of label, index, .*, found 'mean'$"):
        check_fields(classifier[0], ("label", "mean"))
    with pytest.raises(InputError, match=r"^fields: expected some of mean, std, .*, found 'label'$"):
        check_fields(regression[0], ("label",))
    assert check_fields(classifier[0], ("novel", "ambiguous"), two_parts=True) == ("novel", "ambiguous")
    with pytest.raises(InputError, match=r"fields: expected some of label.*found 'novel'"):
        check_fields(classifier[0], ("novel",))


def test_a_long_unknown_field_is_cut_in_the_error(classifier):
    """A field of a megabyte does not make an error of a megabyte."""
    with pytest.raises(InputError) as caught:
        check_fields(classifier[0], ("x" * 1_000_000,))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("percentile", "text"),
    [(1.0, "1st"), (2.0, "2nd"), (3.0, "3rd"), (4.0, "4th"), (10.0, "10th"), (11.0, "11th"), (12.0, "12th"),
     (13.0, "13th"), (20.0, "20th"), (21.0, "21st"), (52.0, "52nd"), (63.0, "63rd"), (91.0, "91st"), (94.0, "94th"),
     (94.5, "94.5th"), (87.1, "87.1th"), (0.1, "0.1th")],
)  # fmt: skip
def test_a_reason_has_an_english_ordinal(classifier, evenly, percentile, text):
    """1st, 2nd, 3rd, 4th, 11th, and so on."""
    lowered = {name: steps - 1 for name, steps in evenly.scores.items()}
    calibration = calibration_of(lowered, evenly.nonconformity)
    assert predictions(classifier, calibration, percentile=percentile)[0]["reasons"] == [
        f"std above its {text} percentile"
    ]
