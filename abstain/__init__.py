"""abstain: a model server that knows when to say: I don't know.

    abstain.models     what both stages share: networks, bundles, scores, the decision
    abstain.training   from a config and data to a published bundle
    abstain.service    from a bundle to answers over HTTP

Installed, these lie in this package. In a checkout and in a Bento they lie beside it, in folders of the same names.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

if not (_PACKAGE / "models").is_dir():
    __path__.append(str(_PACKAGE.parent))


def __getattr__(name: str) -> str:
    """`__version__`, read when it is asked for. A Bento has no metadata of the package."""
    if name == "__version__":
        try:
            return version("abstain")
        except PackageNotFoundError:
            return "unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
