"""Runs the tests under several instruction sets and thread counts: a chain's path depends on the processor's rounding.

    .venv/bin/python tests/isa.py [--isas native AVX2 SSE4_2] [--threads 1 2] [--keys 10] [--tests tests …]

One line for each combination; exit code 1 if any failed. Threads are limited by the cores that the process may run on,
which XLA's thread pool follows.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> int:
    """Runs all combinations, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isas", nargs="+", default=["native", "AVX2", "SSE4_2"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--tests", nargs="+", default=["tests"])
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if max(options.threads) > len(cores):
        parser.error(f"--threads {max(options.threads)}: expected at most {len(cores)}, the cores of this process")
    good = [
        run(isa, cores[:threads], options.keys, options.tests) for isa in options.isas for threads in options.threads
    ]
    return 0 if all(good) else 1


def run(isa: str, cores: list[int], keys: int, tests: list[str]) -> bool:
    """Whether the tests pass with one instruction set on some cores; prints a line, and what failed."""
    flags = os.environ.get("XLA_FLAGS", "") + ("" if isa == "native" else f" --xla_cpu_max_isa={isa}")
    # Keys differ in numbers only: what one has compiled, the others need not compile again.
    # The number of threads is part of a program, but not of the name that JAX keeps it under.
    compiled = Path(tempfile.gettempdir()) / f"abstain-tests-isa-{os.getuid()}-{isa}-{len(cores)}"
    environment = {
        "XLA_FLAGS": flags.strip(),
        "ABSTAIN_TEST_KEYS": str(keys),
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    began = time.monotonic()
    ran = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-n",
            str(len(cores)),
            "--dist",
            "loadfile",
            "--no-loadscope-reorder",
            *tests,
        ],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    seconds, last = time.monotonic() - began, (ran.stdout.strip().splitlines() or [""])[-1]
    counts = ", ".join(re.findall(r"\d+ (?:passed|failed|skipped|errors?)", last)) or last
    print(f"isa {isa}, threads {len(cores)}, keys {keys}: {counts}, {seconds:.0f} s", flush=True)
    if ran.returncode:
        print(ran.stdout, flush=True)
    return ran.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
