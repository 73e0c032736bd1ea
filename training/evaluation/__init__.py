"""Evaluation: metrics with their intervals, checks before publication, and the records that reports use."""
