"""`examples/mnist_vi` against the article's printed tables: the recorded run, and a short one."""

import importlib.util
import json
from dataclasses import replace

import jax
import numpy as np
import numpyro.distributions as dist
import pytest

from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.priors import PriorConfig
from abstain.training.inference.bnn import BNN
from tests.helpers.paths import PROJECT, SHARED

FOLDER = PROJECT / "examples" / "mnist_vi"
_SPEC = importlib.util.spec_from_file_location("article_b", FOLDER / "run.py")
run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(run)
needs_data = pytest.mark.skipif(
    not all((SHARED / name).is_file() for name in ("mnist.npz", "emnist_letters_test.npz")),
    reason="needs ../shared/data/mnist.npz and emnist_letters_test.npz",
)


@pytest.fixture(scope="module")
def bnn():
    """784-64-64-10 with N(0, 1) priors."""
    names = tuple(map(str, range(10)))
    network = MLPSpec(hidden=(64, 64))
    model = Model(network=network, likelihood="categorical", feature_shape=(28, 28), class_names=names)
    return BNN(model, PriorConfig())


@pytest.fixture(scope="module")
def numbers():
    """The output of `run.py --seeds 5`."""
    return json.loads((FOLDER / "numbers.json").read_text("utf-8"))


def test_kl_terms_are_those_of_normals(bnn):
    """Their sum is the KL divergence by NumPyro."""
    guide = run.guide_at(bnn.start(jax.random.key(1)), -2.0)
    q = dist.Normal(guide["loc"], np.exp(-1.0))
    expected = dist.kl_divergence(q, dist.Normal()).sum()
    assert float(run.kl_terms(guide).sum()) == pytest.approx(float(expected), rel=1e-4)


def test_the_articles_kl_is_a_mean_over_each_first_axis(bnn):
    """26.40 at the start; the full one is about 10,000. A kernel's first axis is its inputs, a bias's its units."""
    guide = run.guide_at(bnn.start(jax.random.key(0)), run.FIRST_TRY["log_variance"])
    terms = run.kl_terms(guide)
    reduced = run.leaf_weights(bnn.target) @ terms
    arrays = jax.tree.leaves(bnn.target.constrain(terms))
    assert float(reduced) == pytest.approx(sum(float(leaf.mean(axis=0).sum()) for leaf in arrays), rel=1e-4)
    assert float(reduced) == pytest.approx(run.ARTICLE["start"]["test"]["kl"], rel=0.02)
    assert float(terms.sum()) == pytest.approx(10_000, rel=0.05)


def test_every_parameter_has_noise_of_its_own():
    """The article's one key for all arrays gives arrays of one shape the same noise."""
    guide = {"loc": np.zeros(6, np.float32), "log_variance": np.zeros(6, np.float32)}
    drawn = np.asarray(run.sample(guide, jax.random.key(0), 2000))
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(6), atol=0.1)


def test_the_recorded_first_try_learns_nothing(numbers):
    """Accuracy of a tenth, and the article's KL, within a tenth of it."""
    for part, theirs in run.ARTICLE["first try"].items():
        ours = numbers["first try"][part]
        assert abs(ours["accuracy"] - 0.1) < 0.05
        assert ours["kl"] == pytest.approx(theirs["kl"], rel=0.1)
        assert ours["evidence"] == pytest.approx(theirs["evidence"], abs=0.06)


def test_the_recorded_claim_is_the_articles(numbers):
    """Each figure of the third table, over five seeds: the article's lies within three of their standard deviations."""
    assert len(numbers["seeds"]) == 5
    least = {"accuracy": 0.001, "log_likelihood": 0.005, "elbo": 0.005}
    for part, theirs in run.ARTICLE["second try"].items():
        for name, floor in least.items():
            ours = np.array([seed[f"{part}_{name}"] for seed in numbers["seeds"]])
            assert abs(ours.mean() - theirs[name]) < 3 * max(ours.std(ddof=1), floor), (part, name)
    kl = np.array([seed["kl"] for seed in numbers["seeds"]])
    assert kl.mean() == pytest.approx(run.ARTICLE["second try"]["test"]["kl"], rel=0.03)
    evidence = [seed["evidence"] for seed in numbers["seeds"]]
    assert evidence == pytest.approx([0.959] * 5, abs=0.004)


def test_the_recorded_threshold_rejects_a_hundredth(numbers):
    """It rejects few test digits, and more than a tenth of the letters."""
    for seed in numbers["seeds"]:
        assert 0.005 < seed["test_rejected"] < 0.02
        assert seed["letters_B_rejected"] > 0.1
        assert seed["accuracy_of_accepted"] > seed["accuracy"]
    shown = numbers["rejection"]["shown"]
    assert {name: (message["label"], message["rejected"]) for name, message in shown.items()} == {
        "a digit 3": (3, False),
        "a letter B that is rejected": (8, True),
        "a letter B that passes": (8, False),
    }
    assert shown["a digit 3"]["std"] < 0.005


@needs_data
def test_a_short_run_learns_with_little_beta_only():
    """600 steps: nine digits in ten with beta 0.001, one in ten with 1, from the same rows."""
    dataset, letters = run.load(SHARED)
    problem = run.build_problem(run.CONFIG, run.build_model(run.CONFIG, dataset), dataset)
    problem = replace(problem, train=problem.train.head(10_000), diagnostic_rows=problem.diagnostic_rows.head(2000))
    found = {}
    for name, choice in (("first", run.FIRST_TRY), ("second", run.SECOND_TRY)):
        guide, _ = run.fit_guide(problem, **choice, steps=600, seed=0)
        found[name] = run.table_figures(problem, guide, choice["beta"])["test"]
    assert found["first"]["accuracy"] < 0.25
    assert found["second"]["accuracy"] > 0.88
    posterior = run.posterior_of(problem, guide)
    cut = replace(
        dataset, calibration=dataset.calibration.take(np.arange(1000)), test=dataset.test.take(np.arange(1000))
    )
    facts, _ = run.rejection_of(posterior, cut, letters[:200])
    assert 0 <= facts["test_rejected"] < 0.05


def test_missing_data_is_an_error(tmp_path):
    """It names the file, and what to pass."""
    with pytest.raises(SystemExit, match=r"mnist.npz is missing; pass --data FOLDER"):
        run.load(tmp_path)
