"""Inference methods, one file each, with one interface.

    fit(key, problem, settings, draws, journal) -> Fitted

`METHODS` in `training/fit.py` maps the config's `method.kind` to a method.
"""
