"""Networks: the architectures that a config can name, and the user's Flax modules, imported only if allowed."""
