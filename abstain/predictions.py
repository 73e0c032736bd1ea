"""`Predictions`: a model's predictions for rows, as numpy arrays; the same numbers as the response of `POST /predict`.

Axis 0 of every array is the rows, in the caller's order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from abstain.models.decisions.ranks import ordinal
from abstain.models.decisions.records import Judgement, ScoreJudgement
from abstain.models.errors import ConfigError
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import QUANTILES, ClassificationSummary
from abstain.models.tables.unseen import NO_TEXTS, UnseenTexts
from abstain.service.predict.class_columns import CLASS_FIELDS, class_keys
from abstain.service.predict.response import fields_of, prediction_sets, reject_reasons, standard_deviations

if TYPE_CHECKING:
    import pandas as pd

Words = tuple[tuple[str, ...], ...]
"""The words of each row."""
REPR_ROWS = 5
"""Number of rows that `repr` shows."""
_QUANTILE_NAMES = tuple(map(str, QUANTILES))


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """One score of every row, compared with the calibration rows.

    Attributes:
        value: the score; the stranger the row, the larger.
        percentile: 100·(1 − `p_value`).
        threshold: the threshold of `value`; it differs between rows if thresholds are per class.
        p_value: the conformal p-value.
        extrapolated: whether the value is above that of every calibration row.
        evidence: −ln p in nats, for scores that are combined into the decision; None for other scores.
    """

    value: Float[np.ndarray, " rows"]
    percentile: Float[np.ndarray, " rows"]
    threshold: Float[np.ndarray, " rows"]
    p_value: Float[np.ndarray, " rows"]
    extrapolated: Bool[np.ndarray, " rows"]
    evidence: Float[np.ndarray, " rows"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Predictions:
    """A model's predictions for rows: the fields that classification and regression share.

    `LoadedModel.predict` returns one of its two subclasses, `ClassificationPredictions` or `RegressionPredictions`.

    Attributes:
        name: the model's name.
        version: its version.
        digest: the sha256 of that version's manifest, which holds the sha256 of its files.
        percentile: the percentile of the decision; rows with a decision score above it are rejected.
        coverage: the coverage of prediction sets and intervals.
        decision: the name of the score that decides, a key of `scores`.
        reject: whether each row is unlike the calibration rows or, for a decision of two parts, ambiguous.
        novel: whether the novelty part of the decision rejects each row; None for a decision of one part.
        ambiguous: whether its ambiguity part does; None for a decision of one part.
        p_value: the decision's p-value; the smaller it is, the stranger the row.
        reasons: for each rejected row, a sentence for each score above its percentile, the one with the largest weighted
            contribution to the decision first; if no single score is above, one sentence about the combined score.
        scores: each score by its name.

    Examples:
        >>> predictions = model.predict(rows)
        >>> len(predictions), predictions.reject.sum()
        (300, 4)
        >>> predictions.reasons[17]
        ('entropy above its 99th percentile',)
        >>> predictions.scores["entropy"].p_value.min()
        0.00199600798403193
    """

    name: str
    version: int
    digest: str
    percentile: float
    coverage: float
    decision: str
    reject: Bool[np.ndarray, " rows"]
    novel: Bool[np.ndarray, " rows"] | None = None
    ambiguous: Bool[np.ndarray, " rows"] | None = None
    p_value: Float[np.ndarray, " rows"]
    reasons: Words
    scores: Mapping[str, Score]
    _frame_index: Any = field(default=None)
    """The index of the pandas DataFrame of the rows; None for other rows."""

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.reject)

    def __repr__(self) -> str:
        """Shows the first rows as a table."""
        rejected = f"{int(self.reject.sum())} of {len(self)} rows rejected"
        head = f"{type(self).__name__}: {self.name}:{self.version}, {rejected} at the {ordinal(self.percentile)} percentile"
        columns = {"row": list(map(str, range(min(len(self), REPR_ROWS)))), **self._repr_columns()}
        lines = _table(columns)
        left = len(self) - REPR_ROWS
        return "\n".join([head, *lines, *([f"  … and {left} more"] if left > 0 else [])])

    def to_pandas(self) -> pd.DataFrame:
        """Returns a DataFrame with one row for each row, and one column for each number.

        The columns are those that `abstain predict` writes, such as `probabilities.setosa` and `scores.entropy.value`, and
        `p_value`. The words of `reasons` and of `prediction_set` are joined to one text by `|`. If the rows were a pandas
        DataFrame, the result has its index, so that the two can be joined.

        Raises:
            ConfigError: pandas is not installed.

        Examples:
            >>> frame.join(model.predict(frame).to_pandas()[["mean", "std", "reject"]])
        """
        try:
            import pandas  # noqa: PLC0415 - an optional package
        except ImportError as error:
            raise ConfigError(
                "to_pandas needs a package that is not installed", found="no pandas", fix="pip install pandas"
            ) from error
        return pandas.DataFrame(dict(self._columns()), index=self._frame_index)

    def _repr_columns(self) -> dict[str, list[str]]:
        """Returns the columns that `repr` shows."""
        return {
            "p_value": _figures(self.p_value),
            "reject": ["yes" if row else "no" for row in self.reject[:REPR_ROWS].tolist()],
            "reasons": ["; ".join(words) for words in self.reasons[:REPR_ROWS]],
        }

    def _fields(self) -> tuple[str, ...]:
        """Returns the names of the fields with a value for every row, in the order of a response over HTTP."""
        raise NotImplementedError

    def _class_names(self) -> tuple[str, ...]:
        """Returns the classes; none for a regression."""
        return ()

    def _columns(self) -> Iterator[tuple[str, Any]]:
        for name in self._fields():
            yield from _flat(name, getattr(self, name), self._class_names())
            if name == "reject":
                yield "p_value", self.p_value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClassificationPredictions(Predictions):
    """A classifier's predictions for rows; entropies are in nats.

    Attributes:
        class_names: the classes, in the order of the columns of `probabilities`.
        label: the name of the most probable class.
        index: the index of `label` in `class_names`.
        probabilities: the mean over draws of each class's probability.
        std: the standard deviation over draws of each class's probability.
        entropy: the entropy of `probabilities`; the sum of the next two fields.
        aleatoric_entropy: the mean entropy of the draws: the uncertainty within each draw.
        mutual_information: the disagreement between the draws.
        prediction_set: classes that include the true one with probability at least `coverage`, the most probable first.
        probability_interval: lower and upper end of the probability of `class_names[1]`; None for models without it.

    Examples:
        >>> predictions = model.predict(images)
        >>> predictions.label[:3]
        array(['3', '8', '1'], dtype=object)
        >>> predictions.probabilities.shape
        (300, 10)
        >>> predictions.prediction_set[1]
        ('8', '3')
    """

    class_names: tuple[str, ...]
    label: Shaped[np.ndarray, " rows"]
    index: Int[np.ndarray, " rows"]
    probabilities: Float[np.ndarray, "rows classes"]
    std: Float[np.ndarray, "rows classes"]
    entropy: Float[np.ndarray, " rows"]
    aleatoric_entropy: Float[np.ndarray, " rows"]
    mutual_information: Float[np.ndarray, " rows"]
    prediction_set: Words
    probability_interval: Float[np.ndarray, "rows 2"] | None = None

    def _repr_columns(self) -> dict[str, list[str]]:
        return {
            "label": list(map(str, self.label[:REPR_ROWS].tolist())),
            "probability": _figures(self.probabilities[:REPR_ROWS].max(axis=1)),
            **super()._repr_columns(),
        }

    def _class_names(self) -> tuple[str, ...]:
        return self.class_names

    def _fields(self) -> tuple[str, ...]:
        interval = self.probability_interval is not None
        return fields_of("classification", two_parts=self.novel is not None, probability_interval=interval)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RegressionPredictions(Predictions):
    """A regression's predictions for rows, in the target's units.

    Attributes:
        target_name: the name of the predicted number.
        mean: the mean of the predictive distribution.
        std: its standard deviation; the square is the sum of the squares of the next two fields.
        aleatoric_std: the standard deviation of the noise.
        epistemic_std: the standard deviation over draws of the mean.
        entropy: the entropy of the normal distribution with this `mean` and `std`, in nats.
        quantile_levels: the levels of the columns of `quantiles`.
        quantiles: the quantiles of the mixture over draws.
        interval: the lower and the upper end; it includes the target with probability at least `coverage`.

    Examples:
        >>> predictions = model.predict([[0.25], [-1.5]])
        >>> predictions.mean, predictions.std
        (array([0.61, -0.33], dtype=float32), array([0.11, 0.12], dtype=float32))
        >>> lower, upper = predictions.interval.T
    """

    target_name: str
    mean: Float[np.ndarray, " rows"]
    std: Float[np.ndarray, " rows"]
    aleatoric_std: Float[np.ndarray, " rows"]
    epistemic_std: Float[np.ndarray, " rows"]
    entropy: Float[np.ndarray, " rows"]
    quantiles: Float[np.ndarray, "rows quantiles"]
    interval: Float[np.ndarray, "rows 2"]
    quantile_levels: tuple[float, ...] = QUANTILES

    def _repr_columns(self) -> dict[str, list[str]]:
        ends = zip(_figures(self.interval[:, 0]), _figures(self.interval[:, 1]), strict=True)
        return {
            "mean": _figures(self.mean),
            "std": _figures(self.std),
            "interval": [f"[{lower}, {upper}]" for lower, upper in ends],
            **super()._repr_columns(),
        }

    def _fields(self) -> tuple[str, ...]:
        return fields_of("regression", two_parts=self.novel is not None)


def predictions_of(
    model: Model,
    version: tuple[str, int, str],
    prediction: Prediction,
    judgement: Judgement,
    frame_index: Any = None,
    texts: UnseenTexts = NO_TEXTS,
) -> ClassificationPredictions | RegressionPredictions:
    """Builds the record of a prediction and of the calibration's judgement of it.

    Args:
        version: the model's name, its version, and the version's digest.
        texts: the unseen categories of the rows, where they are known.
    """
    name, number, digest = version
    shared: dict[str, Any] = {
        "name": name,
        "version": number,
        "digest": digest,
        "percentile": judgement.percentile,
        "coverage": judgement.coverage,
        "decision": judgement.decision,
        "reject": judgement.reject,
        "novel": None if judgement.parts is None else judgement.parts.novel,
        "ambiguous": None if judgement.parts is None else judgement.parts.ambiguous,
        "p_value": judgement.scores[judgement.decision].p_value,
        "reasons": _words(reject_reasons(model, prediction, judgement, texts)),
        "scores": MappingProxyType(
            {score: _score(own, judgement.evidence.get(score)) for score, own in judgement.scores.items()}
        ),
        "_frame_index": frame_index,
    }
    summary = prediction.summary
    if isinstance(summary, ClassificationSummary):
        mean = np.asarray(summary.mean)
        index, members = mean.argmax(axis=1), cast("np.ndarray", judgement.members)
        return ClassificationPredictions(
            **shared,
            class_names=model.class_names,
            # Objects: numpy's text type uses the memory of the longest name for every row, and drops trailing NULs.
            label=np.array(model.class_names, dtype=object)[index],
            index=index,
            probabilities=mean,
            std=np.asarray(summary.std),
            entropy=np.asarray(summary.entropy),
            aleatoric_entropy=np.asarray(summary.aleatoric_entropy),
            mutual_information=np.asarray(summary.mutual_information),
            prediction_set=_words(prediction_sets(model.class_names, mean, members)),
            probability_interval=judgement.probability_interval,
        )
    deviations = standard_deviations(summary)
    return RegressionPredictions(
        **shared,
        target_name=model.target_name,
        mean=np.asarray(summary.mean),
        std=deviations.total,
        aleatoric_std=deviations.aleatoric,
        epistemic_std=deviations.epistemic,
        entropy=np.asarray(summary.entropy),
        quantiles=np.asarray(summary.quantiles),
        interval=cast("np.ndarray", judgement.interval),
    )


def _score(judgement: ScoreJudgement, evidence: Float[np.ndarray, " rows"] | None) -> Score:
    return Score(
        value=judgement.value,
        percentile=judgement.percentile,
        # Copied, because it is often one number broadcast to all rows, which numpy makes read-only.
        threshold=judgement.threshold.copy(),
        p_value=judgement.p_value,
        extrapolated=judgement.extrapolated,
        evidence=evidence,
    )


def _words(rows: list[list[str]]) -> Words:
    return tuple(map(tuple, rows))


def _flat(name: str, values: Any, classes: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Splits a field into columns with one number, or one text, for each row."""
    if name == "scores":
        for score, own in cast("Mapping[str, Score]", values).items():
            for key, column in vars(own).items():
                if column is not None:
                    yield f"scores.{score}.{key}", column
    elif isinstance(values, tuple):
        yield name, ["|".join(words) for words in cast("Words", values)]
    elif values.ndim == 2:
        keys = _QUANTILE_NAMES
        if name != "quantiles":
            keys = class_keys(classes if name in CLASS_FIELDS else (), values.shape[1])
        yield from zip((f"{name}.{key}" for key in keys), values.T, strict=True)
    else:
        yield name, values


def _figures(values: Float[np.ndarray, " rows"]) -> list[str]:
    return [f"{value:.4g}" for value in values[:REPR_ROWS].tolist()]


def _table(columns: dict[str, list[str]]) -> list[str]:
    """Renders columns of text as aligned lines."""
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    return [
        f"  {'  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))}".rstrip() for row in rows
    ]
