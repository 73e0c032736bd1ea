"""How a table is written: the keys of `[data]` that a reader needs in addition to the file.

A bundle stores them with the settings of its fit, so that `abstain predict`, `evaluate` and `calibrate` read files in the
same way. What a key does not say is detected in each file; where a file alone is not certain, the dialect of the training
file decides, which the bundle stores, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from abstain.models.errors import BundleError

ENCODINGS = (
    "utf-8",
    "utf-16",
    "utf-16-le",
    "utf-16-be",
    "utf-32",
    "latin-1",
    "cp1250",
    "cp1251",
    "cp1252",
    "cp1253",
    "cp1254",
    "iso-8859-2",
    "iso-8859-15",
    "mac-roman",
    "koi8-r",
    "big5",
    "gb18030",
    "shift_jis",
    "euc-jp",
    "euc-kr",
)


def _check_encoding(name: str) -> str:
    if name not in ENCODINGS:
        raise ValueError(f"one of {', '.join(ENCODINGS)}")
    return name


Encoding = Annotated[str, AfterValidator(_check_encoding)]
"""The name of an encoding, one of `ENCODINGS`."""


ColumnKind = Literal["number", "category", "date"]


class FileDialect(BaseModel):
    """How a text table was written, as far as it was certain; a bundle stores that of its training file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    delimiter: Literal[",", ";", "\t", "|"]
    decimal: Literal[".", ","] | None = None
    """None if no number of the file had a decimal mark."""


class Reading(BaseModel):
    """The keys of `[data]` for reading tables, where None is detected or not needed, and what a fitted model knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    delimiter: Literal[",", ";", "\t", "|"] | None = None
    """Text tables: what separates cells."""
    encoding: Encoding | None = None
    """Text tables: one of `ENCODINGS`."""
    decimal: Literal[".", ","] | None = None
    """Text tables: the decimal mark of numbers."""
    comment: str | None = Field(default=None, min_length=1, max_length=8)
    """Text tables: lines that begin with it are left out."""
    column_names: tuple[str, ...] = ()
    """Text tables without a header: the names of the columns, in order."""
    na_values: tuple[str, ...] = ()
    """Cells that count as missing values in every column."""
    dialect: FileDialect | None = None
    """Not a key: the dialect of the training file, which decides where a file alone is not certain."""
    kinds: Mapping[str, ColumnKind] = {}
    """Not a key: the kinds of columns that are known. A decimal comma is only read in columns of numbers."""

    @property
    def set_keys(self) -> tuple[str, ...]:
        """The keys that are set, except for `na_values`, which holds for all formats."""
        return tuple(key for key in READING_KEYS if key != "na_values" and getattr(self, key) not in {None, ()})


READING_KEYS = tuple(key for key in Reading.model_fields if key not in {"dialect", "kinds"})
"""The keys of `[data]` among the fields of `Reading`."""
PLAIN = Reading()
"""No key is set."""


def reading_of(settings: Mapping[str, Any]) -> Reading:
    """Returns the keys of reading among the data settings in a manifest.

    Raises:
        BundleError: a key has a value that no fit writes.
    """
    try:
        return Reading.model_validate({key: settings[key] for key in READING_KEYS if key in settings})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise BundleError(f"data.settings.{key}", expected=first["msg"], found=str(settings.get(key))[:60]) from error
