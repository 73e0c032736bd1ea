"""The Bayesian network: its density against the same formula written in float64 numpy, and against NumPyro's own."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from numpyro import distributions as dist
from numpyro.infer.util import log_density
from scipy import stats
from scipy.special import log_expit, log_softmax

from abstain.models.errors import ConfigError
from abstain.models.networks.architectures import LeNetSpec, MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.training.config.priors import PriorConfig
from abstain.training.data.rows import Rows
from abstain.training.inference.bnn import BNN, NOISE_START, Observations, as_draw, log_likelihood, observe

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 2))
OUTPUTS = {"categorical": 3, "bernoulli": 1, "normal": 1, "heteroscedastic_normal": 2}
TARGETS = {
    "categorical": np.arange(7) % 3,
    "bernoulli": np.arange(7) % 2,
    "normal": RNG.normal(size=7),
    "heteroscedastic_normal": RNG.normal(size=7),
}


def toy(likelihood, **prior):
    """A 2-3-outputs network with a prior, observations of it, and one draw of its parameters by path, all in float64."""
    names = {"categorical": ("a", "b", "c"), "bernoulli": ("a", "b")}.get(likelihood, ())
    network = MLPSpec(hidden=(3,), activation="tanh")
    model = Model(network=network, likelihood=likelihood, feature_shape=(2,), class_names=names)
    bnn = BNN(model, PriorConfig(**prior))
    rng = np.random.default_rng(1)
    sites = {site.path: rng.normal(size=site.shape) for site in bnn.target.sites}
    if "noise" in sites:
        sites["noise"] = np.array(0.7)
    return bnn, Observations(jnp.asarray(X, jnp.float32), jnp.asarray(TARGETS[likelihood])), sites


def tree_of(sites):
    """Values by path as the tree that a target is of."""
    return unflatten_dict(jax.tree.map(jnp.float32, sites), sep=".")


def log_rows(likelihood, sites):
    """Each row's log density by hand."""
    hidden = np.tanh(X @ sites["network.Dense_0.kernel"] + sites["network.Dense_0.bias"])
    outputs = hidden @ sites["network.Dense_1.kernel"] + sites["network.Dense_1.bias"]
    y = TARGETS[likelihood]
    if likelihood == "categorical":
        return log_softmax(outputs, axis=1)[np.arange(7), y]
    if likelihood == "bernoulli":
        return log_expit(np.where(y == 1, outputs[:, 0], -outputs[:, 0]))
    std = sites["noise"] if likelihood == "normal" else np.exp(outputs[:, 1] / 2)
    return stats.norm.logpdf(y, outputs[:, 0], std)


def log_prior(sites, scale, noise_scale):
    """The log prior by hand, `scale` by site."""
    return sum(
        stats.halfcauchy.logpdf(value, scale=noise_scale)
        if site == "noise"
        else stats.norm.logpdf(value, scale=scale(site)).sum()
        for site, value in sites.items()
    )


def jacobian(sites):
    """The log Jacobian of the bijections: the noise is moved in by its logarithm, and the network as it is."""
    return np.log(sites.get("noise", 1.0))


def log_joint(bnn, observations, sites):
    """The log joint density of the parameters' vector, as inference sees it."""
    return float(bnn.target.log_density(bnn.target.unconstrain(tree_of(sites)), observations))


@pytest.mark.parametrize(
    ("likelihood", "fan_in"),
    [(likelihood, likelihood != "categorical") for likelihood in OUTPUTS] + [("normal", False)],
)
def test_the_joint_density_is_prior_times_likelihood(likelihood, fan_in):
    """Normals over weights and biases, a half-Cauchy over the noise, and each likelihood's density, summed over rows."""
    bnn, observations, sites = toy(likelihood, scale=1.7, noise_scale=0.5, fan_in=fan_in)

    def scale(site):
        inputs = {"network.Dense_0.kernel": 2, "network.Dense_1.kernel": 3}.get(site, 1)
        return 1.7 / np.sqrt(inputs) if fan_in else 1.7

    prior = log_prior(sites, scale, 0.5) + jacobian(sites)
    expected = prior + log_rows(likelihood, sites).sum()
    assert log_joint(bnn, observations, sites) == pytest.approx(expected, rel=1e-5)
    vector = bnn.target.unconstrain(tree_of(sites))
    assert float(bnn.target.log_prior(vector)) == pytest.approx(prior, rel=1e-5)


@pytest.mark.parametrize("likelihood", OUTPUTS)
def test_the_joint_density_is_that_of_the_model_as_numpyro_reads_it(likelihood):
    """The model as a NumPyro program has the same joint density, except for the Jacobian."""
    bnn, observations, sites = toy(likelihood, scale=0.8, noise_scale=1.5)

    def program():
        drawn = {
            site: numpyro.sample(
                site,
                dist.HalfCauchy(1.5)
                if site == "noise"
                else dist.Normal(jnp.zeros(value.shape), 0.8).to_event(value.ndim),
            )
            for site, value in sites.items()
        }
        draw = unflatten_dict(drawn, sep=".")
        outputs = jax.vmap(lambda x: bnn.model.module.apply({"params": draw["network"]}, x))(observations.x)
        law = {
            "categorical": lambda: dist.Categorical(logits=outputs),
            "bernoulli": lambda: dist.Bernoulli(logits=outputs[:, 0]),
            "normal": lambda: dist.Normal(outputs[:, 0], draw["noise"]),
            "heteroscedastic_normal": lambda: dist.Normal(outputs[:, 0], jnp.exp(outputs[:, 1] / 2)),
        }[likelihood]()
        numpyro.sample("y", law, obs=observations.y)

    expected = float(log_density(program, (), {}, jax.tree.map(jnp.float32, sites))[0]) + jacobian(sites)
    assert log_joint(bnn, observations, sites) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("likelihood", OUTPUTS)
def test_the_likelihood_is_of_each_row(likelihood):
    """`log_likelihood` gives the rows' log densities one by one, of all rows and of a minibatch; so does the target."""
    bnn, observations, sites = toy(likelihood)
    expected = log_rows(likelihood, sites)
    found = log_likelihood(bnn.model, tree_of(sites), observations)
    np.testing.assert_allclose(expected, found, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:3], bnn.target.log_likelihood(tree_of(sites), observations.head(3)))
    places = jnp.array([5, 0, 2])
    np.testing.assert_array_equal(found[places], bnn.target.log_likelihood(tree_of(sites), observations.take(places)))


def test_a_convolutions_fan_in_counts_its_window():
    """Under `fan_in` a 5×5 kernel over c channels has prior std scale / √(25 c); biases keep the scale."""
    model = Model(
        network=LeNetSpec(channels=(2, 3), hidden=(4,)),
        likelihood="categorical",
        feature_shape=(12, 12),
        class_names=("a", "b"),
    )
    sites = BNN(model, PriorConfig(scale=2.0, fan_in=True)).target.sites
    stds = {site.path: float(jnp.sqrt(site.prior.variance).ravel()[0]) for site in sites}
    assert stds["network.Conv_0.kernel"] == pytest.approx(2 / 5)
    assert stds["network.Conv_1.kernel"] == pytest.approx(2 / np.sqrt(50))
    assert stds["network.Dense_1.kernel"] == pytest.approx(1)
    assert {std for site, std in stds.items() if site.endswith("bias")} == {2.0}
    assert len(stds) == 8


@pytest.mark.parametrize("likelihood", OUTPUTS)
def test_every_parameter_is_a_site_and_back(likelihood):
    """Sites and the tree of draws name the same parameters; the start is the network's own initialisation."""
    bnn, _, _ = toy(likelihood)
    start = bnn.start(jax.random.key(3))
    expected = bnn.model.module.init(jax.random.key(3), jnp.zeros(2))["params"]
    parameters = bnn.target.constrain(start)
    assert {site.path: site.shape for site in bnn.target.sites} == {
        path: leaf.shape for path, leaf in flatten_dict(bnn.model.parameter_shapes(), sep=".").items()
    }
    jax.tree.map(np.testing.assert_array_equal, expected, parameters["network"])
    assert set(parameters) == ({"network", "noise"} if likelihood == "normal" else {"network"})
    if likelihood == "normal":
        assert float(parameters["noise"]) == pytest.approx(NOISE_START)
    draws = bnn.draws(np.asarray(start)[None])
    jax.tree.map(lambda leaf, drawn: np.testing.assert_array_equal(leaf[None], drawn), parameters, draws)
    assert {leaf.dtype for leaf in jax.tree.leaves(draws)} == {np.dtype(np.float32)}
    back = bnn.vector(jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), draws))
    np.testing.assert_allclose(start, back, rtol=1e-6)


def test_inferred_scales_multiply_what_the_network_gets_and_are_left_out_of_a_draw():
    """Under `hierarchical` the vector holds w / s and s; the density is theirs, and the draw holds w alone."""
    bnn, observations, sites = toy("categorical", scale=0.6, hierarchical=True, layers={"*.bias": {"scale": 2.0}})
    arrays = {site: value for site, value in sites.items() if site.startswith("network")}
    rng = np.random.default_rng(2)
    scales = {path.removeprefix("network."): rng.uniform(0.2, 2) for path in arrays}
    assert [site.path for site in bnn.target.sites] == [*arrays, *(f"scales.{name}" for name in scales)]

    tree = tree_of(arrays) | {"scales": jax.tree.map(jnp.float32, scales)}
    vector = bnn.target.unconstrain(tree)
    whole = {path: value * scales[path.removeprefix("network.")] for path, value in arrays.items()}
    prior = sum(stats.norm.logpdf(value).sum() for value in arrays.values())
    prior += sum(
        stats.halfnorm.logpdf(scale, scale=2.0 if name.endswith("bias") else 0.6) + np.log(scale)
        for name, scale in scales.items()
    )
    expected = prior + log_rows("categorical", whole).sum()
    assert float(bnn.target.log_density(vector, observations)) == pytest.approx(expected, rel=1e-5)

    draw = as_draw(tree)
    assert set(draw) == {"network"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), tree_of(whole), draw)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-6), draw, bnn.draws(np.asarray(vector)[None]))
    start = bnn.target.constrain(bnn.start(jax.random.key(0)))
    assert {float(scale) for scale in start["scales"].values()} == {1.0}
    with pytest.raises(ConfigError, match=r"start: expected a prior without inferred scales, found prior.hierarchical"):
        bnn.vector(draw)


def test_a_prior_may_be_by_layer_and_infer_the_scales_of_some():
    """A pattern's prior holds for its parameters alone; a scale is inferred only where it asks for one."""
    layers = {"Dense_1.*": {"kind": "laplace", "scale": 0.2}, "*.bias": {"hierarchical": True}}
    bnn, observations, sites = toy("categorical", layers=layers)
    laws = {site.path: site.prior for site in bnn.target.sites}
    assert [path for path in laws if path.startswith("scales")] == ["scales.Dense_0.bias"]
    arrays = {path: value for path, value in sites.items() if path.startswith("network")}
    tree = tree_of(arrays) | {"scales": {"Dense_0.bias": jnp.float32(0.5)}}
    last = [value for path, value in arrays.items() if "Dense_1" in path]
    first = [value for path, value in arrays.items() if "Dense_0" in path]
    prior = sum(stats.laplace.logpdf(value, scale=0.2).sum() for value in last)
    prior += sum(stats.norm.logpdf(value).sum() for value in first) + stats.halfnorm.logpdf(0.5) + np.log(0.5)
    assert float(bnn.target.log_prior(bnn.target.unconstrain(tree))) == pytest.approx(prior, rel=1e-5)
    whole = arrays | {"network.Dense_0.bias": 0.5 * arrays["network.Dense_0.bias"]}
    likelihood = bnn.target.log_likelihood(tree, observations)
    np.testing.assert_allclose(log_rows("categorical", whole), likelihood, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_inference_sees_preprocessed_rows(dtype):
    """Inputs are shifted and scaled in float32 whatever their dtype, past one chunk; regression targets standardised."""
    x = RNG.integers(0, 256, (5000, 2)).astype(dtype)
    y = RNG.normal(100, 7, 5000)
    terms = Preprocessing(shift=(3.0, 4.0), scale=(2.0, 5.0), target_shift=100.0, target_scale=7.0)
    model = Model(network=MLPSpec(), likelihood="normal", preprocessing=terms, feature_shape=(2,))
    found = observe(model, Rows(x, y))
    np.testing.assert_allclose((x - np.array([3.0, 4.0])) / [2, 5], found.x, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose((y - 100) / 7, found.y, rtol=1e-5, atol=1e-5)
    assert (found.x.dtype, found.y.dtype) == (jnp.float32, jnp.float32)
