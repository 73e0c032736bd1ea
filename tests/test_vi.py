"""Mean-field VI: its objective by hand, its optimum on a linear model by quadrature, its minibatches, its seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import log_softmax

from models.networks import MLPSpec
from models.posterior import Model
from tests.conftest import silent
from training.bnn import BNN, Observations
from training.config import PriorConfig, VIConfig
from training.methods import vi

ROWS = 30


def linear():
    """Linear regression, a network without hidden layers, and the design matrix and targets that it sees."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(ROWS, 2))
    x[:, 1] += 0.8 * x[:, 0]
    y = x @ [0.8, -0.5] + 0.3 + 0.4 * rng.normal(size=ROWS)
    bnn = BNN(Model(network=MLPSpec(hidden=()), likelihood="normal", feature_shape=(2,)), PriorConfig(noise_scale=0.5))
    return bnn, Observations(jnp.float32(x), jnp.float32(y)), np.column_stack([x, np.ones(ROWS)]), y


def columns(draws):
    """Draws of the linear model as `[draws, 4]`: two weights, the bias, the noise."""
    layer = draws["network"]["Dense_0"]
    return np.column_stack([layer["kernel"][:, :, 0], layer["bias"], draws["noise"]])


def classifier():
    """Softmax regression of three classes, and the rows that it sees."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(ROWS, 2)), np.arange(ROWS) % 3
    network = MLPSpec(hidden=())
    model = Model(network=network, likelihood="categorical", feature_shape=(2,), class_names=("a", "b", "c"))
    return BNN(model, PriorConfig(scale=2.0)), Observations(jnp.float32(x), jnp.asarray(y)), x, y


def run(bnn, train, settings, seed=0, draws=4, progress=silent):
    """A fit that is monitored on its own rows."""
    return vi.fit(jax.random.key(seed), bnn, train, train, settings, draws, progress)


def gaussian_kl(mean, std, prior_std):
    """KL(N(mean, std²) ‖ N(0, prior_std²)) in nats, summed."""
    return np.sum(np.log(prior_std / std) + (std**2 + mean**2) / (2 * prior_std**2) - 0.5)


STILL = VIConfig(steps=6, batch_size=5, learning_rate=1e-30, init_scale=1e-4, kl_weight=0.25, particles=2, reports=4)
"""Under these the guide stays where it starts, next to a point."""


@pytest.fixture(scope="module")
def stood():
    """The classifier fitted so that it stays where it starts, over one epoch of minibatches; what progress was told."""
    bnn, train, *_ = classifier()
    told = []
    return run(bnn, train, STILL, progress=lambda *place, **facts: told.append((place, facts))), told


def test_the_loss_is_the_weighted_elbo_and_an_epoch_visits_every_row_once(stood):
    """The mean loss of one epoch is −mean log likelihood + kl_weight · KL / N of all rows, by hand.

    It is that only if each minibatch stands for all rows, the KL term is weighted once, and no row comes twice.
    """
    fitted, _ = stood
    *_, x, y = classifier()
    layer = jax.tree.map(lambda leaf: leaf.mean(axis=0, dtype=np.float64), fitted.posterior.draws["network"]["Dense_0"])
    log_likelihood = log_softmax(x @ layer["kernel"] + layer["bias"], axis=1)[np.arange(ROWS), y].mean()
    kl = gaussian_kl(np.append(layer["kernel"], layer["bias"]), 1e-4, 2.0)
    losses = fitted.diagnostics["loss"]
    assert len(losses) == 6
    assert np.mean(losses) == pytest.approx(-log_likelihood + 0.25 * kl / ROWS, rel=1e-4)
    last = fitted.diagnostics["reports"][-1]
    assert last["kl_divergence"] == pytest.approx(kl, rel=1e-4)
    assert last["train_log_likelihood"] == last["test_log_likelihood"] == pytest.approx(log_likelihood, abs=1e-3)


def test_reports_come_at_even_steps_and_progress_hears_of_each(stood):
    """At most as many reports as asked for, the last at the last step, each with its figures."""
    fitted, told = stood
    reports = fitted.diagnostics["reports"]
    assert [report["step"] for report in reports] == [2, 4, 6]
    assert [place for place, _ in told] == [(2, 6), (4, 6), (6, 6)]
    assert [facts["accuracy"] for _, facts in told] == [report["test_accuracy"] for report in reports]
    assert fitted.posterior.size == 4


@pytest.mark.parametrize(("rows", "batch"), [(30, 5), (30, 7), (5, 128)])
def test_minibatches_are_reshuffled_epochs(rows, batch):
    """Laid end to end, minibatches are permutations of all rows, each another; a batch is never larger than the rows."""
    key = jax.random.key(0)
    settings = VIConfig(steps=210, batch_size=batch, reports=4)
    pieces = list(vi._batches(key, rows, settings))
    assert sum(map(len, pieces)) == 210
    assert {piece.shape[1] for piece in pieces} == {min(batch, rows)}
    order = np.concatenate([piece.ravel() for piece in pieces])
    epochs = order[: len(order) // rows * rows].reshape(-1, rows)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(rows), (len(epochs), 1)))
    assert (epochs[0] != epochs[1]).any()


def test_the_kl_divergence_is_the_closed_form():
    """KL(q ‖ prior) of normals, summed over every weight and bias."""
    bnn, *_ = classifier()
    rng = np.random.default_rng(0)
    shapes = {"network.Dense_0.kernel": (2, 3), "network.Dense_0.bias": (3,)}
    params = {f"{site}.loc": rng.normal(size=shape) for site, shape in shapes.items()}
    params |= {f"{site}.scale": rng.uniform(0.1, 3, shape) for site, shape in shapes.items()}
    expected = sum(gaussian_kl(params[f"{site}.loc"], params[f"{site}.scale"], 2.0) for site in shapes)
    assert float(vi.kl_divergence(bnn, jax.tree.map(jnp.float32, params))) == pytest.approx(expected, rel=1e-5)


def mean_field_optimum(design, y, weight):
    """Mean and std of weights, bias and noise under the best mean-field guide, from the ELBO in closed form.

    With w ~ N(m, s²) and log σ ~ N(μ, τ²), E 1/σ² = exp(2τ² − 2μ) and E ‖y − Φw‖² = ‖y − Φm‖² + Σ s²ⱼ ‖Φⱼ‖²; only the
    half-Cauchy's expectation is left to Gauss–Hermite quadrature.
    """
    nodes, masses = np.polynomial.hermite_e.hermegauss(60)

    def negative_elbo(terms):
        m, s, mu, tau = terms[:3], np.exp(terms[3:6]), terms[6], np.exp(terms[7])
        squares = ((y - design @ m) ** 2).sum() + (s**2 * (design**2).sum(axis=0)).sum()
        log_likelihood = -ROWS * (mu + 0.5 * np.log(2 * np.pi)) - 0.5 * np.exp(2 * tau**2 - 2 * mu) * squares
        log_noise = masses @ stats.halfcauchy.logpdf(np.exp(mu + tau * nodes), scale=0.5) / masses.sum()
        entropy = mu + 0.5 + np.log(tau) + 0.5 * np.log(2 * np.pi)
        return weight * (gaussian_kl(m, s, 1.0) - log_noise - entropy) - log_likelihood

    found = optimize.minimize(negative_elbo, np.r_[0, 0, 0, -2, -2, -2, -1, -2], method="BFGS", tol=1e-9).x
    m, s, noise = found[:3], np.exp(found[3:6]), stats.lognorm(np.exp(found[7]), scale=np.exp(found[6]))
    return np.append(m, noise.mean()), np.append(s, noise.std())


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_linear_model_reaches_the_mean_field_optimum(weight):
    """Means within a tenth of a standard deviation, and standard deviations within 5 %, of the best guide there is."""
    bnn, train, design, y = linear()
    mean, std = mean_field_optimum(design, y, weight)
    settings = VIConfig(
        steps=4000, batch_size=ROWS, learning_rate=0.03, init_scale=0.1, particles=4, reports=1, kl_weight=weight
    )
    draws = columns(run(bnn, train, settings, draws=20_000).posterior.draws)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - mean) / std, 0.1)
    np.testing.assert_allclose(std, draws.std(axis=0), rtol=0.05)


def test_the_same_seed_gives_the_same_draws(stood):
    """Bit for bit, and the same losses on the way; another seed gives others of both."""
    bnn, train, *_ = classifier()
    first = stood[0]
    again, other = (run(bnn, train, STILL, seed) for seed in (0, 1))
    assert again.diagnostics == first.diagnostics
    jax.tree.map(np.testing.assert_array_equal, first.posterior.draws, again.posterior.draws)
    assert (np.array(other.diagnostics["loss"]) != first.diagnostics["loss"]).all()
    layers = [fitted.posterior.draws["network"]["Dense_0"]["kernel"] for fitted in (first, other)]
    assert (layers[0] != layers[1]).all()
