"""Publishes broken versions under load, and checks that none is served and that the server says why.

    python -m tests.faults.broken_versions [--connections 4] [--workers 2]

Each fault is published twice: as the newest version of a model without `stable`, and as a version that is labelled `stable` by
force. Checked for both, and printed as a table: the state and the reason in `GET /models`, `why` of `/readyz` (which stays
200), the metric `abstain_model_loads_total`, the log, and the version that is served meanwhile. At the end a sound version must
be served, so the server has not given up. Counts of the load:

    failed      requests without status 200
    wrong       answers whose numbers are not those of the version that they name
    broken      answers by a broken version
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from abstain.models.bundles.bundle import load, serving_bytes
from abstain.models.bundles.store import set_label
from tests.faults.swaps import Load, expected_means
from tests.helpers.golden_versions import GOLDEN, flip_bit, publish_golden
from tests.helpers.hostile_bundles import sign
from tests.helpers.servers import Server, start_server, stop_server

SETTLE_SECONDS = 180.0
"""The longest time until the server has said that a version is broken."""
LABELLED, NEWEST = "golden", "newest"
SOUND_SCALE = 1.5
MODULE = "abstain_faulty_network"
NETWORK = '''
import flax.linen as nn
import jax


class Kernel(nn.Module):
    """Calls a kernel that no machine has, which only XLA finds out, when it compiles."""

    outputs: int

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(4)(x.ravel()))
        same = jax.ShapeDtypeStruct(x.shape, x.dtype)
        x = jax.ffi.ffi_call("abstain_no_such_kernel", same, vmap_method="broadcast_all")(x)
        return nn.Dense(self.outputs)(x)
'''


class Fault(NamedTuple):
    """A way to break a version: how it is published, and words of the reason that the server gives."""

    name: str
    publish: Callable[..., int]
    words: str


def module(name: str) -> dict[str, Any]:
    """A network of a user's module, as a manifest names it."""
    return {"kind": "module", "module": name, "arguments": {}}


def rewritten(**changes: object) -> Callable[..., int]:
    """Publishes a version whose manifest has other values, with right hashes."""
    return partial(publish_golden, harm=lambda folder: sign(folder, **changes))


FAULTS = (
    Fault("flipped bit", partial(publish_golden, harm=flip_bit), "is damaged or was altered"),
    Fault("wrong shapes", rewritten(model__network__hidden=[5]), "Dense_0"),
    Fault("module not allowed", rewritten(model__network=module("elsewhere:Network")), "the module is not allowed"),
    Fault("too large", partial(publish_golden, copies=4_000), "ABSTAIN_MEMORY_BYTES: does not fit"),
    Fault("does not compile", rewritten(model__network=module(f"{MODULE}:Kernel")), "abstain_no_such_kernel"),
)


class Said(NamedTuple):
    """What the server says of a version, each None until it says it."""

    state: str | None
    readyz: bool
    metric: bool
    log: bool
    served: int | None
    """The version that requests for the model get."""


def look(server: Server, model: str, version: int, words: str) -> Said:
    """Reads all places in which a server says why a version is not served."""
    listed = {each["name"]: each["versions"] for each in httpx.get(f"{server.url}/models").json()["models"]}
    entry = next((each for each in listed[model] if each["version"] == version), {})
    ready = httpx.get(f"{server.url}/readyz")
    reasons = [why for why in ready.json().get("why", []) if why.startswith(f"{model}:{version}")]
    wanted = {"model": model, "version": str(version)}
    samples = [
        sample.value
        for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)
        for sample in family.samples
        if sample.name == "abstain_model_loads_total"
        and wanted.items() <= sample.labels.items()
        and sample.labels["outcome"] == entry.get("state")
    ]
    lines = [line for line in server.log.read_text().splitlines() if f"{model}:{version} cannot be served" in line]
    named = words in (entry.get("why") or "")
    return Said(
        entry.get("state") if named else None,
        ready.status_code == 200 and any(words in why for why in reasons),
        sum(samples) > 0,
        any(words in line for line in lines),
        httpx.get(f"{server.url}/models/{model}").json().get("version"),
    )


def wait_until_said(server: Server, model: str, version: int, words: str) -> tuple[Said, float]:
    """Looks until the server has said everything, or the time is over; returns the last look, and after how many seconds."""
    started = time.monotonic()
    while True:
        said = look(server, model, version, words)
        seconds = time.monotonic() - started
        if (
            said.state in {"failed", "refused"} and said.readyz and said.metric and said.log
        ) or seconds > SETTLE_SECONDS:
            return said, seconds
        time.sleep(0.2)


def run(arguments: argparse.Namespace, folder: Path) -> int:
    """Publishes all faults; returns the number of wrong findings."""
    root = folder / "store"
    (folder / "modules").mkdir()
    (folder / "modules" / f"{MODULE}.py").write_text(NETWORK)
    rows = np.random.default_rng(0).uniform(-3, 3, (64, 1)).astype(np.float32)
    for name in (LABELLED, NEWEST):
        publish_golden(root, name=name)
    set_label(root, LABELLED, 1, "stable")
    expected = {1: expected_means(root, 1, rows)}
    for broken in range(2, len(FAULTS) + 2):
        expected[broken] = np.full(64, np.nan)
    publish_golden(folder / "beside", SOUND_SCALE)
    expected[len(FAULTS) + 2] = expected_means(folder / "beside", 1, rows)
    server = start_server(
        root,
        folder,
        workers=arguments.workers,
        ABSTAIN_REFRESH_SECONDS="0.5",
        ABSTAIN_MEMORY_BYTES=str(6 * serving_bytes(load(GOLDEN).manifest)),
        ABSTAIN_MODULES=MODULE,
        PYTHONPATH=str(folder / "modules"),
        ABSTAIN_COMPILED=str(folder / "compiled"),
    )
    half = arguments.connections // 2
    loads = [Load(server.url, expected, rows, half, name) for name in (LABELLED, NEWEST)]
    faults = 0
    print(f"{'fault':20}{'model':9}{'state':9}{'/readyz':9}{'metric':8}{'log':6}{'served':8}seconds")
    try:
        for fault in FAULTS:
            versions = {name: fault.publish(root, name=name) for name in (NEWEST, LABELLED)}
            set_label(root, LABELLED, versions[LABELLED], "stable")
            for name, version in versions.items():
                said, seconds = wait_until_said(server, name, version, fault.words)
                words = ["yes" if each else "NO" for each in said[1:4]]
                print(
                    f"{fault.name:20}{name:9}{said.state!s:9}{words[0]:9}{words[1]:8}{words[2]:6}{said.served!s:8}{seconds:.1f}",
                    flush=True,
                )
                faults += said.state not in {"failed", "refused"} or not all(said[1:4]) or said.served != 1
        faults += _recover(server, root)
    finally:
        for each in loads:
            each.stop()
        stop_server(server)
    return faults + _report([answer for each in loads for answer in each.answers], set(range(2, len(FAULTS) + 2)))


def _recover(server: Server, root: Path) -> int:
    """Publishes a sound version of both models; returns how many of them are not served in time."""
    version = publish_golden(root, SOUND_SCALE, NEWEST)
    set_label(root, LABELLED, publish_golden(root, SOUND_SCALE), "stable")
    deadline, missing = time.monotonic() + SETTLE_SECONDS, {LABELLED, NEWEST}
    while missing and time.monotonic() < deadline:
        missing = {
            name for name in missing if httpx.get(f"{server.url}/models/{name}").json().get("version") != version
        }
        time.sleep(0.2)
    print(f"a sound version afterwards: served of {2 - len(missing)} models of 2")
    return len(missing)


def _report(answers: list[Any], broken: set[int]) -> int:
    failed = sum(answer.status != 200 for answer in answers)
    by_broken = sum(answer.version in broken for answer in answers)
    wrong = sum(answer.status == 200 and not answer.right for answer in answers) - by_broken
    print(f"answers {len(answers):,}: failed {failed}, wrong {wrong}, broken {by_broken}")
    return failed + wrong + by_broken


def main() -> None:
    """Runs in a temporary folder; the exit status is 1 if anything was not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    with tempfile.TemporaryDirectory(prefix="abstain-broken-") as folder:
        sys.exit(1 if run(parser.parse_args(), Path(folder)) else 0)


if __name__ == "__main__":
    main()
