"""Inference: from a prior, a likelihood and data to draws from the posterior."""
