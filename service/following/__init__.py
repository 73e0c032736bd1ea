"""Follows the store: plans of what to serve, their preparation in a helper process, and the step in which all workers swap."""
