"""The shared core: pure functions over small records.

`models` imports neither `training` nor `service`, knows no HTTP, no inference algorithm, and no files but bundles and tables of rows.
"""
