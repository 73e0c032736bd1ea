"""The config of a fit, and the memory that it needs."""
