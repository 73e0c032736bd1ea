"""Makes records as a hostile file may contain them."""

import copy


def altered(calibration, **changes):
    """Returns a copy with other values, also those that the types of the record forbid."""
    changed = copy.copy(calibration)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


def stand_in(kind, **attributes):
    """Returns an instance of a class that has only these attributes, for functions that use no others."""
    instance = object.__new__(kind)
    for name, value in attributes.items():
        object.__setattr__(instance, name, value)
    return instance
