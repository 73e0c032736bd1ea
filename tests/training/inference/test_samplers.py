"""Every sampler, every variant, against posteriors that are known: closed forms, quadrature, and NumPyro's own NUTS.

One target holds three posteriors that are independent of each other, so that one run of a variant is held against all of
them: a conjugate linear regression, a logistic regression, and a noise that is bounded below.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from scipy import stats

from abstain.models.networks.architectures import MLPSpec
from abstain.models.prediction.posterior import Model
from abstain.training.config.methods import ChEESConfig, EnsembleConfig, HMCConfig, MAPConfig, NUTSConfig, VIConfig
from abstain.training.config.priors import PriorConfig
from abstain.training.inference import guides, mode_search
from abstain.training.inference.bnn import BNN, Observations
from abstain.training.inference.chains import sample_chains
from abstain.training.inference.guides import fit_guides, guide_at, guide_distribution, kl_divergence, sample_guides
from abstain.training.inference.methods import chees, hmc, nuts, vi
from abstain.training.inference.mode_search import find_modes, hold_out
from abstain.training.inference.problem import Problem
from abstain.training.inference.target import Target
from abstain.training.runs.journal import Journal
from tests.helpers.montecarlo import assert_chains_agree, assert_means, assert_variances, mean_and_error

ROWS, LINE_NOISE = 30, 0.5
KERNELS = {"hmc": hmc.kernel, "nuts": nuts.kernel, "chees": chees.kernel}


# ---- one target of three posteriors ----------------------------------------------------------------------------------


def rows_of_all():
    """Inputs, and the targets of the line, of the classes, and of the noise."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(ROWS, 2))
    x[:, 1] += 0.9 * x[:, 0]
    return {
        "x": x,
        "line": x @ [1.0, -0.7] + LINE_NOISE * rng.normal(size=ROWS),
        "odds": (rng.random(ROWS) < 1 / (1 + np.exp(-x @ [1.2, -0.4]))).astype(float),
        "error": 0.6 * rng.normal(size=ROWS),
    }


def of_three():
    """The target: `line` and `odds` are weights on the same inputs, `noise` is the errors' standard deviation."""

    def log_likelihood(parameters, data):
        line = dist.Normal(data["x"] @ parameters["line"], LINE_NOISE).log_prob(data["line"])
        odds = dist.Bernoulli(logits=data["x"] @ parameters["odds"]).log_prob(data["odds"])
        return line + odds + dist.Normal(0, parameters["noise"]).log_prob(data["error"])

    priors = {"line": dist.Normal(), "noise": dist.HalfCauchy(0.5), "odds": dist.Normal(0, 2)}
    return Target(priors, log_likelihood, {"line": (2,), "noise": (), "odds": (2,)})


def exact_line():
    """Mean and covariance of the line's weights: a normal prior and a normal likelihood."""
    data = rows_of_all()
    covariance = np.linalg.inv(np.eye(2) + data["x"].T @ data["x"] / LINE_NOISE**2)
    return covariance @ data["x"].T @ data["line"] / LINE_NOISE**2, covariance


def exact_log_noise():
    """Mean and variance of the logarithm of the noise, by the trapezoidal rule."""
    grid = np.linspace(-3, 2, 4001)
    squares = (rows_of_all()["error"] ** 2).sum()
    log_mass = (
        -ROWS * grid - 0.5 * np.exp(-2 * grid) * squares + stats.halfcauchy.logpdf(np.exp(grid), scale=0.5) + grid
    )
    mass = np.exp(log_mass - log_mass.max())
    mass /= mass.sum()
    mean = mass @ grid
    return mean, mass @ (grid - mean) ** 2


@pytest.fixture(scope="session")
def reference():
    """The logistic regression's weights `[4, 5000, 2]`, by NumPyro alone: its model language, its NUTS, its adaptation."""
    data = rows_of_all()

    def model(x, y):
        weights = numpyro.sample("weights", dist.Normal(0, 2).expand([2]).to_event(1))
        numpyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)

    run = MCMC(
        NUTS(model), num_warmup=500, num_samples=5000, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    run.run(jax.random.key(7), jnp.asarray(data["x"]), jnp.asarray(data["odds"]))
    return np.asarray(run.get_samples(group_by_chain=True)["weights"], np.float64)


def sampled(kind, settings, target, data, starts, seed=0):
    """The chains of a sampler."""
    kernel = KERNELS[kind](target, settings)
    return sample_chains(jax.random.key(seed), kernel, target, data, jnp.float32(starts), settings, Journal())


def products(samples, mean):
    """The products of all pairs of deviations: their mean is the covariance."""
    rows, columns = np.triu_indices(samples.shape[-1])
    return (samples - mean)[..., rows] * (samples - mean)[..., columns]


# Many chains rather than long ones: in lockstep they cost little, and R-hat and acceptance average over them.
SHORT = {"chains": 16, "warmup": 300, "samples": 800, "reports": 1}
# A trajectory of fixed length brings some chains back to where they began: it takes more samples to see 10 %.
LONG = SHORT | {"samples": 3000}
FEW = SHORT | {"chains": 4, "samples": 2500}
VARIANTS = {
    "hmc": HMCConfig(**LONG),
    "hmc-dense-sequential": HMCConfig(**FEW, mass_matrix="dense", chain_method="sequential"),
    "hmc-unit-jitter-parallel": HMCConfig(
        **FEW | {"samples": 4000}, mass_matrix="unit", jitter=0.4, chain_method="parallel"
    ),
    "hmc-simple": HMCConfig(**SHORT | {"warmup": 600}, adaptation="simple", jitter=0.4),
    "hmc-none-thin": HMCConfig(**SHORT, adaptation="none", mass_matrix="unit", step_size=0.08, jitter=0.2, thin=2),
    "nuts": NUTSConfig(**SHORT),
    "nuts-dense-sequential-thin": NUTSConfig(**FEW, mass_matrix="dense", chain_method="sequential", thin=2),
    "nuts-unit-parallel": NUTSConfig(**FEW, mass_matrix="unit", chain_method="parallel"),
    "nuts-simple": NUTSConfig(**SHORT | {"warmup": 600}, adaptation="simple"),
    "chees": ChEESConfig(**SHORT),
    "chees-unit-thin": ChEESConfig(**SHORT, mass_matrix="unit", thin=2),
    "chees-parallel": ChEESConfig(**SHORT, chain_method="parallel"),
}


@pytest.fixture(scope="module", params=VARIANTS)
def ran(request, key):
    """A variant's settings and its chains; what the tests below ask of it."""
    settings, target = VARIANTS[request.param], of_three()
    data = {name: jnp.float32(values) for name, values in rows_of_all().items()}
    starts = 0.5 * np.random.default_rng(5).normal(size=(settings.chains, target.dim))
    return settings, target, sampled(request.param.split("-")[0], settings, target, data, starts, key)


def test_a_sampler_gives_every_posterior_that_is_known(ran, reference):
    """Means and covariances, of weights and of a bounded noise; no block of the posterior knows of another."""
    settings, target, chains = ran
    positions = chains.column("position").astype(np.float64)
    assert positions.shape == (settings.chains, settings.samples, target.dim)
    line, log_noise, odds = positions[..., :2], positions[..., 2:3], positions[..., 3:]
    mean, covariance = exact_line()
    assert_means(line, mean)
    assert_variances(line, mean, covariance.diagonal())
    assert_means(products(line, mean), covariance[np.triu_indices(2)])
    mean_noise, variance = exact_log_noise()
    assert_means(log_noise, mean_noise)
    assert_variances(log_noise, mean_noise, [variance])
    assert_means(odds, *mean_and_error(reference))
    center = reference.mean(axis=(0, 1))
    assert_means(products(odds, center), *mean_and_error(products(reference, center)))
    assert_means(line[..., :1] * odds[..., 1:], mean[0] * center[1])
    # A trajectory of one length may return to where it began; only a jittered one is sure to forget.
    if getattr(settings, "jitter", 1):
        assert_chains_agree(positions)


def test_adaptation_reaches_the_acceptance_that_it_aims_at(ran):
    """Both rules reach the target, however the chains run; without adaptation the step size stays.

    Chains adapt each on their own: over 16 of them the standard error is about .01. The rest, up to .06 on
    the careful side, is the average of a step size that still moves after fifty transitions in five dimensions.
    """
    settings, _, chains = ran
    adaptation, acceptance = getattr(settings, "adaptation", "dual_averaging"), chains.column("acceptance")
    match adaptation:
        case "dual_averaging":
            assert acceptance.mean() == pytest.approx(settings.target_acceptance, abs=0.15)
        case "simple":
            # As many steps up as down: what comes to rest is the median.
            assert np.median(acceptance) == pytest.approx(settings.target_acceptance, abs=0.1)
        case "none":
            np.testing.assert_array_equal(chains.state.step_size.value, np.float32(settings.step_size))


@pytest.mark.parametrize("aim", [0.6, 0.8, 0.9])
def test_dual_averaging_comes_within_a_twentieth_of_its_aim(aim, key):
    """A hundred dimensions, where one acceptance is informative; the standard error over 16 chains is .005."""
    target = Target({"z": dist.Normal()}, lambda _, data: data, {"z": (100,)})
    settings = HMCConfig(chains=16, warmup=400, samples=100, target_acceptance=aim, jitter=0.2, reports=1)
    starts = np.random.default_rng(0).normal(size=(16, 100))
    chains = sampled("hmc", settings, target, jnp.zeros(1), starts, key)
    assert chains.column("acceptance").mean() == pytest.approx(aim, abs=0.05)


def test_the_figures_of_a_transition_are_what_they_say(ran):
    """The log density kept is the position's own; leapfrogs are counted over all transitions between two samples."""
    settings, target, chains = ran
    data = {name: jnp.float32(values) for name, values in rows_of_all().items()}
    positions = chains.column("position")[:, ::500].reshape(-1, target.dim)
    densities = jax.jit(jax.vmap(lambda z: target.log_density(z, data)))(positions)
    np.testing.assert_allclose(chains.column("log_density")[:, ::500].ravel(), densities, rtol=1e-4)
    assert (chains.column("leapfrogs") >= settings.thin).all()
    if settings.kind == "hmc":
        assert (chains.column("leapfrogs") == settings.leapfrogs * settings.thin).all()
    # By the simple rule every chain keeps the step size that its walk of hundredths happened to end at: of 2,048 chains of
    # other keys 1 % diverged in more than 18 % of their transitions. Of 3 million samples of 16 of them no mean was above .084.
    assert chains.column("diverging").mean() / settings.thin < (
        0.1 if getattr(settings, "adaptation", None) == "simple" else 0.01
    )


def test_energies_are_kept_of_every_transition(ran):
    """Also of those between two samples; the last is the sample's own."""
    settings, _, chains = ran
    energies = chains.energies(settings.thin)
    assert energies.shape == (settings.chains, settings.samples * settings.thin)
    np.testing.assert_array_equal(energies[:, settings.thin - 1 :: settings.thin], chains.column("energy"))


# ---- two modes -------------------------------------------------------------------------------------------------------


def two_modes():
    """½ N((2, −2), I) + ½ N((−2, 2), I): the one row takes the prior's density out again."""
    prior, place = dist.Normal(0, 3), jnp.array([2.0, -2.0])

    def log_likelihood(parameters, data):
        modes = [dist.Normal(side * place).log_prob(parameters["z"]).sum() for side in (1, -1)]
        return data + jnp.logaddexp(*modes) - prior.log_prob(parameters["z"]).sum()

    return Target({"z": prior}, log_likelihood, {"z": (2,)})


@pytest.mark.parametrize("kind", ["hmc", "nuts", "chees"])
def test_both_modes_are_visited_and_weigh_the_same(kind, key):
    """Chains start in one mode; half of the samples are in each, with the mixture's mean and covariance."""
    config = {"hmc": HMCConfig, "nuts": NUTSConfig, "chees": ChEESConfig}[kind]
    settings = config(chains=8, warmup=400, samples=3000, reports=1)
    chains = sampled(kind, settings, two_modes(), jnp.zeros(1), np.tile([2.0, -2.0], (8, 1)), key)
    positions = chains.column("position").astype(np.float64)
    in_first = (positions[..., 0] > positions[..., 1]).astype(float)
    assert (in_first.min(axis=1) == 0).all()
    assert (in_first.max(axis=1) == 1).all()
    assert_means(in_first[..., None], 0.5)
    assert_means(products(positions, 0), [5, -4, 5])
    within = positions - np.where(in_first[..., None] == 1, [2, -2], [-2, 2])
    assert_means(products(within, 0)[..., [0, 2]].sum(axis=-1, keepdims=True), 2.0)
    if kind == "nuts":
        # The article's figure: both modes within one to two hundred draws.
        first = [np.flatnonzero(np.diff(chain))[0] for chain in in_first]
        assert np.median(first) < 200


# ---- ChEES' trajectory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "std"), [("unit", 1.0), ("diagonal", 0.1)])
def test_chees_finds_the_trajectory_that_an_isotropic_normal_calls_for(metric, std, key):
    """The criterion is E sin² uT, u ~ U(0, 1), at its highest where tan 2T = 2T: T = 2.247 standard deviations.

    It has a lower maximum at every further half turn; a trajectory that was too long once would stay there. (What is
    found is a little less than T, for a trajectory is rounded up to whole steps.)
    """
    target = Target({"z": dist.Normal(0, std)}, lambda _, data: data, {"z": (20,)})
    settings = ChEESConfig(chains=32, warmup=600, samples=200, mass_matrix=metric, reports=1)
    starts = std * np.random.default_rng(0).normal(size=(32, 20))
    chains = sampled("chees", settings, target, jnp.zeros(1), starts, key)
    assert float(jnp.exp(chains.state.length.log)) == pytest.approx(2.247, rel=0.3)
    positions = chains.column("position") / std
    assert_means(positions**2, 1.0)
    assert_chains_agree(positions)
    leapfrogs = chains.column("leapfrogs")
    assert (leapfrogs == leapfrogs[0]).all()
    harmonic = 1 / (1 / chains.column("acceptance")).mean()
    assert harmonic == pytest.approx(settings.target_acceptance, abs=0.1)


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("hmc", HMCConfig(chains=2, warmup=40, samples=20, jitter=0.2)),
        ("nuts", NUTSConfig(chains=2, warmup=40, samples=20)),
        ("chees", ChEESConfig(chains=4, warmup=40, samples=20)),
    ],
)
def test_the_key_decides_every_draw(kind, settings):
    """Bit for bit, in blocks of whatever size; another key gives other draws, and no chain is another's copy."""
    target = Target({"z": dist.Normal()}, lambda _, data: data, {"z": (2,)})

    def positions(seed, reports):
        with_reports = settings.model_copy(update={"reports": reports})
        return sampled(kind, with_reports, target, jnp.zeros(1), np.full((settings.chains, 2), 0.5), seed).column(
            "position"
        )

    whole = positions(0, 1)
    np.testing.assert_array_equal(whole, positions(0, 2))
    assert (whole[:, -1] != positions(1, 1)[:, -1]).any(axis=-1).all()
    assert (whole[0, -1] != whole[1, -1]).any()


# ---- variational inference -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Posed(BNN):
    """A problem that is not a network's: a target, and where its fits start."""

    posed: Target = None

    @property
    def target(self):
        """Instead of the network's."""
        return self.posed

    def start(self, key):
        """Anywhere."""
        return 0.1 * jax.random.normal(key, (self.posed.dim,))


def problem_of(target, x, y):
    """A problem whose rows are `x` and `y`."""
    rows = Observations(jnp.float32(x), jnp.float32(y))
    return Problem(
        Posed(Model(network=MLPSpec(), likelihood="normal", feature_shape=(2,)), PriorConfig(), posed=target),
        rows,
        rows,
    )


def straight(dim=3, rows=ROWS, seed=2, prior=1.0, signal=1.0):
    """A conjugate linear regression: the problem, and the exact mean and precision as a function of the KL's weight."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, dim))
    x[:, 1] += 0.8 * x[:, 0]
    y = signal * x @ rng.normal(size=dim) + LINE_NOISE * rng.normal(size=rows)

    def log_likelihood(parameters, data):
        return dist.Normal(data.x @ parameters["w"], LINE_NOISE).log_prob(data.y)

    def exact(weight):
        precision = np.eye(dim) / prior**2 + x.T @ x / LINE_NOISE**2 / weight
        return np.linalg.solve(precision, x.T @ y / LINE_NOISE**2 / weight), precision

    return problem_of(Target({"w": dist.Normal(0, prior)}, log_likelihood, {"w": (dim,)}), x, y), exact


@pytest.fixture
def unmonitored(monkeypatch):
    """No predictions of a network that is not there."""
    monkeypatch.setattr(guides, "progress_report", lambda *_: {})
    monkeypatch.setattr(mode_search, "progress_report", lambda _bnn, zs, *_: {"z": zs[0]})


CAREFUL = {"steps": 3000, "batch_size": ROWS, "learning_rate": 0.02, "init_scale": 0.1, "particles": 4, "reports": 1}


def fitted_guide(problem, settings, seed=0):
    """The first of the fitted guides, and all of them."""
    starts = jax.vmap(problem.bnn.start)(jax.random.split(jax.random.key(seed), settings.starts))
    fitted, _ = fit_guides(jax.random.key(seed), problem, starts, settings, Journal())
    return jax.tree.map(lambda leaf: leaf[0], fitted), fitted


@pytest.mark.parametrize(("family", "weight"), [("mean_field", 1.0), ("mean_field", 0.25), ("full_rank", 0.25)])
def test_a_guide_reaches_the_best_that_its_family_has(unmonitored, family, weight):
    """mean_field: the exact means, and the precision's diagonal; full_rank: the posterior; of likelihood^(1/weight)."""
    problem, exact = straight()
    guide, _ = fitted_guide(problem, VIConfig(**CAREFUL, family=family, kl_weight=weight))
    mean, precision = exact(weight)
    covariance = np.linalg.inv(precision)
    best = np.diag(1 / np.diag(precision)) if family == "mean_field" else covariance
    std = np.sqrt(best.diagonal())
    np.testing.assert_array_less(np.abs(guide["loc"] - mean) / std, 0.1)
    found = (
        np.diag(guide_distribution(guide).variance)
        if family == "mean_field"
        else np.asarray(guide_distribution(guide).covariance_matrix)
    )
    np.testing.assert_allclose(found / np.outer(std, std), best / np.outer(std, std), atol=0.1)


def test_a_low_rank_guide_reaches_a_normal_of_its_form(unmonitored):
    """N(m, D + f fᵀ) is its own best guide of rank 1; the prior is no normal that the KL knows, so draws stand for it."""
    scale, factor = np.array([0.5, 1.0, 0.3, 0.8]), np.array([1.0, -1.0, 0.5, 0.0])
    covariance, mean = np.diag(scale**2) + np.outer(factor, factor), np.array([1.0, 0.0, -1.0, 2.0])
    prior = dist.MultivariateNormal(jnp.float32(mean), jnp.float32(covariance))
    target = Target({"w": prior}, lambda _, data: 0 * data.y, {"w": (4,)})
    problem = problem_of(target, np.zeros((1, 2)), np.zeros(1))
    guide, _ = fitted_guide(problem, VIConfig(**CAREFUL | {"particles": 8}, family="low_rank", rank=1))
    std = np.sqrt(covariance.diagonal())
    np.testing.assert_array_less(np.abs(guide["loc"] - mean) / std, 0.1)
    found = np.asarray(guide_distribution(guide).covariance_matrix)
    np.testing.assert_allclose(found / np.outer(std, std), covariance / np.outer(std, std), atol=0.1)


def test_draws_are_pooled_in_equal_numbers():
    """Nine of three guides are three of each; ten differ by one at most; their order is the guides'."""
    far = jax.vmap(lambda loc: guide_at(loc, VIConfig()))(jnp.array([[-100.0], [0.0], [100.0]]))
    assert np.round(sample_guides(jax.random.key(0), far, 9)[:, 0] / 100).tolist() == [-1] * 3 + [0] * 3 + [1] * 3
    counts = np.unique(np.round(np.asarray(sample_guides(jax.random.key(0), far, 10)) / 100), return_counts=True)[1]
    assert sorted(counts) == [3, 3, 4]


@pytest.mark.parametrize("family", ["mean_field", "low_rank", "full_rank"])
def test_the_divergence_is_what_draws_say(family):
    """Exact under normal priors, from draws under others and under a bijection: both are E_q[log q − log prior]."""
    priors = {"a": dist.Normal(0.5, 2.0), "b": dist.Laplace(0.0, 0.7), "c": dist.HalfCauchy(1.0)}
    target = Target(priors, lambda _, data: data, {"a": (2, 2), "b": (2,), "c": ()})
    guide = guide_at(jnp.linspace(-1, 1, target.dim), VIConfig(family=family, rank=2, init_scale=0.5))
    rough = np.random.default_rng(0)
    guide = {name: leaf + 0.3 * jnp.float32(rough.normal(size=leaf.shape)) for name, leaf in guide.items()}
    zs = guide_distribution(guide).sample(jax.random.key(0), (20_000,))
    ratios = np.asarray(guide_distribution(guide).log_prob(zs) - jax.vmap(target.log_prior)(zs))
    found = float(kl_divergence(target, guide, zs))
    assert abs(found - ratios.mean()) < 4 * ratios.std() / np.sqrt(len(ratios))
    # Under normal priors alone it needs no draws.
    normal = Target({"a": dist.Normal(0.5, 2.0)}, lambda _, data: data, {"a": (target.dim,)})
    ratios = np.asarray(guide_distribution(guide).log_prob(zs) - jax.vmap(normal.log_prior)(zs))
    assert float(kl_divergence(normal, guide, zs[:1])) == float(kl_divergence(normal, guide, zs[1:2]))
    assert abs(float(kl_divergence(normal, guide, zs[:1])) - ratios.mean()) < 4 * ratios.std() / np.sqrt(len(ratios))


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_k_hat_tells_an_exact_guide_from_a_bad_one(weight):
    """Near zero for the posterior that the weight asks for, above its limit for one a third as wide or elsewhere."""
    problem, exact = straight()
    mean, precision = exact(weight)
    lower = np.linalg.cholesky(np.linalg.inv(precision))

    def k_hat(loc, factor):
        scale = np.diag(lower) * factor
        below = np.tril(lower * factor / scale[:, None], -1)
        guide = {"loc": loc, "raw_scale": np.log(np.expm1(scale)), "below": below}
        settings = VIConfig(family="full_rank", kl_weight=weight)
        alone = {name: jnp.float32(leaf)[None] for name, leaf in guide.items()}
        return vi.k_hat(jax.random.key(0), problem, alone, settings)

    assert k_hat(mean, 1.0) < 0.3
    assert k_hat(mean, 0.3) > 0.7
    assert k_hat(mean + 5 * np.diag(lower), 1.0) > 0.7


# ---- modes -----------------------------------------------------------------------------------------------------------


def test_the_mode_is_the_posterior_s_and_members_agree_on_it(unmonitored):
    """A quadratic has one mode: every member finds it, from its own start."""
    problem, exact = straight()
    settings = EnsembleConfig(steps=1500, batch_size=ROWS, learning_rate=0.05, held_out=0.0, reports=2)
    modes, _ = find_modes(jax.random.key(0), problem, settings, 3, Journal(), "vectorized")
    np.testing.assert_allclose(modes, np.tile(exact(1.0)[0], (3, 1)), atol=1e-3)
    assert len(np.unique(np.asarray(modes), axis=0)) > 1


def test_the_best_iterate_is_the_best_of_the_reports_and_not_the_last(unmonitored):
    """With as many weights as rows and almost no signal, held-out rows are predicted best before the end."""
    problem, _ = straight(dim=21, seed=4, prior=100.0, signal=0.1)
    settings = MAPConfig(steps=2000, batch_size=8, learning_rate=0.005, held_out=0.3, reports=40)
    key = jax.random.key(3)
    modes, traces = find_modes(key, problem, settings, 2, Journal())
    learned, held_out = hold_out(jax.random.split(key, 3)[1], ROWS, 0.3)
    assert (len(learned), len(held_out)) == (21, 9)
    assert sorted([*learned, *held_out]) == list(range(ROWS))
    iterates, kept = traces.column("report_z"), problem.train.take(jnp.asarray(held_out))
    assert iterates.shape == (40, 2, 21)
    scores = stats.norm.logpdf(kept.y, iterates @ np.asarray(kept.x).T, LINE_NOISE).mean(axis=-1)
    best = scores.argmax(axis=0)
    assert (scores.max(axis=0) > scores[-1] + 0.1).all()
    np.testing.assert_array_equal(np.asarray(modes), iterates[best, [0, 1]])
    assert (np.asarray(modes)[0] != np.asarray(modes)[1]).all()
