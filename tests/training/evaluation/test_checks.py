"""Checks before publication: every command shows the shortfalls, and a fit with shortfalls cannot be `stable`."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

from abstain.models.bundles.bundle import load
from abstain.models.bundles.manifest import check_gate, read_manifest
from abstain.models.bundles.shortfalls import Shortfall, recognise, texts
from abstain.models.bundles.store import read_labels
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.records import Calibration
from abstain.models.errors import StoreError
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.feature_score_records import Range
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.tables.columns import Column
from abstain.training.calibration.far_rows import FarRows, far_rows, try_far_rows
from abstain.training.calibration.pipeline import Calibrated
from abstain.training.config.methods import HMCConfig, LaplaceConfig, MAPConfig, VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.data.rows import Rows
from abstain.training.evaluation.checks import (
    behind_the_mode,
    decision_shortfalls,
    draws_notes,
    draws_shortfalls,
    frequency_terms,
    learning_shortfalls,
    prediction_shortfalls,
)
from abstain.training.evaluation.metrics import classification_terms
from abstain.training.evaluation.mixtures import pooled_log_likelihood
from abstain.training.inference.bnn import BNN, Observations
from abstain.training.inference.diagnostics import chain_shortfalls
from abstain.training.inference.methods import hmc, laplace, vi
from abstain.training.inference.methods import map as mode_search
from abstain.training.inference.problem import Problem
from abstain.training.runs.journal import Journal
from tests.helpers.chain_diagnostics import GOOD


def lacking(**changes):
    """The shortfalls of chains that are good but for something."""
    function = replace(GOOD.function, **changes.pop("function", {}))
    return chain_shortfalls(replace(GOOD, function=function, **changes))


def only(shortfalls, code):
    """The sentence of the one shortfall there is; it has that code, and has it again where a manifest is read."""
    (found,) = shortfalls
    assert found.code == code
    assert recognise(found.text) == found
    return found.text


@pytest.mark.parametrize(
    ("code", "changes", "text"),
    [
        (
            "r_hat",
            {"function": {"rhat": 1.0304}},
            "the chains disagree about predictions: R-hat is 1.030, above 1.01; run them longer, or start them closer",
        ),
        (
            "ess",
            {"function": {"ess_bulk": 399.0}},
            "the samples of predictions have too small an effective size: bulk ESS is 399, below 400; take more samples",
        ),
        (
            "ess",
            {"function": {"ess_tail": 12.3}},
            "the samples of predictions have too small an effective size: tail ESS is 12, below 400; take more samples",
        ),
        (
            "divergences",
            {"divergences": 5},
            "5 of 4000 transitions diverged, more than 0.1%: parts of the posterior may be missing; "
            "raise target_acceptance or lower step_size",
        ),
        ("e_bfmi", {"ebfmi": (0.9, 0.8, 0.29, 0.1)}, "chain 2 moves slowly between energies: E-BFMI is below 0.3"),
        (
            "acceptance",
            {"acceptance": (0.8, 0.012, 0.8, 0.8)},
            "chain 1 hardly moves: it accepts 1.2% of its proposals; lower step_size, or choose another start",
        ),
    ],
)
def test_each_shortfall_of_chains_has_its_code_and_a_sentence(code, changes, text):
    """One sentence each, with the figure, the limit, and what to do; a manifest's reader gets the code back."""
    assert lacking(**changes) == (Shortfall(code, text),) == (recognise(text),)


def test_divergences_are_compared_with_all_transitions():
    """With thinning there are `thin` transitions for each sample: 40 of 40,000 are at the limit."""
    assert lacking(divergences=40, thin=10) == ()
    (text,) = (lack.text for lack in lacking(divergences=41, thin=10))
    assert text.startswith("41 of 40000 transitions diverged, more than 0.1%")


def test_good_chains_fall_short_in_nothing():
    """Values at the limits are no shortfalls, whatever the parameters' R-hat; constant predictions have none."""
    assert lacking() == ()
    assert lacking(function={"rhat": 1.01, "ess_bulk": 400.0, "ess_tail": 400.0}, ebfmi=(0.3,) * 4) == ()
    assert lacking(function={"rhat": None, "ess_bulk": None, "ess_tail": None}) == ()


def test_all_shortfalls_are_reported_and_nan_is_one():
    """A NaN is not good enough."""
    assert len(lacking(function={"rhat": np.nan, "ess_bulk": np.nan, "ess_tail": 3.0}, divergences=4000)) == 4


# ---- has it learned anything -----------------------------------------------------------------------------------------

RARE = 0.05


def rare_event(rows, seed):
    """Rows with a log-odds each, and a rare event of these odds; the true probability never says that it happens."""
    rng = np.random.default_rng(seed)
    logits = -3.6 + 1.3 * rng.normal(size=rows)
    chance = 1 / (1 + np.exp(-np.minimum(logits, -0.05)))
    return chance, (rng.random(rows) < chance).astype(int)


def class_terms(chance, y):
    """The terms of a prediction of two classes."""
    terms = classification_terms(np.stack([1 - chance, chance], axis=1), y)
    return {name: terms[name] for name in ("nll", "brier")}


def normal_terms_of(mean, std, y):
    """The terms of a normal prediction."""
    return {"nll": -stats.norm.logpdf(y, mean, std), "squared_error": (y - mean) ** 2}


def judge_classes(chance, y, train):
    """The shortfalls of probabilities of the second class."""
    average = class_terms(np.full(len(y), chance.mean()), y)
    return learning_shortfalls(class_terms(chance, y), average, y, train)


def judge_normals(mean, std, y, train):
    """The shortfalls of normal predictions."""
    mean, std = np.broadcast_to(mean, y.shape), np.broadcast_to(std, y.shape)
    average = normal_terms_of(mean.mean(), np.sqrt((std**2).mean() + mean.var()), y)
    return learning_shortfalls(normal_terms_of(mean, std, y), average, y, train)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_model_of_a_rare_event_has_learned_something(seed):
    """Its accuracy is that of the commonest class; its likelihood is not. A constant one has learned nothing."""
    (chance, y), (_, train) = rare_event(2000, seed), rare_event(6000, seed + 100)
    assert (chance < 0.5).all()
    assert judge_classes(chance, y, train) == ()
    for constant in (train.mean(), y.mean(), 0.5, 0.001):
        message = only(judge_classes(np.full(2000, constant), y, train), "learned_nothing")
        assert message.startswith("it has learned nothing that shows on 2000 test rows: its log-likelihood is -")
    assert (
        f"always predicting the class frequencies of the training part gives {-log_loss_of(train.mean(), y):.4g}"
        in message
    )


def log_loss_of(share, y):
    """The mean negative log-likelihood of a constant probability, in nats."""
    return -np.where(y == 1, np.log(share), np.log(1 - share)).mean()


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5, 2.0])
def test_a_noisy_constant_has_learned_nothing(noise):
    """At most as many of 400 fits to noise pass as two scores at 2.33 standard errors allow."""
    rng = np.random.default_rng(int(100 * noise))
    passed = 0
    for _ in range(400):
        train, y = (rng.random(2000) < RARE).astype(int), (rng.random(500) < RARE).astype(int)
        logits = np.log(train.mean() / (1 - train.mean())) + noise * rng.normal(size=500)
        passed += not judge_classes(1 / (1 + np.exp(-logits)), y, train)
    # Two scores, each by chance in 1 % of fits: more than 24 of 400 fits pass with probability 2e-6 if in 2 %.
    assert passed <= 24


def test_accurate_but_overconfident_classes_have_learned_something():
    """Its likelihood is worse than that of the frequencies; its Brier score is not."""
    rng = np.random.default_rng(1)
    y, train = rng.integers(0, 2, 500), rng.integers(0, 2, 1000)
    right = rng.random(500) < 0.9
    chance = np.where(right == (y == 1), 1 - 1e-9, 1e-9)
    assert class_terms(chance, y)["nll"].mean() > 0.7
    assert judge_classes(chance, y, train) == ()


def test_a_class_without_training_rows_leaves_the_gate_a_number():
    """The frequencies give it half a row."""
    y, train = np.array([0, 1, 2, 2] * 50), np.array([0, 1] * 100)
    terms = {"nll": np.full(200, 0.1), "brier": np.full(200, 0.1)}
    assert learning_shortfalls(terms, frequency_terms(y, y), y, train) == ()
    assert np.isfinite(frequency_terms(y, train)["nll"]).all()


def test_a_regression_is_held_against_the_training_targets_normal():
    """A constant and a noisy one fall; a weak mean passes, and so does one that knows only where the noise is large."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=1000)
    y, train = 10 + 0.3 * x + rng.normal(size=1000), 10 + rng.normal(0, 1.04, 3000)
    assert judge_normals(10 + 0.3 * x, 1.0, y, train) == ()
    for mean in (10.0, train.mean(), y.mean(), 10 + 0.2 * rng.normal(size=1000), 11.0):
        message = only(judge_normals(mean, 1.04, y, train), "learned_nothing")
        assert message.startswith("it has learned nothing that shows on 1000 test rows: its log-likelihood is -")
    assert "always predicting a normal with the mean and standard deviation of the training part gives -1.46" in message
    message = only(judge_normals(y.mean(), 1.04, y, y[:300] + 5), "learned_nothing")
    assert "always predicting the average of its own predictions gives -1.45" in message
    spread = np.exp(x)
    wide, many = spread * rng.normal(size=1000), np.exp(rng.normal(size=3000)) * rng.normal(size=3000)
    assert judge_normals(0.0, spread, wide, many) == ()


def test_few_test_rows_do_not_show_what_a_weak_model_has_learned():
    """The shortfall says how many rows, the difference and its standard error; on more rows it is gone."""
    rng = np.random.default_rng(3)
    train = rng.integers(0, 2, 1000)
    y = rng.integers(0, 2, 4000)
    chance = np.where(rng.random(4000) < 0.55, y, 1 - y) * 0.1 + 0.45
    assert judge_classes(chance, y, train) == ()
    message = only(judge_classes(chance[:20], y[:20], train), "learned_nothing")
    assert message.startswith("it has learned nothing that shows on 20 test rows")
    assert "standard error" in message
    fewest = min((y[:20] == 0).sum(), (y[:20] == 1).sum())
    assert f"; 20 test rows, {fewest} of the rarest class, may be too few to show what it has learned: use" in message


@pytest.mark.parametrize("constant", [RARE / 4, 0.5])
def test_a_model_that_predicts_worse_than_the_frequencies_is_to_be_trained_otherwise(constant):
    """More test rows would not help it."""
    (_, y), (_, train) = rare_event(2000, 0), rare_event(6000, 1)
    message = only(judge_classes(np.full(2000, constant), y, train), "learned_nothing")
    assert message.endswith("; lower kl_weight or the prior's scale, or train longer")


def test_the_advice_for_an_import_names_no_setting_of_a_fit():
    """Which its config cannot have: what may differ is how the network is fed; or there are too few rows."""
    (_, y), (_, train) = rare_event(2000, 0), rare_event(6000, 1)

    def advice(rows: int, probability: float) -> str:
        terms = class_terms(np.full(rows, probability), y[:rows])
        (shortfall,) = learning_shortfalls(terms, terms, y[:rows], train, "calibration", imported=True)
        return shortfall.text.rpartition("; ")[2]

    expected = "check that the order of the columns and of the classes, the scaling and the activation are those of the training"
    assert advice(2000, 0.5) == expected
    assert advice(60, y[:60].mean()).endswith("to show what it has learned: use more test rows")


# ---- draws and their mode --------------------------------------------------------------------------------------------


def test_draws_far_behind_their_mode_fall_short():
    """Draws fall short if they are worse by a tenth of a nat and by three standard errors, not by only one of them."""
    rng = np.random.default_rng(4)
    mode = rng.normal(-0.3, 0.2, 400)
    message = only(behind_the_mode(mode - 0.5 + 0.1 * rng.normal(size=400), mode), "behind_the_mode")
    assert "their mean log-likelihood on 400 test rows is -0.7966 nats a row, and the mode's is -0.2932" in message
    assert behind_the_mode(mode - 0.09, mode) == ()
    assert behind_the_mode(mode + 2, mode) == ()
    uncertain = np.where(np.arange(400) < 2, 30.0, 0.0)
    assert uncertain.mean() > 0.1
    assert behind_the_mode(mode - uncertain, mode) == ()
    assert len(behind_the_mode(np.full(400, np.nan), mode)) == 1


@pytest.fixture(scope="module")
def regression():
    """A noisy sine as a problem and as test rows, with a network of two layers."""
    rng = np.random.default_rng(5)
    x = rng.uniform(-2, 2, (300, 1)).astype(np.float32)
    y = np.sin(2 * x[:, 0]) + 0.1 * rng.normal(size=300)
    model = Model(network=MLPSpec(hidden=(16, 16)), likelihood="normal", feature_shape=(1,))
    rows = Observations(jnp.asarray(x[:200]), jnp.float32(y[:200]))
    return Problem(BNN(model, PriorConfig()), rows, rows), Rows(x[200:], y[200:])


DESCENT = {"steps": 600, "learning_rate": 0.01, "batch_size": 200, "reports": 1}
WARM = {"start": "map", "map": DESCENT, "chains": 2, "reports": 1}
SOUND = {
    "laplace": (laplace.fit, LaplaceConfig(**DESCENT)),
    "vi": (vi.fit, VIConfig(**DESCENT, kl_weight=0.1)),
    "hmc": (hmc.fit, HMCConfig(**WARM, warmup=30, samples=30, leapfrogs=10)),
    "map": (mode_search.fit, MAPConfig(**DESCENT)),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_draws_keep_up_with_their_mode(regression, name):
    """And the same draws, thrown far about, do not; where there is no mode there is nothing to compare with."""
    problem, test = regression
    method, settings = SOUND[name]
    fitted = method(jax.random.key(0), problem, settings, 20, Journal())
    assert draws_shortfalls(fitted, test) == ()
    if name == "map":
        assert fitted.mode is None
        return
    rng = np.random.default_rng(6)
    thrown = jax.tree.map(
        lambda leaf: leaf + rng.normal(0, 1.0, leaf.shape).astype(np.float32), fitted.posterior.draws["network"]
    )
    draws = fitted.posterior.draws | {"network": thrown}
    worse = fitted._replace(posterior=Posterior(fitted.posterior.model, draws))
    message = only(draws_shortfalls(worse, test), "behind_the_mode")
    assert "its draws predict far worse than the mode they were made around" in message


def test_the_pooled_likelihood_of_classes_is_the_mean_over_draws():
    """It is the log of the mean over draws of the softmax at the true class, in float64."""
    rng = np.random.default_rng(7)
    model = Model(network=MLPSpec(hidden=()), likelihood="categorical", feature_shape=(2,), class_names=("a", "b", "c"))
    kernel, bias = rng.normal(size=(5, 2, 3)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    posterior = Posterior(model, {"network": {"Dense_0": {"kernel": kernel, "bias": bias}}})
    rows = Rows(rng.normal(size=(40, 2)).astype(np.float32), rng.integers(0, 3, 40))
    logits = np.einsum("nd,sdc->snc", rows.x, kernel) + bias[:, None]
    expected = np.log(softmax(logits, axis=2)[:, np.arange(40), rows.y].mean(axis=0))
    np.testing.assert_allclose(pooled_log_likelihood(posterior, rows), expected, rtol=1e-4, atol=1e-5)


# ---- the decision ----------------------------------------------------------------------------------------------------


def calibration(scores=(0.1, 0.2, 0.3)):
    """A calibration of one score."""
    return Calibration(scores={"std": np.float32(scores)}, nonconformity=np.arange(3.0))


def test_a_decision_that_is_always_the_same_tells_nothing_apart():
    """Its threshold would be that value, and nothing would ever be rejected."""
    message = (
        "its decision score, std, is the same for every calibration row (0), so it cannot separate rows: "
        "one draw has no spread; choose another decision, or a method with more draws"
    )
    rng = np.random.default_rng(8)
    y = rng.normal(size=50)
    terms = normal_terms_of(y, 0.1, y)
    average = normal_terms_of(0.0, 1.0, y)
    assert only(prediction_shortfalls(terms, average, y, y, calibration((0, 0, 0))), "constant_decision") == message
    assert prediction_shortfalls(terms, average, y, y, calibration()) == ()


@pytest.mark.parametrize("scores", [("mutual_information",), ("std", "mutual_information")])
def test_scores_that_differ_by_rounding_tell_nothing_apart(scores):
    """One draw's mutual information is the rounding of 0: alone or combined, it rejects nothing at any percentile."""
    rng = np.random.default_rng(9)
    rounding, spread = 5e-8 * rng.random((2, 200)), rng.random((2, 200))
    for values, expected in ((rounding, 1), (spread, 0)):
        own, reference = ({"std": np.zeros(200), "mutual_information": value} for value in values)
        found = Calibration(
            scores=own, reference=reference, decision=Decision(scores=scores), nonconformity=np.arange(200.0)
        )
        assert len(decision_shortfalls(found)) == expected


def test_few_draws_give_a_note():
    """The note states how much too small a standard deviation that divides by their number is."""
    assert draws_notes(20) == ()
    assert "divide by 10, not 9, standard deviations are 5% too small" in draws_notes(10)[0]
    assert draws_notes(1)[0].startswith("one draw is kept, which has no spread")


# ---- where it is shown ------------------------------------------------------------------------------------------------

MODE = """
name = "mode"
likelihood = "normal"
[data]
source = "sine"
calibration_size = 200
test_size = 100
[network]
kind = "mlp"
hidden = [4]
[method]
kind = "map"
steps = 3000
learning_rate = 1e-2
reports = 1
[calibration]
decision = "std"
"""
MESSAGE = "its decision score, std, is the same for every calibration row (0)"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a config of one draw."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "mode.toml").write_text(MODE)
    return folder


@pytest.fixture
def fitted(run, home):
    """The folder, with the model fitted once; the fit's stdout and stderr."""
    if not (home / "output.json").exists():
        code, out, err = run("fit", home / "mode.toml", "--store", home / "store", "--json")
        assert code == 0, err
        (home / "output.json").write_text(json.dumps([out, err]))
    return home / "store", *json.loads((home / "output.json").read_text())


def test_a_mode_has_no_spread_and_the_fit_says_so(fitted):
    """The shortfall is on stderr and in the JSON; the version is still published."""
    _, out, err = fitted
    assert f"falls short: {MESSAGE}" in err
    document = json.loads(out)
    assert (document["name"], document["version"]) == ("mode", 1)
    assert [message[: len(MESSAGE)] for message in document["shortfalls"]] == [MESSAGE]
    assert document["notes"][0].startswith("one draw is kept, which has no spread")
    assert f"note: {document['notes'][0]}" in err
    assert document["metrics"]["rmse"] < 0.9


def test_the_manifest_the_report_and_show_say_so(run, fitted):
    """Wherever one looks at the version; in the report above the figures."""
    store, out, _ = fitted
    message = tuple(json.loads(out)["shortfalls"])
    bundle = load(store / "mode" / "1")
    assert tuple(texts(bundle.manifest.shortfalls)) == message
    assert bundle.manifest.notes == tuple(json.loads(out)["notes"])
    assert bundle.manifest.draws == 1
    page = (store / "mode" / "1" / "report.html").read_text("utf-8")
    assert 0 < page.index("Not fit to be relied on") < page.index(MESSAGE) < page.index("On the test part")
    code, out, _ = run("show", "mode", "--store", store)
    assert code == 0
    assert MESSAGE in " ".join(out.split())


def test_another_decision_mends_what_one_that_never_varies_lacks(run, fitted, tmp_path):
    """`abstain calibrate` with another decision allows `stable`; with the same decision it does not."""
    store = shutil.copytree(fitted[0], tmp_path / "store")
    for version, decision, message in ((2, "knn", ()), (3, "std", (MESSAGE,))):
        code, _, err = run(
            "calibrate", "mode", "--data", "sine", "--set", f'decision="{decision}"', "--store", store, "--no-report"
        )
        assert code == 0, err
        found = read_manifest(store / "mode" / str(version)).shortfalls
        assert tuple(short.text[: len(MESSAGE)] for short in found) == message


def test_stable_is_refused_to_it_and_nothing_else_is(run, fitted):
    """The refusal names what is lacking; other labels are not gated; --force labels all the same."""
    store, *_ = fitted
    assert run("label", "mode:1", "canary", "--store", store)[:2] == (0, "mode@canary is mode:1\n")
    code, out, err = run("label", "mode:1", "stable", "--store", store)
    assert (code, out) == (1, "")
    assert err.startswith(f"abstain: mode:1: cannot be labelled stable, its fit fell short: found (1) {MESSAGE}")
    assert err.endswith("fit it again, or pass --force to label it anyway")
    assert read_labels(store, "mode").labels == {"canary": 1}
    assert run("label", "mode:1", "stable", "--force", "--store", store)[:2] == (0, "mode@stable is mode:1\n")
    assert read_labels(store, "mode").labels == {"canary": 1, "stable": 1}


def test_a_good_fit_passes_the_gate(digits):
    """A version that lacks nothing is let through, and its report says nothing of the kind."""
    assert digits.manifest.shortfalls == ()
    check_gate(digits.manifest)
    lacking = digits.manifest.model_copy(update={"shortfalls": (recognise("this"), recognise("that"))})
    with pytest.raises(
        StoreError,
        match=r"digits:1: cannot be labelled stable, its fit fell short: found \(1\) this; \(2\) that; fit it again",
    ):
        check_gate(lacking)


# ---- far rows --------------------------------------------------------------------------------------------------------


def test_far_rows_lie_outside_every_numeric_range_on_both_sides():
    """Ten widths and more; categories stay; an origin is added back; nothing is beyond float32."""
    columns = (Column(name="age"), Column(name="job", categories=("cook", "nurse")), Column(name="since"))
    preprocessing = Preprocessing(columns=columns, origin=(0.0, 0.0, 1.7e9), unit=(1.0, 1.0, 2.0))
    model = Model(
        network=MLPSpec(hidden=(2,)),
        likelihood="categorical",
        preprocessing=preprocessing,
        feature_shape=(3,),
        class_names=("a", "b"),
    )
    low, high = np.float32([18, -3.4e38, -50]), np.float32([90, 3.4e38, 50])
    rows = far_rows(model, Range(low, high))
    np.testing.assert_allclose(rows[:, 0], [18 - 720, 90 + 720, 18 - 72e3, 90 + 72e3, 18 - 72e6, 90 + 72e6])
    assert (rows[:, 1] == 0).all()
    np.testing.assert_allclose(rows[:2, 2], [1.7e9 - 2 * 1050, 1.7e9 + 2 * 1050])
    only_categories = model.model_copy(
        update={"preprocessing": Preprocessing(columns=columns[1:2]), "feature_shape": (1,)}
    )
    assert len(far_rows(only_categories, Range(low[1:2], high[1:2]))) == 0


@pytest.mark.parametrize(("scores", "kind"), [(("std",), "notes"), (("std", "knn"), "shortfalls")])
def test_a_decision_that_accepts_far_rows_says_so(digits, scores, kind):
    """A shortfall where a score of distance decides; a note where only the draws' answer does; nothing where all is well."""
    silent = {
        name: np.full_like(values, np.finfo(np.float32).max) for name, values in digits.calibration.scores.items()
    }
    mute = replace(digits.calibration, scores=silent, decision=Decision(scores=scores))
    calibrated = Calibrated(
        digits.predictor((8,)), mute, digits.feature_scores, digits.manifest.calibration.recalibration
    )
    found = try_far_rows(calibrated)
    message = found.notes[0] if kind == "notes" else only(found.shortfalls, "accepts_far_rows")
    assert message.startswith("its decision accepts rows far outside the training data: 6 of 6 rows")
    assert len(found.shortfalls) + len(found.notes) == 1
    sound = replace(digits.calibration, decision=Decision(scores=("range",)))
    assert try_far_rows(calibrated._replace(calibration=sound)) == FarRows()
