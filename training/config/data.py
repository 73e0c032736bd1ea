"""`[data]`: the source of the rows, their split, and random changes of images."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, NonNegativeInt, field_validator

from abstain.models.files.reading import READING_KEYS, ColumnKind, Encoding, Reading
from abstain.training.config.section import Names, Section, Size

UnseenRule = Literal["reject", "missing", "refuse"]


class AugmentConfig(Section):
    """Random changes of images (`training/data/augmentation.py`): the limit of each change; 0 switches it off."""

    shift: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Whole pixels, in both directions."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Degrees, in both directions."""
    thickness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Pixels by which bright strokes are thickened or thinned at each edge."""

    @property
    def changes_rows(self) -> bool:
        """Whether any change is switched on."""
        return bool(self.shift or self.rotate or self.thickness)


class DataConfig(Section):
    """The source of the rows, and their split into three parts."""

    source: str | None = None
    """A path or the name of an embedded set; `--data` replaces it."""
    calibration_size: Size = 0.2
    """The size of the part, cut from the source's training rows."""
    test_size: Size = 0.2
    """The size of the part, if the source has no test part."""
    split_index: NonNegativeInt = 0
    """The index of the source's split (`train_idx`, `test_idx`)."""
    target: str | None = None
    """Tables only: the column to predict."""
    categorical: Names = ()
    """Tables only: columns that hold categories, whatever their cells look like."""
    unseen: UnseenRule | dict[str, UnseenRule] = "reject"
    """Tables only: what becomes of a category that the training part lacks, for all columns or by column (then "reject" for
    the others): its row is predicted and rejected, the category counts as a gap, or it is an error."""
    numeric: Names = ()
    """Tables only: columns that hold numbers."""
    dates: Names = ()
    """Tables only: columns that hold dates or times, which become seconds since 1970-01-01 00:00 UTC."""
    drop: Names = ()
    """Tables only: columns to leave out."""
    drop_missing_target: bool = False
    """Tables only: leave out rows without a target; otherwise they are errors."""
    delimiter: Literal[",", ";", "\t", "|"] | None = None
    """Text tables: what separates cells; detected if not set."""
    encoding: Encoding | None = None
    """Text tables: detected if not set, as UTF-8, or by the file's first bytes as UTF-16."""
    decimal: Literal[".", ","] | None = None
    """Text tables: the decimal mark; detected if not set, where cells are not separated by commas."""
    comment: Annotated[str, Field(min_length=1, max_length=8)] | None = None
    """Text tables: lines that begin with this text are left out."""
    column_names: Names = ()
    """Text tables without a header: the names of the columns, in order."""
    na_values: Names = ()
    """Tables only: cells that count as missing values in every column."""
    group: str | None = None
    """A column, or an array: rows of one group are never in two parts. It is not a feature."""
    time: str | None = None
    """A column, or an array: the latest rows are the test part, those before them the calibration part. Not a feature."""
    stratify: bool = False
    """Whether every part has each class's share of rows."""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """What the log-likelihood of a row counts by its class, undone in the probabilities; 1 for classes that are not named."""
    inputs: Literal["standardize", "range", "none"] = "standardize"
    """Each feature to mean 0 and std 1; all features together to [0, 1] (pixels); or unchanged."""
    augment: AugmentConfig = AugmentConfig()
    """For images: changes the training rows of every gradient. Not for Markov chains and Laplace's approximation."""

    @field_validator("class_weights", mode="before")
    @classmethod
    def _check_class_weights(cls, value: Any) -> Any:
        """Refuses other values with one sentence: pydantic would compare them with each member of the union alone."""
        if value is None or value == "balanced":
            return value
        if not isinstance(value, dict) or not value:
            raise ValueError('"balanced", or weights by class name, as in {fraud = 10.0}')
        for name, weight in cast("dict[Any, Any]", value).items():
            # Float32 holds the products of such weights with log-likelihoods. A bool is an int in Python.
            if type(weight) not in {int, float} or not 1e-6 <= weight <= 1e6:
                raise ValueError(f"a weight from 1e-6 to 1e6 for the class {name!r}")
        return cast("Any", value)

    @field_validator("unseen", mode="before")
    @classmethod
    def _check_unseen(cls, value: Any) -> Any:
        """Refuses other values with one sentence, as for class weights."""
        rules = list(cast("dict[Any, Any]", value).values()) if isinstance(value, dict) else [value]
        if not rules or any(rule not in ("reject", "missing", "refuse") for rule in rules):
            raise ValueError('"reject", "missing" or "refuse", or one of these by column, as in {country = "missing"}')
        return value

    def unseen_rule(self, column: str) -> UnseenRule:
        """Returns what becomes of unseen categories of a column."""
        return self.unseen.get(column, "reject") if isinstance(self.unseen, dict) else self.unseen

    @property
    def reading(self) -> Reading:
        """The keys that the reader of a table needs."""
        named: dict[ColumnKind, Names] = {"category": self.categorical, "number": self.numeric, "date": self.dates}
        kinds: dict[str, ColumnKind] = {name: kind for kind, names in named.items() for name in names}
        return Reading(**{key: getattr(self, key) for key in READING_KEYS}, kinds=kinds)

    @property
    def split_by(self) -> str | None:
        """The column or array that rows are split by."""
        return self.group if self.group is not None else self.time

    @property
    def split_kind(self) -> Literal["group", "time"]:
        """Whether `split_by` names groups or times."""
        return "time" if self.time is not None else "group"
