"""The gate: what a fit lacks is said in plain words, wherever one looks, and `stable` is refused to it."""

import json
import shutil

import numpy as np
import pytest

from models.bundle import check_gate, load, read_manifest
from models.calibration import Calibration
from models.errors import StoreError
from models.store import read_labels
from training.diagnostics import chain_shortfalls
from training.gate import prediction_shortfalls

GOOD = {
    "function": {"rhat": 1.004, "ess_bulk": 900.0, "ess_tail": 800.0},
    "parameters": {"rhat": 2.9, "ess_bulk": 4.0, "ess_tail": 4.0},
    "samples": 4000,
    "divergences": 4,
    "ebfmi": [0.9, 0.8, 1.1, 0.7],
    "acceptance": [0.8, 0.82, 0.79, 0.81],
}


def told(**changes):
    """The shortfalls of chains that are good but for something."""
    function = GOOD["function"] | changes.pop("function", {})
    return chain_shortfalls(GOOD | {"function": function} | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"function": {"rhat": 1.0304}},
            "the chains disagree about predictions: R-hat is 1.030, above 1.01; run them longer, or start them closer",
        ),
        (
            {"function": {"ess_bulk": 399.0}},
            "the samples of predictions are worth too few independent ones: bulk ESS is 399, below 400; take more samples",
        ),
        (
            {"function": {"ess_tail": 12.3}},
            "the samples of predictions are worth too few independent ones: tail ESS is 12, below 400; take more samples",
        ),
        (
            {"divergences": 5},
            "5 of 4000 transitions diverged, more than 0.1%: parts of the posterior may be missing; "
            "raise target_acceptance or lower step_size",
        ),
        ({"ebfmi": [0.9, 0.8, 0.29, 0.1]}, "chain 2 moves slowly between energies: E-BFMI is below 0.3"),
        (
            {"acceptance": [0.8, 0.012, 0.8, 0.8]},
            "chain 1 hardly moves: it accepts 1.2% of its proposals; lower step_size, or choose another start",
        ),
    ],
)
def test_each_shortfall_of_chains_is_said_in_plain_words(changes, said):
    """One sentence each, with the figure, the limit, and what to do."""
    assert told(**changes) == (said,)


def test_good_chains_fall_short_in_nothing():
    """At the limits all is well, whatever the parameters' own R-hat; predictions that never vary have none."""
    assert told() == ()
    assert told(function={"rhat": 1.01, "ess_bulk": 400.0, "ess_tail": 400.0}, ebfmi=[0.3] * 4) == ()
    assert told(function={"rhat": None, "ess_bulk": None, "ess_tail": None}) == ()


def test_all_shortfalls_are_said_and_one_that_is_no_number_is_one():
    """A NaN is not good enough."""
    assert len(told(function={"rhat": np.nan, "ess_bulk": np.nan, "ess_tail": 3.0}, divergences=4000)) == 4


def calibration(scores=(0.1, 0.2, 0.3)):
    """A calibration of one score."""
    return Calibration(scores={"std": np.float32(scores)}, nonconformity=np.arange(3.0))


@pytest.mark.parametrize(
    ("metrics", "y", "said"),
    [
        (
            {"accuracy": 0.5},
            np.array([0, 1, 1, 2]),
            "it has learned nothing: its accuracy on the test part is 0.500, and always saying the commonest class "
            "gives 0.500; lower kl_weight or the prior's scale, or train longer",
        ),
        (
            {"rmse": 2.0},
            np.array([-2.0, 2.0]),
            "it has learned nothing: its RMSE on the test part is 2, and always saying the mean gives 2; "
            "lower kl_weight or the prior's scale, or train longer",
        ),
    ],
)
def test_predictions_no_better_than_a_guess_have_learned_nothing(metrics, y, said):
    """Accuracy against the commonest class, RMSE against the mean; a little better is something."""
    assert prediction_shortfalls(metrics, y, calibration()) == (said,)
    better = {name: value * (1.01 if name == "accuracy" else 0.99) for name, value in metrics.items()}
    assert prediction_shortfalls(better, y, calibration()) == ()


def test_a_decision_that_is_always_the_same_tells_nothing_apart():
    """Its threshold would be that value, and nothing would ever be rejected."""
    said = (
        "its decision score, std, is the same for every calibration row (0), so that it tells nothing apart: "
        "one draw has no spread; choose another decision, or a method with more draws"
    )
    assert prediction_shortfalls({"rmse": 1.0}, np.array([-2.0, 2.0]), calibration((0, 0, 0))) == (said,)


# ---- where it is said ------------------------------------------------------------------------------------------------

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
SAID = "its decision score, std, is the same for every calibration row (0)"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a config of one draw."""
    folder = tmp_path_factory.mktemp("gate")
    (folder / "mode.toml").write_text(MODE)
    return folder


@pytest.fixture
def fitted(run, home):
    """The folder, with the model fitted once; what the fit said on stdout and stderr."""
    if not (home / "said.json").exists():
        code, out, err = run("fit", home / "mode.toml", "--store", home / "store", "--json")
        assert code == 0, err
        (home / "said.json").write_text(json.dumps([out, err]))
    return home / "store", *json.loads((home / "said.json").read_text())


def test_a_mode_has_no_spread_and_the_fit_says_so(fitted):
    """On stderr and in the JSON; the version is published all the same."""
    _, out, err = fitted
    assert f"falls short: {SAID}" in err
    document = json.loads(out)
    assert (document["name"], document["version"]) == ("mode", 1)
    assert [said[: len(SAID)] for said in document["shortfalls"]] == [SAID]
    assert document["notes"][0].startswith("one draw is kept, which has no spread")
    assert f"note: {document['notes'][0]}" in err
    assert document["metrics"]["rmse"] < 0.9


def test_the_manifest_the_report_and_show_say_so(run, fitted):
    """Wherever one looks at the version; in the report above the figures."""
    store, out, _ = fitted
    said = tuple(json.loads(out)["shortfalls"])
    bundle = load(store / "mode" / "1")
    assert bundle.manifest.shortfalls == said
    assert bundle.manifest.notes == tuple(json.loads(out)["notes"])
    assert bundle.manifest.draws == 1
    page = (store / "mode" / "1" / "report.html").read_text("utf-8")
    assert 0 < page.index("Not fit to be relied on") < page.index(SAID) < page.index("On the test part")
    code, out, _ = run("show", "mode", "--store", store)
    assert code == 0
    assert SAID in " ".join(out.split())


def test_another_decision_mends_what_one_that_never_varies_lacks(run, fitted, tmp_path):
    """By `abstain calibrate`: the next version may be `stable`; one of the same decision may not."""
    store = shutil.copytree(fitted[0], tmp_path / "store")
    for version, decision, said in ((2, "knn", ()), (3, "std", (SAID,))):
        code, _, err = run("calibrate", "mode", "--data", "sine", "--set", f'decision="{decision}"', "--store", store)
        assert code == 0, err
        found = read_manifest(store / "mode" / str(version)).shortfalls
        assert tuple(short[: len(SAID)] for short in found) == said


def test_stable_is_refused_to_it_and_nothing_else_is(run, fitted):
    """The refusal names what is lacking; other labels are not gated; --force labels all the same."""
    store, *_ = fitted
    assert run("label", "mode:1", "canary", "--store", store)[:2] == (0, "mode@canary is mode:1\n")
    code, out, err = run("label", "mode:1", "stable", "--store", store)
    assert (code, out) == (1, "")
    assert err.startswith(f"abstain: mode:1: is not fit to be stable: found (1) {SAID}")
    assert err.endswith("mend the fit, or pass --force to label it all the same")
    assert read_labels(store, "mode").labels == {"canary": 1}
    assert run("label", "mode:1", "stable", "--force", "--store", store)[:2] == (0, "mode@stable is mode:1\n")
    assert read_labels(store, "mode").labels == {"canary": 1, "stable": 1}


def test_a_good_fit_passes_the_gate(digits):
    """A version that lacks nothing is let through, and its report says nothing of the kind."""
    assert digits.manifest.shortfalls == ()
    check_gate(digits.manifest)
    lacking = digits.manifest.model_copy(update={"shortfalls": ("this", "that")})
    with pytest.raises(StoreError, match=r"digits:1: is not fit to be stable: found \(1\) this; \(2\) that; mend"):
        check_gate(lacking)
