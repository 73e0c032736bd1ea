"""Two processes publish at once into one store; every version must be there, whole, with a number of its own.

    python -m tests.faults.publishers [--versions 100]

Once into a folder, once into a bucket of an S3 server. Printed: the versions that were published, that the store lists, and
whose files all have the hashes of their manifests.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from abstain.models.bundles import store
from abstain.models.bundles.manifest import read_manifest, verify_files, write_manifest
from abstain.models.bundles.remote.copies import local_copy
from abstain.models.bundles.remote.objects import open_objects
from abstain.models.bundles.remote.publish import publish_remote
from abstain.models.bundles.remote.url import RemoteURL, parse_store
from abstain.models.bundles.remote.versions import whole_versions
from tests.helpers.golden_versions import GOLDEN
from tests.helpers.object_server import run_object_server

NAME = "golden"
PUBLISHERS = 2


def publish(address: str, number: int) -> None:
    """Publishes versions, one after another, each with its publisher in a file; prints their numbers."""
    target, manifest = parse_store(address), read_manifest(GOLDEN)

    def write(folder: Path) -> None:
        (folder / "publisher").write_text(str(os.getpid()))

    def seal(folder: Path, version: int) -> None:
        write_manifest(folder, manifest.model_copy(update={"name": NAME, "version": version}))

    for _ in range(number):
        if isinstance(target, RemoteURL):
            print(publish_remote(open_objects(target), NAME, write, seal))
        else:
            print(store.publish(target, NAME, write, seal))


def run(address: str, number: int) -> int:
    """Runs the publishers, and counts; returns the number of faults."""
    command = [sys.executable, "-m", "tests.faults.publishers", "--publish", address, "--versions", str(number)]
    started = time.monotonic()
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(PUBLISHERS)]
    published = [int(line) for process in processes for line in process.communicate()[0].split()]
    seconds = time.monotonic() - started
    target = parse_store(address)
    listed = (
        whole_versions(open_objects(target), NAME) if isinstance(target, RemoteURL) else store.versions(target, NAME)
    )
    whole = sum(_is_whole(target, version) for version in listed)
    print(
        f"{address}: {PUBLISHERS} publishers, {len(published)} versions published in {seconds:.0f} s with "
        f"{len(set(published))} numbers; {len(listed)} listed, {whole} whole"
    )
    expected = PUBLISHERS * number
    return (len(set(published)) != expected) + (len(listed) != expected) + (whole != expected)


def _is_whole(target: Path | RemoteURL, version: int) -> bool:
    with local_copy(target, f"{NAME}:{version}") as root:
        folder = root / NAME / str(version)
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
        return manifest.version == version


def main() -> None:
    """Runs it for a folder and a bucket; the exit status is 1 if a version is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=100, help="of each publisher")
    parser.add_argument("--publish", metavar="STORE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if arguments.publish:
        publish(arguments.publish, arguments.versions)
        return
    with tempfile.TemporaryDirectory(prefix="abstain-publishers-") as folder, run_object_server() as server:
        os.environ.update(server.environment)
        faults = run(folder, arguments.versions) + run(str(server.make_store()), arguments.versions)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
