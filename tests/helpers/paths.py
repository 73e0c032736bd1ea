"""Paths of the project's files, and of data that only some machines have."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CONFIGS = PROJECT / "training" / "configs"
SHARED = PROJECT.parent / "shared" / "data"
"""Real data sets; tests that need a missing one are skipped."""
