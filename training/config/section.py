"""What every table of the config is made of: a frozen section, and the types that several of them share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Counted = Annotated[int, Field(gt=0, lt=2**31)]
"""What a compiled program counts, in 32 bits."""
Size = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]
"""A number of rows, or a share of them."""
Names = Annotated[tuple[str, ...], Field(strict=False)]
"""A TOML list; strictness is about what is in it."""


class Section(BaseModel):
    """A table of the config: frozen, no key but its own, and nothing converted in silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
