"""`abstain import`, `from_numpyro`, `import_posterior`: each import predicts what the original predicts."""

import json
import runpy
import sys

import arviz_base
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from numpyro.contrib.module import random_nnx_module
from numpyro.infer import SVI, Predictive, Trace_ELBO, autoguide
from numpyro.infer.svi import SVIRunResult

import abstain
from abstain.models.bundles.manifest import read_manifest
from abstain.models.networks.architectures import MLPSpec
from abstain.training.importing.numpyro_results import GuideCall, read_result
from abstain.training.importing.sources import read_found
from tests.helpers.imported_networks import Graph, Net, Normalised, Rows, rows_of, softmax
from tests.helpers.paths import PROJECT
from tests.helpers.safetensors import write_safetensors
from tests.project.test_docs import blocks

NETWORKS = "tests.helpers.imported_networks"
X = np.concatenate([rows_of(seed=5, count=20)["x"], np.float32([[40, -40]])])
REGRESSION = {"name": "own", "likelihood": "normal", "calibration": {"percentile": 90}}
CLASSES = {"name": "own", "calibration": {"percentile": 90}}


@pytest.fixture
def rows(tmp_path):
    """Files of labelled and of training rows, for numbers and for classes."""
    for name, classes, seed in (("numbers", 0, 0), ("classes", 3, 0), ("numbers_train", 0, 1), ("classes_train", 3, 1)):
        np.savez(tmp_path / f"{name}.npz", **rows_of(classes, seed=seed))
    return tmp_path


@pytest.fixture
def served(rows, monkeypatch):
    """Loads a version that was imported into this test's store, and predicts `X`."""
    monkeypatch.setenv("ABSTAIN_MODULES", f"mynet,{NETWORKS}")

    def served(result):
        return abstain.load(result.reference, store=rows / "store").predict(X)

    return served


def write_nothing(path, *_):
    """In place of a report."""
    path.write_text("")
    return ()


@pytest.fixture
def without_pictures(monkeypatch):
    """Publishes without pictures, which take most of an import's time."""
    monkeypatch.setattr("abstain.training.publish.write_report", write_nothing)


def random_draws(network, count, x=X, seed=0):
    """Draws of a Linen network's variables, with the draws as first axis; variances are positive."""
    variables = network.init(jax.random.key(0), x)
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=(count, *leaf.shape)).astype(np.float32), variables)
    return {name: jax.tree.map(np.abs, tree) if name == "batch_stats" else tree for name, tree in drawn.items()}


def flat(tree, separator="/"):
    """The arrays by their path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator=separator): leaf for path, leaf in leaves}


def check_decision(predictions, result):
    """With training rows, feature scores decide: the last row, which is far from all others, is rejected, and few others."""
    assert read_manifest(result.path).calibration.decision == "combined"
    assert predictions.reject[-1]
    assert predictions.reject[:-1].sum() <= 8


def probabilities(network, draws, x=X):
    """The mean of the draws' probabilities, by Flax's `apply`."""
    return softmax(np.asarray(jax.vmap(lambda draw: network.apply(draw, x))(draws))).mean(axis=0)


# ---- files -----------------------------------------------------------------------------------------------------------


def test_an_npz_of_chains_by_the_command(rows, served, run):
    """Published, evaluated and shown; the predictions are those of Flax, the source is in the manifest and the report."""
    network = Net(outputs=3)
    draws = random_draws(network, 12)
    np.savez(rows / "draws.npz", **{name: leaf.reshape(2, 6, *leaf.shape[1:]) for name, leaf in flat(draws).items()})
    (rows / "own.toml").write_text(
        f'name = "own"\ncalibration = {{percentile = 90}}\n[network]\nkind = "module"\nmodule = "{NETWORKS}:Net"\n'
    )
    files = ("--data", rows / "classes.npz", "--train", rows / "classes_train.npz", "--store", rows / "store")
    code, out, err = run("import", rows / "draws.npz", "--config", rows / "own.toml", *files)
    assert (code, out) == (0, "own:1\n"), err
    assert "falls short: the chains disagree about predictions" in err
    predictions = abstain.load("own", store=rows / "store").predict(X)
    np.testing.assert_allclose(predictions.probabilities, probabilities(network, draws), atol=1e-5)

    manifest = read_manifest(rows / "store" / "own" / "1")
    record = manifest.imported
    assert (record.kind, record.found, record.chains, manifest.draws) == ("npz", 12, 2, 12)
    assert [source.name for source in record.sources] == ["draws.npz"]
    assert (manifest.data.train_rows, manifest.data.calibration_rows, manifest.data.test_rows) == (260, 208, 52)
    assert manifest.method.kind == "import"
    code, out, err = run("show", "own", "--store", rows / "store")
    assert code == 0
    assert "imported.kind" in out
    assert record.sources[0].digest[:20] in out
    assert "draws.npz" in (rows / "store" / "own" / "1" / "report.html").read_text()
    # The same file again is recognised, and its calibration part is used.
    code, out, err = run(
        "calibrate", "own", "--data", rows / "classes.npz", "--percentile", 80, "--store", rows / "store"
    )
    assert (code, out) == (0, "own:2\n")
    assert "208 rows of classes.npz, the calibration part of the import" in err
    code, out, err = run("evaluate", "own:1", "--data", rows / "classes.npz", "--store", rows / "store", "--json")
    assert (code, json.loads(out)["rows"]) == (0, 52)


def test_an_ensemble_of_pytorch(rows, served, without_pictures):
    """Weights `[out, in]`: a plain forward pass in numpy, with the scaling of inputs and target."""
    rng = np.random.default_rng(0)
    shapes = {
        "0.weight": (5, 2),
        "0.bias": (5,),
        "2.weight": (3, 5),
        "2.bias": (3,),
        "10.weight": (1, 3),
        "10.bias": (1,),
    }
    members = [{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in range(4)]
    paths = [write_safetensors(rows / f"net{index}.safetensors", member) for index, member in enumerate(members)]
    shift, scale, target_shift, target_scale, noise = np.array([0.5, -1.0]), np.array([2.0, 0.5]), 3.0, 1.5, 0.2

    def forward(member):
        hidden = (X - shift) / scale
        for layer in ("0", "2"):
            hidden = np.tanh(hidden @ member[f"{layer}.weight"].T + member[f"{layer}.bias"])
        return (hidden @ member["10.weight"].T + member["10.bias"])[:, 0] * target_scale + target_shift

    scaling = {"input_shift": [0.5, -1.0], "input_scale": [2.0, 0.5], "target_shift": 3.0, "target_scale": 1.5}
    config = REGRESSION | {
        "network": {"kind": "mlp", "hidden": [5, 3], "activation": "tanh"},
        "posterior": {"noise": noise, **scaling},
    }
    result = abstain.import_posterior(paths, config, data=rows / "numbers.npz", store=rows / "store", progress=False)
    means = np.stack([forward(member) for member in members])
    predictions = served(result)
    np.testing.assert_allclose(predictions.mean, means.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(predictions.epistemic_std, means.std(axis=0), atol=1e-5)
    np.testing.assert_allclose(predictions.aleatoric_std, noise * target_scale, rtol=1e-5)
    manifest = read_manifest(result.path)
    record = manifest.imported
    assert (record.kind, record.found) == ("safetensors", 4)
    assert [source.name for source in record.sources] == [path.name for path in paths]
    assert manifest.calibration.decision == "std"
    assert any(note.startswith("no training rows were given: std") for note in result.notes)


def test_checkpoints_with_batch_normalisation(rows, served, without_pictures):
    """Orbax: the parameters and running statistics of each network, beside the state of an optimiser, which is left out."""
    network = Normalised()
    draws = random_draws(network, 3)
    with ocp.StandardCheckpointer() as checkpointer:
        for index in range(3):
            member = jax.tree.map(lambda leaf, index=index: leaf[index], draws)
            checkpointer.save(rows / f"{index}", {**member, "step": 7, "opt_state": [{"mu": np.ones(2)}]})
    config = CLASSES | {"network": {"kind": "module", "module": f"{NETWORKS}:Normalised"}}
    paths = [rows / f"{index}" for index in range(3)]
    files = {"data": rows / "classes.npz", "train": rows / "classes_train.npz", "store": rows / "store"}
    result = abstain.import_posterior(paths, config, **files, progress=False)
    predictions = served(result)
    np.testing.assert_allclose(predictions.probabilities, probabilities(network, draws), atol=1e-5)
    assert read_manifest(result.path).model.network.running_statistics
    check_decision(predictions, result)


# ---- NumPyro, ArviZ, NNX ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The example of docs/import.md, as it stands but for fewer samples; two chains, too short to agree."""
    network, script = blocks(PROJECT / "docs" / "import.md", "python")
    folder = tmp_path_factory.mktemp("example")
    (folder / "mynet.py").write_text(network)
    for longer, shorter in (
        ("target_accept_prob=0.95", "max_tree_depth=2"),
        (
            "num_warmup=500, num_samples=500, num_chains=4",
            "num_warmup=4, num_samples=8, num_chains=2, progress_bar=False",
        ),
        ('"draws": 100', '"draws": 16'),
    ):
        assert longer in script
        script = script.replace(longer, shorter)
    (folder / "own.py").write_text(script)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setattr("abstain.training.publish.write_report", write_nothing)
        patch.setenv("ABSTAIN_MODULES", f"mynet,{NETWORKS}")
        yield runpy.run_path("own.py")
    sys.modules.pop("mynet", None)


def means_of(model):
    """The model with its observations' means as a site."""

    def with_means(x):
        with numpyro.handlers.trace() as sites:
            model(x)
        numpyro.deterministic("mu", sites["obs"]["fn"].mean)

    return with_means


def check_against(predictions, example, samples):
    """Mean and standard deviations are those of NumPyro's `Predictive`, as the model's own code computes them."""
    draws = {name: values for name, values in samples.items() if name != "obs"}
    traced = Predictive(means_of(example["model"]), draws)(jax.random.key(0), X)
    mu = np.asarray(traced["mu"], np.float64)
    np.testing.assert_allclose(predictions.mean, mu.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(predictions.epistemic_std, mu.std(axis=0), atol=1e-5)
    variance = (np.asarray(samples["sigma"], np.float64) ** 2).mean()
    np.testing.assert_allclose(predictions.aleatoric_std, np.sqrt(variance), rtol=1e-5)


def test_mcmc_as_in_the_guide(example):
    """Every draw of both chains; the chains do not agree, which is a shortfall."""
    result, mcmc = example["result"], example["mcmc"]
    predictions = abstain.load("own").predict(X)
    check_against(predictions, example, mcmc.get_samples())
    manifest = read_manifest(result.path)
    assert (manifest.imported.kind, manifest.imported.found, manifest.imported.chains) == ("mcmc", 16, 2)
    assert any(text.startswith("the chains disagree about predictions: R-hat is") for text in result.shortfalls)
    diverged = mcmc.get_extra_fields()["diverging"].sum()
    assert manifest.diagnostics["divergences"] == diverged
    advice = [text for text in result.shortfalls if text.endswith("raise target_accept_prob of the kernel")]
    assert len(advice) == (diverged > 0)
    assert manifest.metrics["baseline"]["rmse"] > 0


def test_some_draws_of_mcmc_through_arviz(rows, served, example, without_pictures):
    """In memory and from a file; every fourth draw is kept."""
    mcmc, network = example["mcmc"], example["Net"]
    posterior = {name.replace("/", "."): value for name, value in mcmc.get_samples(group_by_chain=True).items()}
    tree = arviz_base.from_dict({"posterior": posterior})
    tree.to_netcdf(rows / "draws.nc", engine="h5netcdf")
    config = REGRESSION | {"posterior": {"noise": "sigma"}, "draws": 4}
    options = {"data": rows / "numbers.npz", "store": rows / "store", "progress": False}
    result = abstain.from_numpyro(tree, network(), config, **options)
    chosen = {name: value[np.array([2, 6, 10, 14])] for name, value in mcmc.get_samples().items()}
    check_against(served(result), example, chosen)
    assert read_manifest(result.path).imported.kind == "arviz"
    in_memory, in_file = read_result(tree, GuideCall()), read_found([rows / "draws.nc"], MLPSpec(), ())
    assert (in_file.kind, in_file.arrays.keys()) == ("arviz", in_memory.arrays.keys())
    for name, array in in_memory.arrays.items():
        np.testing.assert_array_equal(in_file.arrays[name], array)


def test_svi(rows, served, example, without_pictures):
    """Draws from an automatic guide, by the seed."""
    train = rows_of(seed=1, count=40)
    guide = autoguide.AutoNormal(example["model"])
    svi = SVI(example["model"], guide, numpyro.optim.Adam(1e-2), Trace_ELBO())
    state = svi.init(jax.random.key(0), train["x"], train["y"])
    result = SVIRunResult(svi.get_params(state), state, np.zeros(1))
    config = REGRESSION | {"posterior": {"noise": "sigma"}, "draws": 10, "seed": 3}
    options = {"data": rows / "numbers.npz", "store": rows / "store", "progress": False}
    imported = abstain.from_numpyro(result, example["Net"](), config, guide=guide, **options)
    samples = guide.sample_posterior(jax.random.key(3), result.params, sample_shape=(10,))
    check_against(served(imported), example, samples)
    assert read_manifest(imported.path).imported.kind == "svi"


def test_an_ensemble_of_nnx(rows, served, without_pictures):
    """Networks of Flax NNX in evaluation mode, with their running statistics, from their states."""
    networks = [Graph(rngs=nnx.Rngs(seed)) for seed in range(3)]
    for seed, network in enumerate(networks):
        network.norm.mean[...] = np.random.default_rng(seed).normal(size=4)
        network.norm.var[...] = np.random.default_rng(seed).uniform(0.5, 2, size=4)
        network.eval()
    states = [nnx.to_pure_dict(nnx.state(network, (nnx.Param, nnx.BatchStat))) for network in networks]
    files = {"data": rows / "classes.npz", "train": rows / "classes_train.npz", "store": rows / "store"}
    result = abstain.from_numpyro(states, f"{NETWORKS}:Graph", CLASSES, **files, progress=False)
    expected = np.mean([softmax(np.asarray(network(X))) for network in networks], axis=0)
    predictions = served(result)
    np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-5)
    check_decision(predictions, result)


def test_draws_of_a_random_network_of_nnx(rows, served, without_pictures):
    """The sites of `random_nnx_module`; these draws are of the prior, so the model learns nothing."""

    def model(x):
        network = random_nnx_module("net", Rows(rngs=nnx.Rngs(0)), dist.Normal(0, 1))
        numpyro.deterministic("mu", network(x)[:, 0])
        numpyro.sample("sigma", dist.HalfNormal(1))

    samples = dict(Predictive(model, num_samples=6)(jax.random.key(0), X))
    mu = np.asarray(samples.pop("mu"), np.float64)
    config = REGRESSION | {"posterior": {"noise": "sigma"}}
    files = {"data": rows / "numbers.npz", "train": rows / "numbers_train.npz", "store": rows / "store"}
    result = abstain.from_numpyro(samples, Rows, config, **files, progress=False)
    predictions = served(result)
    np.testing.assert_allclose(predictions.mean, mu.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(predictions.epistemic_std, mu.std(axis=0), atol=1e-5)
    check_decision(predictions, result)
