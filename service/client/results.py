"""What a client returns for rows: predictions as records of rows and as columns.

A field that the request has not asked for, or that the model does not have, is None in a row and an error as a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np

from abstain.models.errors import ConfigError, InputError, suggest
from abstain.service.client.facts import freeze, record_of
from abstain.service.predict.class_columns import CLASS_FIELDS, class_keys

if TYPE_CHECKING:
    import pandas as pd

Words = tuple[tuple[str, ...], ...]
"""The words of each row."""


@dataclass(frozen=True, kw_only=True)
class RowScore:
    """One score of one row, compared with the calibration rows; the fields of `scores` in a response."""

    value: float
    percentile: float
    threshold: float
    p_value: float
    extrapolated: bool
    evidence: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreColumns:
    """One score of every row; the fields are those of `RowScore`. `evidence` is None for a score that is not combined."""

    value: np.ndarray
    percentile: np.ndarray
    threshold: np.ndarray
    p_value: np.ndarray
    extrapolated: np.ndarray
    evidence: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class RowPrediction:
    """The prediction for one row; docs/responses.md explains each field.

    Attributes:
        other: fields that this version of the client does not know.
    """

    reject: bool | None = None
    reasons: tuple[str, ...] | None = None
    novel: bool | None = None
    ambiguous: bool | None = None
    label: str | None = None
    index: int | None = None
    probabilities: tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    entropy: float | None = None
    aleatoric_entropy: float | None = None
    mutual_information: float | None = None
    prediction_set: tuple[str, ...] | None = None
    probability_interval: tuple[float, float] | None = None
    mean: float | None = None
    aleatoric_std: float | None = None
    epistemic_std: float | None = None
    quantiles: Mapping[str, float] | None = None
    interval: tuple[float, float] | None = None
    scores: Mapping[str, RowScore] | None = None
    other: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


_KNOWN = frozenset(RowPrediction.__dataclass_fields__) - {"other"}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ServedPredictions:
    """A server's predictions: one record for each row, in the caller's order, and the same as numpy columns.

    A column is made when it is first read. Besides the properties, `column(NAME)` returns any field of the response.

    Attributes:
        name: the model's name.
        version: its version.
        digest: the sha256 of that version's manifest.
        percentile: the percentile of the decision that was used.
        coverage: the coverage of prediction sets and intervals that was used.
        max_error: the largest share of wrong answers among accepted rows; None for a model without such a limit.
        confidence: the probability with which that share holds; None for a model without a limit.
        draws: the number of posterior draws.
        request_ids: the id of each request; several, if the rows were sent in several requests.
        fields: the names of the fields of each row.
        raw: the rows as the server has sent them.
        class_names: the classes, in the order of the columns of `probabilities`; empty for a regression, for a response
            without a number for each class, and if the key has not the scope `read`.

    Examples:
        >>> predictions = client.predict(rows, model="digits")
        >>> predictions[0].label, predictions[0].reject
        ('3', False)
        >>> predictions.label[~predictions.reject]
        array(['3', '8'], dtype=object)
    """

    name: str
    version: int
    digest: str
    percentile: float
    coverage: float
    max_error: float | None = None
    confidence: float | None = None
    draws: int
    request_ids: tuple[str, ...]
    raw: Sequence[Mapping[str, Any]]
    class_names: tuple[str, ...] = ()
    _frame_index: Any = None

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.raw)

    @overload
    def __getitem__(self, index: int) -> RowPrediction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RowPrediction]: ...
    def __getitem__(self, index: int | slice) -> RowPrediction | Sequence[RowPrediction]:
        """Returns the prediction of a row, or those of several."""
        if isinstance(index, slice):
            return tuple(map(_row, self.raw[index]))
        return _row(self.raw[index])

    def __iter__(self) -> Iterator[RowPrediction]:
        """Returns the predictions of the rows one after another."""
        return map(_row, self.raw)

    def __repr__(self) -> str:
        """Describes the predictions in one line."""
        rejected = f", {int(self.reject.sum())} rejected" if "reject" in self.fields else ""
        return f"ServedPredictions({self.name}:{self.version}, {len(self)} rows{rejected})"

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields of each row, in the order of the response."""
        return tuple(self.raw[0]) if self.raw else ()

    def column(self, name: str) -> Any:
        """Returns a field of every row: an array, or for lists of words a tuple of tuples; `scores` as a mapping.

        Raises:
            InputError: the response does not have the field.
        """
        if name not in self.fields:
            raise InputError(
                where="fields",
                expected=f"one of {', '.join(self.fields)}",
                found=repr(name),
                fix=suggest(name, self.fields) or "ask for it with fields=, if the model has it",
            )
        return _column([row[name] for row in self.raw])

    @cached_property
    def reject(self) -> np.ndarray:
        """Whether each row is rejected."""
        return self.column("reject")

    @cached_property
    def reasons(self) -> Words:
        """Why each row is rejected; empty for an accepted row."""
        return self.column("reasons")

    @cached_property
    def novel(self) -> np.ndarray:
        """Whether the novelty part of a decision of two parts rejects each row."""
        return self.column("novel")

    @cached_property
    def ambiguous(self) -> np.ndarray:
        """Whether the ambiguity part of a decision of two parts rejects each row."""
        return self.column("ambiguous")

    @cached_property
    def label(self) -> np.ndarray:
        """The name of each row's most probable class."""
        return self.column("label")

    @cached_property
    def index(self) -> np.ndarray:
        """The position of each row's most probable class."""
        return self.column("index")

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The probability of each class, `[rows, classes]`."""
        return self.column("probabilities")

    @cached_property
    def prediction_set(self) -> Words:
        """Classes that include the true one with probability at least `coverage`."""
        return self.column("prediction_set")

    @cached_property
    def mean(self) -> np.ndarray:
        """The mean of the predictive distribution."""
        return self.column("mean")

    @cached_property
    def std(self) -> np.ndarray:
        """The standard deviation: of the predictive distribution, or `[rows, classes]` of each class over the draws."""
        return self.column("std")

    @cached_property
    def entropy(self) -> np.ndarray:
        """The entropy of each prediction, in nats."""
        return self.column("entropy")

    @cached_property
    def quantiles(self) -> Mapping[str, np.ndarray]:
        """The quantiles of the predictive distribution by their level, such as `"0.5"`."""
        return self.column("quantiles")

    @cached_property
    def interval(self) -> np.ndarray:
        """The lower and the upper end of the prediction interval, `[rows, 2]`."""
        return self.column("interval")

    @cached_property
    def scores(self) -> Mapping[str, ScoreColumns]:
        """Each score of every row by its name."""
        return {name: ScoreColumns(**columns) for name, columns in self.column("scores").items()}

    def to_pandas(self) -> pd.DataFrame:
        """Returns a DataFrame with one row for each row, and one column for each number.

        Columns are named as `abstain predict` names them, such as `probabilities.setosa` and `scores.entropy.value`. The
        words of `reasons` and of `prediction_set` are joined to one text by `|`. If the rows were a pandas DataFrame, the
        result has its index, so that the two can be joined. Without the scope `read`, the client does not know the classes:
        `probabilities.0` is the first one.

        Raises:
            ConfigError: pandas is not installed.

        Examples:
            >>> frame.join(client.predict(frame, model="wine").to_pandas()[["label", "reject"]])
        """
        try:
            import pandas  # noqa: PLC0415 - an optional package
        except ImportError as error:
            raise ConfigError(
                "to_pandas needs a package that is not installed", found="no pandas", fix="pip install pandas"
            ) from error
        columns = dict(
            column
            for name in self.fields
            for column in _flat(name, self.column(name), self.class_names if name in CLASS_FIELDS else ())
        )
        return pandas.DataFrame(columns, index=self._frame_index)


def _row(content: Mapping[str, Any]) -> RowPrediction:
    known = {key: freeze(value) for key, value in content.items() if key in _KNOWN}
    if "scores" in known:
        known["scores"] = {name: record_of(RowScore, score) for name, score in known["scores"].items()}
    return RowPrediction(**known, other={key: value for key, value in content.items() if key not in _KNOWN})


def _column(values: Sequence[Any]) -> Any:
    """Makes an array of numbers; a mapping of columns of mappings; a tuple of tuples of lists of words."""
    first = values[0]
    if isinstance(first, dict):
        return {key: _column([value[key] for value in values]) for key in cast("dict[str, Any]", first)}
    # Only lists of words may be empty.
    if isinstance(first, list) and not all(value and type(value[0]) in {int, float} for value in values):
        return tuple(tuple[str, ...](value) for value in values)
    # Objects: numpy's text type uses the memory of the longest name for every row, and drops trailing NULs.
    return np.array(values, dtype=object if isinstance(first, str) else None)


def _flat(name: str, values: Any, classes: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(values, dict):
        for key, column in cast("dict[str, Any]", values).items():
            yield from _flat(f"{name}.{key}", column)
    elif isinstance(values, tuple):
        yield name, ["|".join(words) for words in cast("Words", values)]
    elif values.ndim == 2:
        keys = class_keys(classes, values.shape[1])
        yield from ((f"{name}.{key}", column) for key, column in zip(keys, values.T, strict=True))
    else:
        yield name, values
