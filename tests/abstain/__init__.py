"""The Python interface of the package."""
