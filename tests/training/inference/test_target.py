"""Targets: bijections and their Jacobians, trees and shapes, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import distributions as dist
from scipy import integrate, stats

from abstain.models.errors import ConfigError
from abstain.training.inference.target import CHUNK, Target

RNG = np.random.default_rng(0)


def nothing(parameters, data):
    """A log-likelihood of no rows."""
    return jnp.zeros(0)


def of_one(prior, shape=()):
    """A target of one parameter."""
    return Target({"a": prior}, nothing, {"a": shape})


ONE_DIMENSIONAL = {
    "normal": (dist.Normal(1.0, 2.0), stats.norm(1, 2)),
    "laplace": (dist.Laplace(0.0, 0.5), stats.laplace(0, 0.5)),
    "student": (dist.StudentT(3.0, 0.0, 2.0), stats.t(3, 0, 2)),
    "log-normal": (dist.LogNormal(0.3, 0.7), stats.lognorm(0.7, scale=np.exp(0.3))),
    "half-cauchy": (dist.HalfCauchy(0.5), stats.halfcauchy(scale=0.5)),
    "half-normal": (dist.HalfNormal(1.5), stats.halfnorm(scale=1.5)),
    "gamma": (dist.Gamma(2.0, 3.0), stats.gamma(2, scale=1 / 3)),
    "beta": (dist.Beta(2.0, 3.5), stats.beta(2, 3.5)),
    "uniform": (dist.Uniform(-1.0, 3.0), stats.uniform(-1, 4)),
}


@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
def test_the_density_of_the_vector_carries_the_bijections_jacobian(name):
    """It is scipy's density of the parameter times the derivative of the bijection, by automatic differentiation."""
    prior, exact = ONE_DIMENSIONAL[name]
    target = of_one(prior)
    assert target.dim == 1
    value = jax.jit(lambda z: target.constrain(z[None])["a"])
    for z in np.float32([-2.0, -0.3, 0.0, 0.9, 2.5]):
        slope = float(jax.grad(value)(z))
        expected = exact.logpdf(float(value(z))) + np.log(slope)
        assert float(target.log_prior(jnp.array([z]))) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
def test_the_density_of_the_vector_integrates_to_one(name):
    """The density over all real numbers integrates to one, so that a missing or doubled Jacobian would show."""
    prior, _ = ONE_DIMENSIONAL[name]
    target = of_one(prior)
    z = np.linspace(-60, 60, 40_001)
    density = np.exp(np.asarray(jax.jit(jax.vmap(target.log_prior))(jnp.float32(z)[:, None]), np.float64))
    assert integrate.simpson(density, x=z) == pytest.approx(1, abs=1e-2)


def test_a_simplex_has_one_number_less_in_the_vector():
    """A Dirichlet of three: two numbers, the density of the first two components times the determinant, integral 1."""
    target = of_one(dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])), (3,))
    assert target.dim == 2
    exact = stats.dirichlet([2, 3, 4])
    for z in RNG.normal(size=(5, 2)).astype(np.float32):
        jacobian = jax.jacobian(lambda z: target.constrain(z)["a"][:2])(jnp.asarray(z))
        parameter = np.asarray(target.constrain(jnp.asarray(z))["a"], np.float64)
        assert parameter.sum() == pytest.approx(1)
        expected = exact.logpdf(parameter / parameter.sum()) + np.linalg.slogdet(np.asarray(jacobian))[1]
        assert float(target.log_prior(jnp.asarray(z))) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    axis = np.linspace(-9, 9, 301)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    density = np.exp(jax.jit(jax.vmap(jax.vmap(target.log_prior)))(jnp.float32(grid)))
    assert density.sum() * (axis[1] - axis[0]) ** 2 == pytest.approx(1, abs=1e-3)


NESTED = {
    "slope": dist.Normal(),
    "layers": [
        {"kernel": dist.Laplace(0.0, 0.5), "bias": dist.Normal(jnp.array([0.0, 1.0]), 0.3)},
        {"kernel": dist.Normal(), "bias": dist.Normal()},
    ],
    "noise": dist.HalfNormal(0.5),
    "weights": dist.Dirichlet(jnp.ones(3)),
    "pair": dist.MultivariateNormal(jnp.array([1.0, -1.0]), jnp.array([[1.0, 0.6], [0.6, 2.0]])),
}
SHAPES = {
    "slope": (),
    "layers": [{"kernel": (3, 2), "bias": (2,)}, {"kernel": (2, 1), "bias": (1,)}],
    "noise": (),
    "weights": (4, 3),
    "pair": (2,),
}
AS_ARRAYS = jax.tree.map(jnp.zeros, SHAPES, is_leaf=lambda leaf: isinstance(leaf, tuple))
AS_STRUCTS = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), AS_ARRAYS)


@pytest.mark.parametrize("shapes", [SHAPES, AS_ARRAYS, AS_STRUCTS], ids=["tuples", "arrays", "structs"])
def test_trees_may_be_nested_and_shapes_have_any_form(shapes):
    """Leaves are paired by path; the vector holds them one after the other, a simplex with a number less for each."""
    target = Target(NESTED, nothing, shapes)
    found = [(site.path, site.shape) for site in target.sites]
    assert found == [
        ("layers.0.bias", (2,)),
        ("layers.0.kernel", (3, 2)),
        ("layers.1.bias", (1,)),
        ("layers.1.kernel", (2, 1)),
        ("noise", ()),
        ("pair", (2,)),
        ("slope", ()),
        ("weights", (4, 2)),
    ]
    assert [site.first for site in target.sites] == [0, 2, 8, 9, 11, 12, 14, 15]
    assert target.dim == 23
    assert [site.path for site in target.sites if not site.is_real] == ["noise", "pair", "weights"]
    parameters = target.constrain(jnp.zeros(23))
    expected = [tuple(getattr(leaf, "shape", leaf)) for leaf in jax.tree.leaves(AS_ARRAYS)]
    assert [leaf.shape for leaf in jax.tree.leaves(parameters)] == expected


def test_there_and_back_again():
    """A vector's parameters stand for that vector, and a parameters' vector for those parameters."""
    target = Target(NESTED, nothing, SHAPES)
    z = jnp.float32(RNG.normal(size=23))
    parameters = target.constrain(z)
    np.testing.assert_allclose(z, target.unconstrain(parameters), atol=2e-5)
    again = target.constrain(target.unconstrain(parameters))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), parameters, again)
    assert jax.tree.structure(parameters) == jax.tree.structure(AS_ARRAYS)


def test_the_prior_is_the_sum_over_all_parameters():
    """Nested, expanded over axes that a prior does not know of, and of several dimensions: scipy's densities, added."""
    target = Target(NESTED, nothing, SHAPES)
    z = jnp.float32(RNG.normal(size=23))
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), target.constrain(z))
    first, second = p["layers"]
    expected = stats.norm.logpdf(p["slope"]) + stats.laplace.logpdf(first["kernel"], scale=0.5).sum()
    expected += stats.norm.logpdf(first["bias"], [0, 1], 0.3).sum()
    expected += sum(stats.norm.logpdf(leaf).sum() for leaf in second.values())
    expected += stats.halfnorm.logpdf(p["noise"], scale=0.5) + np.log(p["noise"])
    expected += stats.multivariate_normal([1, -1], [[1, 0.6], [0.6, 2]]).logpdf(p["pair"])
    expected += 4 * stats.dirichlet(np.ones(3)).logpdf(np.full(3, 1 / 3))
    for place in range(4):
        row = z[15 + 2 * place : 17 + 2 * place]
        simplex = of_one(NESTED["weights"], (3,))
        jacobian = jax.jacobian(lambda z, simplex=simplex: simplex.constrain(z)["a"][:2])(row)
        expected += np.linalg.slogdet(np.asarray(jacobian))[1]
    assert float(target.log_prior(z)) == pytest.approx(expected, rel=1e-4)


def test_the_log_density_adds_the_rows_that_the_likelihood_gives():
    """A regression of ten rows, its data a plain dict: prior plus the sum over rows, by scipy; and its gradient."""
    x, y = RNG.normal(size=10), RNG.normal(size=10)

    def log_likelihood(parameters, data):
        return dist.Normal(parameters["slope"] * data["x"], parameters["noise"]).log_prob(data["y"])

    priors = {"slope": dist.Normal(0.0, 2.0), "noise": dist.LogNormal()}
    target = Target(priors, log_likelihood, {"slope": (), "noise": ()})
    data = {"x": jnp.float32(x), "y": jnp.float32(y)}

    def exact(noise, slope):
        prior = stats.norm.logpdf(slope, scale=2) + stats.norm.logpdf(noise)
        return prior + stats.norm.logpdf(y, slope * x, np.exp(noise)).sum()

    z = np.array([-0.4, 0.7])
    assert float(target.log_density(jnp.float32(z), data)) == pytest.approx(exact(*z), rel=1e-5)
    step = 1e-5 * np.eye(2)
    slopes = [(exact(*(z + ahead)) - exact(*(z - ahead))) / 2e-5 for ahead in step]
    np.testing.assert_allclose(slopes, jax.grad(target.log_density)(jnp.float32(z), data), rtol=1e-3)


@pytest.mark.parametrize("rows", [1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 77])
def test_many_rows_are_summed_in_chunks_and_each_counts_once(rows):
    """Sum and gradient are those of all rows at once, also where the last chunk is not full."""
    x = jnp.float32(RNG.normal(size=rows))
    target = Target({"a": dist.Normal()}, lambda parameters, data: -((parameters["a"] - data) ** 2), {"a": ()})
    total, slope = jax.jit(jax.value_and_grad(lambda a: target.total_log_likelihood({"a": a}, x)))(jnp.float32(0.3))
    exact = np.asarray(x, np.float64)
    assert float(total) == pytest.approx(-((0.3 - exact) ** 2).sum(), rel=1e-4)
    assert float(slope) == pytest.approx(-2 * (0.3 - exact).sum(), rel=1e-3, abs=1e-2)


def test_prior_draws_have_the_priors_moments():
    """Means and variances over many draws, of bounded parameters, of expanded ones and of those with correlations."""
    target = Target(NESTED, nothing, SHAPES)
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = jax.jit(jax.vmap(lambda key: target.constrain(target.sample_prior(key))))(keys)
    assert abs(float(draws["slope"].mean())) < 0.03
    assert float(draws["slope"].var()) == pytest.approx(1, rel=0.04)
    assert float(draws["noise"].mean()) == pytest.approx(stats.halfnorm.mean(scale=0.5), rel=0.03)
    np.testing.assert_allclose(draws["layers"][0]["kernel"].var(axis=0), 0.5, rtol=0.1)
    np.testing.assert_allclose(draws["layers"][0]["bias"].mean(axis=0), [0, 1], atol=0.02)
    np.testing.assert_allclose(np.cov(np.asarray(draws["pair"]).T), [[1, 0.6], [0.6, 2]], atol=0.08)
    np.testing.assert_allclose(draws["weights"].mean(axis=0), 1 / 3, atol=0.01)
    flat = np.asarray(draws["layers"][0]["kernel"]).reshape(20_000, 6)
    assert abs(np.corrcoef(flat.T) - np.eye(6)).max() < 0.05


@pytest.mark.parametrize(
    ("priors", "shapes", "message"),
    [
        (
            {"a": dist.Normal(), "b": dist.Normal()},
            {"a": (), "c": ()},
            r"priors and shapes differ as trees: expected \['a', 'c'\], found \['a', 'b'\]",
        ),
        ({"a": dist.Normal()}, {"a": (), "b": ()}, r"differ as trees: expected \['a', 'b'\], found \['a'\]"),
        (
            {"a": {"deep": dist.Normal()}},
            {"a": ()},
            r"differ as trees: expected \['a'\], found \['a.deep'\]",
        ),
        (
            {"a": {"deep": dist.Normal(jnp.zeros(3))}},
            {"a": {"deep": (3, 2)}},
            r"prior of a.deep: expected one that expands to \(3, 2\), found a prior of shape \(3,\)",
        ),
        (
            {"a": dist.Dirichlet(jnp.ones(3))},
            {"a": (3, 2)},
            r"prior of a: expected a shape that ends in \(3,\), found \(3, 2\)",
        ),
        (
            {"a": dist.Dirichlet(jnp.ones(3))},
            {"a": ()},
            r"prior of a: expected a shape that ends in \(3,\), found \(\)",
        ),
        ({"a": dist.Poisson(2.0)}, {"a": ()}, r"prior of a: expected a continuous one, found Poisson"),
    ],
)
def test_what_does_not_go_together_is_refused_by_path(priors, shapes, message):
    """Other trees, a prior that does not fit its shape, or one of whole numbers: refused at the first use."""
    with pytest.raises(ConfigError, match=message):
        _ = Target(priors, nothing, shapes).sites
