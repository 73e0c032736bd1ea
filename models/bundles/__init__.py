"""Bundles: one version of a model on disk, its checkpoint, its signature, and the store of all versions."""
