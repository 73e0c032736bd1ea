"""Class weights: against sums written out, exact Hessians, scikit-learn and a known truth; undone; and refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit, log_expit, log_softmax
from sklearn.utils.class_weight import compute_class_weight

from abstain.models.errors import ConfigError
from abstain.models.networks.architectures import LeNetSpec, MLPSpec
from abstain.models.networks.user_module import ModuleSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.methods import LaplaceConfig, MAPConfig, NUTSConfig, VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.inference import class_weights, curvature
from abstain.training.inference.bnn import BNN, Observations, log_likelihood
from abstain.training.inference.class_weights import find_output_bias, weigh_classes
from abstain.training.inference.diagnostics import function_values
from abstain.training.inference.methods import laplace, nuts, vi
from abstain.training.inference.methods import map as mode
from abstain.training.inference.problem import Problem
from abstain.training.inference.starts import find_starts
from abstain.training.runs.journal import Journal
from tests.helpers.user_networks import CLASSES

NAMES = {"categorical": ("a", "b", "c"), "bernoulli": ("a", "b")}
LIKELIHOODS = tuple(NAMES)


def toy(likelihood, hidden=(3,), rows=40, weights=None, **prior):
    """A problem with two features, in which the last class is rare, and its arrays."""
    rng = np.random.default_rng(0)
    names = NAMES[likelihood]
    x, y = rng.normal(size=(rows, 2)), (np.arange(rows) % 4) % len(names)
    y[: rows // 2] = 0
    setting = weights or {names[-1]: 5.0, names[0]: 0.5}
    model = Model(
        network=MLPSpec(hidden=hidden, activation="tanh"), likelihood=likelihood, feature_shape=(2,), class_names=names
    )
    bnn = BNN(model, PriorConfig(**prior), weigh_classes(setting, y, names))
    train = Observations(jnp.float32(x), jnp.asarray(y))
    return Problem(bnn, train, train), x, y


def some_vector(problem, seed=1):
    """Somewhere in the posterior's space."""
    return 0.7 * jax.random.normal(jax.random.key(seed), (problem.target.dim,))


def log_probabilities(likelihood, outputs):
    """Each class's log probability in float64."""
    if likelihood == "categorical":
        return log_softmax(outputs, axis=-1)
    return np.stack([log_expit(-outputs[..., 0]), log_expit(outputs[..., 0])], axis=-1)


def outputs_of(network, x):
    """The outputs of a network with one hidden layer, in float64."""
    first, last = (jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), layer) for layer in network.values())
    return np.tanh(x @ first["kernel"] + first["bias"]) @ last["kernel"] + last["bias"]


# ---- the weights -----------------------------------------------------------------------------------------------------


def test_balanced_weights_are_those_of_scikit_learn():
    """N / (K · n_c), whose mean over the rows is 1."""
    y = np.repeat([0, 1, 2], [97, 2, 1])
    weights = weigh_classes("balanced", y, ("a", "b", "c"))
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=y))
    assert weights[y].mean() == pytest.approx(1)


def test_weights_by_name_keep_their_ratios():
    """Classes that are not named have 1; all are scaled so that the mean over the rows is 1."""
    y = np.repeat([0, 1, 2], [90, 8, 2])
    weights = weigh_classes({"c": 10, "a": 0.5}, y, ("a", "b", "c"))
    np.testing.assert_allclose(weights / weights[1], [0.5, 1, 10])
    assert weights[y].mean() == pytest.approx(1)


@pytest.mark.parametrize(
    ("setting", "counts", "names", "text"),
    [
        ({"frad": 2.0}, (8, 2), ("fine", "fraud"), "among fine, fraud, found 'frad'; did you mean 'fraud'"),
        ({"fraud": 2.0}, (8, 2, 0), ("fine", "fraud", "rare"), "every class, found none of 'rare'; add rows of it"),
        ("balanced", (8, 0), ("fine", "fraud"), "every class, found none of 'fraud'"),
        ({"fine": 1.0}, (8, 2), ("fine", "fraud"), "weights that differ, found 1 for every class"),
        ({}, (8, 2), ("fine", "fraud"), "weights that differ, found 1 for every class"),
        ({"fine": 2.0, "fraud": 2.0}, (8, 2), ("fine", "fraud"), "found 2 for every class; leave out class_weights"),
        ("balanced", (8, 2), (), "a likelihood of classes, found a regression"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(setting, counts, names, text):
    """Unknown and absent classes, weights without effect, and a regression."""
    with pytest.raises(ConfigError) as error:
        weigh_classes(setting, np.repeat(np.arange(len(counts)), counts), names)
    assert "data.class_weights: expected " in str(error.value)
    assert text in str(error.value)


# ---- the density -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_density_is_the_weighted_sum_written_out(likelihood):
    """Prior plus Σ w(y) log p(y | x), and its gradient by differences in float64."""
    problem, x, y = toy(likelihood)
    bnn, target = problem.bnn, problem.target
    weights = np.asarray(bnn.class_weights)[y]

    def by_hand(z):
        network = target.constrain(jnp.asarray(z))["network"]
        log_probs = log_probabilities(likelihood, outputs_of(network, x))
        return float(target.log_prior(jnp.asarray(z))) + weights @ log_probs[np.arange(len(y)), y]

    z = some_vector(problem)
    value, slope = jax.value_and_grad(target.log_density)(z, problem.train)
    assert float(value) == pytest.approx(by_hand(z), rel=1e-5)
    step = 1e-2 * np.eye(target.dim)
    numeric = [(by_hand(z + half) - by_hand(z - half)) / 2e-2 for half in step]
    np.testing.assert_allclose(slope, numeric, atol=0.02 * np.abs(numeric).max())
    # Without weights the gradient is another one.
    plain = jax.grad(BNN(bnn.model, bnn.prior).target.log_density)(z, problem.train)
    assert np.abs(np.asarray(plain) - numeric).max() > 0.2 * np.abs(numeric).max()


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("reports", [1, 7])
def test_the_curvature_is_the_hessian_of_the_weighted_density(likelihood, reports):
    """Over the last layer G is exactly −∂² Σ w(y) log p, in one chunk and in several."""
    problem, _, _ = toy(likelihood)
    settings = LaplaceConfig(reports=reports)
    sites = laplace.subset_sites(problem, settings)
    z = some_vector(problem)
    sums = curvature.sum_curvature(problem, z, sites, settings, Journal())
    places = np.concatenate([np.arange(site.first, site.last) for site in sites])

    def fitted(z):
        return problem.target.total_log_likelihood(problem.target.constrain(z), problem.train)

    hessian = np.asarray(jax.hessian(fitted)(z))[np.ix_(places, places)]
    np.testing.assert_allclose(sums.matrix, -hessian, atol=1e-4 * np.abs(hessian).max())
    assert float(sums.log_likelihood) == pytest.approx(float(fitted(z)), rel=1e-5)


# ---- undone ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_draws_have_the_weights_undone(likelihood):
    """Their probabilities are q(y | x) / w(y), normalised; a draw's vector is the one it came from."""
    problem, x, y = toy(likelihood)
    bnn, z = problem.bnn, some_vector(problem)
    weighted = log_probabilities(likelihood, outputs_of(bnn.target.constrain(z)["network"], x))
    undone = weighted - np.log(bnn.class_weights)
    expected = undone - np.logaddexp.reduce(undone, axis=1, keepdims=True)
    draws = bnn.draws(np.asarray(z)[None])
    found = log_probabilities(likelihood, outputs_of(jax.tree.map(lambda leaf: leaf[0], draws["network"]), x))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    own = log_likelihood(bnn.model, bnn.draw(z), problem.train)
    np.testing.assert_allclose(own, expected[np.arange(len(y)), y], atol=1e-5)
    np.testing.assert_allclose(function_values(bnn, z, problem.train.x), np.exp(expected).ravel(), atol=1e-5)
    np.testing.assert_allclose(bnn.vector(bnn.draw(z)), z, atol=1e-6)


def test_a_run_with_other_weights_is_a_start_with_the_same_probabilities():
    """Draws of an unweighted fit become vectors of the weighted one, and draws of these are the same."""
    problem, _, _ = toy("categorical")
    plain = BNN(problem.bnn.model, problem.bnn.prior)
    earlier = plain.draws(np.stack([some_vector(problem, seed) for seed in range(3)]))
    settings = NUTSConfig(start="run", chains=3)
    again = Problem(problem.bnn, problem.train, problem.train, earlier)
    found = problem.bnn.draws(np.asarray(find_starts(jax.random.key(0), again, settings, 3, Journal())))
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, atol=1e-6), found, earlier)


def rare(likelihood, weights, rows=6_000):
    """Logistic regression in which 2 % of the rows are of class b, with a wide prior; its arrays and the truth."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(rows, 2))
    truth = np.array([-5.3, 1.5, -1.0])
    y = (rng.random(rows) < expit(design(x) @ truth)).astype(int)
    model = Model(network=MLPSpec(hidden=()), likelihood=likelihood, feature_shape=(2,), class_names=("a", "b"))
    bnn = BNN(model, PriorConfig(scale=30.0), weights and weigh_classes(weights, y, ("a", "b")))
    train = Observations(jnp.float32(x), jnp.asarray(y))
    return Problem(bnn, train, train), x, y, truth


def design(x):
    """The rows with a column of ones."""
    return np.column_stack([np.ones(len(x)), x])


def slopes(draws, likelihood):
    """Intercept and slopes of the log odds of class b, for each draw."""
    layer = draws["network"]["Dense_0"]
    both = np.concatenate([layer["bias"][:, None], layer["kernel"]], axis=1).astype(np.float64)
    return both[..., 1] - both[..., 0] if likelihood == "categorical" else both[..., 0]


def weighted_estimate(x, y, weights):
    """The weighted maximum-likelihood estimate in float64, and the covariance of an estimate (Huber's sandwich)."""
    rows, signs = design(x), 2 * y - 1

    def loss(beta):
        scores = signs * (rows @ beta)
        return -(weights * log_expit(scores)).sum(), -((weights * signs * expit(-scores)) @ rows)

    beta = optimize.minimize(loss, np.zeros(3), jac=True, method="BFGS", options={"gtol": 1e-6}).x
    fitted = expit(rows @ beta)
    bread = np.linalg.inv((rows * (weights * fitted * (1 - fitted))[:, None]).T @ rows)
    scores = rows * (weights * (y - fitted))[:, None]
    return beta, bread @ scores.T @ scores @ bread


DESCENT = {"steps": 1_500, "batch_size": 10_000, "learning_rate": 0.05, "reports": 2}


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_undone_probabilities_of_a_rare_class_are_the_true_ones(likelihood):
    """The mode is the weighted estimate with log w(b) / w(a) taken from its intercept, and near truth and unweighted fit."""
    problem, x, y, truth = rare(likelihood, "balanced")
    assert 0.015 < y.mean() < 0.025
    settings = MAPConfig(held_out=0, **DESCENT)
    found = slopes(mode.fit(jax.random.key(0), problem, settings, 1, Journal()).posterior.draws, likelihood)[0]
    plain = rare(likelihood, None)[0]
    unweighted = slopes(mode.fit(jax.random.key(0), plain, settings, 1, Journal()).posterior.draws, likelihood)[0]
    weights = problem.bnn.class_weights
    estimate, covariance = weighted_estimate(x, y, weights[y])
    shift = np.log(weights[1] / weights[0])
    np.testing.assert_allclose(found, estimate - [shift, 0, 0], atol=0.02)
    # Against the truth, and against the other estimate of it, in standard errors at some rows.
    places = design(np.array([[0, 0], [1, 1], [2, -1], [-1, 2]]))
    errors = np.sqrt(np.einsum("ij,jk,ik->i", places, covariance, places))
    assert (np.abs(places @ (found - truth)) < 4 * errors).all()
    assert (np.abs(places @ (found - unweighted)) < 4 * errors).all()
    assert (shift > 5 * errors).all()
    mean = expit(design(x) @ found).mean()
    assert mean == pytest.approx(y.mean(), abs=4 * np.sqrt(y.mean() / len(y)))


FITS = {
    "vi": (vi.fit, VIConfig(steps=3_000, batch_size=300, learning_rate=0.03, reports=2, particles=4)),
    "laplace": (laplace.fit, LaplaceConfig(held_out=0, prior_precision="fixed", **DESCENT)),
    "nuts": (nuts.fit, NUTSConfig(chains=2, warmup=150, samples=100, reports=1, start="map", map=MAPConfig(**DESCENT))),
}


@pytest.mark.parametrize("method", FITS)
def test_every_kind_of_inference_has_the_weighted_posterior(method):
    """Minibatches, a curvature and chains: mean and spread are those of the normal about the weighted estimate."""
    problem, x, y, _ = rare("bernoulli", "balanced", rows=1_500)
    fit, settings = FITS[method]
    draws = slopes(fit(jax.random.key(1), problem, settings, 200, Journal()).posterior.draws, "bernoulli")
    weights = problem.bnn.class_weights
    estimate, _ = weighted_estimate(x, y, weights[y])
    fitted = expit(design(x) @ estimate)
    precision = (design(x) * (weights[y] * fitted * (1 - fitted))[:, None]).T @ design(x)
    std = np.sqrt(np.linalg.inv(precision).diagonal())
    shift = np.log(weights[1] / weights[0])
    # Within the spread of the draws; a posterior of unweighted rows would be ten spreads away without its shift.
    assert (np.abs(draws.mean(axis=0) - (estimate - [shift, 0, 0])) < 0.5 * std + 0.05).all()
    assert shift > 10 * std[0]
    # A mean-field guide is narrower where parameters depend on each other: then it has the conditional spread.
    narrow = 1 / np.sqrt(precision.diagonal()) if method == "vi" else std
    np.testing.assert_allclose(draws.std(axis=0), narrow, rtol=0.3)


# ---- networks --------------------------------------------------------------------------------------------------------

ENDS = """
class LogSoftmax(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        return nn.log_softmax(nn.Dense(self.outputs, name="head")(nn.tanh(nn.Dense(4)(x.ravel()))))


class Scaled(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x):
        return 2 * nn.Dense(self.outputs)(x.ravel())
"""


@pytest.fixture
def user_model(tmp_path, monkeypatch):
    """A function that returns the model of a user's network."""
    (tmp_path / "weighted_nets.py").write_text(CLASSES + ENDS)
    monkeypatch.syspath_prepend(tmp_path)

    def build(name, shape=(3, 3)):
        spec = ModuleSpec(module=f"weighted_nets:{name}").allow((f"weighted_nets:{name}",))
        return Model(network=spec, likelihood="categorical", feature_shape=shape, class_names=("a", "b", "c"))

    return build


@pytest.mark.parametrize(
    ("name", "path"),
    [("One", "Dense_0.bias"), ("Nested", "inner.Dense_0.bias"), ("Keyword", "Dense_0.bias"), ("LogSoftmax", "head.bias"),
     ("Tokens", "Dense_0.bias")],
)  # fmt: skip
def test_the_bias_of_a_users_network_is_found(user_model, name, path):
    """That of the last dense layer, if lowering it lowers the logits: also before a log softmax or a mean."""
    assert find_output_bias(user_model(name)) == path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Batch", "head without a bias"),
        ("NoDense", "no nn.Dense"),
        ("Scanned", "bias of shape"),
        ("Shared", "a.bias, which is not the last term of the outputs"),
        ("Scaled", "Dense_0.bias, which is not the last term of the outputs"),
    ],
)
def test_a_network_whose_weights_cannot_be_undone_is_refused(user_model, name, found):
    """Before the fit, with what is wrong and what to do."""
    with pytest.raises(ConfigError) as error:
        BNN(user_model(name), PriorConfig(), np.array([0.5, 1.0, 2.0]))
    assert found in str(error.value)
    assert "end the network in nn.Dense(outputs), or leave out class_weights" in str(error.value)
    # Without weights it is a network like any other.
    BNN(user_model(name), PriorConfig())


def test_the_built_in_networks_have_the_bias():
    """That of the last of their dense layers."""
    names = ("a", "b")
    lenet = Model(network=LeNetSpec(), likelihood="bernoulli", feature_shape=(12, 12), class_names=names)
    assert find_output_bias(lenet) == "Dense_2.bias"
    mlp = Model(network=MLPSpec(hidden=()), likelihood="categorical", feature_shape=(2,), class_names=names)
    assert find_output_bias(mlp) == "Dense_0.bias"


def test_a_network_whose_trial_gives_no_number_is_refused(monkeypatch):
    """A difference that is not a number does not show that a lower bias lowers the logits."""
    monkeypatch.setattr(class_weights, "_difference", lambda *_: float("nan"))
    with pytest.raises(ConfigError, match=r"a network that ends in an nn\.Dense with a bias"):
        find_output_bias(
            Model(network=MLPSpec(hidden=()), likelihood="categorical", feature_shape=(2,), class_names=("a", "b"))
        )
