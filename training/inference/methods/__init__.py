"""Inference methods, one file each, all of one form.

    fit(key, problem, settings, draws, journal) -> Fitted

Picked by the config's `method.kind` from `METHODS` in `training/fit.py`.
"""
