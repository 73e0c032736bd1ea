"""Progress metrics use training rows and held-out training rows, never the calibration or test part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.data import DataConfig
from abstain.training.config.methods import MAPConfig, VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.config.reading import read_config
from abstain.training.fit import build_model, build_problem, load_dataset
from abstain.training.inference.bnn import BNN, Observations
from abstain.training.inference.methods import map as mode
from abstain.training.inference.methods import vi
from abstain.training.inference.mode_search import hold_out
from abstain.training.inference.problem import Problem
from abstain.training.runs.journal import Journal
from tests.helpers.paths import CONFIGS

ROWS = 80
STILL = {"steps": 4, "batch_size": 8, "learning_rate": 1e-30, "reports": 2}
"""Under these a descent stays where it starts."""


def problem_of(monitor):
    """A line of 80 rows, and rows that are not learned from."""
    x = np.linspace(-1, 1, ROWS, dtype=np.float32)[:, None]
    rows = Observations(jnp.asarray(x), jnp.asarray(x[:, 0] ** 2))
    model = Model(network=MLPSpec(hidden=(3,)), likelihood="normal", feature_shape=(1,))
    return Problem(BNN(model, PriorConfig()), rows, monitor or rows)


def figures(facts):
    """The figures that progress shows after a passage's name."""
    return {name: value for name, value in facts.items() if name != "passage"}


def reports_of(method, settings, monitor=None):
    """The reports of a fit, what progress showed, and the fit."""
    calls = []
    journal = Journal(progress=lambda *_, **facts: calls.append(figures(facts)))
    fitted = method(jax.random.key(0), problem_of(monitor), settings, 3, journal)
    return fitted.diagnostics.to_json()["reports"], [facts for facts in calls if facts], fitted


@pytest.mark.parametrize(
    ("method", "settings", "shown"),
    [
        (mode.fit, MAPConfig(**STILL, held_out=0.25), "held_out_rmse"),
        (mode.fit, MAPConfig(**STILL, held_out=0.0), "train_rmse"),
        (vi.fit, VIConfig(**STILL), "train_rmse"),
    ],
)
def test_reports_and_progress_name_the_rows_they_are_of(method, settings, shown):
    """Held-out rows where the method holds some out; else training rows, under that name."""
    reports, calls, _ = reports_of(method, settings)
    parts = {name.rpartition("_")[0] for name in reports[-1] if name.endswith("_rmse")}
    assert parts == ({"train", "held_out"} if shown == "held_out_rmse" else {"train"})
    assert [set(facts) for facts in calls] == [{"loss", shown}] * 2
    assert calls[-1][shown] == pytest.approx(reports[-1][shown])


def test_held_out_figures_are_of_the_rows_that_are_not_learned_from():
    """Computed by hand for the network at the end of the fit; training metrics use the other rows."""
    reports, _, fitted = reports_of(mode.fit, MAPConfig(**STILL, held_out=0.25))
    learned, held_out = hold_out(jax.random.split(jax.random.key(0), 3)[1], ROWS, 0.25)
    problem = problem_of(None)
    network = jax.tree.map(lambda leaf: leaf[0], fitted.posterior.draws["network"])
    outputs = jax.vmap(lambda x: problem.bnn.model.module.apply({"params": network}, x))(problem.train.x)[:, 0]
    errors = np.asarray(outputs - problem.train.y)
    for part, places in (("train", learned), ("held_out", held_out)):
        assert reports[-1][f"{part}_rmse"] == pytest.approx(np.sqrt((errors[places] ** 2).mean()), rel=1e-4)


def test_targets_that_are_not_learned_from_change_no_report_and_no_draw():
    """Rows outside the training part are used only for their inputs: NaN targets go unnoticed."""
    lost = Observations(jnp.zeros((5, 1)), jnp.full(5, jnp.nan))
    for method, settings in ((mode.fit, MAPConfig(**STILL)), (vi.fit, VIConfig(**STILL))):
        first, _, fitted = reports_of(method, settings)
        second, _, again = reports_of(method, settings, lost)
        assert first == second
        jax.tree.map(np.testing.assert_array_equal, fitted.posterior.draws, again.posterior.draws)


def test_a_fit_is_given_no_test_row():
    """A problem holds training rows, and calibration rows to compare chains at."""
    config = read_config(CONFIGS / "digits-vi.toml")
    assert config.data != DataConfig()
    dataset = load_dataset(config, None)
    problem = build_problem(config, build_model(config, dataset), dataset)
    np.testing.assert_array_equal(problem.train.y, dataset.train.y)
    np.testing.assert_array_equal(problem.diagnostic_rows.y, dataset.calibration.y)
