"""The numbers and the words of a piece of JSON, to compare them apart."""

import numpy as np

ERROR_KEYS = ["error", "code", "where", "id", "expected", "found", "fix"]
"""The keys of every error over HTTP."""


def numbers(tree) -> np.ndarray:
    """All numbers in a piece of JSON, in the order of its keys' names."""
    if isinstance(tree, dict):
        return np.concatenate([numbers(value) for _, value in sorted(tree.items())] or [np.empty(0)])
    if isinstance(tree, list):
        return np.concatenate([numbers(value) for value in tree] or [np.empty(0)])
    is_number = isinstance(tree, int | float) and not isinstance(tree, bool)
    return np.array([tree] if is_number else [], dtype=np.float64)


def words(tree) -> list:
    """All keys and values that are not numbers in a piece of JSON, in the order of its keys' names."""
    if isinstance(tree, dict):
        return [word for key, value in sorted(tree.items()) for word in (key, *words(value))]
    if isinstance(tree, list):
        return [word for value in tree for word in words(value)]
    return [] if isinstance(tree, int | float) and not isinstance(tree, bool) else [tree]
