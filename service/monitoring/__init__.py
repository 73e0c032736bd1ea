"""Monitoring: Prometheus metrics and drift detection."""
