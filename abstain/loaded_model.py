"""`load`: loads and verifies a version of a model, to predict in this process without a server."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np

from abstain.models.bundles.bundle import Bundle, load_published
from abstain.models.bundles.remote.copies import local_copy
from abstain.models.bundles.remote.url import parse_store
from abstain.models.bundles.shortfalls import texts
from abstain.models.bundles.signatures import TrustedKeys, read_trusted
from abstain.models.bundles.store import resolve
from abstain.models.decisions.judging import judge
from abstain.models.decisions.records import Levels
from abstain.models.errors import ConfigError
from abstain.models.prediction.predictive import Predictor, buckets_for
from abstain.predictions import ClassificationPredictions, RegressionPredictions, predictions_of
from abstain.service.json_objects import number_between
from abstain.service.python_rows import Rows, is_pandas, rows_of, unseen_texts_of
from abstain.service.rows import check_finite
from abstain.service.settings import read_settings

StrPath = str | os.PathLike[str]


def load(
    model: str, store: StrPath = "artifacts", trusted_keys: StrPath | Iterable[StrPath] | None = None
) -> LoadedModel:
    """Loads a version of a model, with all checks that a server makes.

    It compiles nothing: `LoadedModel.predict` compiles each batch size when it is first needed.

    Args:
        model: `name` (the version labelled `stable`, else the newest), `name:version` or `name@label`.
        store: the folder of models, or the URL of a store elsewhere, from which the version is downloaded each time.
        trusted_keys: public keys, or folders of them; one of them must have signed the version. If None, the keys in
            `ABSTAIN_TRUSTED_KEYS`; if that is not set either, no signature is needed.

    Raises:
        UnknownModel: the store has no such model, version or label.
        BundleError: the version is damaged, its schema is not supported, or its network's code is not allowed
            (`ABSTAIN_MODULES`).
        SignatureError: none of the trusted keys has signed it.
        StoreError: the store cannot be read.
        ConfigError: a key cannot be read, or `trusted_keys` is empty.

    Examples:
        >>> abstain.load("digits@stable")
        LoadedModel(digits:1, classification of 10 classes, 100 draws, sound)
        >>> abstain.load("digits:2", store="/srv/models", trusted_keys="keys/release.pem").shortfalls
        ()
    """
    with local_copy(parse_store(os.fspath(store)), model) as root:
        name, version = resolve(root, model)
        return LoadedModel(load_published(root, name, version, _trusted(trusted_keys)))


class LoadedModel:
    """A loaded and verified version of a model; `load` makes it.

    Several threads may use it at once.

    Examples:
        >>> model = abstain.load("digits@stable")
        >>> model.name, model.version, model.class_names[:3]
        ('digits', 1, ('0', '1', '2'))
        >>> predictions = model.predict(images, percentile=95)
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._predictor: Predictor | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._bundle.manifest.name

    @property
    def version(self) -> int:
        """The version's number."""
        return self._bundle.manifest.version

    @property
    def digest(self) -> str:
        """The sha256 of the manifest, which holds the sha256 of every other file of the version."""
        return self._bundle.manifest.digest

    @property
    def task(self) -> Literal["classification", "regression"]:
        """Whether the model predicts classes or numbers."""
        return self._bundle.manifest.model.likelihood_functions.task

    @property
    def draws(self) -> int:
        """The number of posterior draws."""
        return self._bundle.manifest.draws

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes; empty for regression."""
        return self._bundle.manifest.model.class_names

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The name of each feature of a flat row; empty if features have no names, for example pixels."""
        return self._bundle.manifest.model.feature_names

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one row: `(4,)` for four features, `(28, 28)` for an image."""
        return self._bundle.manifest.model.feature_shape

    @property
    def percentile(self) -> float:
        """The percentile of the decision that `predict` uses by default."""
        return self._bundle.calibration.percentile

    @property
    def coverage(self) -> float:
        """The coverage of prediction sets and intervals that `predict` uses by default."""
        return self._bundle.calibration.coverage

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """Why the fit cannot be relied on, in sentences; empty for a sound version."""
        return tuple(texts(self._bundle.manifest.shortfalls))

    def predict(
        self,
        rows: Rows,
        percentile: float | None = None,
        coverage: float | None = None,
        max_error: float | None = None,
    ) -> ClassificationPredictions | RegressionPredictions:
        """Predicts rows, with the same numbers and the same checks as `POST /predict`.

        The numbers are equal to the last bit if the number of threads (`NPROC`) and the batches are the same; otherwise
        their last digits may differ. Rows are computed in batches of 1, 8, 32, 128 or 256; the first call that needs a
        batch size takes seconds to compile it.

        Args:
            rows: an array `[rows, …features]` of numpy, JAX or PyTorch; a list of lists of numbers; a list of records,
                `{"age": 31, "job": "nurse"}`; or a table (a DataFrame of pandas or Polars, a table of pyarrow) with a
                column for each feature name. In records and tables categories are text, dates are dates or text in ISO
                8601, and None or NaN is a missing value. In arrays and lists a category is its code. An image may be
                nested or flat.
            percentile: the percentile of the decision, above 0 and below 100; the model's own if None.
            coverage: the coverage of prediction sets and intervals, above 0 and below 1; the model's own if None.
            max_error: the largest share of wrong answers among accepted rows, above 0 and below 1, for a model that was
                calibrated with `max_error`; the model's own if None. It cannot be combined with `percentile`.

        Returns:
            `ClassificationPredictions` or `RegressionPredictions`, depending on `task`.

        Raises:
            InputError: a value is wrong; the text names row and feature: `inputs[3][5]: expected a number, found null`.
            DataError: a value of a table is wrong; the text names column and row.
            CalibrationError: there are too few calibration rows for the percentile, the coverage or the error.

        Examples:
            >>> model.predict([[5.1, 3.5, 1.4, 0.2]]).label
            array(['setosa'], dtype=object)
            >>> model.predict([{"age": 31, "job": "nurse"}]).reject
            array([False])
            >>> model.predict(pandas.read_csv("new.csv"), percentile=95).to_pandas().to_csv("predictions.csv")
        """
        options = {"percentile": percentile, "coverage": coverage, "max_error": max_error}
        parameters = {key: _python_number(value) for key, value in options.items() if value is not None}
        ends = {"percentile": 100, "coverage": 1, "max_error": 1}
        levels = Levels(*(number_between(parameters, key, end) for key, end in ends.items()))
        manifest = self._bundle.manifest
        array = rows_of(rows, manifest.model)
        prediction = self._predictor_for(len(array))(array)
        check_finite(jax.tree.leaves(prediction))
        judgement = judge(self._bundle.calibration, prediction, *levels)
        version = manifest.name, manifest.version, manifest.digest
        texts = unseen_texts_of(rows, manifest.model, array)
        return predictions_of(manifest.model, version, prediction, judgement, _index_of(rows), texts)

    def __repr__(self) -> str:
        """Describes the model in one line."""
        task = f"classification of {len(self.class_names)} classes" if self.class_names else "regression"
        state = "falls short: see shortfalls" if self.shortfalls else "sound"
        return f"LoadedModel({self.name}:{self.version}, {task}, {self.draws} draws, {state})"

    def _predictor_for(self, rows: int) -> Predictor:
        """Returns the predictor, which compiles the batch sizes that a server would use for this number of rows."""
        needed = buckets_for(rows)
        with self._lock:
            if self._predictor is None:
                self._predictor = self._bundle.predictor(needed)
            self._predictor.add_buckets(needed)
            return self._predictor


def _trusted(keys: StrPath | Iterable[StrPath] | None) -> TrustedKeys | None:
    """Reads these keys, or those of the environment if None."""
    if keys is None:
        return read_trusted(read_settings(os.environ).trusted_keys)
    paths = [keys] if isinstance(keys, str | os.PathLike) else list(keys)
    if not paths:
        # A pattern that matches no file must not mean that no signature is needed.
        raise ConfigError("trusted_keys", expected="at least one public key, or None", found="none")
    return read_trusted([Path(path).absolute() for path in paths])


def _python_number(value: Any) -> Any:
    """Converts a number of numpy to one of Python."""
    return cast("Any", value).item() if isinstance(value, np.generic) else value


def _index_of(rows: Any) -> Any:
    """Returns the index of a pandas DataFrame; None for anything else."""
    return rows.index if is_pandas(rows) else None
