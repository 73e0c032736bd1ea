"""Runs: the journal of a fit, how it is resumed, its progress, and failures that do not end it."""
