"""Importing a posterior: readers of each kind of source, and the match of its arrays with a network's parameters."""
