"""Fits the records of the feature scores (`models/prediction/feature_scores.py`) to the training rows, after inference.

vim, relative_mahalanobis, knn   use penultimate features of a few draws, the members
subspace, input_knn              use the preprocessed inputs
range                            uses the raw rows
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from abstain.models.prediction.feature_score_records import (
    FeatureScores,
    LocalSubspaces,
    Mahalanobis,
    Neighbours,
    Range,
    Subspace,
    VirtualLogit,
)
from abstain.models.prediction.feature_scores import FEATURE_SCORES_BY_TASK, class_logits, unit_length
from abstain.models.prediction.features import feature_weights, outputs_and_features
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.preprocessing import on_host, transform
from abstain.training.calibration.grouping import LEAST, group_means, without_small
from abstain.training.config.data import AugmentConfig
from abstain.training.data.augmentation import transform_rows
from abstain.training.data.rows import Rows

MEMBERS = 5
"""The number of draws with features that scores use; from a posterior pooled from five starts, one draw of each."""
ROWS = 20_000
"""The largest number of training rows that feature scores are fitted to."""
BANK = 2_000
"""The largest number of group means of images among which neighbours are searched …"""
TABLE_BANK = 5_000
"""… and of table rows, which are shorter; each group costs time in every call."""
COMPONENTS = 64
"""The largest number of principal components that rows are projected to before clustering or comparison."""
WHITENED = 128
"""The largest number of principal components for Mahalanobis distances."""
PROJECTED = 5_000
"""The largest number of rows from which components are computed."""
CLUSTERS = 30
"""The largest number of clusters of a class …"""
CLUSTER_ROWS = 30
"""… which has at least this many rows for each cluster."""
LOCAL = 10
"""The largest dimension of a cluster's subspace, which is at most half of its space."""
WIDE = 4_096
"""The largest width of features for which the whole residual space of ViM is kept."""
SPANNING, RESIDUAL = 512, 256
"""For wider features: the largest number of rows that span the principal space, and the number of residual directions."""
SUBSPACE = 40
"""The largest dimension of a class's principal subspace, which is at most half of the inputs' space …"""
EXPLAINED = 0.9
"""… and explains at most about this share of the variance."""
SHRINKAGE = 1e-3
"""The share of a covariance's mean eigenvalue that is added to every eigenvalue, so that none is 0."""
LEAST_SPREAD = 1e-4
"""The smallest mean eigenvalue used for features of unit length: smaller ones are only rounding."""
LEAST_RESIDUAL = 1e-2
"""The smallest residual used, as a share of the features' length: smaller ones are only rounding."""

Matrix = Float[np.ndarray, "rows width"]


def fit_feature_scores(
    posterior: Posterior, train: Rows, seed: int, changed: AugmentConfig | None = None
) -> FeatureScores:
    """Fits every feature score of the model's task to at most `ROWS` training rows, chosen by the seed.

    Args:
        changed: the random changes of images before the fit (`transform_rows`).

    Raises:
        ConfigError: `changed` changes rows that are not images.
    """
    model = posterior.model
    chosen = np.random.default_rng([seed, 4]).permutation(len(train))[:ROWS]
    rows = train.take(np.sort(chosen))
    if changed is not None and changed.changes_rows:
        rows = Rows(transform_rows(seed, rows.x, changed, "calibration.densities"), rows.y)
    classes = len(model.class_names) if model.likelihood_functions.task == "classification" else 1
    labels = rows.y.astype(int) if model.likelihood_functions.task == "classification" else np.zeros(len(rows), int)
    members = member_draws(posterior.size)
    features, logits = member_features(posterior, members, rows)
    unit = float(model.is_pixel_like)
    inputs = preprocess_rows(model, rows)
    scaled = scale_to_unit_length(inputs) if unit else inputs
    directions = scale_to_unit_length(features)
    side_by_side = np.concatenate(list(directions if unit else features), axis=1)
    fitted: dict[str, Any] = {
        "vim": lambda: virtual_logit(posterior, members, rows, features, logits),
        "relative_mahalanobis": lambda: mahalanobis(directions, labels, classes),
        "mahalanobis": lambda: mahalanobis(directions, labels, classes),
        "subspace": lambda: subspace(scaled, labels, classes, unit),
        "local_subspace": lambda: local_subspaces(scaled, labels, classes, unit, seed),
        "feature_subspace": lambda: local_subspaces(side_by_side, labels, classes, unit, seed),
        "knn": lambda: neighbours(side_by_side, unit),
        "input_knn": lambda: neighbours(scaled, unit),
        "range": lambda: feature_range(model, train),
    }
    records = {name: _as_float32(fitted[name]()) for name in FEATURE_SCORES_BY_TASK[model.likelihood_functions.task]}
    return FeatureScores(members.astype(np.int32), records)


def member_draws(draws: int) -> Int[np.ndarray, " members"]:
    """Returns the indices of evenly spaced draws: the middles of `MEMBERS` equal parts."""
    count = min(MEMBERS, draws)
    return ((np.arange(count) + 0.5) * draws / count).astype(int)


def member_features(
    posterior: Posterior, members: Int[np.ndarray, " members"], rows: Rows
) -> tuple[Float[np.ndarray, "members rows width"], Float[np.ndarray, "members rows outputs"]]:
    """Computes penultimate features and outputs of the members' networks, one network at a time."""

    @jax.jit
    def apply_network(draw: Any, x: Array) -> tuple[Array, Array]:
        of_row = lambda row: outputs_and_features(posterior.model, draw, row)  # noqa: E731
        return jax.lax.map(of_row, x.astype(jnp.float32), batch_size=512)

    x = on_host(posterior.model.preprocessing, rows.x)
    x = x if x.dtype.itemsize <= 4 else x.astype(np.float32)
    outputs = [apply_network(jax.tree.map(lambda leaf, m=m: leaf[m], posterior.draws), x) for m in members]
    return np.stack([np.asarray(features) for _, features in outputs]), np.stack([np.asarray(o) for o, _ in outputs])


def preprocess_rows(model: Model, rows: Rows) -> Float[np.ndarray, "rows inputs"]:
    """Preprocesses the inputs and flattens them."""
    prepare = jax.vmap(lambda x: jnp.ravel(transform(model.preprocessing, x)))
    return np.asarray(jax.jit(prepare)(on_host(model.preprocessing, rows.x).astype(np.float32)))


def scale_to_unit_length(x: Float[np.ndarray, "... width"]) -> Float[np.ndarray, "... width"]:
    """Applies `unit_length` to one array at a time, because there are many rows."""
    parts = x if x.ndim == 3 else x[None]
    return np.stack([np.asarray(unit_length(jnp.asarray(part))) for part in parts]).reshape(x.shape)


def virtual_logit(
    posterior: Posterior,
    members: Int[np.ndarray, " members"],
    rows: Rows,
    features: Float[np.ndarray, "members rows width"],
    logits: Float[np.ndarray, "members rows outputs"],
) -> VirtualLogit:
    """Fits ViM for every member: the residual space about the point that the last layer maps to zero."""
    parts = []
    for member, h, z in zip(members, features, logits, strict=True):
        draw = jax.tree.map(lambda leaf, m=member: jnp.asarray(leaf[m]), posterior.draws)
        layer = feature_weights(posterior.model, draw, jnp.asarray(rows.x[0], jnp.float32))
        # W is [width, outputs]: the origin o solves Wᵀ o + b = 0.
        origin = -np.linalg.pinv(np.asarray(layer[0]).T) @ np.asarray(layer[1]) if layer else h.mean(axis=0)
        centred = h.astype(np.float64) - origin
        residual = residual_directions(centred)
        length = float(np.linalg.norm(centred @ residual, axis=1).mean())
        least = LEAST_RESIDUAL * float(np.linalg.norm(centred, axis=1).mean())
        weight = float(class_logits(z).max(axis=1).mean()) / max(length, least, float(np.finfo(np.float32).tiny))
        parts.append(VirtualLogit(origin, residual, np.clip(weight, 0, 1e6)))
    return VirtualLogit(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))


def residual_directions(centred: Matrix) -> Float[np.ndarray, "width residual"]:
    """Returns orthonormal directions of the residual space of features, as columns.

    The principal space has half the width, as in ViM for layers that are not wide. If it is wider than `WIDE`, a basis of half the
    width takes gigabytes. Then the principal space is spanned by `SPANNING` rows, and `RESIDUAL` random directions orthogonal to it
    are used: the length of a projection to them is that of the whole residual but for a common factor and an error of about
    1/√(2·`RESIDUAL`) (Johnson and Lindenstrauss, 1984).
    """
    rows, width = centred.shape
    if width <= WIDE:
        return principal(centred, width)[0][:, (width + 1) // 2 :]
    some = centred[np.linspace(0, rows - 1, min(SPANNING, rows)).round().astype(int)]
    return principal(some, len(some) + RESIDUAL)[0][:, len(some) :]


def mahalanobis(
    features: Float[np.ndarray, "members rows width"], labels: Int[np.ndarray, " rows"], classes: int
) -> Mahalanobis:
    """Fits class means and whitening matrices to every member's unit-length features, in their principal components."""
    parts = [_member_mahalanobis(h, labels, classes) for h in features]
    return Mahalanobis(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))


def _member_mahalanobis(h: Matrix, labels: Int[np.ndarray, " rows"], classes: int) -> Mahalanobis:
    mean = h.mean(axis=0)
    components, _ = principal(centre_rows(h), min(WHITENED, h.shape[1]))
    coordinates = h @ components
    overall = mean @ components
    # A class with very few rows gets the mean of all rows, because its own mean would reveal them.
    means = np.stack(
        [coordinates[labels == c].mean(axis=0) if (labels == c).sum() >= LEAST else overall for c in range(classes)]
    )
    within = whitening(coordinates - means[labels])
    background = whitening(coordinates - overall)
    return Mahalanobis(components, within, background, (means @ within).T, overall @ background)


def whitening(centred: Matrix) -> Float[np.ndarray, "width width"]:
    """Returns a matrix A with cov(x A) = 1, from the eigenvectors of the regularised covariance."""
    values, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred / len(centred))
    floor = SHRINKAGE * max(values.mean(), LEAST_SPREAD)
    return vectors / np.sqrt(np.maximum(values, 0) + floor)


def centre_rows(rows: Matrix) -> Float[np.ndarray, "rows width"]:
    """Subtracts the mean of the rows, in float64."""
    return rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)


def principal(centred: Matrix, count: int) -> tuple[Float[np.ndarray, "width count"], Float[np.ndarray, " values"]]:
    """Returns the `count` leading eigenvectors of `centredᵀ centred / rows`, as columns, and its eigenvalues, descending.

    With fewer rows than columns they are computed as `centredᵀ u` from the eigenvectors u of `centred centredᵀ` (the
    method of snapshots; Sirovich, 1987), without a `[width, width]` matrix. Then there are as many eigenvalues as rows;
    all others are 0. Directions beyond the rows' span are an arbitrary orthonormal completion.
    """
    rows, width = centred.shape
    centred = centred.astype(np.float64)
    if rows >= width:
        values, vectors = np.linalg.eigh(centred.T @ centred / rows)
        return vectors[:, ::-1][:, :count], np.maximum(values[::-1], 0)
    values, vectors = np.linalg.eigh(centred @ centred.T / rows)
    spanned = centred.T @ vectors[:, ::-1][:, :count]
    rest = np.random.default_rng(0).normal(size=(width, count - spanned.shape[1]))
    return np.linalg.qr(np.concatenate([spanned, rest], axis=1))[0], np.maximum(values[::-1], 0)


def subspace(inputs: Matrix, labels: Int[np.ndarray, " rows"], classes: int, unit: float) -> Subspace:
    """Fits each class's mean and principal subspace, with enough dimensions to explain `EXPLAINED` of its variance.

    The dimension is at most `SUBSPACE`, half of the inputs' dimension, and the dimension that its rows span; a subspace
    that fills the space of a narrow table would leave no residual. Smaller subspaces are padded with zeros.
    """
    overall = inputs.mean(axis=0, dtype=np.float64)
    means, bases = np.tile(overall, (classes, 1)), []
    for index in range(classes):
        own = inputs[labels == index]
        # The mean of very few rows would reveal them.
        own = own if len(own) >= LEAST else own[:0]
        if len(own):
            means[index] = own.mean(axis=0, dtype=np.float64)
        kept = min(SUBSPACE, max(inputs.shape[1] // 2, 1), max(len(own) - 1, 0))
        vectors, values = principal(centre_rows(own), kept) if kept else (np.zeros((inputs.shape[1], 0)), np.zeros(1))
        enough = 1 + int(np.searchsorted(np.cumsum(values), EXPLAINED * values.sum()))
        bases.append(vectors[:, : min(enough, kept)])
    widest = max(1, *(basis.shape[1] for basis in bases))
    basis = np.stack([np.pad(basis, ((0, 0), (0, widest - basis.shape[1]))) for basis in bases], axis=1)
    return Subspace(np.array(unit), means, basis, np.einsum("cd,dck->ck", means, basis))


def local_subspaces(
    rows: Matrix, labels: Int[np.ndarray, " rows"], classes: int, unit: float, seed: int
) -> LocalSubspaces:
    """Fits clusters of each class's rows, by k-means in the rows' principal components, and each cluster's subspace."""
    mean, components = projection(rows)
    points = project(rows, mean, components)
    large = [label for label in range(classes) if (labels == label).sum() >= LEAST]
    # Rows of a class without clusters are compared with all clusters. If no class has clusters, all rows form one cluster.
    parts = [_clusters(points[labels == label], label, seed) for label in large] or [_clusters(points, -1, seed)]
    labels_of, centres, bases = (np.concatenate(part) for part in zip(*parts, strict=True))
    inside = np.einsum("cd,cdk->kc", centres, bases)
    return LocalSubspaces(np.array(unit), mean, components, labels_of, centres.T, bases.transpose(1, 2, 0), inside)


def _clusters(
    points: Matrix, label: int, seed: int
) -> tuple[
    Float[np.ndarray, " clusters"], Float[np.ndarray, "clusters kept"], Float[np.ndarray, "clusters kept local"]
]:
    """Returns label, centre and directions of each cluster of a class; it has at least `LEAST` rows, if the class has."""
    from sklearn.cluster import MiniBatchKMeans  # noqa: PLC0415 - seconds, and only fit needs it

    count = min(CLUSTERS, max(1, len(points) // CLUSTER_ROWS))
    own = np.zeros(len(points), int)
    if count > 1:
        # Its type stubs admit only "auto" as n_init.
        make: Any = MiniBatchKMeans
        clusters = make(count, random_state=seed, n_init=3, batch_size=2048).fit(points)
        own = without_small(clusters.labels_.astype(int), points)
    groups = [points[own == cluster] for cluster in range(count) if (own == cluster).any()]
    centres = np.array([group.mean(axis=0) for group in groups])
    bases = np.array([_directions(group) for group in groups])
    return np.full(len(groups), float(label)), centres, bases


def _directions(group: Matrix) -> Float[np.ndarray, "kept local"]:
    """Returns a cluster's principal directions, as many as its rows span, padded with zeros."""
    most = min(LOCAL, group.shape[1])
    spanned = min(most, max(len(group) - 1, 0), max(group.shape[1] // 2, 1))
    vectors, _ = principal(group - group.mean(axis=0), spanned)
    return np.pad(vectors, ((0, 0), (0, most - spanned)))


def projection(rows: Matrix) -> tuple[Float[np.ndarray, " width"], Float[np.ndarray, "width kept"]]:
    """Returns the mean of the rows, and the leading principal components of at most `PROJECTED` of them."""
    some = rows[np.linspace(0, len(rows) - 1, min(PROJECTED, len(rows))).round().astype(int)]
    return rows.mean(axis=0), principal(centre_rows(some), min(COMPONENTS, rows.shape[1]))[0]


def neighbours(rows: Matrix, unit: float) -> Neighbours:
    """Fits the bank: means of groups of near rows (`training/calibration/grouping.py`), in the rows' principal components."""
    mean, components = projection(rows)
    bank = group_means(project(rows, mean, components), BANK if unit else TABLE_BANK)
    return Neighbours(np.array(unit), mean, components, bank, 0.5 * (bank**2).sum(axis=1))


def project(rows: Matrix, mean: np.ndarray, components: np.ndarray) -> Float[np.ndarray, "rows kept"]:
    """Computes `(rows − mean) @ components` without a second copy of the rows."""
    return rows @ components.astype(rows.dtype) - (mean @ components).astype(rows.dtype)


def feature_range(model: Model, train: Rows) -> Range:
    """Returns each feature's range over all training rows; one range for all pixels of images; no limits for categories.

    The ends of a range are values of rows, so they are rounded outwards.
    """
    x = on_host(model.preprocessing, train.x).reshape(len(train), -1)
    low, high = np.nanmin(x, axis=0).astype(np.float64), np.nanmax(x, axis=0).astype(np.float64)
    if model.is_pixel_like:
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    else:
        low, high = round_outwards(low, high)
    largest = float(np.finfo(np.float32).max)
    for index, column in enumerate(model.preprocessing.columns):
        if column.categories:
            low[index], high[index] = -largest, largest
    return Range(low, high)


def round_outwards(
    low: Float[np.ndarray, " features"], high: Float[np.ndarray, " features"]
) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]:
    """Rounds ranges to multiples of a power of two between 1/128 and 1/64 of their width; constants do not change."""
    width = high - low
    step = np.exp2(np.floor(np.log2(np.where(width > 0, width, 1) / 64)))
    ends = np.floor(low / step) * step, np.ceil(high / step) * step
    return np.where(width > 0, ends[0], low), np.where(width > 0, ends[1], high)


def _as_float32(record: Any) -> Any:
    return type(record)(*(np.asarray(leaf, np.float32) for leaf in record))
