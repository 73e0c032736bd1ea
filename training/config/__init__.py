"""The config of a fit, and what it needs of the machine."""
