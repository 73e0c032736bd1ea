"""Decisions: calibrated thresholds and p-values, the reject flag, conformal sets and intervals, and drift."""
