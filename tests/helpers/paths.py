"""Where the tests find the project's files, and data that only some machines have."""

from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CONFIGS = PROJECT / "training" / "configs"
SHARED = PROJECT.parent / "shared" / "data"
"""Real data sets; tests that need one skip where it is not there."""
