"""Networks: the architectures that a config can name, and Flax modules of the user, imported by name from a list."""
