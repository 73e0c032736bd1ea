"""Decisions: calibrated thresholds and p-values, the reject flag, prediction sets and intervals, and drift."""
