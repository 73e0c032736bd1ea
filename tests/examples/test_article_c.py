"""`examples/hmc_boston` against the article's claims: the recorded run, and short ones."""

import importlib.util
import json
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.montecarlo import z_bound
from tests.helpers.paths import PROJECT, SHARED

FOLDER = PROJECT / "examples" / "hmc_boston"
_SPEC = importlib.util.spec_from_file_location("article_c", FOLDER / "run.py")
run = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(run)
UCI = SHARED / "uci"
needs_data = pytest.mark.skipif(not (UCI / "boston.npz").is_file(), reason="needs ../shared/data/uci/boston.npz")


@pytest.fixture(scope="module")
def numbers():
    """The output of `run.py`."""
    return json.loads((FOLDER / "numbers.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def draws(key):
    """A hundred chains of NUTS on the mixture."""
    return run.sample_mixture(seed=key).column("position")


def test_both_modes_are_visited_within_200_draws(draws):
    """Most of a hundred chains do, half of them within 130; the article says 100 to 200."""
    visits = [max(run.first_visits(chain)) for chain in draws]
    facts = run.mixture_facts(draws, visits)
    assert facts["both_visited_within_200"] > 0.7
    assert facts["draws_until_both_visited_median"] < 130


def test_the_mixture_is_sampled_as_it_is(draws):
    """Half of the draws in each mode, and about a mode a unit normal: a hundred chains are as many estimates."""
    first = draws[..., 0] > draws[..., 1]
    within = draws - np.where(first[..., None], [2, -2], [-2, 2])
    for values, exact in ((first[..., None], 0.5), (within, 0), (within**2, 1)):
        found = values.mean(axis=1, dtype=np.float64)
        error = found.std(axis=0, ddof=1) / 10
        # .01: draws beyond the line between the modes count as the other's.
        assert (np.abs(found.mean(axis=0) - exact) < 0.01 + z_bound(5) * error).all()
        assert (error < 0.05).all()


def test_first_visits_count_draws():
    """Draws are counted from one; a mode that is never visited counts as one draw more than there are."""
    chain = np.array([[2.0, -2.0], [1.5, -2.0], [-2.0, 2.0]])
    assert run.first_visits(chain) == [1, 3]
    assert run.first_visits(chain[:2]) == [1, 3]


def test_hmc_is_recorded_to_predict_better_than_the_mode(numbers):
    """Log-likelihood and error of the test rows, for every sampler that starts from the modes."""
    mode = numbers["MAP"]
    for name in ("HMC", "NUTS, simple", "NUTS, dual averaging"):
        assert numbers[name]["log_likelihood"] >= mode["log_likelihood"], name
        assert numbers[name]["rmse"] <= mode["rmse"], name
        assert 0.5 < numbers[name]["acceptance"] < 0.99, name


def test_the_recorded_run_was_lengthened_not_begun_again(numbers):
    """Its first half is the finished run."""
    assert numbers["lengthened"]["first_half_is_the_finished_run"]
    assert numbers["lengthened"]["samples"] == [1000, 2000]


@needs_data
def test_the_taper_gives_a_small_network():
    """13-6-2-2, 104 parameters; the test rows are not learned from, and inputs and prices are standardised."""
    problem, dataset = run.boston(UCI)
    assert problem.target.dim == 104
    assert len(problem.train.y) == len(dataset.train) == 455
    assert len(problem.diagnostic_rows.y) == len(dataset.test) == 51
    np.testing.assert_allclose(np.asarray(problem.train.x).mean(axis=0), 0, atol=1e-4)
    assert float(np.asarray(problem.train.y).std()) == pytest.approx(1, abs=1e-4)


@needs_data
def test_a_short_run_from_the_modes_is_no_worse_and_can_be_lengthened(tmp_path):
    """HMC from two modes of a shorter search: the log-likelihood of one mode, or better; then twice the samples."""
    problem, dataset = run.boston(UCI)
    modes = run.fit("modes", problem, run.SEARCH.model_copy(update={"members": 2, "steps": 400, "reports": 4}))
    problem = replace(problem, earlier=modes.posterior.draws)
    mode = run.Posterior(problem.bnn.model, run.jax.tree.map(lambda leaf: leaf[:1], problem.earlier))
    settings = run.samplers()["HMC"].model_copy(update={"warmup": 200, "samples": 200})
    fitted = run.fit("HMC", problem, settings, tmp_path)
    assert run.log_likelihood(problem, fitted.posterior) >= run.log_likelihood(problem, mode)
    predicted = run.prices(fitted.posterior, dataset)
    assert (predicted["aleatoric+epistemic"] > predicted["aleatoric"]).all()
    facts = run.lengthen(problem, settings, fitted, tmp_path)
    assert facts["first_half_is_the_finished_run"]


def test_missing_data_is_an_error(tmp_path):
    """It names the file, and what to pass."""
    with pytest.raises(SystemExit, match=r"boston.npz is missing; pass --data FOLDER"):
        run.boston(tmp_path)
