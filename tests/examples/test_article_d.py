"""`examples/boxes_hmc`: the article's run does not pass the gate, and a run by parallel tempering does."""

import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from abstain.training.config.methods import ChainSettings
from abstain.training.inference.chains import sample_chains
from abstain.training.inference.diagnostics import ESS_LIMIT, RHAT_LIMIT
from abstain.training.inference.target import Target
from abstain.training.runs.journal import Journal
from tests.helpers.montecarlo import assert_means, assert_variances
from tests.helpers.paths import PROJECT

FOLDER = PROJECT / "examples" / "boxes_hmc"
sys.path.insert(0, str(FOLDER))
import tempering  # noqa: E402 - next to run.py, which imports it

_SPEC = importlib.util.spec_from_file_location("article_d", FOLDER / "run.py")
run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(run)
sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def problem():
    """Eighty points, 20 parameters."""
    return run.pose_boxes()


@pytest.fixture(scope="module")
def fixed(problem):
    """The article's sampler."""
    return run.sample_fixed(problem, samples=2000)


@pytest.fixture(scope="module")
def numbers():
    """The output of `run.py`."""
    return json.loads((FOLDER / "numbers.json").read_text("utf-8"))


def test_data_and_network_are_the_articles(problem):
    """Eighty points in four boxes, as many of each class; 20 parameters of standard deviation 1 / √0.09."""
    x, y = (np.asarray(part) for part in problem.train)
    assert x.shape == (80, 2)
    assert y.sum() == 40
    assert (((x > 0.5) & (x < 5)) | ((x > -5) & (x < -0.5))).all()
    assert problem.target.dim == 20
    assert all(float(site.prior.variance.max()) == pytest.approx(1 / 0.09) for site in problem.target.sites)


def test_the_articles_run_does_not_pass_the_gate(fixed):
    """R-hat and ESS of predictions say so; each is what the gate complains of."""
    function = fixed.diagnostics.to_json()["function"]
    assert function["rhat"] > 1.1
    assert function["ess_bulk"] < 100
    assert any("disagree about predictions" in lack.text for lack in fixed.shortfalls)
    assert any("bulk ESS" in lack.text for lack in fixed.shortfalls)


def test_the_table_is_flat_by_name_and_as_poor_as_the_articles(problem, fixed):
    """All of the article's columns, for the 20 numbers of one chain; the least ESS is no better than the article's."""
    rows = run.first_chain(problem, fixed)
    assert [row["name"] for row in rows][:4] == [
        *(f"network.Dense_0.bias[{unit}]" for unit in range(3)),
        "network.Dense_0.kernel[0,0]",
    ]
    assert len(rows) == 20
    columns = {"mean", "std", "mcse", "ess_bulk", "ess_tail", "rhat", "ess_per_second", "2.5%", "25%", "50%", "75%"}
    assert columns <= set(rows[0])
    assert min(row["ess_bulk"] for row in rows) < run.ARTICLE["ess_bulk"][1]
    assert max(row["rhat"] for row in rows) > 1.05


def test_maps_are_probabilities(problem, fixed):
    """Over the whole square, by the most_probable draw and by every tenth of the first 1,500."""
    most_probable = run.maps(problem, problem.bnn.draws(run.most_probable(fixed)))
    averaged = run.maps(problem, problem.bnn.draws(run.every_tenth(fixed)))
    assert most_probable.shape == (1, len(run.SQUARE))
    assert averaged.shape == (150, len(run.SQUARE))
    assert ((averaged >= 0) & (averaged <= 1)).all()


def test_tempering_settles_soon(problem, fixed):
    """A short run, from the prior: hundreds of independent samples of every prediction, chains that nearly agree."""
    function = run.sample_tempered(problem, samples=1500, warmup=300).diagnostics.to_json()["function"]
    assert function["rhat"] <= 1.03 < fixed.diagnostics.to_json()["function"]["rhat"]
    assert min(function["ess_bulk"], function["ess_tail"]) >= ESS_LIMIT


def test_tempering_finds_both_modes_in_their_shares(key):
    """The target is two normals eight standard deviations apart, one twice as heavy; all chains start in one."""
    components = dist.Normal(jnp.array([-4.0, 4.0]), 1.0)
    mixture = dist.MixtureSameFamily(dist.Categorical(jnp.array([1 / 3, 2 / 3])), components)
    wide = dist.Normal(0.0, 6.0)

    def log_likelihood(parameters, data):
        return jnp.array([mixture.log_prob(parameters["x"]) - wide.log_prob(parameters["x"])])

    target = Target({"x": wide}, log_likelihood, {"x": ()})
    settings = ChainSettings(chains=8, warmup=200, samples=2000, reports=1)
    starts = jnp.full((8, 1), -4.0)
    chains = sample_chains(
        jax.random.key(key), tempering.kernel(target), target, jnp.zeros(1), starts, settings, Journal()
    )
    x = chains.column("position")
    within = x - np.where(x > 0, 4, -4)
    assert_means(x > 0, 2 / 3)
    assert_means(within, 0)
    assert_variances(within, 0, np.ones(1))


def test_the_recorded_runs_are_as_documented(numbers):
    """The article's takes less than a twentieth of its time and is refused; so is ChEES-HMC; tempering passes."""
    assert numbers["fixed"]["sampling_seconds"] < run.ARTICLE["seconds"] / 20
    assert numbers["fixed"]["shortfalls"]
    assert numbers["adapted"]["shortfalls"]
    assert numbers["tempered"]["shortfalls"] == []
    assert numbers["tempered"]["worst_prediction"]["rhat"] <= RHAT_LIMIT
    assert numbers["tempered"]["worst_prediction"]["ess_bulk"] >= ESS_LIMIT
