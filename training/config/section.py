"""The base class of every table of the config, and shared types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Counted = Annotated[int, Field(gt=0, lt=2**31)]
"""A positive number that a compiled program counts in 32 bits."""
Size = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]
"""A number of rows, or a share of them."""
Names = Annotated[tuple[str, ...], Field(strict=False)]
"""A TOML list; only its items are checked strictly."""


class Section(BaseModel):
    """A table of the config: frozen, without unknown keys, and without implicit conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
