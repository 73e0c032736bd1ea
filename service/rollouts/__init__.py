"""Rollouts: which callers get the candidate, what workers observe of the two versions, and the verdict of a server."""
