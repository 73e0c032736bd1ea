"""The commands of `abstain` that need no training package."""
