"""Fits that were killed: through the real command, in every passage, and the results of the resumed ones, bit for bit."""

import fcntl
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orjson
import pytest

from abstain.models.bundles.bundle import load
from abstain.models.bundles.store import versions
from abstain.models.errors import ConfigError, StoreError
from abstain.training.config.reading import read_config
from abstain.training.fit import fit
from abstain.training.runs.resume import FOLDER, fit_settings
from tests.helpers.commands import abstain
from tests.helpers.fits import draws_of_config, silent
from tests.helpers.paths import PROJECT

MODEL = """
name = "{name}"
likelihood = "normal"
draws = 10
[data]
source = "sine"
calibration_size = 100
test_size = 60
[network]
kind = "mlp"
hidden = [2]
[method]
reports = 60
{method}
"""
DESCENT = 'steps = 120\nschedule = "constant"\nlearning_rate = 0.01'
CHAINS = "warmup = 60\nsamples = 60"
SETTINGS = {
    "ensemble": f'kind = "ensemble"\nmembers = 2\n{DESCENT}',
    "vi": f'kind = "vi"\nstarts = 2\n{DESCENT}',
    "hmc": f'kind = "hmc"\nchains = 2\njitter = 0.2\n{CHAINS}',
    "chees": f'kind = "chees"\nchains = 4\n{CHAINS}',
    "nuts": f'kind = "nuts"\nchains = 2\nstart = "map"\n{CHAINS}\n[method.map]\nreports = 60\n{DESCENT}',
}
KILLED_IN = {"hmc": ["sampling"], "nuts": ["map", "warm-up", "sampling"]}
STOPPED_IN = {"ensemble": ("map", 60), "vi": ("vi", 60), "chees": ("warm-up", 30)}
"""The passage of each other method in which an exception ends its fit, and after how many steps."""
TOLD = {"COLUMNS": "250"}
"""Every report of progress on one line."""


def written(folder: Path, kind: str, method: str = "") -> Path:
    """A config file. Its name is as long as may be, so that few reports fit into a pipe."""
    path = folder / f"{kind}.toml"
    path.write_text(MODEL.format(name=f"{kind}-".ljust(60, "x"), method=method or SETTINGS[kind]))
    return path


def draws_of(store: Path, version: int = 1) -> list[np.ndarray]:
    """The published draws of the only model in a store."""
    (home,) = [entry for entry in store.iterdir() if entry.is_dir()]
    return jax.tree.leaves(load(home / str(version)).posterior.draws)


def journals(store: Path) -> list[Path]:
    """The journals of the only model in a store."""
    return sorted(folder for folder in store.glob(f"*/{FOLDER}/*"))


def done(journal: Path, passage: str) -> int:
    """The blocks of a passage that are written down."""
    with np.load(journal / passage / "state.npz") as state:
        return len(state["sizes"])


def kill_in(passage: str, command: list[str | Path], before_death=lambda: None) -> None:
    """Runs the command, and kills it after the third report of a passage.

    Its stderr is a pipe of 4 KiB that is read one byte at a time: it cannot reach the passage's end before it is killed.
    """
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with subprocess.Popen(
        [Path(sys.executable).with_name("abstain"), *command],
        stderr=writing,
        stdout=subprocess.DEVNULL,
        cwd=PROJECT,
        env=os.environ | TOLD,
    ) as process:
        os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as stderr:
            output, reports = b"", 0
            while reports < 3:
                byte = stderr.read(1)
                assert byte, f"it ended before the passage {passage}:\n{output.decode()}"
                output += byte
                if byte == b"\n":
                    reports += bool(re.search(rf", {passage}: \d+/".encode(), output.splitlines()[-1]))
            before_death()
            process.send_signal(signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL


class Story:
    """A fit that is killed in every passage of `KILLED_IN`, and at last resumed."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind, self.folder, self.store = kind, folder, folder / "killed"
        self.config = written(folder, kind)
        self.blocks: list[int] = []
        self.rival: subprocess.CompletedProcess[str] | None = None
        resume: list[str] = []
        for passage in KILLED_IN[kind]:
            kill_in(passage, ["fit", self.config, "--store", self.store, *resume], self.challenge)
            (journal,) = journals(self.store)
            self.blocks.append(done(journal, passage))
            resume = ["--resume"]
        self.unpublished = not any(self.store.glob("*/1"))
        self.end = abstain("fit", self.config, "--store", self.store, "--resume", "--no-report", **TOLD)

    def challenge(self) -> None:
        """The same fit once more, while it is under way."""
        if self.kind == "hmc":
            self.rival = abstain("fit", self.config, "--store", self.store)


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """All of them, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        kinds = sorted(KILLED_IN, key=lambda kind: -len(KILLED_IN[kind]))
        yield {kind: pool.submit(Story, tmp_path_factory.mktemp(kind), kind) for kind in kinds}


@pytest.mark.parametrize("kind", KILLED_IN)
def test_a_killed_fit_ends_in_the_draws_of_an_uninterrupted_one(stories, kind):
    """SIGKILL ends it once in each passage; nothing is published before, and one version after."""
    story = stories[kind].result()
    assert story.unpublished
    # Of sixty blocks, each passage was some way in when it was cut off, and no further than the pipe let it.
    assert all(3 <= blocks < 60 for blocks in story.blocks), story.blocks
    assert story.end.returncode == 0, story.end.stderr
    expected = jax.tree.leaves(draws_of_config(read_config(story.config)))
    for left, right in zip(expected, draws_of(story.store), strict=True):
        np.testing.assert_array_equal(left, right)
    assert len(list(story.store.glob("*/[0-9]*"))) == 1


def test_passages_that_were_finished_are_not_run_again(stories):
    """The last resumption of the three passages' fit speaks of sampling alone, and not of its first blocks."""
    story = stories["nuts"].result()
    calls = re.findall(r", (map|warm-up|sampling): (\d+)/60", story.end.stderr)
    assert {passage for passage, _ in calls} == {"sampling"}
    assert int(calls[0][1]) == story.blocks[-1] + 1


def test_the_same_fit_twice_at_once_is_refused(stories):
    """The second says that the first is under way, and leaves it be."""
    rival = stories["hmc"].result().rival
    assert rival.returncode == 1
    assert "a fit with the same settings is running" in rival.stderr
    assert "wait for it, or change the seed" in rival.stderr
    assert "Traceback" not in rival.stderr


def test_a_fit_that_dies_while_publishing_publishes_on_resuming(tmp_path):
    """Killed with the bundle all but written: no version is there; resumed, it runs no step again, and names each stage."""
    config, store = written(tmp_path, "map", f'kind = "map"\n{DESCENT}'), tmp_path / "store"
    sabotage = (
        "import os, sys; from abstain.training import publish; "
        "publish.write_report = lambda *arguments: os.kill(os.getpid(), 9); "
        "from abstain.service.commands.cli import main; main()"
    )
    command = [sys.executable, "-c", sabotage, "fit", str(config), "--store", str(store)]
    died = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    name = read_config(config).name
    assert versions(store, name) == []
    calls = []
    fit(read_config(config), None, store, recording(calls), resume=True, report=False)
    assert calls == [(done, 1, stage) for stage in STAGES for done in (0, 1)]
    assert versions(store, name) == [1]


# ---- in one process --------------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The exception that interrupts a fit."""


def stopping(passage_to_stop, after):
    """Progress that stops the fit in a passage."""

    def progress(done, total, passage="", **facts):
        if (passage, done >= after) == (passage_to_stop, True):
            raise Stopped

    return progress


STAGES = ("feature scores", "calibration", "evaluation", "report and bundle")
"""What a fit does after its last step, whatever the method."""


def recording(calls):
    """Progress that is written down."""

    def progress(done, total, passage="", **facts):
        calls.append((done, total, passage))

    return progress


def hmc(folder, *overrides):
    """A small fit by chains."""
    path = written(folder, "hmc")
    return read_config(path, ("method.reports=4", "method.warmup=20", "method.samples=20", "draws=40", *overrides))


@pytest.mark.parametrize("kind", STOPPED_IN)
def test_an_interrupted_fit_ends_in_the_draws_of_an_uninterrupted_one(tmp_path, kind):
    """The methods that no test above kills: the first half is not run again, and nothing is published before the end."""
    config, store, calls = read_config(written(tmp_path, kind), ("reports=10",)), tmp_path / "store", []
    passage, after = STOPPED_IN[kind]
    with pytest.raises(Stopped):
        fit(config, None, store, stopping(passage, after), report=False)
    assert versions(store, config.name) == []
    fit(config, None, store, recording(calls), resume=True, report=False)
    assert min(done for done, _, stage in calls if stage == passage) > after - 12
    for left, right in zip(jax.tree.leaves(draws_of_config(config)), draws_of(store), strict=True):
        np.testing.assert_array_equal(left, right)
    assert versions(store, config.name) == [1]


def test_a_finished_fit_is_lengthened(tmp_path):
    """The first samples are those that were there; only what is new is run; a new version is published."""
    fit(hmc(tmp_path), None, tmp_path / "store", silent, report=False)
    calls = []
    longer = hmc(tmp_path, "method.samples=50", "draws=100")
    fit(longer, None, tmp_path / "store", recording(calls), resume=True, report=False)
    steps = [place for place in calls if place[2] not in {"diagnostics", *STAGES}]
    assert steps == [(done, 50, "sampling") for done in (25, 30, 35, 40, 45, 50)]
    assert versions(tmp_path / "store", longer.name) == [1, 2]
    for before, after in zip(draws_of(tmp_path / "store", 1), draws_of(tmp_path / "store", 2), strict=True):
        by_chain = after.reshape(2, 50, *after.shape[1:])
        np.testing.assert_array_equal(before.reshape(2, 20, *before.shape[1:]), by_chain[:, :20])
    anew = jax.tree.leaves(draws_of_config(longer))
    for whole, grown in zip(anew, draws_of(tmp_path / "store", 2), strict=True):
        np.testing.assert_array_equal(whole, grown)


def test_fewer_samples_than_are_there_are_refused(tmp_path):
    """Rather than that the version say twenty and hold more."""
    with pytest.raises(Stopped):
        fit(hmc(tmp_path), None, tmp_path / "store", stopping("sampling", 15), report=False)
    with pytest.raises(ConfigError, match="expected at least 15 steps of sampling, which are done, found 10"):
        fit(hmc(tmp_path, "method.samples=10", "draws=10"), None, tmp_path / "store", silent, resume=True, report=False)


def test_there_must_be_something_to_resume(tmp_path):
    """Nothing; a fit of another seed; of other data; each is named, and what to do."""
    config, store = hmc(tmp_path), tmp_path / "store"
    with pytest.raises(ConfigError, match="an unfinished fit with these settings, data and package versions") as none:
        fit(config, None, store, silent, resume=True, report=False)
    assert "found no fit; leave --resume out to start one" in str(none.value)
    with pytest.raises(Stopped):
        fit(config, None, store, stopping("warm-up", 10), report=False)
    (journal,) = journals(store)
    for other, data in ((hmc(tmp_path, "seed=1"), None), (hmc(tmp_path, "method.jitter=0.1"), None), (config, "wave")):
        with pytest.raises(ConfigError, match=f"found fits with other settings: {journal.name}"):
            fit(other, data, store, silent, resume=True)
    assert orjson.loads((journal / "fit.json").read_bytes())["seed"] == 0


@pytest.mark.parametrize(("thin", "continues"), [(1, True), (2, False)])
def test_thinned_chains_that_counted_samples_are_not_continued(tmp_path, monkeypatch, thin, continues):
    """Journals from before divergences were counted by transition; without thinning they are the same."""
    config, store = hmc(tmp_path, f"method.thin={thin}"), tmp_path / "store"

    def before(*inputs):
        return {key: value for key, value in fit_settings(*inputs).items() if key != "divergences"}

    with monkeypatch.context() as earlier:
        earlier.setattr("abstain.training.runs.resume.fit_settings", before)
        with pytest.raises(Stopped):
            fit(config, None, store, stopping("sampling", 10), report=False)
    if continues:
        fit(config, None, store, silent, resume=True, report=False)
        return
    with pytest.raises(ConfigError, match="found fits with other settings"):
        fit(config, None, store, silent, resume=True, report=False)


def test_an_unfinished_journal_survives_other_fits(tmp_path):
    """Another seed's fit is published and lengthened meanwhile; a finished journal goes when the next is published."""
    store = tmp_path / "store"
    with pytest.raises(Stopped):
        fit(hmc(tmp_path), None, store, stopping("sampling", 10), report=False)
    (unfinished,) = journals(store)
    fit(hmc(tmp_path, "seed=1"), None, store, silent, report=False)
    assert (unfinished in journals(store), len(journals(store))) == (True, 2)
    fit(hmc(tmp_path, "seed=2"), None, store, silent, report=False)
    assert (unfinished in journals(store), len(journals(store))) == (True, 2)
    fit(hmc(tmp_path), None, store, silent, resume=True, report=False)
    assert journals(store) == [unfinished]
    whole = jax.tree.leaves(draws_of_config(hmc(tmp_path)))
    for left, right in zip(whole, draws_of(store, 3), strict=True):
        np.testing.assert_array_equal(left, right)


def test_without_resume_a_cut_off_fit_begins_anew(tmp_path):
    """The old journal is removed, and the draws are the same."""
    store, calls = tmp_path / "store", []
    with pytest.raises(Stopped):
        fit(hmc(tmp_path), None, store, stopping("sampling", 10), report=False)
    fit(hmc(tmp_path), None, store, recording(calls), report=False)
    assert calls[0] == (5, 20, "warm-up")


def test_a_falling_learning_rate_leaves_nothing_to_lengthen(tmp_path):
    """Its journal goes with the publishing, and more steps are another fit."""
    path = written(tmp_path, "map", 'kind = "map"\nsteps = 20\nlearning_rate = 0.01')
    fit(read_config(path, ("reports=2",)), None, tmp_path / "store", silent, report=False)
    assert journals(tmp_path / "store") == []
    with pytest.raises(ConfigError, match="found no fit"):
        fit(read_config(path, ("reports=2", "steps=40")), None, tmp_path / "store", silent, resume=True, report=False)


def test_a_fit_under_way_is_left_alone(tmp_path):
    """The same fit in the same process, with and without --resume; the first one finishes."""
    config, store, refused = hmc(tmp_path), tmp_path / "store", []

    def rival(done, total, passage="", **facts):
        for resume in (False, True) if (passage, done) == ("sampling", 10) else ():
            with pytest.raises(StoreError, match="a fit with the same settings is running") as error:
                fit(config, None, store, silent, resume=resume, report=False)
            refused.append(error)

    fit(config, None, store, rival, report=False)
    assert len(refused) == 2
    assert versions(store, config.name) == [1]
