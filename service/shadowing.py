"""The folders are the import names: a `models` that lies earlier on the path than ours must be told, not guessed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def check_models_is_ours() -> None:
    """Refuses to start where `import models` would find somebody else's package.

    Raises:
        ImportError: naming both places, and what to do.
    """
    ours = Path(__file__).resolve().parents[1] / "models" / "__init__.py"
    spec = find_spec("models")
    # A folder without __init__.py is a package too, if no real one comes after it; it has no origin but a place.
    found = (spec.origin or next(iter(spec.submodule_search_locations or ()), None)) if spec else None
    if found is None or Path(found).resolve() != ours:
        raise ImportError(
            f"abstain's package 'models' is hidden by another: expected {ours}, found {found or 'none'}; "
            "start abstain from another folder, or take that folder off PYTHONPATH"
        )
