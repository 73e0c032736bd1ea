"""The starts of chains and guides: each kind, compared with its definition, and refusals."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from abstain.models.bundles.bundle import load
from abstain.models.bundles.store import LABELS, set_label, versions
from abstain.models.errors import ConfigError, FitError, UnknownModel
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.methods import HMCConfig, MAPSettings, NUTSConfig, VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.config.reading import read_config
from abstain.training.fit import build_model, build_problem, fit, load_dataset, load_earlier, start_notes
from abstain.training.inference.bnn import BNN, NOISE_START, Observations
from abstain.training.inference.chains import check_starts
from abstain.training.inference.mode_search import find_modes
from abstain.training.inference.problem import Problem
from abstain.training.inference.starts import find_starts
from abstain.training.runs.journal import Journal
from tests.helpers.fits import silent

ROWS = 40
CONFIG = """
name = "{name}"
likelihood = "normal"
draws = 6
[data]
source = "sine"
calibration_size = 100
test_size = 60
[network]
kind = "mlp"
hidden = [{hidden}]
[method]
"""
DESCENT = {"steps": 600, "batch_size": ROWS, "learning_rate": 0.05, "reports": 2}


def posed(likelihood="normal", hidden=(), **prior):
    """A regression of two features, a linear one by default."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, 2))
    y = x @ [1.0, -0.5] + 0.4 * rng.normal(size=ROWS)
    model = Model(network=MLPSpec(hidden=hidden), likelihood=likelihood, feature_shape=(2,))
    rows = Observations(jnp.float32(x), jnp.float32(y))
    return Problem(BNN(model, PriorConfig(**prior)), rows, rows)


@pytest.fixture(scope="module")
def problem():
    """A linear regression: bias, two weights, the logarithm of the noise."""
    return posed()


def begun(problem, settings, count, seed=0, journal=None):
    """The starts as numpy."""
    return np.array(find_starts(jax.random.key(seed), problem, settings, count, journal or Journal()))


def test_of_the_network_each_its_own_initialisation(problem):
    """Biases zero, weights as Flax draws them, the noise at its start, no two alike; the key decides."""
    z = begun(problem, HMCConfig(), 500)
    assert z.shape == (500, 4)
    np.testing.assert_array_equal(z[:, 0], 0)
    np.testing.assert_allclose(z[:, 3], np.log(NOISE_START), rtol=1e-5)
    # LeCun's normal: variance 1 / inputs.
    assert z[:, 1:3].std() == pytest.approx(0.5**0.5, rel=0.1)
    assert len(np.unique(z, axis=0)) == 500
    np.testing.assert_array_equal(z, begun(problem, HMCConfig(), 500))
    assert (z[:, 1:3] != begun(problem, HMCConfig(), 500, seed=1)[:, 1:3]).all()


def test_of_the_prior_draws_of_it(problem):
    """Weights and noise follow the prior, by Kolmogorov and Smirnov."""
    z = begun(problem, HMCConfig(start="prior"), 2000)
    assert stats.kstest(z[:, :3].ravel(), stats.norm.cdf).pvalue > 0.001
    assert stats.kstest(np.exp(z[:, 3].astype(float)), stats.halfcauchy.cdf).pvalue > 0.001


def test_overdispersed_starts_are_so_many_times_wider(problem):
    """Three times the prior's draws, in the unconstrained space, where R-hat looks."""
    settings = HMCConfig(start="overdispersed", overdispersion=3.0)
    z = begun(problem, settings, 2000)
    np.testing.assert_allclose(z, 3 * begun(problem, HMCConfig(start="prior"), 2000), rtol=1e-5)
    assert z[:, :3].std() == pytest.approx(3, rel=0.05)


def test_of_modes_each_chain_its_own(problem):
    """The start is the mode that the search finds with the same key; the search is a passage of the journal."""
    calls = []
    settings = NUTSConfig(start="map", map=MAPSettings(**DESCENT, held_out=0.0))

    def progress(done, total, passage="", **facts):
        calls.append((done, total, passage))

    z = begun(problem, settings, 3, journal=Journal(progress=progress))
    assert calls == [(300, 600, "map"), (600, 600, "map")]
    modes, _ = find_modes(jax.random.key(0), problem, settings.map, 3, Journal(), "vectorized")
    np.testing.assert_array_equal(z, modes)
    densities = jax.vmap(problem.target.log_density, (0, None))(jnp.asarray(z), problem.train)
    assert np.ptp(densities) < 0.5
    assert (np.abs(z - z[0])[1:] < 0.1).all()


@pytest.mark.parametrize("inner", ["network", "map"])
def test_of_a_variational_fit_draws_of_it(problem, inner):
    """Spread as the guide is, about where it lies; the guide's own start is heeded."""
    calls = []

    def progress(done, total, passage="", **facts):
        calls.append(passage)

    guide = VIConfig(**DESCENT, init_scale=0.01, start=inner, map=MAPSettings(**DESCENT, held_out=0.0))
    z = begun(problem, NUTSConfig(start="vi", vi=guide), 200, journal=Journal(progress=progress))
    assert calls == ["map"] * 2 * (inner == "map") + ["vi"] * 2
    rows = problem.train
    design = np.column_stack([np.ones(ROWS), rows.x])
    least_squares = np.linalg.lstsq(design, np.asarray(rows.y), rcond=None)[0]
    np.testing.assert_allclose(z[:, :3].mean(axis=0), least_squares, atol=0.15)
    assert (z.std(axis=0) > 0.02).all()
    assert (z.std(axis=0) < 0.3).all()


def test_starts_under_an_inferred_scale_are_finite():
    """Every kind that needs no earlier run, where the prior's scales are parameters as well."""
    problem = posed(hidden=(2,), hierarchical=True)
    data = problem.train
    for kind in ("network", "prior", "overdispersed"):
        z = begun(problem, HMCConfig(start=kind), 8)
        assert z.shape == (8, problem.target.dim)
        check_starts(problem.target, data, jnp.asarray(z))


# ---- from an earlier run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store with a fit by chains, and the folder of configs."""
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "first.toml"
    path.write_text(
        CONFIG.format(name="first", hidden=2) + 'kind = "hmc"\nchains = 2\nwarmup = 30\nsamples = 10\nreports = 1'
    )
    fit(read_config(path), None, folder / "store", silent, report=False)
    return folder


def of_run(stored, method, name="second", hidden=2):
    """A config that starts from a run."""
    path = stored / f"{name}.toml"
    path.write_text(CONFIG.format(name=name, hidden=hidden) + method)
    return read_config(path)


def test_of_a_run_its_draws_at_even_distances(problem):
    """The first and the last among them, constrained parameters unconstrained; again where there are too few."""
    z = begun(problem, HMCConfig(start="prior"), 9)
    earlier = Problem(problem.bnn, problem.train, problem.train, problem.bnn.draws(z))
    settings = HMCConfig(start="run")
    np.testing.assert_allclose(begun(earlier, settings, 3), z[[0, 4, 8]], rtol=1e-5)
    np.testing.assert_allclose(begun(earlier, settings, 9), z, rtol=1e-5)
    assert begun(earlier, settings, 20).shape == (20, 4)


def test_a_fit_starts_from_a_version_in_the_store(stored):
    """The earlier run is named by name and number; the new one is published as usual."""
    method = 'kind = "hmc"\nchains = 2\nwarmup = 5\nsamples = 3\nreports = 1\nstart = "run"\n'
    fit(of_run(stored, method + 'start_from = "first:1"'), None, stored / "store", silent, report=False)
    assert versions(stored / "store", "second") == [1]


def test_calibration_rows_that_the_earlier_run_was_trained_on_are_counted(tmp_path):
    """Another seed splits the rows differently; the same seed gives the same three parts."""
    x = np.random.default_rng(0).normal(size=(300, 1))
    np.savez(tmp_path / "rows.npz", x=x, y=x[:, 0])

    def config(name, method, seed=0):
        path = tmp_path / f"{name}.toml"
        path.write_text(CONFIG.format(name=name, hidden=2).replace("sine", str(tmp_path / "rows.npz")) + method)
        return read_config(path).model_copy(update={"seed": seed})

    store = tmp_path / "store"
    fit(config("first", 'kind = "map"\nsteps = 5'), None, store, silent, report=False)
    same, other = (config("second", 'kind = "hmc"\nstart = "run"\nstart_from = "first:1"', seed) for seed in (0, 1))

    def notes_of(config):
        dataset = load_dataset(config, None)
        return start_notes(load_earlier(config, build_model(config, dataset), store), dataset)

    assert notes_of(same) == ()
    (note,) = notes_of(other)
    # 140 of 300 rows were trained on, and 100 others calibrate.
    count = int(re.match(r"(\d+) of 100 calibration rows were training rows of first:1", note)[1])
    assert 20 < count < 80
    assert note.endswith("fit with the seed of that run, 0")


def test_a_label_that_moves_while_the_fit_begins_changes_nothing(stored):
    """Starts and the comparison of rows are those of the version that the label named at first."""
    store, method = stored / "store", 'kind = "hmc"\nchains = 2\nsamples = 3\nstart = "run"\n'
    first = load(store / "first" / "1")
    set_label(store, "first", 1, "stable")
    config = of_run(stored, method + 'start_from = "first@stable"')
    dataset = load_dataset(config, None)
    model = build_model(config, dataset)
    earlier = load_earlier(config, model, store)
    (store / "first" / LABELS).unlink()
    problem = build_problem(config, model, dataset, earlier)
    assert start_notes(earlier, dataset) == ()
    assert jax.tree.all(jax.tree.map(np.array_equal, problem.earlier, first.posterior.draws))


def test_a_run_must_be_named_and_there_and_fit(stored):
    """No start_from; a model or a version that is not there; another network: all before anything is fitted."""
    store, method = stored / "store", 'kind = "hmc"\nchains = 2\nsamples = 3\nstart = "run"\n'
    with pytest.raises(
        ConfigError, match=r'method\.start_from: expected NAME:VERSION, because start = "run", found noth'
    ):
        fit(of_run(stored, method), None, store, silent, report=False)
    with pytest.raises(UnknownModel, match="no model named 'absent'"):
        fit(of_run(stored, method + 'start_from = "absent"'), None, store, silent, report=False)
    with pytest.raises(UnknownModel, match=r"first has no version 9: expected .*, found 9"):
        fit(of_run(stored, method + 'start_from = "first:9"'), None, store, silent, report=False)
    other = of_run(stored, method + 'start_from = "first:1"', hidden=3)
    with pytest.raises(Exception, match=r"start_from = 'first:1'.*\[draws, 3\].*found .*\[6, 2\]"):
        fit(other, None, store, silent, report=False)


# ---- starts that lead nowhere ----------------------------------------------------------------------------------------


def test_a_chain_that_starts_at_zero_density_is_named(problem):
    """Which of them, whether it is prior or likelihood, how many there are, and what to do."""
    z = begun(problem, HMCConfig(), 4)
    z[2, 3] = -45.0
    with pytest.raises(FitError) as error:
        check_starts(problem.target, problem.train, jnp.asarray(z))
    assert re.match(r"method\.start: chain 2 starts where the log-likelihood is (-inf|nan): ", str(error.value))
    assert "found 1 of 4 chains without one" in str(error.value)
    assert 'start = "network" or "map", or check the scale of the data and of the prior' in str(error.value)
    z[1, 0] = np.nan
    with pytest.raises(FitError, match=r"chain 1 starts where the log prior is nan.*found 2 of 4 chains"):
        check_starts(problem.target, problem.train, jnp.asarray(z))
