"""Inference methods, one file each, all of one form.

    fit(key, bnn, train, monitor, settings, draws, progress) -> Fitted

`train` is what is learned from; `monitor` are rows on which progress is reported, and nothing else. Picked by the
config's `method.kind` from `METHODS` in `training/fit.py`.
"""
