"""Tables of names and values: settings, diagnostics and metrics of a manifest as text."""

from __future__ import annotations

from typing import Any

from abstain.training.data.ood_sets import readable_name
from abstain.training.report.contents import Facts


def flatten(tree: Any, prefix: str = "") -> Facts:
    """Returns one line for each leaf of a tree of settings; None and empty values have no line."""
    if tree is None or (isinstance(tree, (list, tuple, dict)) and not tree):
        return ()
    if isinstance(tree, dict):
        return tuple(line for key, value in tree.items() for line in flatten(value, f"{prefix}{key} "))
    return ((readable_name(prefix.strip()), value_text(tree)),)


def value_text(value: Any) -> str:
    """Formats a value, or the values of a list, with four significant digits."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return ", ".join(f"{part:.4g}" if isinstance(part, float) else str(part) for part in values)
