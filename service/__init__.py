"""The online stage: bundles in, HTTP answers out. It imports `models`, and never `training`."""
