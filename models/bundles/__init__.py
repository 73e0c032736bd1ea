"""Bundles: a version of a model on disk, its checkpoint and signature, and the store of all versions."""
