"""Densities, fitted to the training rows once the posterior is there: what `models/prediction/feature_scores.py` scores by.

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

from abstain.models.prediction.feature_score_records import (
    FeatureScores,
    LocalSubspaces,
    Mahalanobis,
    Neighbours,
    Range,
    Subspace,
    VirtualLogit,
)
from abstain.models.prediction.feature_scores import OF_TASK, class_logits, unit_length
from abstain.models.prediction.features import feature_weights, outputs_and_features
from abstain.models.prediction.posterior import Model, Posterior
from abstain.models.prediction.preprocessing import on_host, transform
from abstain.training.calibration.grouping import LEAST, group_means, without_small
from abstain.training.config.data import AugmentConfig
from abstain.training.data.augmentation import transform_rows
from abstain.training.data.rows import Rows

MEMBERS = 5
"""Draws whose features are looked at; of a posterior pooled from five starts, one of each."""
ROWS = 20_000
"""Training rows that densities are fitted to, at most."""
BANK = 2_000
"""Group means of images that neighbours are looked for among, at most, …"""
TABLE_BANK = 5_000
"""… and of a table's rows, which are shorter; each costs time in every call."""
COMPONENTS = 64
"""Principal components that rows are projected to before they are clustered or compared, at most."""
WHITENED = 128
"""Principal components that Mahalanobis distances are taken in, at most."""
PROJECTED = 5_000
"""Rows that these components are found from."""
CLUSTERS = 30
"""Of a class, at most …"""
CLUSTER_ROWS = 30
"""… and no more than leave each this many rows on average."""
LOCAL = 10
"""Dimensions of a cluster's subspace, at most, and at most half of its space."""
SUBSPACE = 40
"""Dimensions of a class's principal subspace, at most, and at most half of the inputs' space …"""
EXPLAINED = 0.9
"""… and no more than explain this share of its variance."""
SHRINKAGE = 1e-3
"""Of a covariance's mean eigenvalue, added to all: directions without spread would count without bound."""
LEAST_SPREAD = 1e-4
"""Of features of unit length, the least mean eigenvalue that is believed: what never varies varies by its rounding."""
LEAST_RESIDUAL = 1e-2
"""Of features' length, the least part outside their principal space that is believed, for the same reason."""

Matrix = Float[np.ndarray, "rows width"]


def fit_feature_scores(
    posterior: Posterior, train: Rows, seed: int, changed: AugmentConfig | None = None
) -> FeatureScores:
    """Every density of the model's task, from at most `ROWS` training rows that the seed chooses.

    Args:
        changed: how these rows are changed before, if they are images (`transform_rows`).

    Raises:
        ConfigError: they are to be changed, and are no images.
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
    inputs = prepared(model, rows)
    scaled = of_unit_length(inputs) if unit else inputs
    directions = of_unit_length(features)
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
    records = {name: _as_float32(fitted[name]()) for name in OF_TASK[model.likelihood_functions.task]}
    return FeatureScores(members.astype(np.int32), records)


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

    x = on_host(posterior.model.preprocessing, rows.x)
    x = x if x.dtype.itemsize <= 4 else x.astype(np.float32)
    looked = [look(jax.tree.map(lambda leaf, m=m: leaf[m], posterior.draws), x) for m in members]
    return np.stack([np.asarray(features) for _, features in looked]), np.stack([np.asarray(o) for o, _ in looked])


def prepared(model: Model, rows: Rows) -> Float[np.ndarray, "rows inputs"]:
    """The preprocessed inputs, flat."""
    prepare = jax.vmap(lambda x: jnp.ravel(transform(model.preprocessing, x)))
    return np.asarray(jax.jit(prepare)(on_host(model.preprocessing, rows.x).astype(np.float32)))


def of_unit_length(x: Float[np.ndarray, "... width"]) -> Float[np.ndarray, "... width"]:
    """`unit_length` on the host, one array at a time: there are many rows."""
    parts = x if x.ndim == 3 else x[None]
    return np.stack([np.asarray(unit_length(jnp.asarray(part))) for part in parts]).reshape(x.shape)


def virtual_logit(
    posterior: Posterior,
    members: Int[np.ndarray, " members"],
    rows: Rows,
    features: Float[np.ndarray, "members rows width"],
    logits: Float[np.ndarray, "members rows outputs"],
) -> VirtualLogit:
    """ViM of every member: the principal space about the point where the logits are all the bias' own."""
    parts = []
    for member, h, z in zip(members, features, logits, strict=True):
        draw = jax.tree.map(lambda leaf, m=member: jnp.asarray(leaf[m]), posterior.draws)
        layer = feature_weights(posterior.model, draw, jnp.asarray(rows.x[0], jnp.float32))
        # W is [width, outputs]: the origin o solves Wᵀ o + b = 0.
        origin = -np.linalg.pinv(np.asarray(layer[0]).T) @ np.asarray(layer[1]) if layer else h.mean(axis=0)
        centred = h.astype(np.float64) - origin
        directions, _ = principal(centred, h.shape[1])
        # Half the width is the network's own, as ViM has it for layers that are not wide.
        residual = directions[:, (h.shape[1] + 1) // 2 :]
        length = float(np.linalg.norm(centred @ residual, axis=1).mean())
        least = LEAST_RESIDUAL * float(np.linalg.norm(centred, axis=1).mean())
        weight = float(class_logits(z).max(axis=1).mean()) / max(length, least, float(np.finfo(np.float32).tiny))
        parts.append(VirtualLogit(origin, residual, np.clip(weight, 0, 1e6)))
    return VirtualLogit(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))


def mahalanobis(
    features: Float[np.ndarray, "members rows width"], labels: Int[np.ndarray, " rows"], classes: int
) -> Mahalanobis:
    """Means and whitening of every member's features of unit length, in their principal components."""
    parts = [_member_mahalanobis(h, labels, classes) for h in features]
    return Mahalanobis(*(np.stack(leaves) for leaves in zip(*parts, strict=True)))


def _member_mahalanobis(h: Matrix, labels: Int[np.ndarray, " rows"], classes: int) -> Mahalanobis:
    mean = h.mean(axis=0)
    components, _ = principal(centred_rows(h), min(WHITENED, h.shape[1]))
    projected = h @ components
    overall = mean @ components
    # A class with too few rows to hide one is represented by all.
    means = np.stack(
        [projected[labels == c].mean(axis=0) if (labels == c).sum() >= LEAST else overall for c in range(classes)]
    )
    within = whitening(projected - means[labels])
    background = whitening(projected - overall)
    return Mahalanobis(components, within, background, (means @ within).T, overall @ background)


def whitening(centred: Matrix) -> Float[np.ndarray, "width width"]:
    """A matrix A with cov(x A) = 1, by the eigenvectors of a covariance kept from being singular."""
    values, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred / len(centred))
    floor = SHRINKAGE * max(values.mean(), LEAST_SPREAD)
    return vectors / np.sqrt(np.maximum(values, 0) + floor)


def centred_rows(rows: Matrix) -> Float[np.ndarray, "rows width"]:
    """The rows less their mean, float64."""
    return rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)


def principal(centred: Matrix, count: int) -> tuple[Float[np.ndarray, "width count"], Float[np.ndarray, " values"]]:
    """The `count` leading eigenvectors of `centredᵀ centred / rows`, as columns, and its eigenvalues, descending.

    Fewer rows than columns: the eigenvectors u of the smaller matrix `centred centredᵀ` give them as `centredᵀ u` (the
    method of snapshots; Sirovich, 1987), and no `[width, width]` matrix is made. The eigenvalues are then as many as
    the rows; the others are 0. Directions beyond the rows' span are some orthonormal completion.
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
    """Each class's mean and principal subspace, of as many dimensions as explain `EXPLAINED` of its variance.

    At most `SUBSPACE`, half of the inputs' and what its rows span: a subspace that is all of a narrow table's space leaves
    nothing over. Classes that need fewer are filled up with zeros.
    """
    overall = inputs.mean(axis=0, dtype=np.float64)
    means, bases = np.tile(overall, (classes, 1)), []
    for place in range(classes):
        own = inputs[labels == place]
        # The mean of one row is that row.
        own = own if len(own) >= LEAST else own[:0]
        if len(own):
            means[place] = own.mean(axis=0, dtype=np.float64)
        kept = min(SUBSPACE, max(inputs.shape[1] // 2, 1), max(len(own) - 1, 0))
        vectors, values = principal(centred_rows(own), kept) if kept else (np.zeros((inputs.shape[1], 0)), np.zeros(1))
        enough = 1 + int(np.searchsorted(np.cumsum(values), EXPLAINED * values.sum()))
        bases.append(vectors[:, : min(enough, kept)])
    widest = max(1, *(basis.shape[1] for basis in bases))
    basis = np.stack([np.pad(basis, ((0, 0), (0, widest - basis.shape[1]))) for basis in bases], axis=1)
    return Subspace(np.array(unit), means, basis, np.einsum("cd,dck->ck", means, basis))


def local_subspaces(
    rows: Matrix, labels: Int[np.ndarray, " rows"], classes: int, unit: float, seed: int
) -> LocalSubspaces:
    """Each class's rows in clusters, by k-means in the rows' principal components, and each cluster's subspace."""
    mean, components = projection(rows)
    places = projected(rows, mean, components)
    large = [label for label in range(classes) if (labels == label).sum() >= LEAST]
    # A class without a cluster is compared with all; if no class has one, all rows are one, of no class.
    parts = [_clusters(places[labels == label], label, seed) for label in large] or [_clusters(places, -1, seed)]
    labels_of, centres, bases = (np.concatenate(part) for part in zip(*parts, strict=True))
    inside = np.einsum("cd,cdk->kc", centres, bases)
    return LocalSubspaces(np.array(unit), mean, components, labels_of, centres.T, bases.transpose(1, 2, 0), inside)


def _clusters(
    places: Matrix, label: int, seed: int
) -> tuple[
    Float[np.ndarray, " clusters"], Float[np.ndarray, "clusters kept"], Float[np.ndarray, "clusters kept local"]
]:
    """Label, centre and directions of each of one class's clusters, none of fewer than `LEAST` rows if there are as many."""
    from sklearn.cluster import MiniBatchKMeans  # noqa: PLC0415 - seconds, and only fit needs it

    count = min(CLUSTERS, max(1, len(places) // CLUSTER_ROWS))
    own = np.zeros(len(places), int)
    if count > 1:
        # Its types, taken from defaults, admit no number of starts but "auto".
        make: Any = MiniBatchKMeans
        found = make(count, random_state=seed, n_init=3, batch_size=2048).fit(places)
        own = without_small(found.labels_.astype(int), places)
    groups = [places[own == cluster] for cluster in range(count) if (own == cluster).any()]
    centres = np.array([group.mean(axis=0) for group in groups])
    bases = np.array([_directions(group) for group in groups])
    return np.full(len(groups), float(label)), centres, bases


def _directions(group: Matrix) -> Float[np.ndarray, "kept local"]:
    """A cluster's principal directions; no more than its rows span, the rest of them zero."""
    most = min(LOCAL, group.shape[1])
    spanned = min(most, max(len(group) - 1, 0), max(group.shape[1] // 2, 1))
    vectors, _ = principal(group - group.mean(axis=0), spanned)
    return np.pad(vectors, ((0, 0), (0, most - spanned)))


def projection(rows: Matrix) -> tuple[Float[np.ndarray, " width"], Float[np.ndarray, "width kept"]]:
    """Mean of the rows, and the leading principal components of at most `PROJECTED` of them."""
    some = rows[np.linspace(0, len(rows) - 1, min(PROJECTED, len(rows))).round().astype(int)]
    return rows.mean(axis=0), principal(centred_rows(some), min(COMPONENTS, rows.shape[1]))[0]


def neighbours(rows: Matrix, unit: float) -> Neighbours:
    """The bank: means of groups of near rows (`training/calibration/grouping.py`), in the rows' principal components."""
    mean, components = projection(rows)
    bank = group_means(projected(rows, mean, components), BANK if unit else TABLE_BANK)
    return Neighbours(np.array(unit), mean, components, bank, 0.5 * (bank**2).sum(axis=1))


def projected(rows: Matrix, mean: np.ndarray, components: np.ndarray) -> Float[np.ndarray, "rows kept"]:
    """`(rows − mean) @ components` without a second copy of rows that may be wide, and many."""
    return rows @ components.astype(rows.dtype) - (mean @ components).astype(rows.dtype)


def feature_range(model: Model, train: Rows) -> Range:
    """Each feature's range over all training rows; of images, one for all pixels; none for a category's code.

    The ends of a feature's own range are two rows' values: they are rounded outwards.
    """
    x = on_host(model.preprocessing, train.x).reshape(len(train), -1)
    low, high = np.nanmin(x, axis=0).astype(np.float64), np.nanmax(x, axis=0).astype(np.float64)
    if model.is_pixel_like:
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    else:
        low, high = rounded_outwards(low, high)
    largest = float(np.finfo(np.float32).max)
    for place, column in enumerate(model.preprocessing.columns):
        if column.categories:
            low[place], high[place] = -largest, largest
    return Range(low, high)


def rounded_outwards(
    low: Float[np.ndarray, " features"], high: Float[np.ndarray, " features"]
) -> tuple[Float[np.ndarray, " features"], Float[np.ndarray, " features"]]:
    """The range to multiples of a power of two between 1/128 and 1/64 of its width; a constant stays what it is."""
    width = high - low
    step = np.exp2(np.floor(np.log2(np.where(width > 0, width, 1) / 64)))
    ends = np.floor(low / step) * step, np.ceil(high / step) * step
    return np.where(width > 0, ends[0], low), np.where(width > 0, ends[1], high)


def _as_float32(record: Any) -> Any:
    return type(record)(*(np.asarray(leaf, np.float32) for leaf in record))
