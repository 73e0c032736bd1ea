"""The exports of a fit, read with the libraries that users would use."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import xarray
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from abstain.models.bundles.bundle import load
from abstain.training.config.reading import read_config
from abstain.training.fit import fit
from abstain.training.report.export import Exports
from tests.helpers.commands import abstain
from tests.helpers.fits import silent
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE

CONFIG = """
name = "small"
likelihood = "normal"
draws = {draws}
[data]
source = "sine"
calibration_size = 100
test_size = 60
[network]
kind = "mlp"
hidden = [2]
[method]
kind = "{kind}"
reports = 4
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from abstain.models.files.drafts import draft_of
with draft_of(Path(sys.argv[1])) as draft:
    draft.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
CHAINS = "chains = 3\nwarmup = 30\nsamples = 12\nthin = 2\n"
SHAPES = {
    "network.Dense_0.bias": (2,),
    "network.Dense_0.kernel": (1, 2),
    "network.Dense_1.bias": (1,),
    "network.Dense_1.kernel": (2, 1),
    "noise": (),
}


def events(folder):
    """The events in a folder of TensorBoard's: records of a length, its checksum, the event, its checksum."""
    (path,) = folder.iterdir()
    content, at, found = path.read_bytes(), 0, []
    while at < len(content):
        length = int.from_bytes(content[at : at + 8], "little")
        body = content[at + 12 : at + 12 + length]
        assert int.from_bytes(content[at + 12 + length : at + 16 + length], "little") == masked_crc32c(body)
        found.append(Event.FromString(body))
        at += 16 + length
    return [event for event in found if event.HasField("summary")]


def scalars(found):
    """Scalars by tag: their steps and values."""
    series = {}
    for event in found:
        for value in event.summary.value:
            if value.HasField("simple_value"):
                series.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {tag: tuple(np.array(column) for column in zip(*points, strict=True)) for tag, points in series.items()}


def histograms(found):
    """Histograms by tag: their steps, and how many values each is of."""
    series = {}
    for event in found:
        for value in event.summary.value:
            if value.HasField("histo"):
                series.setdefault(value.tag, []).append((event.step, value.histo.num))
    return series


def run(folder, kind, method, draws):
    """A fit with both exports; the folder, and the published draws."""
    path = folder / "small.toml"
    path.write_text(CONFIG.format(kind=kind, draws=draws) + method)
    exports = Exports(netcdf=folder / "deep" / "all.nc", tensorboard=folder / "events")
    fit(read_config(path), None, folder / "store", silent, exports=exports, report=False)
    return folder, load(folder / "store" / "small" / "1")


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    """Chains whose every sample is a draw of the bundle, so that one can be held against the other."""
    return run(tmp_path_factory.mktemp("chains"), "hmc", CHAINS, 36)


@pytest.fixture(scope="module")
def guide(tmp_path_factory):
    """A variational fit."""
    return run(tmp_path_factory.mktemp("guide"), "vi", "steps = 40\n", 7)


def by_name(draws):
    """The bundle's draws under the names of the file."""
    layers = draws["network"].items()
    named = {f"network.{layer}.{name}": leaf for layer, leaves in layers for name, leaf in leaves.items()}
    return named | {"noise": draws["noise"]}


def test_netcdf_holds_every_sample_of_every_chain(chains):
    """Samples are stored by parameter, `[chain, draw, …]`, with the chains' values."""
    folder, bundle = chains
    with xarray.open_datatree(folder / "deep" / "all.nc", engine="h5netcdf") as tree:
        posterior = tree["posterior"]
        assert set(posterior.data_vars) == set(SHAPES)
        for name, draws in by_name(bundle.posterior.draws).items():
            found = posterior[name]
            assert found.dims[:2] == ("chain", "draw")
            assert found.shape == (3, 12, *SHAPES[name])
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found.to_numpy(), draws.reshape(found.shape))


def test_netcdf_holds_the_sampler_s_figures(chains):
    """Under ArviZ's names, one for each sample; thinned transitions are counted."""
    folder, bundle = chains
    facts = bundle.manifest.diagnostics
    with xarray.open_datatree(folder / "deep" / "all.nc", engine="h5netcdf") as tree:
        figures = tree["sample_stats"]
        assert set(figures.data_vars) == {"acceptance_rate", "diverging", "n_steps", "energy", "lp"}
        assert all(figures[name].shape == (3, 12) for name in figures.data_vars)
        assert figures["diverging"].to_numpy().astype(bool).sum() == facts["divergences"]
        np.testing.assert_array_equal(figures["n_steps"], 20)
        np.testing.assert_allclose(figures["acceptance_rate"].mean("draw"), facts["acceptance"], rtol=1e-5)
        np.testing.assert_allclose(figures["lp"], facts["trace"], rtol=1e-6)
        # The energy is −log density + a kinetic energy that is positive.
        assert figures["energy"].to_numpy().min() > -figures["lp"].to_numpy().max()


def test_netcdf_of_a_guide_holds_its_draws_as_one_chain(guide):
    """And no sampler's figures."""
    folder, bundle = guide
    with xarray.open_datatree(folder / "deep" / "all.nc", engine="h5netcdf") as tree:
        assert set(tree.children) == {"posterior"}
        for name, draws in by_name(bundle.posterior.draws).items():
            np.testing.assert_array_equal(tree["posterior"][name], draws[None])


def test_what_a_killed_fit_left_next_to_the_netcdf_is_removed(tmp_path):
    """The next fit that writes into the folder removes it."""
    (tmp_path / "deep").mkdir()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "deep" / "all.nc")]
    killed = subprocess.run(command, cwd=PROJECT, check=False, timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name[:9] for path in (tmp_path / "deep").iterdir()] == [".writing-"]
    run(tmp_path, "vi", "steps = 40\n", 7)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["all.nc"]


def test_tensorboard_shows_chains(chains):
    """Log probabilities and acceptance by chain, at every sample, and a histogram of every parameter over the chains."""
    folder, bundle = chains
    found = events(folder / "events")
    series = scalars(found)
    names = ["log_probability/train", "acceptance"]
    assert set(series) == {f"{name}/chain_{chain}" for name in names for chain in range(3)}
    assert all(steps.tolist() == list(range(12)) for steps, _ in series.values())
    means = [series[f"acceptance/chain_{chain}"][1].mean() for chain in range(3)]
    np.testing.assert_allclose(means, bundle.manifest.diagnostics["acceptance"], rtol=1e-5)
    for name, points in histograms(found).items():
        assert points == [(step, 3 * np.prod(SHAPES[name])) for step in range(12)]
    assert set(histograms(found)) == set(SHAPES)


def test_tensorboard_shows_a_descent(guide):
    """The loss curve and every report, at its step."""
    folder, bundle = guide
    found, facts = events(folder / "events"), bundle.manifest.diagnostics
    series = scalars(found)
    steps, losses = series.pop("loss")
    assert (steps[0], steps[-1], len(steps)) == (1, 40, len(facts["loss"]))
    np.testing.assert_allclose(losses, facts["loss"], rtol=1e-5)
    assert set(series) == {f"report/{name}" for name in facts["reports"][0] if name != "step"}
    for name, (steps, values) in series.items():
        assert steps.tolist() == [10, 20, 30, 40]
        np.testing.assert_allclose(values, [report[name.split("/")[1]] for report in facts["reports"]], rtol=1e-5)
    assert not histograms(found)


def test_the_command_writes_both(tmp_path):
    """`--netcdf` and `--tensorboard`, into folders that are made."""
    path = tmp_path / "small.toml"
    path.write_text(CONFIG.format(kind="hmc", draws=6) + "chains = 2\nwarmup = 5\nsamples = 5\n")
    netcdf, tensorboard = tmp_path / "new" / "all.nc", tmp_path / "new" / "events"
    done = abstain(
        "fit",
        path,
        "--store",
        tmp_path / "store",
        "--netcdf",
        netcdf,
        "--tensorboard",
        tensorboard,
        "--no-report",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    with xarray.open_datatree(netcdf, engine="h5netcdf") as tree:
        assert tree["posterior"]["noise"].shape == (2, 5)
    assert len(histograms(events(tensorboard))["noise"]) == 5
