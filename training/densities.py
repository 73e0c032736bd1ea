"""Densities, fitted to the training rows once the posterior is there: what `models/densities.py` scores by.

vim, relative_mahalanobis, knn   penultimate features of a few draws, the members
subspace, input_knn              the preprocessed inputs
range                            the rows as they came
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from models.densities import (
    OF_TASK,
    Densities,
    Mahalanobis,
    Neighbours,
    Range,
    Subspace,
    VirtualLogit,
    unit_length,
)
from models.features import last_layer, outputs_and_features
from models.posterior import Model, Posterior
from models.preprocessing import transform
from training.rows import Rows

MEMBERS = 5
"""Draws whose features are looked at; of a posterior pooled from five starts, one of each."""
ROWS = 20_000
"""Training rows that densities are fitted to, at most."""
BANK = 2_000
"""Of these, rows that neighbours are looked for among."""
COMPONENTS = 64
"""Principal components that Mahalanobis and neighbour distances are taken in, at most."""
SUBSPACE = 40
"""Dimensions of a class's principal subspace, at most …"""
EXPLAINED = 0.9
"""… and no more than explain this share of its variance."""
SHRINKAGE = 1e-3
"""Of a covariance's mean eigenvalue, added to all: directions without spread would count without bound."""
LEAST_SPREAD = 1e-4
"""Of features of unit length, the least mean eigenvalue that is believed: what never varies varies by its rounding."""
LEAST_RESIDUAL = 1e-2
"""Of features' length, the least part outside their principal space that is believed, for the same reason."""

Matrix = Float[np.ndarray, "rows width"]


def fit_densities(posterior: Posterior, train: Rows, seed: int) -> Densities:
    """Every density of the model's task, from at most `ROWS` training rows that the seed chooses."""
    model = posterior.model
    chosen = np.random.default_rng([seed, 4]).permutation(len(train))[:ROWS]
    rows = train.take(np.sort(chosen))
    classes = len(model.class_names) if model.law.task == "classification" else 1
    labels = rows.y.astype(int) if model.law.task == "classification" else np.zeros(len(rows), int)
    members = member_draws(posterior.size)
    features, logits = member_features(posterior, members, rows)
    inputs = np.asarray(prepared(model, rows))
    unit = float(is_pixel_like(model))
    scaled = np.asarray(unit_length(jnp.asarray(inputs))) if unit else inputs
    directions = np.asarray(unit_length(jnp.asarray(features)))
    fitted: dict[str, Any] = {
        "vim": lambda: virtual_logit(posterior, members, rows, features, logits),
        "relative_mahalanobis": lambda: mahalanobis(directions, labels, classes),
        "mahalanobis": lambda: mahalanobis(directions, labels, classes),
        "subspace": lambda: subspace(scaled, labels, classes, unit),
        "knn": lambda: neighbours(np.concatenate(list(directions), axis=1), 1.0),
        "input_knn": lambda: neighbours(scaled, unit),
        "range": lambda: feature_range(model, train),
    }
    records = {name: _as_float32(fitted[name]()) for name in OF_TASK[model.law.task]}
    return Densities(members.astype(np.int32), records)


def member_draws(draws: int) -> Int[np.ndarray, " members"]:
    """Draws at even distances: the middles of `MEMBERS` equal parts."""
    count = min(MEMBERS, draws)
    return ((np.arange(count) + 0.5) * draws / count).astype(int)


def member_features(
    posterior: Posterior, members: Int[np.ndarray, " members"], rows: Rows
) -> tuple[Float[np.ndarray, "members rows width"], Float[np.ndarray, "members rows outputs"]]:
    """Penultimate features and outputs of the members' networks, one network after the other."""

    @jax.jit
    def look(draw: Any, x: Array) -> tuple[Array, Array]:
        of_row = lambda row: outputs_and_features(posterior.model, draw, row)  # noqa: E731
        return jax.lax.map(of_row, x.astype(jnp.float32), batch_size=512)

    x = rows.x if rows.x.dtype.itemsize <= 4 else rows.x.astype(np.float32)
    looked = [look(jax.tree.map(lambda leaf, m=m: leaf[m], posterior.draws), x) for m in members]
    return np.stack([np.asarray(features) for _, features in looked]), np.stack([np.asarray(o) for o, _ in looked])


def prepared(model: Model, rows: Rows) -> Float[Array, "rows inputs"]:
    """The preprocessed inputs, flat."""
    prepare = jax.vmap(lambda x: jnp.ravel(transform(model.preprocessing, x)))
    return jax.jit(prepare)(rows.x.astype(np.float32))


def is_pixel_like(model: Model) -> bool:
    """Whether all features are on one scale, so that a row's direction means something without its length: images."""
    return len(model.preprocessing.scale) == 1 and not model.preprocessing.columns and model.features > 1


def virtual_logit(
    posterior: Posterior,
    members: Int[np.ndarray, " members"],
    rows: Rows,
    features: Float[np.ndarray, "members rows width"],
    logits: Float[np.ndarray, "members rows outputs"],
) -> VirtualLogit:
    """ViM of every member: the principal space about the point where the logits are all the bias' own."""
    parts = []
    for member, h, z in zip(members, features.astype(np.float64), logits, strict=True):
        draw = jax.tree.map(lambda leaf, m=member: jnp.asarray(leaf[m]), posterior.draws)
        layer = last_layer(posterior.model, draw, jnp.asarray(rows.x[0], jnp.float32))
        # W is [width, outputs]: the origin o solves Wᵀ o + b = 0.
        origin = -np.linalg.pinv(np.asarray(layer[0]).T) @ np.asarray(layer[1]) if layer else h.mean(axis=0)
        centred = h - origin
        basis = principal(centred.T @ centred / len(h), principal_dimension(h.shape[1]))[0]
        residual = np.linalg.norm(centred - centred @ basis @ basis.T, axis=1).mean()
        least = LEAST_RESIDUAL * np.linalg.norm(centred, axis=1).mean()
        weight = float(z.max(axis=1).mean()) / max(float(residual), float(least), float(np.finfo(np.float32).tiny))
        parts.append(VirtualLogit(origin, basis, np.clip(weight, 0, 1e6)))
    return VirtualLogit(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))


def principal_dimension(width: int) -> int:
    """How many directions are the network's own: half, as ViM has it for layers that narrow, and at most `COMPONENTS`."""
    return max(1, min(COMPONENTS, width // 2))


def mahalanobis(
    features: Float[np.ndarray, "members rows width"], labels: Int[np.ndarray, " rows"], classes: int
) -> Mahalanobis:
    """Means and whitening of every member's features of unit length, in their principal components."""
    parts = [_member_mahalanobis(h, labels, classes) for h in features]
    return Mahalanobis(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))


def _member_mahalanobis(h: Matrix, labels: Int[np.ndarray, " rows"], classes: int) -> Mahalanobis:
    mean = h.mean(axis=0)
    components, _ = principal(covariance_of(h), min(COMPONENTS, h.shape[1]))
    projected = h @ components
    overall = mean @ components
    # A class without rows is represented by all.
    means = np.stack([projected[labels == c].mean(axis=0) if (labels == c).any() else overall for c in range(classes)])
    within = whitening(projected - means[labels])
    background = whitening(projected - overall)
    return Mahalanobis(components, within, background, means @ within, overall @ background)


def whitening(centred: Matrix) -> Float[np.ndarray, "width width"]:
    """A matrix A with cov(x A) = 1, by the eigenvectors of a covariance kept from being singular."""
    values, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred / len(centred))
    floor = SHRINKAGE * max(values.mean(), LEAST_SPREAD)
    return vectors / np.sqrt(np.maximum(values, 0) + floor)


def covariance_of(rows: Matrix) -> Float[np.ndarray, "width width"]:
    """The maximum likelihood covariance: zeros for one row."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    return centred.T @ centred / len(rows)


def principal(covariance: Float[np.ndarray, "width width"], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` leading eigenvectors, as columns, and all eigenvalues, falling."""
    values, vectors = np.linalg.eigh(covariance.astype(np.float64))
    return vectors[:, ::-1][:, :count], np.maximum(values[::-1], 0)


def subspace(inputs: Matrix, labels: Int[np.ndarray, " rows"], classes: int, unit: float) -> Subspace:
    """Each class's mean and principal subspace; all are given as many dimensions as the one that needs most."""
    overall = inputs.mean(axis=0)
    means, bases = np.tile(overall, (classes, 1)), []
    for place in range(classes):
        own = inputs[labels == place]
        if len(own):
            means[place] = own.mean(axis=0)
        covariance = covariance_of(own) if len(own) else np.zeros((inputs.shape[1],) * 2)
        kept = min(SUBSPACE, inputs.shape[1], max(len(own) - 1, 0))
        vectors, values = principal(covariance, kept)
        enough = 1 + int(np.searchsorted(np.cumsum(values), EXPLAINED * values.sum()))
        bases.append(vectors[:, : min(enough, kept)])
    widest = max(1, *(basis.shape[1] for basis in bases))
    basis = np.stack([np.pad(basis, ((0, 0), (0, widest - basis.shape[1]))) for basis in bases], axis=1)
    return Subspace(np.array(unit), means, basis, np.einsum("cd,dck->ck", means, basis))


def neighbours(rows: Matrix, unit: float) -> Neighbours:
    """The bank: rows, already in the random order they were chosen in, in their principal components."""
    mean = rows.mean(axis=0)
    centred = rows - mean
    components, _ = principal(covariance_of(rows), min(COMPONENTS, rows.shape[1]))
    places = np.linspace(0, len(rows) - 1, min(BANK, len(rows))).round().astype(int)
    bank = centred[places] @ components
    return Neighbours(np.array(unit), mean, components, bank, 0.5 * (bank**2).sum(axis=1))


def feature_range(model: Model, train: Rows) -> Range:
    """Each feature's range over all training rows; of images, one for all pixels; none for a category's code."""
    x = train.x.reshape(len(train), -1)
    low, high = np.nanmin(x, axis=0).astype(np.float64), np.nanmax(x, axis=0).astype(np.float64)
    if is_pixel_like(model):
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    largest = float(np.finfo(np.float32).max)
    for place, column in enumerate(model.preprocessing.columns):
        if column.categories:
            low[place], high[place] = -largest, largest
    return Range(low, high)


def _as_float32(record: Any) -> Any:
    return type(record)(*(np.asarray(leaf, np.float32) for leaf in record))
