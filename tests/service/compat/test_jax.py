"""JAX's cache of compiled programs: another version of JAX, whose cache is made differently, gets no cache."""

import os
import subprocess
import sys

import pytest

from tests.helpers.paths import PROJECT

OTHER_JAX = """
import logging, pathlib, sys, jax
from jax._src import compilation_cache
from abstain.service.compilation import keep_compiled
logging.basicConfig(format="%(message)s")
exec(sys.argv[2])
keep_compiled(pathlib.Path(sys.argv[1]))
print(float(jax.jit(lambda x: x + 1)(1.0)))
"""

BYPASS = """
make = compilation_cache.get_file_cache
def initialize():
    path = jax.config.jax_compilation_cache_dir
    compilation_cache._cache = make(path)[0] if path else None
compilation_cache._initialize_cache = initialize
"""
"""A JAX that makes its cache differently."""


@pytest.mark.parametrize(
    "change",
    [
        "del compilation_cache._initialize_cache",
        BYPASS,
        "compilation_cache.CacheInterface.__abstractmethods__ = frozenset({'get', 'put', 'load'})",
    ],
    ids=["no such function", "another way", "more methods"],
)
def test_a_jax_that_cannot_be_checked_keeps_nothing(change, tmp_path):
    """It continues, logs this once, and uses no folder of the environment instead."""
    folder, environments = tmp_path / "compiled", tmp_path / "environment"
    environments.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", OTHER_JAX, str(folder), change],
        cwd=PROJECT,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(environments)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.count("compiled programs are not kept: jax ") == 1, done.stderr
    assert "install the versions in requirements-serving.lock" in done.stderr
    assert list(folder.iterdir()) == list(environments.iterdir()) == []
