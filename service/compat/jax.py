"""The private interface of JAX that abstain replaces: the cache of compiled programs."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import jax
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from abstain.models.errors import ConfigError


@runtime_checkable
class ProgramCache(Protocol):
    """The methods of `jax._src.compilation_cache_interface.CacheInterface`."""

    def get(self, key: str) -> bytes | None:
        """Returns the program of this key, or None."""
        ...

    def put(self, key: str, value: bytes) -> None:
        """Stores a program under a key."""
        ...


def use_cache(cache: ProgramCache, folder: Path) -> None:
    """Makes JAX keep its compiled programs in this cache only.

    JAX has no public function for this, so the function that makes its cache is replaced. To check that JAX uses the result,
    its cache is made here at once.

    Args:
        folder: the path that JAX is configured with; only the cache writes to it.

    Raises:
        ConfigError: this version of JAX keeps its programs in another way.
    """
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Otherwise XLA reads and writes its own caches for GPUs in the same folder, without this cache.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    try:
        from jax._src import compilation_cache  # noqa: PLC0415 - absent in another JAX
        from jax._src.compilation_cache_interface import CacheInterface  # noqa: PLC0415 - as above

        methods = {*CacheInterface.__abstractmethods__}
        compilation_cache.get_file_cache = lambda path: (cache, path)
        reset_cache()
        # By name, because the type checker refuses private names.
        getattr(compilation_cache, "_initialize_cache")()  # noqa: B009
        found: object = getattr(compilation_cache, "_cache")  # noqa: B009
    except Exception as error:  # any error that another version of JAX may raise
        raise _unsupported(f"{type(error).__name__}: {error}") from error
    if found is not cache or methods != {"get", "put"}:
        raise _unsupported(f"{type(found).__name__} with the methods {', '.join(sorted(methods))}")


def use_no_cache() -> None:
    """Makes JAX keep no compiled programs, also if `JAX_COMPILATION_CACHE_DIR` names a folder."""
    jax.config.update("jax_compilation_cache_dir", None)
    reset_cache()


def _unsupported(found: str) -> ConfigError:
    return ConfigError(
        "JAX's compiled programs cannot be checked",
        where=f"jax {jax.__version__}",
        expected="a cache made by get_file_cache, with the methods get and put",
        found=found,
        fix="install the versions in requirements-serving.lock",
    )
