"""The columns of a table that a model takes."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

UNSEEN = -1.0
"""The code of a category that the training part does not have."""


class Column(BaseModel):
    """One column of a table.

    A row holds one number for each column: the number itself; the category's code, its place in `categories` (`UNSEEN` for
    another category); or the date, in seconds since 1970-01-01 00:00 UTC. A missing value is NaN.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    kind: Literal["number", "category", "date"] = "number"
    categories: tuple[str, ...] = ()
    """The names of the categories in the order of their codes; empty for other kinds."""
    missing: float = math.nan
    """The number that replaces a missing value, as a row holds it; NaN before the fit."""
    unseen: Literal["refuse", "reject", "missing"] = "refuse"
    """What happens to a row with a category that is not in `categories`: it is an error; it is predicted and rejected; or the
    category counts as a missing value."""

    na_values: Annotated[tuple[str, ...], Field(exclude_if=lambda marks: not marks)] = ()
    """Texts that count as missing values, in addition to empty cells and null."""

    @model_validator(mode="before")
    @classmethod
    def _add_kind(cls, values: Any) -> Any:
        """Sets the kind of columns in manifests that were written before columns had kinds."""
        if not isinstance(values, dict):
            return values
        values = cast("dict[str, Any]", values)
        return {"kind": "category"} | values if values.get("categories") else values

    @model_validator(mode="after")
    def _check_kind(self) -> Column:
        if (self.kind == "category") != bool(self.categories):
            raise ValueError(f"{self.kind} with {len(self.categories)} categories: only a category column has them")
        return self


def describe_codes(column: Column) -> str:
    """Returns, for an error, what a column of categories may hold: `a category's code (0 = Bonn, 1 = Ulm)`."""
    codes = ", ".join(f"{code} = {name}" for code, name in enumerate(column.categories))
    return f"a category's code ({codes})"
