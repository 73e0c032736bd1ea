"""Microcanonical Langevin: right where the answer is known, and it says so where it may be wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from arviz_stats.base.array import array_stats
from pydantic import ValidationError

from abstain.models.bundles.shortfalls import Shortfall, recognise
from abstain.models.errors import ConfigError
from abstain.models.networks.architectures import MLP
from abstain.training.config.methods import MILEConfig, NUTSConfig
from abstain.training.inference.chains import sample_chains
from abstain.training.inference.diagnostics import ESS_LIMIT, RHAT_LIMIT, summary
from abstain.training.inference.methods import mile, nuts
from abstain.training.inference.target import Target
from abstain.training.runs.journal import Journal
from tests.helpers.montecarlo import AXES, z_bound

SETTINGS = MILEConfig(chains=8, warmup=3000, samples=2000, thin=5, reports=2, chain_method="vectorized")


def run(method, target, starts, settings=SETTINGS, data=None, journal=None, watch=None, key=1):
    """Chains of a method on a target."""
    kernel = method.kernel(target, settings)
    data = jnp.zeros(1) if data is None else data
    return sample_chains(
        jax.random.key(key), kernel, target, data, jnp.float32(starts), settings, journal or Journal(), watch
    )


def moments(values):
    """Mean and standard deviation, and the Monte Carlo errors of both."""
    values = values.astype(np.float64)
    errors = [array_stats.mcse(values, method=method, **AXES) for method in ("mean", "sd")]
    return values.mean((0, 1)), values.std((0, 1)), *errors


def assert_same(values, mean, std, mean_error=0.0, std_error=0.0, detectable_share=0.1):
    """Within the bound of both sides' Monte Carlo errors, none of which may be so large that anything would do.

    The standard deviation may also be 1 % off, the bias of the default step size (`training/methods/mile.py`); one that
    is off by a share of `detectable_share` fails.
    """
    found_mean, found_std, error, error_std = moments(values)
    bound = z_bound(2 * len(error))
    assert (0.01 * std + bound * error_std < detectable_share * std).all(), error_std / std
    np.testing.assert_array_less(np.abs(found_mean - mean), bound * np.hypot(error, mean_error))
    bias = 0.01 * np.asarray(std)
    np.testing.assert_array_less(np.abs(found_std - std), bias + bound * np.hypot(error_std, std_error))


def density(function, dim):
    """A target of a given log density."""

    def log_likelihood(parameters, data):
        z = parameters["z"]
        return (function(z) + z @ z / 2)[None]

    return Target({"z": dist.Normal()}, log_likelihood, {"z": (dim,)})


def gaussian(dim=10, condition=100.0):
    """A target with its mean and standard deviations."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    covariance = rotation * np.geomspace(condition**-0.5, condition**0.5, dim) @ rotation.T
    mean, precision = rng.normal(size=dim), jnp.float32(np.linalg.inv(covariance))
    target = density(lambda z: -(z - jnp.float32(mean)) @ precision @ (z - jnp.float32(mean)) / 2, dim)
    return target, mean, np.sqrt(np.diag(covariance))


@pytest.mark.parametrize("mass_matrix", ["diagonal", "unit"])
def test_moments_of_a_correlated_gaussian(mass_matrix, key):
    """Mean and standard deviation in closed form, the step size where it was aimed, two gradients a transition."""
    target, mean, std = gaussian()
    settings = SETTINGS.model_copy(update={"mass_matrix": mass_matrix})
    chains = run(mile, target, np.tile(mean, (8, 1)), settings, key=key)
    assert_same(chains.column("position"), mean, std, detectable_share=0.1 if mass_matrix == "diagonal" else 0.15)
    assert (chains.column("leapfrogs") == 2 * settings.thin).all()
    variance = np.array(mile.energy_variance(chains, 10))
    assert ((variance > settings.energy_variance / 3) & (variance < settings.energy_variance * 3)).all()


def test_too_large_a_step_is_wrong_and_the_energy_shows_it(key):
    """The comparison can fail: variances shrink by far more than their error at 0.5 nats² per dimension."""
    target, mean, std = gaussian()
    chains = run(mile, target, np.tile(mean, (8, 1)), SETTINGS.model_copy(update={"energy_variance": 0.5}), key=key)
    _, found, _, error = moments(chains.column("position"))
    assert ((std - found) / error).max() > 6
    (lack,) = mile.member_shortfalls((1.0,) * 8, mile.energy_variance(chains, 10), SETTINGS)
    assert lack == Shortfall("energy_variance", lack.text) == recognise(lack.text)
    assert lack.text.startswith("the steps were too large: their energy variance is")


@pytest.mark.parametrize("chain_method", ["sequential", "parallel"])
def test_every_way_to_run_chains_gives_their_moments(chain_method, key):
    """One after the other, or a thread each."""
    target, mean, std = gaussian()
    settings = SETTINGS.model_copy(update={"chain_method": chain_method, "chains": 4})
    assert_same(
        run(mile, target, np.tile(mean, (4, 1)), settings, key=key).column("position"), mean, std, detectable_share=0.15
    )


def test_logistic_regression_agrees_with_nuts(key):
    """Three coefficients of 60 rows."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 3))
    y = rng.random(60) < 1 / (1 + np.exp(-x @ [1.0, -2.0, 0.5]))

    def log_likelihood(parameters, data):
        return dist.Bernoulli(logits=data[0] @ parameters["w"]).log_prob(data[1])

    target = Target({"w": dist.Normal(0, 2)}, log_likelihood, {"w": (3,)})
    data, starts = (jnp.float32(x), jnp.int32(y)), np.zeros((8, 3))
    reference = run(nuts, target, starts, NUTSConfig(warmup=500, samples=2000, reports=1), data)
    assert_same(
        run(mile, target, starts, SETTINGS, data, key=key).column("position"), *moments(reference.column("position"))
    )


def test_members_stay_with_the_modes_they_started_from(key):
    """Two far modes, four members from each: half of all draws at either, of the mode's own spread."""
    target = density(lambda z: jnp.logaddexp(-((z - 8) ** 2).sum() / 2, -((z + 8) ** 2).sum() / 2), 4)
    starts = np.repeat([8.0, -8.0], 4)[:, None] * np.ones(4)
    found = run(mile, target, starts, key=key).column("position")
    assert_same(found[:4], 8, np.ones(4))
    assert_same(found[4:], -8, np.ones(4))


# Mean and standard deviation of the function below and their Monte Carlo errors: 32 × 12,000 samples of `chees`, which
# agreed with 8 × 4,000 of `nuts`.
NETWORK = np.array(
    [
        [-1.6655, -1.0593, 0.2909, -0.0985, 0.2541, -1.3005, -2.0618],
        [0.4391, 0.0493, 0.0454, 0.0896, 0.0387, 0.078, 0.5236],
        [0.00262, 9e-05, 0.0001, 0.00023, 8e-05, 0.00024, 0.00317],
        [0.00175, 7e-05, 8e-05, 0.00018, 6e-05, 0.00018, 0.00246],
    ]
)


def test_network_agrees_with_a_long_run_in_function_space(key):
    """Mean and standard deviation of a 1-10-1 network's function, inside its data and beyond."""
    posed = jax.random.key(0)
    key_x, key_noise = jax.random.split(posed)
    x = jnp.sort(jax.random.uniform(key_x, (40, 1), minval=-1, maxval=1), axis=0)
    y = (x * jnp.sin(5 * x))[:, 0] + 0.1 * jax.random.normal(key_noise, (40,))
    network = MLP(hidden=(10,), outputs=1, activation="tanh")
    shapes = jax.eval_shape(network.init, posed, x[0])["params"]

    def function(parameters, rows):
        return jax.vmap(lambda row: network.apply({"params": parameters}, row)[0])(rows)

    def log_likelihood(parameters, data):
        return dist.Normal(function(parameters["network"], data[0]), parameters["noise"]).log_prob(data[1])

    priors = {"network": jax.tree.map(lambda _: dist.Normal(), shapes), "noise": dist.HalfCauchy(0.5)}
    target = Target(priors, log_likelihood, {"network": shapes, "noise": ()})
    inputs = jnp.linspace(-1.5, 1.5, 50)[1::8, None]

    def watch(z):
        return function(target.constrain(z)["network"], inputs)

    def start(key):
        return target.unconstrain({"network": network.init(key, x[0])["params"], "noise": jnp.float32(0.3)})

    starts = jax.jit(jax.vmap(start))(jax.random.split(posed, 16))
    settings = SETTINGS.model_copy(update={"chains": 16, "warmup": 10_000, "samples": 4000, "thin": 10})
    found = run(mile, target, starts, settings, (x, y), None, watch, key)
    # At the ends, far from the data, the samples are worth some tens of independent ones: only a large error is seen there.
    assert_same(found.column("values"), *NETWORK, detectable_share=0.5)


def test_an_interrupted_run_goes_on_to_the_same_draws(tmp_path):
    """Cut off in the warm-up, in the middle of a window, positions are bit-identical."""
    target, mean, _ = gaussian()
    settings = MILEConfig(chains=2, warmup=200, samples=50, thin=2, reports=5, chain_method="vectorized")
    starts = np.tile(mean, (2, 1))
    whole = run(mile, target, starts, settings).column("position")

    def interrupt(done, total, **facts):
        if done >= total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(mile, target, starts, settings, journal=Journal(tmp_path, interrupt))
    resumed = run(mile, target, starts, settings, journal=Journal(tmp_path))
    np.testing.assert_array_equal(resumed.column("position"), whole)


def test_steps_off_the_numbers_are_rejected(key):
    """A density that ends at a wall: nothing beyond it, all finite, no chain stands still, and R-hat says how slow they are.

    The limit that docs/methods.md states: members leave the warm-up with steps of very different length, and do not mix.
    """
    target = density(lambda z: jnp.where(z.min() > 0, -z.sum(), jnp.nan), 3)
    chains = run(mile, target, np.ones((8, 3)), SETTINGS.model_copy(update={"chains": 8}), key=key)
    positions = chains.column("position")
    assert np.isfinite(positions).all()
    assert (positions > 0).all()
    assert 0 < chains.column("diverging").mean() < SETTINGS.thin
    # A step off the numbers is the only one that is not accepted, so the two counts agree, also between samples.
    rejected = (1 - chains.column("acceptance")) * SETTINGS.thin
    np.testing.assert_allclose(chains.column("diverging"), rejected, atol=1e-4)
    moved = (np.diff(positions, axis=1) != 0).any(axis=-1).mean(axis=1)
    assert (moved > 0.9).all()
    facts = summary(positions, 1.0)
    assert facts.rhat > RHAT_LIMIT
    assert facts.ess_bulk < ESS_LIMIT


def test_a_step_off_the_numbers_shrinks_the_next_and_a_stuck_member_is_reported():
    """A member for which every step fails stays in place, with smaller and smaller steps."""
    target = density(lambda z: jnp.where((z == 1).all(), 0.0, jnp.nan), 2)
    chains = run(mile, target, np.ones((2, 2)), MILEConfig(chains=2, warmup=20, samples=10, chain_method="vectorized"))
    assert (chains.column("position") == 1).all()
    assert (chains.column("acceptance") == 0).all()
    moved = np.asarray(chains.state.step_size)[:, None] * np.sqrt(chains.state.inverse)
    np.testing.assert_allclose(moved, mile.FIRST_STEP * np.sqrt(2) * mile.SHRINKAGE**20, rtol=1e-3)
    (lack,) = mile.member_shortfalls((1.0, 0.0), mile.energy_variance(chains, 2), SETTINGS)
    assert lack == Shortfall("still_member", lack.text) == recognise(lack.text)
    assert lack.text.startswith("member 1 never moved: ")


@pytest.mark.parametrize("warmup", [1, 7])
def test_a_short_warm_up_leaves_finite_settings(warmup):
    """Windows without positions cause no division by zero."""
    target, mean, _ = gaussian()
    settings = MILEConfig(chains=2, warmup=warmup, samples=5, reports=1, chain_method="vectorized")
    state = run(mile, target, np.tile(mean, (2, 1)), settings).state
    for values in (state.step_size, state.length, state.inverse):
        assert (np.isfinite(values) & (np.asarray(values) > 0)).all()


@pytest.mark.parametrize("setting", [{"energy_variance": 0.0}, {"mass_matrix": "dense"}, {"chains": 1}, {"warmup": 0}])
def test_bad_settings_are_refused(setting):
    """The config refuses it and names the setting."""
    with pytest.raises(ValidationError, match=next(iter(setting))):
        MILEConfig(**setting)


def test_one_parameter_is_refused():
    """There is no direction to turn in one dimension."""
    with pytest.raises(ConfigError, match="at least 2 parameters"):
        mile.kernel(density(lambda z: -z @ z / 2, 1), SETTINGS)
