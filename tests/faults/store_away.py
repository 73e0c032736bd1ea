"""Takes the bucket of a running server away under load, and brings it back.

    python -m tests.faults.store_away [--seconds 60] [--connections 8] [--workers 2]

For the first half of the time connections to the bucket are refused, for the second half requests get no answer. Checked, and
printed:

    failed      requests without status 200
    wrong       answers whose numbers are not those of the version that they name
    said        whether `/readyz` said that the store is away, and was 200
    followed    seconds until the first answer by the version that the label was moved to when the bucket was back
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from abstain.models.bundles.remote.labels import set_remote_label
from abstain.models.bundles.remote.mirror import AWAY
from abstain.models.bundles.remote.objects import open_objects
from abstain.models.bundles.remote.publish import push
from tests.faults.swaps import SETTLE_SECONDS, Load, expected_means
from tests.helpers.golden_versions import publish_golden
from tests.helpers.object_server import ObjectServer, run_object_server
from tests.helpers.servers import start_server, stop_server


def run(arguments: argparse.Namespace, bucket: ObjectServer, folder: Path) -> int:
    """Runs the load; returns the number of faults."""
    root, url = folder / "store", bucket.make_store()
    objects = open_objects(url)
    for scale in (1.0, 1.5):
        version = publish_golden(root, scale)
        push(objects, "golden", version, root / "golden" / str(version))
    set_remote_label(objects, "golden", 1, "stable")
    rows = np.random.default_rng(0).uniform(-3, 3, (64, 1)).astype(np.float32)
    expected = {version: expected_means(root, version, rows) for version in (1, 2)}
    server = start_server(
        str(url),
        folder,
        workers=arguments.workers,
        ABSTAIN_CACHE=str(folder / "cache"),
        ABSTAIN_COMPILED=str(folder / "compiled"),
    )
    load = Load(server.url, expected, rows, arguments.connections)
    said = 0
    try:
        time.sleep(2)
        before = len(load.answers)
        for mode in ("refuse", "hang"):
            bucket.door.close(mode)
            time.sleep(arguments.seconds / 2)
            response = httpx.get(f"{server.url}/readyz", timeout=60)
            said += response.status_code == 200 and AWAY in response.json()["why"]
        during = len(load.answers) - before
        bucket.door.open()
        set_remote_label(objects, "golden", 2, "stable")
        followed = _first_answer(load, 2)
        time.sleep(2)
    finally:
        load.stop()
        stop_server(server)
    failed = sum(answer.status != 200 for answer in load.answers)
    wrong = sum(answer.status == 200 and not answer.right for answer in load.answers)
    print(
        f"answers {len(load.answers):,}, {during:,} of them while the store was away for {arguments.seconds:g} s: "
        f"failed {failed}, wrong {wrong}"
    )
    print(f"said by /readyz in {said} of 2 looks; followed {followed:.1f} s after the label was moved")
    return failed + wrong + (said != 2)


def _first_answer(load: Load, version: int) -> float:
    """Waits for the first answer by a version; returns the seconds that it took."""
    started, position = time.monotonic(), len(load.answers)
    while time.monotonic() < started + SETTLE_SECONDS:
        if any(answer.version == version for answer in load.answers[position:]):
            return time.monotonic() - started
        time.sleep(0.02)
    raise SystemExit(f"no answer by version {version} within {SETTLE_SECONDS:g} s")


def main() -> None:
    """Runs it in a temporary folder; the exit status is 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory(prefix="abstain-away-") as folder, run_object_server() as bucket:
        os.environ.update(bucket.environment)
        sys.exit(1 if run(parser.parse_args(), bucket, Path(folder)) else 0)


if __name__ == "__main__":
    main()
