"""The shared code of training and serving: pure functions over small records.

`models` imports neither `training` nor `service`. It contains no HTTP and no inference method, and its only files are
bundles and tables of rows.
"""
