"""Records as a hostile file may hold them."""

import copy


def altered(calibration, **changes):
    """What a file may hold, though the types of the record forbid it."""
    found = copy.copy(calibration)
    for name, value in changes.items():
        object.__setattr__(found, name, value)
    return found
