"""Linear models with known posteriors."""

import jax.numpy as jnp
import numpy as np
from scipy import stats
from scipy.special import logsumexp

from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.priors import PriorConfig
from abstain.training.inference.bnn import BNN, Observations

ROWS = 30


def linear():
    """Linear regression (a network without hidden layers), its observations, design matrix and targets."""
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
    """Softmax regression of three classes, and its observations."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(ROWS, 2)), np.arange(ROWS) % 3
    network = MLPSpec(hidden=())
    model = Model(network=network, likelihood="categorical", feature_shape=(2,), class_names=("a", "b", "c"))
    return BNN(model, PriorConfig(scale=2.0)), Observations(jnp.float32(x), jnp.asarray(y)), x, y


def linear_posterior(design, y):
    """The exact mean and variance of weights, bias and noise: normal given the noise, which is integrated on a grid."""
    noise = np.linspace(0.2, 1.5, 2000)
    gram, moment = design.T @ design, design.T @ y
    log_mass, means, seconds = [], [], []
    for std in noise:
        covariance = np.linalg.inv(np.eye(3) + gram / std**2)
        mean = covariance @ moment / std**2
        evidence = stats.multivariate_normal.logpdf(y, cov=std**2 * np.eye(ROWS) + design @ design.T)
        log_mass.append(evidence + stats.halfcauchy.logpdf(std, scale=0.5))
        means.append([*mean, std])
        seconds.append([*(covariance.diagonal() + mean**2), std**2])
    mass = np.exp(log_mass - logsumexp(log_mass))
    assert mass[[0, -1]].max() < 1e-9
    mean = mass @ np.array(means)
    return mean, mass @ np.array(seconds) - mean**2
