"""Laplace: against conjugate posteriors and exact evidence, against full Jacobians in float64 numpy, and resumed."""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import optimize, stats

from abstain.models.errors import ConfigError, FitError
from abstain.models.networks.architectures import LeNetSpec, MLPSpec
from abstain.models.networks.user_module import ModuleSpec
from abstain.models.prediction.likelihoods import LIKELIHOODS
from abstain.models.prediction.posterior import Model
from abstain.training.config.methods import LaplaceConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.inference import curvature, mode_search
from abstain.training.inference.bnn import BNN, Observations, as_draw
from abstain.training.inference.methods import laplace
from abstain.training.inference.problem import Problem
from abstain.training.runs.journal import Journal

NOISE = 0.5
ROWS = 60
QUICK = LaplaceConfig(
    steps=600, batch_size=ROWS, learning_rate=0.05, held_out=0, reports=3, prior_precision="fixed", subset="diagonal"
)
OUTPUTS = {"categorical": 3, "bernoulli": 1, "normal": 1, "heteroscedastic_normal": 2}


def build_problem(likelihood, hidden=(), seed=0, rows=ROWS, **prior):
    """A problem with two features, its targets drawn at random from a rule that depends on both."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2))
    x[:, 1] += 0.7 * x[:, 0]
    score = x @ [1.0, -0.6] + 0.3
    y = score + NOISE * rng.normal(size=rows)
    if likelihood in {"bernoulli", "categorical"}:
        y = (y > 0).astype(int) + (likelihood == "categorical") * (y > 1)
    names = {"categorical": ("a", "b", "c"), "bernoulli": ("a", "b")}.get(likelihood, ())
    model = Model(
        network=MLPSpec(hidden=hidden, activation="tanh"), likelihood=likelihood, feature_shape=(2,), class_names=names
    )
    train = Observations(jnp.float32(x), jnp.asarray(y) if names else jnp.float32(y))
    return Problem(BNN(model, PriorConfig(**prior)), train, train)


def linear(scale):
    """Linear regression whose noise is known to be 1 (in units of `NOISE`), its design matrix and its targets."""
    problem = build_problem("normal", scale=scale, noise="log_normal", noise_scale=1e-4)
    # Sites are in the order of names: the bias, the two weights, the noise.
    design = np.column_stack([np.ones(ROWS), np.asarray(problem.train.x, np.float64)])
    return problem, design, np.asarray(problem.train.y, np.float64)


def conjugate(design, y, scale):
    """Mean, covariance and log evidence of linear regression with noise 1 and a prior N(0, scale²)."""
    covariance = np.linalg.inv(design.T @ design + np.eye(3) / scale**2)
    marginal = stats.multivariate_normal(np.zeros(len(y)), np.eye(len(y)) + scale**2 * design @ design.T)
    return covariance @ design.T @ y, covariance, marginal.logpdf(y)


def linear_mode(problem, mean):
    """The exact mode of the linear model as a vector; the noise is 1."""
    parameters = {"network": {"Dense_0": {"bias": mean[:1], "kernel": mean[1:, None]}}, "noise": 1.0}
    return problem.target.unconstrain(jax.tree.map(jnp.float32, parameters))


def curve(problem, z, subset, chunk=None):
    """G and the prior about a vector, and the sites that they are of."""
    settings = QUICK.model_copy(update={"subset": subset} | ({"reports": chunk} if chunk else {}))
    sites = laplace.subset_sites(problem, settings)
    sums = curvature.sum_curvature(problem, z, sites, settings, Journal())
    return sums, curvature.local_prior(problem.target, z, sites), sites


def columns(draws):
    """Draws of a network without hidden layers, bias first."""
    layer = draws["network"]["Dense_0"]
    return np.column_stack([layer["bias"], layer["kernel"].reshape(len(layer["kernel"]), -1)]).astype(np.float64)


def some_vector(problem, seed=1):
    """Somewhere in the posterior's space."""
    return 0.5 * jax.random.normal(jax.random.key(seed), (problem.target.dim,))


def dense_gauss_newton(problem, z):
    """Σ Jᵀ Λ J in float64 numpy, Λ the Hessian of the Kullback–Leibler divergence by automatic differentiation."""
    model, target = problem.bnn.model, problem.target

    def network_outputs(z, x):
        draw = as_draw(target.constrain(z))
        return jnp.append(model.module.apply({"params": draw["network"]}, x), draw.get("noise", 0.0))

    @jax.jit
    def of_row(x):
        outputs = network_outputs(z, x)
        return jax.jacrev(network_outputs)(z, x), divergence_hessian(
            model.likelihood_functions, outputs[:-1], outputs[-1]
        )

    rows = [jax.device_get(of_row(x)) for x in problem.train.x]
    jacobians, lams = (np.stack(column).astype(np.float64) for column in zip(*rows, strict=True))
    return np.einsum("nki,nkl,nlj->ij", jacobians, lams, jacobians)


def divergence_hessian(law, outputs, noise):
    """The Hessian of KL(p(· | e₀) ‖ p(· | e)) at e = e₀, by outputs and noise."""
    first = jnp.append(outputs, noise)

    def divergence(network_outputs):
        before, after = law.predict(first[:-1], first[-1]), law.predict(network_outputs[:-1], network_outputs[-1])
        if law.task == "classification":
            return (jnp.exp(before) * (before - after)).sum()
        (m0, v0), (m1, v1) = before, after
        return 0.5 * (jnp.log(v1 / v0) + (v0 + (m0 - m1) ** 2) / v1)

    return jax.hessian(divergence)(first)


def fisher(likelihood, outputs, noise):
    """Λ as the method has it."""
    law = LIKELIHOODS[likelihood]
    outputs = jnp.float32(outputs)
    jacobian = jax.jit(
        jax.jacobian(lambda network_outputs: curvature.likelihood_root(law, network_outputs[:-1], network_outputs[-1]))
    )
    root = np.asarray(jacobian(jnp.append(outputs, noise)), np.float64)
    return root.T @ root


def test_the_fisher_information_of_each_likelihood_is_its_closed_form():
    """diag(p) − ppᵀ; p(1 − p); 1/σ² and, for the noise, 2/σ²; diag(1/v, 1/2)."""
    logits = np.array([0.3, -1.2, 2.0])
    p = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(
        fisher("categorical", logits, 0.0)[:3, :3], np.diag(p) - np.outer(p, p), rtol=1e-4, atol=1e-6
    )
    q = 1 / (1 + np.exp(-0.8))
    assert fisher("bernoulli", [0.8], 0.0)[0, 0] == pytest.approx(q * (1 - q), rel=1e-5)
    np.testing.assert_allclose(fisher("normal", [0.8], 0.7), np.diag([1 / 0.49, 2 / 0.49]), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        fisher("heteroscedastic_normal", [0.8, -1.1], 0.0)[:2, :2], np.diag([np.exp(1.1), 0.5]), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("likelihood", list(OUTPUTS))
def test_the_fisher_information_is_the_hessian_of_the_divergence(likelihood):
    """It equals the Hessian of KL(p₀ ‖ p) by automatic differentiation, at random outputs."""
    rng = np.random.default_rng(2)
    noise = 0.6 if likelihood == "normal" else 0.0
    hessian = jax.jit(lambda outputs, noise: divergence_hessian(LIKELIHOODS[likelihood], outputs, noise))
    for _ in range(3):
        outputs = rng.normal(size=OUTPUTS[likelihood])
        expected = hessian(jnp.float32(outputs), jnp.float32(noise))
        np.testing.assert_allclose(fisher(likelihood, outputs, noise), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("likelihood", list(OUTPUTS))
def test_both_subsets_are_parts_of_the_dense_matrix(likelihood):
    """The diagonal, and the last layer's block, of Σ Jᵀ Λ J; chunks that do not divide the rows change nothing."""
    problem = build_problem(likelihood, hidden=(3,), rows=31, noise_scale=0.5)
    z = some_vector(problem)
    dense = dense_gauss_newton(problem, z)
    diagonal, *_ = curve(problem, z, "diagonal", 4)
    np.testing.assert_allclose(diagonal.matrix, dense.diagonal(), rtol=1e-4, atol=1e-5)
    block, _, sites = curve(problem, z, "last_layer", 1)
    places = np.concatenate([np.arange(site.first, site.last) for site in sites])
    np.testing.assert_allclose(block.matrix, dense[np.ix_(places, places)], rtol=1e-4, atol=1e-4)
    log_probs = problem.target.log_likelihood(problem.target.constrain(z), problem.train)
    assert block.log_likelihood == pytest.approx(float(log_probs.sum()), rel=1e-5)


def test_inferred_scales_and_the_noise_get_curvature_too():
    """Through w = s · (w / s), and 2 a row for log σ."""
    problem = build_problem("normal", hidden=(3,), hierarchical=True)
    z = some_vector(problem)
    diagonal, prior, sites = curve(problem, z, "diagonal")
    np.testing.assert_allclose(diagonal.matrix, dense_gauss_newton(problem, z).diagonal(), rtol=1e-4, atol=1e-4)
    noise = next(site for site in sites if site.path == "noise")
    assert diagonal.matrix[noise.first] == pytest.approx(2 * ROWS, rel=1e-5)
    assert not prior.scaled[noise.first]
    scales = [site for site in sites if site.path.startswith("scales.")]
    assert len(scales) == 4
    assert all((diagonal.matrix[site.first] > 0) and not prior.scaled[site.first] for site in scales)


def test_a_linear_model_has_the_conjugate_posterior():
    """Its mean and covariance, by the whole way from the descent to the draws; the noise stays where it is."""
    problem, design, y = linear(0.8)
    mean, covariance, log_evidence = conjugate(design, y, 0.8)
    settings = QUICK.model_copy(update={"subset": "last_layer"})
    fitted = laplace.fit(jax.random.key(0), problem, settings, 20_000, Journal())
    samples, std = columns(fitted.posterior.draws), np.sqrt(covariance.diagonal())
    np.testing.assert_allclose((samples.mean(axis=0) - mean) / std, 0, atol=0.05)
    np.testing.assert_allclose(np.cov(samples.T) / np.outer(std, std), covariance / np.outer(std, std), atol=0.05)
    assert np.ptp(fitted.posterior.draws["noise"]) == 0
    facts = fitted.diagnostics.to_json()
    assert facts["subset_size"] == 3
    assert facts["prior_precision_multiplier"] == 1
    assert facts["log_evidence"] == pytest.approx(log_evidence, abs=0.02)
    assert facts["posterior_std_min"] == pytest.approx(std.min(), rel=1e-3)
    assert facts["posterior_std_max"] == pytest.approx(std.max(), rel=1e-3)


def test_the_precision_of_a_linear_model_is_the_conjugate_one():
    """Not to Monte Carlo error, but to float32: H = ΦᵀΦ + I/s²."""
    problem, design, y = linear(0.8)
    mean, covariance, _ = conjugate(design, y, 0.8)
    sums, prior, _ = curve(problem, linear_mode(problem, mean), "last_layer")
    spread = laplace.fit_spread(sums, prior, 1.0)
    np.testing.assert_allclose(spread.root @ spread.root.T, np.linalg.inv(covariance), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(spread.std, np.sqrt(covariance.diagonal()), rtol=1e-5)


def test_the_evidence_of_a_linear_model_is_exact():
    """The evidence at the mode is exact for priors from far too narrow to far too wide."""
    for scale in (0.1, 0.5, 3.0):
        problem, design, y = linear(scale)
        mean, _, log_evidence = conjugate(design, y, scale)
        sums, prior, _ = curve(problem, linear_mode(problem, mean), "last_layer")
        found = curvature.compute_evidence(sums, prior, choose=False)
        assert (found.multiplier, found.log_evidence) == (1.0, pytest.approx(log_evidence, abs=0.01))


def test_the_evidence_leaves_the_best_prior_alone_and_moves_others_towards_it():
    """At the scale that maximises the exact marginal likelihood τ is 1; refitting with τ reaches it from other scales."""
    first, design, y = linear(1.0)
    found = optimize.minimize_scalar(lambda log_scale: -conjugate(design, y, np.exp(log_scale))[2], (-3, 0))
    best = float(np.exp(found.x))
    sums, _, sites = curve(first, linear_mode(first, np.zeros(3)), "last_layer")

    def chosen(scale):
        problem, *_ = linear(scale)
        mode = linear_mode(problem, conjugate(design, y, scale)[0])
        return curvature.compute_evidence(
            sums, curvature.local_prior(problem.target, mode, sites_of(problem)), choose=True
        ).multiplier

    def sites_of(problem):
        return tuple(site for site in problem.target.sites if site.path in {site.path for site in sites})

    assert chosen(best) == pytest.approx(1, abs=1e-3)
    for scale in (best / 4, best * 4):
        for _ in range(4):
            scale /= chosen(scale) ** 0.5  # noqa: PLW2901
        assert scale == pytest.approx(best, rel=0.01)


@pytest.mark.parametrize("subset", ["last_layer", "diagonal"])
def test_the_chosen_multiplier_is_the_highest_of_a_grid(subset):
    """The evidence is log p(D | z*) + log p(z*; τ) + d/2 log 2π − ½ log det H(τ), computed with dense matrices."""
    problem = build_problem("normal", hidden=(4,), scale=2.0, noise_scale=0.5)
    z = some_vector(problem)
    sums, prior, sites = curve(problem, z, subset)
    network = np.concatenate(
        [np.asarray(z[site.first : site.last], np.float64) for site in sites if site.path.startswith("network.")]
    )
    noise = [site for site in sites if site.path == "noise"]
    matrix = sums.matrix if sums.matrix.ndim == 2 else np.diag(sums.matrix)

    def log_evidence(tau):
        hessian = matrix + np.diag(np.where(prior.scaled, tau / 4, prior.precision))
        log_prior = stats.norm(0, 2 / tau**0.5).logpdf(network).sum()
        log_prior += sum(float(site.log_prior(z[site.first])) for site in noise)
        volume = 0.5 * len(matrix) * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(hessian)[1]
        return float(sums.log_likelihood) + log_prior + volume

    found = curvature.compute_evidence(sums, prior, choose=True)
    grid = np.exp(np.linspace(np.log(1e-3), np.log(1e3), 2001))
    values = [log_evidence(tau) for tau in grid]
    assert found.multiplier == pytest.approx(grid[np.argmax(values)], rel=5e-3)
    assert found.log_evidence == pytest.approx(max(values), abs=2e-3)
    assert curvature.compute_evidence(sums, prior, choose=False).log_evidence == pytest.approx(
        log_evidence(1.0), abs=2e-3
    )


def test_a_logistic_regression_has_the_inverse_hessian_as_covariance():
    """The covariance is the inverse Hessian by automatic differentiation: for linear logits Gauss–Newton is exact."""
    for likelihood in ("bernoulli", "categorical"):
        problem = build_problem(likelihood, scale=1.5)
        z = mode_search.find_modes(jax.random.key(0), problem, QUICK, 1, Journal())[0][0]
        hessian = -np.asarray(jax.jit(jax.hessian(problem.target.log_density))(z, problem.train), np.float64)
        sums, prior, sites = curve(problem, z, "last_layer")
        assert sites == problem.target.sites
        spread = laplace.fit_spread(sums, prior, 1.0)
        np.testing.assert_allclose(spread.root @ spread.root.T, hessian, rtol=1e-3, atol=1e-3)
        draws = laplace.sample(jax.random.key(1), z, sites, spread, 40_000).astype(np.float64)
        std = spread.std
        np.testing.assert_allclose(
            np.cov(draws.T) / np.outer(std, std), np.linalg.inv(hessian) / np.outer(std, std), atol=0.04
        )
        np.testing.assert_allclose((draws.mean(axis=0) - np.asarray(z)) / std, 0, atol=0.03)
        diagonal, prior, _ = curve(problem, z, "diagonal")
        stds = laplace.fit_spread(diagonal, prior, 1.0).std
        np.testing.assert_allclose(stds, hessian.diagonal() ** -0.5, rtol=1e-3)


@pytest.mark.parametrize("kind", ["cauchy", "laplace", "student_t", "scale_mixture"])
def test_other_priors_have_a_precision_that_is_positive_and_of_their_width(kind):
    """Their own curvature where that is larger; never flatter than a normal with the same central 90 %."""
    problem = build_problem("bernoulli", hidden=(3,), kind=kind, scale=0.5)
    z = jnp.linspace(-4, 4, problem.target.dim)
    prior = curvature.local_prior(problem.target, z, problem.target.sites)
    law = jax.tree.leaves(problem.target.priors, is_leaf=lambda leaf: hasattr(leaf, "log_prob"))[0]
    values = np.asarray(law.sample(jax.random.key(3), (40_000,)))
    low, high = np.quantile(values, [0.05, 0.95])
    bend = -np.asarray(jax.jit(jax.vmap(jax.hessian(law.log_prob)))(z))
    np.testing.assert_allclose(prior.precision, np.maximum(bend, (3.29 / (high - low)) ** 2), rtol=0.1)


def test_draws_differ_in_the_last_layer_and_nowhere_else():
    """`Dense_10` follows `Dense_9`, and is not sorted before it."""
    problem = build_problem("categorical", hidden=(2,) * 10)
    mode = some_vector(problem)
    sites = laplace.subset_sites(problem, QUICK.model_copy(update={"subset": "last_layer"}))
    assert sum(site.last - site.first for site in sites) == 3 * 2 + 3
    spread = laplace.Spread(np.eye(9), np.ones(9), 0.0)
    zs = laplace.sample(jax.random.key(0), mode, sites, spread, 5)
    for site in problem.target.sites:
        part = zs[:, site.first : site.last]
        if site.path.startswith("network.Dense_10."):
            assert (part.std(axis=0) > 0).all()
        else:
            np.testing.assert_array_equal(part, np.tile(mode[site.first : site.last], (5, 1)))


CLASSES = """
    import flax.linen as nn
    import jax.numpy as jnp

    class Body(nn.Module):
        @nn.compact
        def __call__(self, x):
            # Dense_0 is made first and used last.
            return nn.Dense(3)(nn.tanh(nn.Dense(4)(x)))

    class Setup(nn.Module):
        outputs: int

        def setup(self):
            self.head = nn.Dense(self.outputs)
            self.zbody = Body()

        def __call__(self, x):
            return self.head(nn.tanh(self.zbody(x)))

    class Nested(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return Body(name="a")(Body(name="z")(x))

    class Shared(nn.Module):
        outputs: int

        def setup(self):
            self.a, self.b = nn.Dense(3), nn.Dense(2)

        def __call__(self, x):
            return self.a(nn.relu(self.b(self.a(x))))

    class Heads(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return jnp.concatenate([nn.Dense(1, name=name)(x) for name in ("a", "b", "c")], axis=-1)

    class Loose(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.outputs)(x) * self.param("temperature", nn.initializers.ones, (1,))

    class Bare(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x):
            return x @ self.param("matrix", nn.initializers.normal(), (x.shape[-1], self.outputs))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Poses a three-class problem for a class of one's own."""
    (tmp_path / "laplacenets.py").write_text(textwrap.dedent(CLASSES))
    monkeypatch.syspath_prepend(tmp_path)

    def posed(name):
        known = build_problem("categorical")
        model = known.bnn.model.model_copy(
            update={"network": ModuleSpec(module=f"laplacenets:{name}").allow(("laplacenets",))}
        )
        return Problem(BNN(model, PriorConfig()), known.train, known.diagnostic_rows)

    return posed


LAST_LAYERS = {
    "Setup": ["network.head.bias", "network.head.kernel"],
    "Nested": ["network.a.Dense_0.bias", "network.a.Dense_0.kernel"],
    "Bare": ["network.matrix"],
    "Shared": ["network.a.bias", "network.a.kernel"],
}


@pytest.mark.parametrize("name", list(LAST_LAYERS))
def test_the_last_layer_of_your_own_network_is_the_last_that_is_used(own, name):
    """However the class names its layers, and wherever it sets them up."""
    settings = QUICK.model_copy(update={"subset": "last_layer"})
    assert [site.path for site in laplace.subset_sites(own(name), settings)] == LAST_LAYERS[name]


@pytest.mark.parametrize(
    ("name", "found"),
    [("Heads", "network.c, which does not compute output 0, 1"), ("Loose", "temperature, which is not in a layer")],
)
def test_a_network_without_one_last_layer_is_refused(own, name, found):
    """Before anything is fitted, and the error says what to do."""
    settings = QUICK.model_copy(update={"subset": "last_layer"})
    with pytest.raises(ConfigError, match=found) as caught:
        laplace.fit(jax.random.key(0), own(name), settings, 2, Journal())
    assert 'or use method.kind = "vi" or "ensemble"' in str(caught.value)


def test_a_last_layer_too_large_is_refused():
    """The error names its size, the limit and the alternative."""
    problem = build_problem("categorical", hidden=(1000,))
    with pytest.raises(ConfigError, match=r'at most 3000 .* network.Dense_1, found 3003; use method.kind = "vi"'):
        laplace.subset_sites(problem, QUICK.model_copy(update={"subset": "last_layer"}))


def test_a_convolutional_network_has_both_subsets():
    """LeNet's last layer is its third dense one; the diagonal is of its convolutions too."""
    model = Model(
        network=LeNetSpec(hidden=(5, 4)), likelihood="bernoulli", feature_shape=(12, 12), class_names=("a", "b")
    )
    rng = np.random.default_rng(0)
    train = Observations(jnp.float32(rng.normal(size=(3, 12, 12))), jnp.asarray([0, 1, 0]))
    problem = Problem(BNN(model, PriorConfig()), train, train)
    z = problem.bnn.start(jax.random.key(0))
    sites = laplace.subset_sites(problem, QUICK.model_copy(update={"subset": "last_layer"}))
    assert [site.path for site in sites] == ["network.Dense_2.bias", "network.Dense_2.kernel"]
    dense = dense_gauss_newton(problem, z)
    np.testing.assert_allclose(curve(problem, z, "diagonal")[0].matrix, dense.diagonal(), rtol=1e-3, atol=1e-6)


class Killed(Exception):
    """Stands for the end of the process."""


def test_a_fit_cut_off_while_it_sums_is_resumed_to_the_same_draws(tmp_path):
    """Bit for bit, and without the rows behind it being visited again."""
    problem = build_problem("categorical", hidden=(4,))
    settings = QUICK.model_copy(update={"subset": "last_layer", "steps": 6, "prior_precision": "evidence"})
    whole = laplace.fit(jax.random.key(0), problem, settings, 4, Journal())
    mode = mode_search.find_modes(jax.random.key(0), problem, settings, 1, Journal())[0]
    kept = problem.bnn.draws(np.asarray(mode))["network"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(whole.posterior.draws["network"]["Dense_0"]["kernel"], np.repeat(kept, 4, axis=0))

    def kill(done, total, passage="", **facts):
        if passage.startswith("curvature") and done == 2 * total // 3:
            raise Killed

    with pytest.raises(Killed):
        laplace.fit(jax.random.key(0), problem, settings, 4, Journal(tmp_path, kill))
    calls = []

    def tell(done, total, passage="", **facts):
        calls.append((passage, done, total))

    resumed = laplace.fit(jax.random.key(0), problem, settings, 4, Journal(tmp_path, tell))
    assert calls == [("curvature-6", ROWS, ROWS)]
    jax.tree.map(np.testing.assert_array_equal, resumed.posterior.draws, whole.posterior.draws)
    assert resumed.diagnostics.to_json() == whole.diagnostics.to_json()


def test_a_lengthened_search_sums_about_its_new_mode(tmp_path):
    """And not about the old one, whose sums are in the same journal."""
    problem = build_problem("normal", hidden=(4,))
    short, long = (
        QUICK.model_copy(update={"steps": steps, "schedule": "constant", "batch_size": 20}) for steps in (6, 12)
    )
    laplace.fit(jax.random.key(0), problem, short, 4, Journal(tmp_path))
    lengthened = laplace.fit(jax.random.key(0), problem, long, 4, Journal(tmp_path))
    # A fresh search is cut into other blocks, whose rounding may differ.
    fresh = laplace.fit(jax.random.key(0), problem, long, 4, Journal())
    found, expected = (ravel_pytree(fitted.posterior.draws)[0] for fitted in (lengthened, fresh))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_prior_far_off_gives_a_note():
    """τ ends where the search ends, and a note says it."""
    ends = [curvature.best_multiplier(np.ones(3), penalty) for penalty in (0.0, 1e9)]
    assert ends == [1e6, 1e-6]
    spread = laplace.Spread(np.ones(1), np.ones(1), 0.0)
    assert (
        "largest at 1e-06 times the prior's precision"
        in laplace.evidence_notes(curvature.Evidence(ends[1], 0.0), spread)[0]
    )
    assert laplace.evidence_notes(curvature.Evidence(1.0, 0.0), spread) == ()


def test_a_precision_that_rounding_made_singular_is_mended_or_refused():
    """A small jitter is used and noted; a precision that needs a large one is refused."""
    prior = curvature.LocalPrior(0.0, np.zeros(2), np.full(2, 1e-12), np.ones(2, bool))

    def sums(low):
        return curvature.Curvature(np.zeros(()), np.diag([1.0, low]), np.int64(1))

    mended = laplace.fit_spread(sums(-1e-7), prior, 1.0)
    assert mended.jitter == pytest.approx(5e-7, rel=1e-3)
    assert "was added to its diagonal" in laplace.evidence_notes(curvature.Evidence(1.0, 0.0), mended)[0]
    with pytest.raises(FitError, match=r"not positive definite: .* narrow prior.scale"):
        laplace.fit_spread(sums(-0.5), prior, 1.0)


def test_a_curvature_that_is_no_number_is_refused():
    """It says so, rather than drawing NaN."""
    problem = build_problem("categorical", hidden=(3,))
    with pytest.raises(FitError, match="curvature at the mode is not finite"):
        curve(problem, jnp.full(problem.target.dim, jnp.nan), "diagonal")


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical"])
def test_a_diagonal_of_all_layers_is_refused_for_classes(likelihood):
    """Before the fit, saying why and what to use; a regression of either noise may have it."""
    journal = Journal(progress=lambda *_, **__: pytest.fail("it began to fit"))
    with pytest.raises(ConfigError) as caught:
        laplace.fit(jax.random.key(0), build_problem(likelihood, hidden=(4,)), QUICK, 5, journal)
    message = str(caught.value)
    assert f'method.subset: expected "last_layer", for likelihood "{likelihood}", found "diagonal"' in message
    assert "linearised at the mode" in message
    assert message.endswith('leave method.subset out, or use method.kind = "vi" or "ensemble"')
    for regression in ("normal", "heteroscedastic_normal"):
        laplace.check_subset(build_problem(regression).bnn.model, QUICK)
    laplace.check_subset(build_problem(likelihood).bnn.model, QUICK.model_copy(update={"subset": "last_layer"}))


def test_predictions_are_good_and_less_certain_far_from_the_data():
    """Two clusters: separated where they are; the draws disagree far away, where there are none."""
    problem = build_problem("bernoulli", hidden=(8,), rows=200)
    settings = LaplaceConfig(steps=400, learning_rate=0.02, reports=2)
    fitted = laplace.fit(jax.random.key(0), problem, settings, 100, Journal())
    model = problem.bnn.model

    def probabilities(x):
        logits = jax.vmap(
            lambda network: jax.vmap(lambda row: model.module.apply({"params": network}, row))(jnp.float32(x))
        )(fitted.posterior.draws["network"])
        return np.asarray(jax.nn.sigmoid(logits[..., 0]))

    near = probabilities(problem.train.x)
    accuracy = ((near.mean(axis=0) > 0.5) == problem.train.y).mean()
    assert accuracy > 0.8
    assert near.std(axis=0).mean() > 0.01
    facts = fitted.diagnostics.to_json()
    assert 1e-6 < facts["prior_precision_multiplier"] < 1e6
    assert np.isfinite(facts["log_evidence"])
    assert 0 < facts["posterior_std_min"] <= facts["posterior_std_max"]
    assert facts["subset_size"] == 9
    assert facts["loss"]
    for found, leaf in zip(jax.tree.leaves(fitted.mode), jax.tree.leaves(fitted.posterior.draws), strict=True):
        assert found.shape == (1, *leaf.shape[1:])
        np.testing.assert_allclose(found[0], leaf.mean(axis=0), atol=6 * leaf.std() + 1e-6)
