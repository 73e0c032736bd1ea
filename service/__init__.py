"""The server: loads bundles and responds to HTTP requests. It imports `models`, and never `training`."""
