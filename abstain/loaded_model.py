"""`load`: a version of a model, verified, and what it predicts in this process; no server is needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, cast

import jax
import numpy as np

from abstain.models.bundles.bundle import Bundle, load_published
from abstain.models.bundles.shortfalls import texts
from abstain.models.bundles.signatures import TrustedKeys, read_trusted
from abstain.models.bundles.store import resolve
from abstain.models.decisions.calibration import judge
from abstain.models.errors import ConfigError
from abstain.models.prediction.predictive import Predictor, buckets_for
from abstain.predictions import ClassificationPredictions, RegressionPredictions, predictions_of
from abstain.service.predict.request import number_between
from abstain.service.python_rows import Rows, is_pandas, rows_of
from abstain.service.rows import check_finite
from abstain.service.settings import read_settings

StrPath = str | os.PathLike[str]


def load(
    model: str, store: StrPath = "artifacts", trusted_keys: StrPath | Iterable[StrPath] | None = None
) -> LoadedModel:
    """Loads a version of a model after every check that a server makes.

    Nothing is compiled yet: `LoadedModel.predict` compiles a batch size the first time that it needs it.

    Args:
        model: `name` (the version labelled `stable`, else the newest), `name:version` or `name@label`.
        store: the folder of models.
        trusted_keys: public keys, or folders of them, of which one must have signed the version. If None, the keys that
            `ABSTAIN_TRUSTED_KEYS` names; where that is not set either, no signature is needed.

    Raises:
        UnknownModel: the store has no such model, version or label.
        BundleError: the version is damaged, or made by another release; or its network's code is not allowed
            (`ABSTAIN_MODULES`).
        SignatureError: none of the trusted keys has signed it.
        StoreError: the store cannot be read.
        ConfigError: a key cannot be read, or there is none in `trusted_keys`.

    Examples:
        >>> abstain.load("digits@stable")
        LoadedModel(digits:1, classification of 10 classes, 100 draws, sound)
        >>> abstain.load("digits:2", store="/srv/models", trusted_keys="keys/release.pem").shortfalls
        ()
    """
    root = Path(store)
    name, version = resolve(root, model)
    return LoadedModel(load_published(root, name, version, _trusted(trusted_keys)))


class LoadedModel:
    """A version of a model, loaded and verified; made by `load`.

    It may be used by several threads at once.

    Examples:
        >>> model = abstain.load("digits@stable")
        >>> model.name, model.version, model.class_names[:3]
        ('digits', 1, ('0', '1', '2'))
        >>> answers = model.predict(images, percentile=95)
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
        """The sha256 that stands for every byte of the version."""
        return self._bundle.manifest.digest

    @property
    def task(self) -> Literal["classification", "regression"]:
        """What the model predicts: a class, or a number."""
        return self._bundle.manifest.model.law.task

    @property
    def draws(self) -> int:
        """How many draws of the posterior there are."""
        return self._bundle.manifest.draws

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes; empty for regression."""
        return self._bundle.manifest.model.class_names

    @property
    def feature_names(self) -> tuple[str, ...]:
        """One name for each feature of a flat row; empty where features have none, as pixels."""
        return self._bundle.manifest.model.feature_names

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """The shape of one row: `(4,)` for four features, `(28, 28)` for an image."""
        return self._bundle.manifest.model.feature_shape

    @property
    def percentile(self) -> float:
        """The percentile of the decision, unless `predict` is given another one."""
        return self._bundle.calibration.percentile

    @property
    def coverage(self) -> float:
        """The coverage of prediction sets and intervals, unless `predict` is given another one."""
        return self._bundle.calibration.coverage

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """What the fit lacks to be relied on, in plain words; empty for a sound version."""
        return tuple(texts(self._bundle.manifest.shortfalls))

    def predict(
        self, rows: Rows, percentile: float | None = None, coverage: float | None = None
    ) -> ClassificationPredictions | RegressionPredictions:
        """Predicts rows: the numbers that `POST /predict` answers, and the same checks.

        The numbers are equal to the bit where as many threads compute (`NPROC`) and the same batches are computed;
        otherwise their last digits may differ. The first call for a number of rows may compile, for seconds: later ones of
        that size, or of one that shares its batch size (1, 8, 32, 128, 256), do not.

        Args:
            rows: an array `[rows, …features]` of numpy, JAX or PyTorch; a list of lists of numbers; or a table (a
                DataFrame of pandas or Polars, a table of pyarrow), whose columns are found by the names of the features
                and hold categories as text. In arrays and lists a category is its code. A row of an image may be nested
                or flat.
            percentile: of the decision, above 0 and below 100; the model's own if None.
            coverage: of prediction sets and intervals, above 0 and below 1; the model's own if None.

        Returns:
            `ClassificationPredictions` or `RegressionPredictions`, as `task` says.

        Raises:
            InputError: naming the row and the feature that is wrong: `inputs[3][5]: expected a number, found null`.
            DataError: naming the column and the row of a table that is wrong.
            CalibrationError: there are too few calibration rows for the percentile or the coverage.

        Examples:
            >>> model.predict([[5.1, 3.5, 1.4, 0.2]]).label
            array(['setosa'], dtype=object)
            >>> model.predict(pandas.read_csv("new.csv"), percentile=95).to_pandas().to_csv("answers.csv")
        """
        terms = {"percentile": percentile, "coverage": coverage}
        given = {key: _plain(value) for key, value in terms.items() if value is not None}
        asked = number_between(given, "percentile", 100), number_between(given, "coverage", 1)
        manifest = self._bundle.manifest
        checked = rows_of(rows, manifest.model)
        prediction = self._compiled_for(len(checked))(checked)
        check_finite(jax.tree.leaves(prediction))
        judgement = judge(self._bundle.calibration, prediction, *asked)
        version = manifest.name, manifest.version, manifest.digest
        return predictions_of(manifest.model, version, prediction, judgement, _index_of(rows))

    def __repr__(self) -> str:
        """What it is, in one line."""
        what = f"classification of {len(self.class_names)} classes" if self.class_names else "regression"
        worth = "falls short: see shortfalls" if self.shortfalls else "sound"
        return f"LoadedModel({self.name}:{self.version}, {what}, {self.draws} draws, {worth})"

    def _compiled_for(self, rows: int) -> Predictor:
        """The predictor, with the batch sizes compiled that a server would use for so many rows."""
        needed = buckets_for(rows)
        with self._lock:
            if self._predictor is None:
                self._predictor = self._bundle.predictor(needed)
            self._predictor.add_buckets(needed)
            return self._predictor


def _trusted(given: StrPath | Iterable[StrPath] | None) -> TrustedKeys | None:
    """The keys that are given, or those of the environment."""
    if given is None:
        return read_trusted(read_settings(os.environ).trusted_keys)
    paths = [given] if isinstance(given, str | os.PathLike) else list(given)
    if not paths:
        # A pattern that matches no file must not mean that any version will do.
        raise ConfigError("trusted_keys", expected="at least one public key, or None", found="none")
    return read_trusted([Path(path).absolute() for path in paths])


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python."""
    return cast("Any", value).item() if isinstance(value, np.generic) else value


def _index_of(rows: Any) -> Any:
    """The index of a DataFrame of pandas; None for anything else."""
    return rows.index if is_pandas(rows) else None
