"""Feature scores: each against the plain loop of its definition in float64, its fit against scikit-learn, and the extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from abstain.models.decisions.calibration import calibrate
from abstain.models.decisions.decision import Decision
from abstain.models.decisions.judging import judge
from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.feature_score_records import FeatureScores
from abstain.models.prediction.feature_scores import (
    FEATURE_SCORES,
    FEATURE_SCORES_BY_TASK,
    as_tree,
    from_tree,
    norm,
    shapes_of,
    unit_length,
)
from abstain.models.prediction.features import feature_weights, outputs_and_features
from abstain.models.prediction.posterior import Posterior
from abstain.models.prediction.predictive import BUCKETS, Predictor
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.models.prediction.scores import SCORES
from abstain.models.tables.columns import Column
from abstain.training.calibration import feature_scores as fitting
from abstain.training.calibration.feature_scores import fit_feature_scores, member_draws, round_outwards
from abstain.training.calibration.pipeline import DEFAULT_DECISIONS, choose_decision
from abstain.training.config.calibration import CalibrationConfig
from abstain.training.data.rows import Rows
from tests.helpers.feature_score_cases import (
    CASES,
    IMAGES,
    PER_FEATURE,
    PIXELS,
    RANGE,
    RNG,
    TABLE,
    TABLE_Y,
    fitted,
    model_of,
    posterior_of,
    predictor_of,
    scores_by_row,
)
from tests.helpers.user_networks import CLASSES

FACTORS = (1, 10, 1e3, 1e6)


def double(record):
    """A record in float64."""
    return type(record)(*(np.asarray(leaf, np.float64) for leaf in record))


def seen(name, row):
    """What the members' networks make of one row, and the preprocessed row, float64; and each one's last layer."""
    posterior, feature_scores = fitted(name)
    model = posterior.model
    x = jnp.asarray(row, jnp.float32)
    draws = [jax.tree.map(lambda leaf, m=m: jnp.asarray(leaf[m]), posterior.draws) for m in feature_scores.members]
    views = [outputs_and_features(model, draw, x) for draw in draws]
    terms = model.preprocessing
    inputs = (np.asarray(row, np.float64).ravel() - terms.shift) / terms.scale
    features = np.array([h for _, h in views], np.float64)
    logits = np.array([z for z, _ in views], np.float64)
    return inputs, features, logits, [feature_weights(model, draw, x) for draw in draws]


def unit(x):
    """Of length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def by_class(logits):
    """A logit for each class: of one logit z, −z/2 and z/2."""
    return np.concatenate([-logits / 2, logits / 2], axis=-1) if logits.shape[-1] == 1 else logits


def by_hand(name, row, label):
    """Every feature score of one row by its definition, in loops, from the fitted arrays; and the size of a difference's parts."""
    posterior, feature_scores = fitted(name)
    inputs, features, logits, _ = seen(name, row)
    expected, sizes = {}, {}
    for score, fitted_record in feature_scores.records.items():
        record = double(fitted_record)
        terms = []
        if score == "vim":
            for h, z, origin, residual, weight in zip(features, by_class(logits), *record, strict=True):
                across = residual @ residual.T
                terms.append(weight * np.linalg.norm(across @ (h - origin)) - special.logsumexp(z))
            expected[score] = np.mean(terms)
        elif score in {"relative_mahalanobis", "mahalanobis"}:
            for h, components, within, overall, means, mean in zip(features, *record, strict=True):
                place = unit(h) @ components
                far = ((place @ overall - mean) ** 2).sum()
                near = min(((place @ within - own) ** 2).sum() for own in means.T)
                terms.append(near - far if score == "relative_mahalanobis" else np.sqrt(far))
                sizes[score] = max(sizes.get(score, 0), far)
            expected[score] = np.mean(terms)
        elif score == "subspace":
            x = unit(inputs) if record.unit else inputs
            basis, mean = record.basis[:, label], record.means[label]
            expected[score] = np.linalg.norm((x - mean) - basis @ (basis.T @ (x - mean)))
        elif score in {"local_subspace", "feature_subspace"}:
            own_view = inputs if score == "local_subspace" else features
            x = (unit(own_view) if record.unit else own_view).ravel()
            place = (x - record.mean) @ record.components
            residuals = []
            for cluster in np.flatnonzero(record.labels == label):
                centred, basis = place - record.centres[:, cluster], record.basis[:, :, cluster]
                residuals.append(np.linalg.norm(centred - basis @ (basis.T @ centred)))
            expected[score], sizes[score] = min(residuals), 1e-3 * np.linalg.norm(place)
        elif score in {"knn", "input_knn"}:
            own_view = features if score == "knn" else inputs
            x = (unit(own_view) if record.unit else own_view).ravel()
            place = (x - record.mean) @ record.components
            expected[score] = min(np.linalg.norm(place - known) for known in record.bank)
        elif score == "range":
            flat, outside = np.asarray(row, np.float64).ravel(), []
            for value, low, high in zip(flat, record.low, record.high, strict=True):
                outside.append(max(low - value, value - high, 0) / (high - low))
            expected[score] = max(outside)
    assert set(expected) == set(FEATURE_SCORES_BY_TASK[posterior.model.likelihood_functions.task])
    return expected, sizes


@pytest.mark.parametrize("name", CASES)
def test_feature_scores_are_the_loops_of_their_definitions(name):
    """Familiar rows, rows between, and rows outside: float32 in one compiled call gives what float64 loops give."""
    rows = CASES[name][1].x[:6].astype(np.float64)
    rows = np.concatenate([rows, rows[:3] + rows[3:], -2 * rows[:2] - 5])
    prediction = predictor_of(name)(rows)
    mean = np.asarray(prediction.summary.mean)
    for place, row in enumerate(rows):
        expected, sizes = by_hand(name, row, int(mean[place].argmax()) if mean.ndim == 2 else 0)
        for score, value in expected.items():
            found = prediction.scores[score][place]
            # A difference is as exact as what it is the difference of.
            assert found == pytest.approx(value, rel=2e-4, abs=2e-4 * max(sizes.get(score, 0), 1)), (score, place)


# ---- the fit ---------------------------------------------------------------------------------------------------------


def test_vim_of_a_bernoulli_network_is_the_same_when_its_classes_change_names():
    """Negated last layer, swapped labels: every row's score and the fitted weight stay."""
    model, rows = CASES["bernoulli"]
    posterior = posterior_of(model)
    layer = posterior.draws["network"]["Dense_1"]
    negated = {"network": posterior.draws["network"] | {"Dense_1": {name: -leaf for name, leaf in layer.items()}}}
    fits = [fit_feature_scores(each, rows, 0).records["vim"] for each in (posterior, Posterior(model, negated))]
    np.testing.assert_allclose(fits[0].weight, fits[1].weight, rtol=1e-4)
    features, z = fitting.member_features(posterior, member_draws(posterior.size), rows.take(np.arange(20)))
    for row in range(20):
        views = [view_of(rows.x[row], features=features[:, row])._replace(logits=sign * z[:, row]) for sign in (1, -1)]
        values = [float(FEATURE_SCORES["vim"].score(record, view)) for record, view in zip(fits, views, strict=True)]
        assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-3), row


@pytest.mark.parametrize(("rows", "width", "count"), [(30, 200, 20), (30, 200, 64), (6, 200, 10), (200, 30, 20)])
def test_principal_directions_are_those_of_the_dense_covariance(rows, width, count):
    """Fewer rows than columns or not: the same subspaces one by one, the same eigenvalues, orthonormal to the last."""
    x = RNG.normal(size=(rows, 3 * width)) @ RNG.normal(size=(3 * width, width))
    centred = fitting.centre_rows(x)
    vectors, values = fitting.principal(centred, count)
    dense_values, dense = np.linalg.eigh(np.cov(x.T, bias=True))
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(count), atol=1e-10)
    shared = min(rows - 1, width, count)
    np.testing.assert_allclose(values[:shared], dense_values[::-1][:shared], rtol=1e-8)
    for place in range(1, shared + 1):
        expected = dense[:, ::-1][:, :place]
        np.testing.assert_allclose(vectors[:, :place] @ vectors[:, :place].T, expected @ expected.T, atol=1e-7)


def test_the_residual_space_of_wide_features_is_sampled(monkeypatch):
    """A bounded number of orthonormal directions across all rows; lengths are those of the whole space, but for one factor."""
    monkeypatch.setattr(fitting, "WIDE", 1_000)
    rng = np.random.default_rng(0)
    width, rows = 1_100, 30
    centred = rng.normal(size=(rows, width))
    residual = fitting.residual_directions(centred)
    assert residual.shape == (width, fitting.RESIDUAL)
    np.testing.assert_allclose(residual.T @ residual, np.eye(fitting.RESIDUAL), atol=1e-10)
    np.testing.assert_allclose(centred @ residual, 0, atol=1e-8)
    # The part of new rows outside the span of the rows, by least squares. Squared ratios have mean 1 and variance 2/k.
    new = rng.normal(size=(40, width)) * rng.uniform(0.1, 10, (40, 1))
    outside = new - np.linalg.lstsq(centred.T, new.T, rcond=None)[0].T @ centred
    share = fitting.RESIDUAL / (width - rows)
    ratio = ((new @ residual) ** 2).sum(axis=1) / (share * (outside**2).sum(axis=1))
    assert np.abs(ratio - 1).max() < 6 * np.sqrt(2 / fitting.RESIDUAL)
    assert abs(ratio.mean() - 1) < 6 * np.sqrt(2 / fitting.RESIDUAL / 40)


def test_the_residual_space_of_other_features_is_whole():
    """Half of the width, of the least variance."""
    centred = np.random.default_rng(1).normal(size=(50, 7)) * np.arange(1, 8)
    vectors = np.linalg.eigh(centred.T @ centred)[1]
    np.testing.assert_allclose(
        np.abs(vectors[:, :3].T @ fitting.residual_directions(centred)), np.eye(3)[::-1], atol=1e-9
    )


def test_wide_rows_need_no_square_matrix_of_their_width(monkeypatch):
    """40 rows of 3,000 columns: no eigendecomposition is larger than the number of rows."""
    eigh, sizes = np.linalg.eigh, []
    monkeypatch.setattr(fitting.np.linalg, "eigh", lambda matrix: sizes.append(len(matrix)) or eigh(matrix))
    x, labels = np.float32(RNG.normal(size=(40, 3000))), np.arange(40) % 2
    fitting.subspace(x, labels, 2, 0.0)
    fitting.local_subspaces(x, labels, 2, 0.0, 0)
    fitting.mahalanobis(x[None], labels, 2)
    assert max(sizes) <= max(40, fitting.COMPONENTS, fitting.WHITENED)


@pytest.mark.parametrize("name", ["mlp", "lenet", "linear"])
def test_vims_origin_is_where_the_logits_are_the_biases_own(name):
    """Wᵀ o + b = 0 for every member, as far as there is such a point; ViM's α makes residuals as large as logits."""
    record = fitted(name)[1].records["vim"]
    rows = CASES[name][1].x
    _, _, _, layers = seen(name, rows[0])
    for (kernel, bias), origin in zip(layers, record.origin, strict=True):
        np.testing.assert_allclose(np.asarray(kernel).T @ origin + bias, 0, atol=1e-5)
    posterior, feature_scores = fitted(name)
    for member, (origin, residual, weight) in zip(feature_scores.members, zip(*record, strict=True), strict=True):
        draw = jax.tree.map(lambda leaf, m=member: jnp.asarray(leaf[m]), posterior.draws)
        of_row = jax.jit(jax.vmap(lambda x, draw=draw: outputs_and_features(posterior.model, draw, x)))
        z, h = map(np.float64, of_row(jnp.asarray(rows, jnp.float32)))
        np.testing.assert_allclose(residual.T @ residual, np.eye(residual.shape[1]), atol=1e-5)
        residuals = np.linalg.norm((h - origin) @ residual, axis=1)
        believed = max(residuals.mean(), fitting.LEAST_RESIDUAL * np.linalg.norm(h - origin, axis=1).mean())
        assert weight * believed == pytest.approx(max(z.max(axis=1).mean(), 0), rel=1e-2)


def test_the_principal_components_are_scikit_learns():
    """Of the neighbours' bank: the same subspace; and the same distances to the bank as NearestNeighbors."""
    rows = np.random.default_rng(1).normal(size=(500, 100)) @ np.random.default_rng(2).normal(size=(100, 100))
    record = fitting.neighbours(rows, 0.0)
    # Both are about the rows' mean.
    pca = PCA(fitting.COMPONENTS).fit(rows)
    np.testing.assert_allclose(record.components @ record.components.T, pca.components_.T @ pca.components_, atol=1e-8)
    np.testing.assert_allclose(record.mean, pca.mean_)
    new = np.random.default_rng(3).normal(size=(20, 100)) * 20
    found = [FEATURE_SCORES["input_knn"].score(fitting._as_float32(record), view_of(row)) for row in new]
    nearest = NearestNeighbors(n_neighbors=1).fit(record.bank)
    places = (new - pca.mean_) @ record.components
    np.testing.assert_allclose(found, nearest.kneighbors(places)[0][:, -1], rtol=1e-4)


def view_of(row, features=None, label=0):
    """One row as it is, with features and logits that nobody looks at."""
    from abstain.models.prediction.feature_score_records import ScoreInputs

    x = jnp.asarray(row, jnp.float32)
    h = jnp.ones((1, 2)) if features is None else jnp.asarray(features, jnp.float32)
    return ScoreInputs(row=x, inputs=x, features=h, logits=jnp.zeros((len(h), 2)), label=jnp.int32(label))


def test_mahalanobis_distances_are_those_of_explicit_covariances():
    """Whitened by EmpiricalCovariance within classes and over all, but for the little that keeps it from singular."""
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 3000)
    h = unit(rng.normal(size=(3, 5))[labels] + rng.normal(size=(3000, 5)) * [0.2, 0.5, 0.3, 0.4, 0.6])
    record = fitting._as_float32(fitting.mahalanobis(h[None], labels, 3))
    means = np.stack([h[labels == c].mean(axis=0) for c in range(3)])
    within = EmpiricalCovariance(assume_centered=True).fit(h - means[labels])
    overall = EmpiricalCovariance().fit(h)

    def regularised(covariance):
        return np.linalg.inv(covariance + fitting.SHRINKAGE * np.trace(covariance) / 5 * np.eye(5))

    inside, outside = regularised(within.covariance_), regularised(overall.covariance_)
    for row in unit(rng.normal(size=(20, 5))):
        near = min((row - mean) @ inside @ (row - mean) for mean in means)
        far = (row - overall.location_) @ outside @ (row - overall.location_)
        view = view_of(row, features=3.7 * row[None])
        assert FEATURE_SCORES["relative_mahalanobis"].score(record, view) == pytest.approx(
            near - far, rel=1e-3, abs=1e-3
        )
        assert FEATURE_SCORES["mahalanobis"].score(record, view) == pytest.approx(np.sqrt(far), rel=1e-3)


def test_a_classes_subspace_is_scikit_learns():
    """The fewest of its components that explain nine tenths, and the norm of what they leave over."""
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], [300, 200])
    x = rng.normal(size=(500, 8)) * np.where(labels[:, None] == 0, np.geomspace(1, 20, 8), np.geomspace(20, 1, 8)) + 3
    record = fitting._as_float32(fitting.subspace(x, labels, 2, 0.0))
    for label in range(2):
        pca = PCA(fitting.EXPLAINED, svd_solver="full").fit(x[labels == label])
        for row in rng.normal(0, 10, (10, 8)):
            left = row - pca.inverse_transform(pca.transform(row[None]))[0]
            found = FEATURE_SCORES["subspace"].score(record, view_of(row, label=label))
            assert found == pytest.approx(np.linalg.norm(left), rel=1e-3)


def test_members_are_draws_at_even_distances():
    """Of a posterior of five starts one of each; of fewer draws than members, all."""
    assert member_draws(100).tolist() == [10, 30, 50, 70, 90]
    assert member_draws(5).tolist() == [0, 1, 2, 3, 4]
    assert (member_draws(1).tolist(), member_draws(2).tolist(), member_draws(7).tolist()) == (
        [0],
        [0, 1],
        [0, 2, 3, 4, 6],
    )


def test_a_fit_is_the_seeds_and_no_more_than_so_many_rows(monkeypatch):
    """The same seed gives the same bits; with fewer rows allowed another seed gives others, but the range is of all."""
    posterior, rows = fitted("mlp")[0], CASES["mlp"][1]
    monkeypatch.setattr(fitting, "ROWS", 100)
    monkeypatch.setattr(fitting, "TABLE_BANK", 20)
    first, again, other = (fit_feature_scores(posterior, rows, seed) for seed in (1, 1, 2))
    assert jax.tree.all(jax.tree.map(np.array_equal, first, again))
    assert len(first.records["knn"].bank) == 20
    assert not np.array_equal(first.records["knn"].bank, other.records["knn"].bank)
    for found in (first, other):
        np.testing.assert_allclose(found.records["range"].low, round_outwards(*RANGE)[0], rtol=1e-6)


# ---- range -----------------------------------------------------------------------------------------------------------

COLUMNS = (
    Column(name="age", missing=40.0),
    Column(name="sex", categories=("f", "m"), missing=0.0),
    Column(name="dose"),
)


@pytest.fixture(scope="module")
def table():
    """A table's predictor: ages 20 to 60, two sexes, doses that are always 5."""
    terms = Preprocessing(shift=(40.0, 0.0, 5.0), scale=(10.0, 1.0, 1.0), columns=COLUMNS)
    model = model_of(MLPSpec(hidden=(4,)), "categorical", terms, (3,), 2, feature_names=("age", "sex", "dose"))
    ages = np.append(np.linspace(20, 60, 99), np.nan)
    rows = Rows(np.stack([ages, np.arange(100) % 2, np.full(100, 5.0)], axis=1).astype(np.float32), np.arange(100) % 2)
    posterior = posterior_of(model)
    return Predictor(posterior, (8,), feature_scores=fit_feature_scores(posterior, rows, 0))


def test_the_range_by_hand(table):
    """In widths of the training range, of the worst feature; a constant one by itself; no category and no gap is out."""
    rows = np.array([[20, 1, 5], [60.001, 0, 5], [100, 1, 5], [10, 0, 5], [40, 0, 8], [100, 0, 2], [np.nan, 9, 5]])
    prediction = table(rows.astype(np.float32))
    np.testing.assert_allclose(prediction.scores["range"], [0, 0, 1, 0.25, 3, 3, 0], rtol=1e-5)
    assert prediction.farthest.tolist()[2:6] == [0, 0, 2, 2]


def test_of_images_the_range_is_one_for_all_pixels():
    """0 to 255 wherever a pixel is: a dark corner that is bright for once is not out of range."""
    record = fitted("lenet")[1].records["range"]
    assert set(record.low.tolist()) == {float(IMAGES.min())}
    assert set(record.high.tolist()) == {float(IMAGES.max())}


@pytest.mark.parametrize("terms", [Preprocessing(), Preprocessing(shift=(-20.0,), scale=(50.0,))])
def test_a_table_on_one_scale_is_no_picture(terms):
    """Unscaled, or scaled as a whole: lengths count, and every feature has a range of its own."""
    table, picture = model_of(MLPSpec(hidden=(5,)), "categorical", terms, (6,), 3), CASES["lenet"][0]
    assert (table.is_pixel_like, picture.is_pixel_like) == (False, True)
    feature_scores = fit_feature_scores(posterior_of(table), Rows(TABLE, TABLE_Y), 0)
    assert {float(record.unit) for record in feature_scores.records.values() if hasattr(record, "unit")} == {0.0}
    np.testing.assert_allclose(feature_scores.records["range"].low, round_outwards(*RANGE)[0], rtol=1e-6)
    assert choose_decision(CalibrationConfig(), table) == DEFAULT_DECISIONS["tables"]


def test_a_narrow_tables_subspace_leaves_something_over():
    """At most half of its dimensions, though fewer explain less than nine tenths of the variance."""
    record = fitting.subspace(TABLE, TABLE_Y, 3, 0.0)
    assert record.basis.shape == (6, 3, 3)
    assert fitting.subspace(TABLE[:, :1], TABLE_Y, 3, 0.0).basis.shape == (1, 3, 1)


# ---- the extremes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("direction", range(3))
def test_points_ever_farther_off_are_finite_and_ordered(name, direction):
    """Up to 10⁶ × the training range: every score is finite, a feature score equals the float64 loop, and distances grow."""
    row = CASES[name][1].x[direction].astype(np.float64) + 1.0
    rows = np.stack([factor * row for factor in FACTORS])
    prediction = predictor_of(name)(rows)
    task = CASES[name][0].likelihood_functions.task
    assert set(prediction.scores) == {*SCORES[task], *FEATURE_SCORES_BY_TASK[task]}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(prediction))
    mean = np.asarray(prediction.summary.mean)
    for place, factor in enumerate(FACTORS):
        expected, sizes = by_hand(name, rows[place], int(mean[place].argmax()) if mean.ndim == 2 else 0)
        for score, value in expected.items():
            most = 1e-3 * max(sizes.get(score, 0), 1)
            assert prediction.scores[score][place] == pytest.approx(value, rel=1e-3, abs=most), (score, factor)
    pixels = name == "lenet"
    for score in ("range",) if pixels else {"subspace", "input_knn", "range"} & {*prediction.scores}:
        assert np.all(np.diff(prediction.scores[score]) > 0), score


def test_distances_in_feature_space_grow_as_features_leave_the_training_rows():
    """ViM with what lies across the principal space; the angles' scores with the angle from all training rows."""
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 2, 400)
    h = np.concatenate([np.array([[5.0, 1], [1, 5.0]])[labels] + rng.normal(0, 0.3, (400, 2)), np.zeros((400, 4))], 1)
    h += rng.normal(0, 0.05, h.shape)
    directions = unit(h)
    across = np.eye(6)[4]
    steps = (0, 0.5, 1, 2, 4, 8)
    relative = fitting._as_float32(fitting.mahalanobis(directions[None], labels, 2))
    bank = fitting._as_float32(fitting.neighbours(directions, 1.0))
    for score, record in (("relative_mahalanobis", relative), ("mahalanobis", relative), ("knn", bank)):
        values = [
            FEATURE_SCORES[score].score(record, view_of(h[0], features=(h[0] + step * across)[None])) for step in steps
        ]
        assert np.all(np.diff(values) > 0), score
    record = FEATURE_SCORES["vim"].record(np.zeros((1, 6)), np.eye(6)[None, :, 2:], np.array([0.5]))
    values = [
        FEATURE_SCORES["vim"].score(fitting._as_float32(record), view_of(h[0], features=(h[0] + step * across)[None]))
        for step in steps
    ]
    assert np.all(np.diff(values) > 0)


SPARSE = {
    "one row a class": Rows(TABLE[:3], np.arange(3)),
    "one row in all": Rows(TABLE[:1], np.array([1])),
    "a class missing": Rows(TABLE[TABLE_Y != 1], TABLE_Y[TABLE_Y != 1]),
    "constant features": Rows(np.where(np.arange(6) < 3, TABLE, np.float32(7)), TABLE_Y),
    "all constant": Rows(np.full((50, 6), 7, np.float32), TABLE_Y[:50]),
    "zeros": Rows(np.zeros((50, 6), np.float32), TABLE_Y[:50]),
    "tiny": Rows(TABLE * np.float32(1e-30), TABLE_Y),
    "huge": Rows(TABLE * np.float32(1e10), TABLE_Y),
}


@pytest.mark.parametrize(("likelihood", "draws"), [("categorical", 2), ("normal", 1)])
@pytest.mark.parametrize("train", SPARSE)
@pytest.mark.filterwarnings("error")
def test_sparse_training_sets_have_finite_scores(train, likelihood, draws):
    """Whatever is missing from the training rows, every stored array and every score is a number, up to 10⁶ × off."""
    rows = SPARSE[train]
    terms = Preprocessing() if train in {"tiny", "huge"} else PER_FEATURE
    model = model_of(MLPSpec(hidden=(5,)), likelihood, terms, (6,), 3 if likelihood == "categorical" else 0)
    posterior = posterior_of(model, draws)
    targets = rows.y if likelihood == "categorical" else rows.y.astype(np.float32)
    feature_scores = fit_feature_scores(posterior, Rows(rows.x, targets), 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(feature_scores))
    assert (
        from_tree(as_tree(feature_scores), shapes_of(feature_scores), draws, "here").records.keys()
        == feature_scores.records.keys()
    )
    x = rows.x[0].astype(np.float64)
    far = np.stack([x, 1000 * (x + 1), 1e6 * (x + 1), -1e6 * (x + 1), np.zeros(6), np.full(6, 3.0)])
    prediction = Predictor(posterior, (8,), feature_scores=feature_scores)(far)
    for score, values in prediction.scores.items():
        assert np.isfinite(values).all(), score


@pytest.mark.parametrize("rule", ["min", "weighted", "harmonic"])
def test_a_calibration_split_of_one_class_judges_the_absurd(rule):
    """All calibration rows of one class: every score's p-value and evidence are numbers, and far rows are rejected."""
    rows = TABLE[TABLE_Y == 0]
    names = ("subspace", "knn", "gen", "vim")
    split = calibrate(
        predictor_of("mlp")(rows),
        np.zeros(len(rows), int),
        decision=Decision(scores=names, rule=rule),
        percentile=90.0,
    )
    judgement = judge(split, predictor_of("mlp")(np.stack([1e3 * (rows[0] + 1), 1e6 * (rows[0] + 1)])))
    assert judgement.reject.tolist() == [True, True]
    for score in judgement.scores.values():
        assert np.isfinite(score.value).all()
        assert np.all((score.p_value > 0) & (score.p_value <= 1))
    assert all(np.isfinite(values).all() for values in judgement.evidence.values())
    assert judgement.scores["combined"].value[0] < judgement.scores["combined"].value[1]


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1.0, 1e20, 1e30, 3e38])
def test_norms_neither_overflow_nor_vanish(scale):
    """Lengths with squares that overflow float32; their unit vectors; zeros stay zeros."""
    x = jnp.asarray([0.6 * scale, 0.0, -0.8 * scale], jnp.float32)
    assert float(norm(x)) == pytest.approx(scale, rel=1e-5)
    np.testing.assert_allclose(unit_length(x), [0.6, 0, -0.8], rtol=1e-5)
    np.testing.assert_array_equal(unit_length(jnp.zeros(3)), np.zeros(3))


@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize("offset", [0, 10, 100, 300, 1000, 2000])
def test_a_table_far_from_zero_has_residuals(offset, spread):
    """Raw features with a mean of hundreds and a spread of one: the residuals equal those at mean 0."""
    rng = np.random.default_rng(8)
    x = rng.normal(0, spread, (900, 8)) * np.geomspace(1, 0.3, 8)
    labels = rng.integers(0, 3, 900)
    moved = (x + offset).astype(np.float32)
    record = fitting._as_float32(fitting.subspace(moved[:600], labels[:600], 3, 0.0))
    on_device = jax.tree.map(jnp.asarray, record)
    score = jax.jit(jax.vmap(lambda row, label: FEATURE_SCORES["subspace"].score(on_device, view_of(row, label=label))))
    found = np.asarray(score(moved[600:], labels[600:]))
    assert (found == 0).mean() < 0.01
    for value, row, label in zip(found, moved[600:].astype(np.float64), labels[600:], strict=True):
        centred, basis = row - double(record).means[label], double(record).basis[:, label]
        assert value == pytest.approx(
            np.linalg.norm(centred - basis @ (basis.T @ centred)), rel=1e-2, abs=1e-3 * spread
        )


@pytest.mark.parametrize("offset", [0.1, 300, 1e6])
def test_a_residual_that_is_only_rounding_is_none(offset):
    """Rows within their class's subspace, of one feature or of one value: exactly 0, wherever they lie."""
    rng = np.random.default_rng(9)
    along = rng.normal(size=(300, 1)) * [0.6, 0.0, 0.8, 0.0]
    for rows in (rng.normal(size=(300, 1)), along, np.zeros((300, 4))):
        moved = (rows + offset).astype(np.float32)
        record = fitting._as_float32(fitting.subspace(moved, np.zeros(300, int), 1, 0.0))
        found = [float(FEATURE_SCORES["subspace"].score(record, view_of(row))) for row in moved[:50]]
        assert found == [0.0] * 50


@pytest.mark.parametrize("decision", ["subspace", "local_subspace", "feature_subspace", "knn", "range"])
@pytest.mark.parametrize("name", ["mlp", "regression"])
def test_rows_that_float32_can_hardly_hold_are_strange(name, decision):
    """Squares that overflow are no excuse: beyond 10¹⁵ × the training rows nothing is taken for familiar."""
    predictor, rows = predictor_of(name), CASES[name][1]
    split = calibrate(predictor(rows.x), rows.y, decision=Decision(scores=(decision,)), percentile=95.0)
    wild = np.stack([factor * sign * (rows.x[0] + 1.0) for factor in (1e15, 1e20, 1e30, 1e37) for sign in (1, -1)])
    if decision == "subspace":
        found = np.asarray(predictor(wild).scores[decision]).reshape(4, 2)
        assert np.all(np.diff(found, axis=0) > 0)
    assert judge(split, predictor(wild)).reject.tolist() == [True] * 8


# ---- buckets ---------------------------------------------------------------------------------------------------------


def rounding_limits(predictor, expected):
    """By how much each score may differ by rounding: 1e-6 of its spread, of its size or of 1; for feature scores more.

    Feature scores are differences of nearly equal numbers; those of features that hardly vary are the least exact.
    """
    names = list(predictor(np.zeros((1, *predictor.model.feature_shape))).scores)
    millionths = np.array(
        [{"relative_mahalanobis": 50.0}.get(score, 3.0 if score in FEATURE_SCORES else 1.0) for score in names]
    )
    return 1e-6 * millionths * np.maximum(np.ptp(expected, axis=0), np.abs(expected).max(axis=0)).clip(1)


@pytest.mark.parametrize("name", ["mlp", "lenet", "regression", "bernoulli"])
@pytest.mark.parametrize("bucket", [8, 32])
def test_scores_are_the_same_whatever_place_and_neighbours(name, bucket):
    """Ordinary neighbours and overflowing ones; first, middle and last.

    The same bits; with convolutions only nearly, because some processors round the last row of a bucket differently.
    """
    predictor, rows = predictor_of(name), CASES[name][1].x.astype(np.float64)
    expected = scores_by_row(predictor(np.repeat(rows[7:8], bucket, axis=0)))
    limits = rounding_limits(predictor, scores_by_row(predictor(rows[:bucket]))) if name == "lenet" else 0.0
    assert np.all(np.abs(expected - expected[:1]) <= limits)
    for place in (0, bucket // 2, bucket - 1):
        for wild in (False, True):
            batch = np.full((bucket, *rows.shape[1:]), 3e38) if wild else rows[50 : 50 + bucket].copy()
            batch[place] = rows[7]
            assert np.all(np.abs(scores_by_row(predictor(batch))[place] - expected[0]) <= limits)


@pytest.mark.parametrize("name", ["mlp", "lenet", "regression", "bernoulli"])
def test_buckets_score_within_a_millionth(name):
    """The same rows through every bucket give the same scores, up to rounding."""
    # Not the rows fitted to: their distance to themselves is nothing but rounding.
    predictor, rows = predictor_of(name, BUCKETS), 1.01 * CASES[name][1].x[:256].astype(np.float64)
    expected = scores_by_row(predictor(rows))
    names, limits = list(predictor(rows[:1]).scores), rounding_limits(predictor, expected)
    for bucket in BUCKETS[:-1]:
        found = np.concatenate([scores_by_row(predictor(rows[i : i + bucket])) for i in range(0, 32, bucket)])[:32]
        worst = np.abs(found - expected[:32]).max(axis=0)
        assert [score for score, far, limit in zip(names, worst, limits, strict=True) if far > limit] == []


# ---- networks of one's own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Batch", "NoDense", "Scanned", "Tokens"])
def test_networks_of_ones_own_have_every_density(name, tmp_path, monkeypatch):
    """A batch module, and modules without features: fitted, compiled, finite, and as the loops."""
    from abstain.models.networks.user_module import ModuleSpec

    (tmp_path / "densities_of_mine.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(tmp_path)
    network = ModuleSpec(module=f"densities_of_mine:{name}").allow(("densities_of_mine",))
    model = model_of(network, "categorical", PIXELS, (12, 12), 4)
    posterior = posterior_of(model)
    feature_scores = fit_feature_scores(posterior, CASES["lenet"][1], 0)
    prediction = Predictor(posterior, (8,), feature_scores=feature_scores)(IMAGES[:8])
    for score, values in prediction.scores.items():
        assert np.isfinite(values).all(), score
    if name != "Batch":
        x = jnp.asarray(IMAGES[0], jnp.float32)
        record, terms = double(feature_scores.records["vim"]), []
        for member, origin, residual, weight in zip(feature_scores.members, *record, strict=True):
            draw = jax.tree.map(lambda leaf, m=member: jnp.asarray(leaf[m]), posterior.draws)
            z = np.asarray(outputs_and_features(model, draw, x)[0], np.float64)
            left = residual @ (residual.T @ (z - origin))
            terms.append(weight * np.linalg.norm(left) - special.logsumexp(z))
        assert prediction.scores["vim"][0] == pytest.approx(np.mean(terms), rel=1e-4, abs=1e-4)


def test_densities_come_back_from_their_tree():
    """What is stored is what was fitted, for every task."""
    for name in ("mlp", "regression"):
        feature_scores = fitted(name)[1]
        back = from_tree(as_tree(feature_scores), shapes_of(feature_scores), 7, "here")
        assert isinstance(back, FeatureScores)
        assert jax.tree.all(jax.tree.map(np.array_equal, back, feature_scores))
