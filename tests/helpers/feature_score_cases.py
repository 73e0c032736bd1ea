"""Models of every type with fitted feature scores."""

from functools import cache

import jax
import numpy as np

from abstain.models.networks.architectures import LeNetSpec, MLPSpec
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.predictive import Predictor
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.data.rows import Rows

RNG = np.random.default_rng(0)


CENTRES = RNG.normal(0, 3, (3, 6))


TABLE_Y = RNG.integers(0, 3, 400)


TABLE = (CENTRES[TABLE_Y] + RNG.normal(size=(400, 6)) * [1, 2, 0.5, 1, 0.1, 1]).astype(np.float32)


RANGE = TABLE.min(axis=0).astype(float), TABLE.max(axis=0).astype(float)


IMAGES_Y = RNG.integers(0, 4, 300)


BLOTS = np.kron(RNG.integers(0, 2, (300, 4, 4)) | np.eye(4, dtype=int)[IMAGES_Y][:, None], np.ones((3, 3)))


IMAGES = np.clip(220 * BLOTS + RNG.normal(0, 30, BLOTS.shape), 0, 255).astype(np.uint8)


PER_FEATURE = Preprocessing(shift=tuple(map(float, TABLE.mean(axis=0))), scale=tuple(map(float, TABLE.std(axis=0))))


PIXELS = Preprocessing(scale=(255.0,))


def model_of(network, likelihood, preprocessing, shape, classes=0, **more):
    """A model with this number of classes."""
    names = tuple("abcdefgh"[:classes])
    return Model(
        network=network,
        likelihood=likelihood,
        preprocessing=preprocessing,
        feature_shape=shape,
        class_names=names,
        **more,
    )


CASES = {
    "mlp": (model_of(MLPSpec(hidden=(16, 8)), "categorical", PER_FEATURE, (6,), 3), Rows(TABLE, TABLE_Y)),
    "bernoulli": (model_of(MLPSpec(hidden=(8,)), "bernoulli", PER_FEATURE, (6,), 2), Rows(TABLE, TABLE_Y % 2)),
    "lenet": (
        model_of(LeNetSpec(channels=(2, 3), hidden=(24,), activation="tanh"), "categorical", PIXELS, (12, 12), 4),
        Rows(IMAGES, IMAGES_Y),
    ),
    "regression": (model_of(MLPSpec(hidden=(8,)), "normal", PER_FEATURE, (6,)), Rows(TABLE, TABLE.sum(axis=1))),
    "linear": (model_of(MLPSpec(hidden=()), "categorical", PER_FEATURE, (6,), 3), Rows(TABLE, TABLE_Y)),
}


def posterior_of(model, draws=7, seed=0):
    """Normal draws, scaled by the number of inputs so that nothing saturates."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        scale = 2 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
        return rng.normal(0, scale, (draws, *leaf.shape)).astype(np.float32)

    shapes = model.parameter_shapes()
    noise = {"noise": rng.uniform(0.2, 0.6, draws).astype(np.float32)} if "noise" in shapes else {}
    return Posterior(model, {"network": jax.tree.map(draw, shapes["network"])} | noise)


@cache
def fitted(name, draws=7):
    """A case's posterior and its fitted feature scores."""
    model, rows = CASES[name]
    posterior = posterior_of(model, draws)
    return posterior, fit_feature_scores(posterior, rows, 0)


@cache
def predictor_of(name, buckets=(1, 8, 32)):
    """A case's predictor with all its scores."""
    posterior, feature_scores = fitted(name)
    return Predictor(posterior, buckets, feature_scores=feature_scores)


def scores_by_row(prediction):
    """Every score, `[rows, scores]`."""
    return np.stack([np.asarray(values) for values in prediction.scores.values()], axis=1)
