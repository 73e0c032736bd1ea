"""Monitoring: Prometheus metrics and the watch for drift."""
