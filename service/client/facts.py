"""What a server says of itself and of its models, as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast


@dataclass(frozen=True, kw_only=True)
class ModelColumn:
    """A column of a model's rows.

    Attributes:
        name: the column's name.
        kind: `number`, `category` or `date`.
        nullable: whether a value may be missing.
        range: the ends of the range of the training rows, for a date in ISO 8601; None for a category, or if it is not known.
        categories: the categories; empty for other kinds.
        unseen: what becomes of another category: `reject`, `missing` or `refuse`; None for other kinds.
    """

    name: str
    kind: str = "number"
    nullable: bool = False
    range: tuple[float, float] | tuple[str, str] | None = None
    categories: tuple[str, ...] = ()
    unseen: str | None = None


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The facts of a served version, from `GET /models/NAME`.

    Attributes:
        name: the model's name.
        version: the version that requests for this reference get.
        versions: all versions of this model that are served.
        digest: the sha256 of the version's manifest.
        task: `classification` or `regression`.
        feature_shape: the shape of one row.
        columns: the columns of a row; empty if they have no names, for example pixels.
        class_names: the classes; empty for a regression.
        target_name: the name of what is predicted.
        fields: the fields of each prediction.
        decision: the name of the score that decides, or `combined`.
        percentile: the percentile of the decision, if a request names none.
        coverage: the coverage of sets and intervals, if a request names none.
        draws: the number of posterior draws.
        calibration_rows: the number of calibration rows.
        sound: whether the version passed its publication checks.
        shortfalls: the checks that it failed, in sentences.
        max_rows: the largest number of rows of one request.
        reading: how a file of rows is read: the keys of `[data]` that the fit set, and `dialect`, how its source was written.
    """

    name: str
    version: int
    versions: tuple[int, ...]
    digest: str
    task: str
    feature_shape: tuple[int, ...]
    columns: tuple[ModelColumn, ...]
    class_names: tuple[str, ...]
    target_name: str
    fields: tuple[str, ...]
    decision: str
    percentile: float
    coverage: float
    draws: int
    calibration_rows: int
    sound: bool
    shortfalls: tuple[str, ...]
    max_rows: int
    reading: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class ModelVersion:
    """A version in the server's store, from `GET /models`; `why` says why it is not ready.

    `labels` are those of the store; `served_as` are the labels that requests get this version by.
    """

    name: str
    version: int
    labels: tuple[str, ...]
    served_as: tuple[str, ...] = ()
    state: str
    digest: str | None
    method: str | None
    why: str | None
    sound: bool
    shortfalls: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether a server is ready, and why it is not; true in a condition if it is ready."""

    ready: bool
    workers_ready: int
    workers: int
    why: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether the server is ready."""
        return self.ready


def record_of(kind: type[Any], content: Mapping[str, Any], **more: Any) -> Any:
    """Makes a record of a JSON object; keys that the record does not have are left out: a newer server may send more."""
    known = {**content, **more}
    return kind(**{key: freeze(known[key]) for key in kind.__dataclass_fields__ if key in known})


def served_model(content: Mapping[str, Any]) -> ServedModel:
    """Makes the record of a response of `GET /models/NAME`."""
    columns = tuple(record_of(ModelColumn, column) for column in content["columns"])
    return record_of(ServedModel, content, columns=columns)


def model_versions(content: Mapping[str, Any]) -> tuple[ModelVersion, ...]:
    """Makes the records of a response of `GET /models`."""
    return tuple(
        record_of(ModelVersion, version, name=model["name"])
        for model in content["models"]
        for version in model["versions"]
    )


def freeze(value: Any) -> Any:
    """Returns lists as tuples, at any depth."""
    return tuple(map(freeze, cast("list[Any]", value))) if isinstance(value, list) else value
