"""`Predictions`: what a model says of rows, as numpy arrays; the same numbers as `POST /predict` answers.

Axis 0 of every array is the rows, in the order in which they were given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from abstain.models.decisions.calibration import Judgement, ScoreJudgement
from abstain.models.decisions.ranks import ordinal
from abstain.models.errors import ConfigError
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.predictive import Prediction
from abstain.models.prediction.summaries import QUANTILES, ClassificationSummary
from abstain.service.predict.response import FIELDS, prediction_sets, reject_reasons, standard_deviations

if TYPE_CHECKING:
    import pandas as pd

Words = tuple[tuple[str, ...], ...]
"""Some words for each row."""
SHOWN = 5
"""Rows that `repr` shows."""
_QUANTILE_NAMES = tuple(map(str, QUANTILES))


@dataclass(frozen=True, kw_only=True, eq=False)
class Score:
    """One score of every row, and its place among the calibration rows.

    Attributes:
        value: the score; it grows with strangeness.
        percentile: 100·(1 − `p_value`).
        threshold: what `value` is compared with; it differs between rows where thresholds are per class.
        p_value: the conformal p-value.
        extrapolated: whether the value lies beyond every calibration row.
        evidence: −ln p in nats, of the scores that are combined into the decision; None of the others.
    """

    value: Float[np.ndarray, " rows"]
    percentile: Float[np.ndarray, " rows"]
    threshold: Float[np.ndarray, " rows"]
    p_value: Float[np.ndarray, " rows"]
    extrapolated: Bool[np.ndarray, " rows"]
    evidence: Float[np.ndarray, " rows"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Predictions:
    """What a model says of rows: the part that classification and regression share.

    `LoadedModel.predict` returns one of its two kinds, `ClassificationPredictions` and `RegressionPredictions`.

    Attributes:
        name: the model's name.
        version: its version.
        digest: the sha256 that stands for every byte of that version.
        percentile: of the decision; a row whose decision score is above it is rejected.
        coverage: of prediction sets and intervals.
        decision: which of `scores` decides.
        reject: whether each row is unlike the calibration rows.
        p_value: the decision's p-value; the smaller it is, the stranger the row.
        reasons: for each rejected row, the scores that are above their thresholds, the most extreme first.
        scores: each score by its name.

    Examples:
        >>> answers = model.predict(rows)
        >>> len(answers), answers.reject.sum()
        (300, 4)
        >>> answers.reasons[17]
        ('entropy above its 99th percentile',)
        >>> answers.scores["entropy"].p_value.min()
        0.00199600798403193
    """

    name: str
    version: int
    digest: str
    percentile: float
    coverage: float
    decision: str
    reject: Bool[np.ndarray, " rows"]
    p_value: Float[np.ndarray, " rows"]
    reasons: Words
    scores: Mapping[str, Score]
    _frame_index: Any = field(default=None)
    """The index of the pandas DataFrame that the rows came in."""

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.reject)

    def __repr__(self) -> str:
        """The first rows as a table."""
        rejected = f"{int(self.reject.sum())} of {len(self)} rows rejected"
        head = f"{type(self).__name__}: {self.name}:{self.version}, {rejected} at the {ordinal(self.percentile)} percentile"
        columns = {"row": list(map(str, range(min(len(self), SHOWN)))), **self._shown()}
        lines = _table(columns)
        left = len(self) - SHOWN
        return "\n".join([head, *lines, *([f"  … and {left} more"] if left > 0 else [])])

    def to_pandas(self) -> pd.DataFrame:
        """One row for each row, and one column for each number.

        The columns are those that `abstain predict` writes, such as `probabilities.3` and `scores.entropy.value`, and
        `p_value`. The words of `reasons` and of `prediction_set` are one text, with a bar between them. Where the rows
        came in a DataFrame, this one has its index, so that the two can be joined.

        Raises:
            ConfigError: pandas is not installed.

        Examples:
            >>> frame.join(model.predict(frame).to_pandas()[["mean", "std", "reject"]])
        """
        try:
            import pandas  # noqa: PLC0415 - only who wants a DataFrame needs it
        except ImportError as error:
            raise ConfigError(
                "to_pandas needs a package that is not installed", found="no pandas", fix="pip install pandas"
            ) from error
        return pandas.DataFrame(dict(self._columns()), index=self._frame_index)

    def _shown(self) -> dict[str, list[str]]:
        """The columns of `repr`."""
        return {
            "p_value": _figures(self.p_value),
            "reject": ["yes" if row else "no" for row in self.reject[:SHOWN].tolist()],
            "reasons": ["; ".join(words) for words in self.reasons[:SHOWN]],
        }

    def _fields(self) -> tuple[str, ...]:
        """The names of the fields that have something of every row, in the order of an answer over HTTP."""
        raise NotImplementedError

    def _columns(self) -> Iterator[tuple[str, Any]]:
        for name in self._fields():
            yield from _flat(name, getattr(self, name))
            if name == "reject":
                yield "p_value", self.p_value


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ClassificationPredictions(Predictions):
    """What a classifier says of rows; entropies are in nats.

    Attributes:
        class_names: the classes, in the order of the columns of `probabilities`.
        label: the name of the most probable class.
        index: its place among `class_names`.
        probabilities: the mean over draws of each class's probability.
        std: the standard deviation over draws of each class's probability.
        entropy: of `probabilities`; the sum of the two parts that follow.
        aleatoric_entropy: the mean entropy of the draws: the doubt that each draw has by itself.
        mutual_information: what the draws disagree about.
        prediction_set: the classes that hold the true one with probability at least `coverage`, the most probable first.

    Examples:
        >>> answers = model.predict(images)
        >>> answers.label[:3]
        array(['3', '8', '1'], dtype=object)
        >>> answers.probabilities.shape
        (300, 10)
        >>> answers.prediction_set[1]
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

    def _shown(self) -> dict[str, list[str]]:
        return {
            "label": list(map(str, self.label[:SHOWN].tolist())),
            "probability": _figures(self.probabilities[:SHOWN].max(axis=1)),
            **super()._shown(),
        }

    def _fields(self) -> tuple[str, ...]:
        return FIELDS["classification"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RegressionPredictions(Predictions):
    """What a regression says of rows, in the target's units.

    Attributes:
        target_name: what is predicted.
        mean: of the predictive distribution.
        std: of the predictive distribution; the squares of the two parts that follow add up to its square.
        aleatoric_std: the noise.
        epistemic_std: the spread of the draws' means.
        entropy: of the normal distribution with this mean and `std`, in nats.
        quantile_levels: the levels of the columns of `quantiles`.
        quantiles: of the mixture over draws.
        interval: the lower and the upper end; it holds the target with probability at least `coverage`.

    Examples:
        >>> answers = model.predict([[0.25], [-1.5]])
        >>> answers.mean, answers.std
        (array([0.61, -0.33], dtype=float32), array([0.11, 0.12], dtype=float32))
        >>> lower, upper = answers.interval.T
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

    def _shown(self) -> dict[str, list[str]]:
        ends = zip(_figures(self.interval[:, 0]), _figures(self.interval[:, 1]), strict=True)
        return {
            "mean": _figures(self.mean),
            "std": _figures(self.std),
            "interval": [f"[{lower}, {upper}]" for lower, upper in ends],
            **super()._shown(),
        }

    def _fields(self) -> tuple[str, ...]:
        return FIELDS["regression"]


def predictions_of(
    model: Model, version: tuple[str, int, str], prediction: Prediction, judgement: Judgement, frame_index: Any = None
) -> ClassificationPredictions | RegressionPredictions:
    """The record of a prediction and what the calibration says of it.

    Args:
        version: the model's name, its version, and the version's digest.
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
        "p_value": judgement.scores[judgement.decision].p_value,
        "reasons": _words(reject_reasons(model, prediction, judgement)),
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
            # Objects: a text of numpy's own takes as much for every row as the longest name, and loses NULs at its end.
            label=np.array(model.class_names, dtype=object)[index],
            index=index,
            probabilities=mean,
            std=np.asarray(summary.std),
            entropy=np.asarray(summary.entropy),
            aleatoric_entropy=np.asarray(summary.aleatoric_entropy),
            mutual_information=np.asarray(summary.mutual_information),
            prediction_set=_words(prediction_sets(model.class_names, mean, members)),
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
        # Often one number for all rows, which numpy then lets nobody write to.
        threshold=judgement.threshold.copy(),
        p_value=judgement.p_value,
        extrapolated=judgement.extrapolated,
        evidence=evidence,
    )


def _words(rows: list[list[str]]) -> Words:
    return tuple(map(tuple, rows))


def _flat(name: str, values: Any) -> Iterator[tuple[str, Any]]:
    """A field as columns of one number, or one text, for each row."""
    if name == "scores":
        for score, own in cast("Mapping[str, Score]", values).items():
            for key, column in vars(own).items():
                if column is not None:
                    yield f"scores.{score}.{key}", column
    elif isinstance(values, tuple):
        yield name, ["|".join(words) for words in cast("Words", values)]
    elif values.ndim == 2:
        places = _QUANTILE_NAMES if name == "quantiles" else map(str, range(values.shape[1]))
        yield from zip((f"{name}.{place}" for place in places), values.T, strict=True)
    else:
        yield name, values


def _figures(values: Float[np.ndarray, " rows"]) -> list[str]:
    return [f"{value:.4g}" for value in values[:SHOWN].tolist()]


def _table(columns: dict[str, list[str]]) -> list[str]:
    """Columns of text as lines, each as wide as its longest cell."""
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    rows = [tuple(columns), *zip(*columns.values(), strict=True)]
    return [
        f"  {'  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))}".rstrip() for row in rows
    ]
