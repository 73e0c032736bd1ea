"""The rows of an import: labelled rows that the network was not trained on, and training rows, if they are given."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from abstain.models.bundles.trained_rows import (
    TrainedRows,
    find_trained,
    hash_training_rows,
    most_by_chance,
    row_hashes,
)
from abstain.models.errors import ConfigError, DataError
from abstain.models.prediction.likelihoods import LIKELIHOODS
from abstain.models.prediction.posterior import Model
from abstain.models.prediction.preprocessing import Preprocessing
from abstain.training.config.imports import ImportConfig
from abstain.training.data.dataset import Dataset, split_held_out
from abstain.training.data.rows import Rows, Source
from abstain.training.data.sources import read_source


@dataclass(frozen=True)
class HeldOut:
    """The rows of an import.

    Attributes:
        dataset: the calibration and the test part; its training part is empty.
        train: training rows of the network, or rows like them; None if none are given.
    """

    dataset: Dataset
    train: Rows | None

    @property
    def known(self) -> Rows:
        """The rows that are known before the test: the training rows, or else the calibration part."""
        return self.dataset.calibration if self.train is None else self.train

    @property
    def known_part(self) -> str:
        """The name of the part that `known` is."""
        return "calibration" if self.train is None else "training"


def read_held_out(config: ImportConfig, data: str | None) -> Dataset:
    """Reads the labelled rows, and splits them into a calibration and a test part.

    Class indices are in the order of the network's outputs.

    Raises:
        ConfigError: no source is set, or the order of the classes is not known.
        DataError: the source cannot be read or split, or a row has a gap.
    """
    source = _read_labelled(config, data)
    for part in (source.train, source.calibration, source.test):
        if part is not None:
            _check_gaps(part, source.where, source.feature_names)
    return split_held_out(source, config.data, config.seed)


def _read_labelled(config: ImportConfig, data: str | None) -> Source:
    where = data or config.data.source
    if where is None:
        raise ConfigError(
            "data.source",
            expected="labelled rows that the network was not trained on",
            found="nothing",
            fix="set it, or pass --data",
        )
    classify = LIKELIHOODS[config.likelihood].task == "classification"
    source = read_source(where, config.data, classify=classify)
    if not classify:
        return source
    known, wanted = source.class_names, config.posterior.class_names
    if not wanted:
        if known != tuple(map(str, range(len(known)))):
            raise ConfigError(
                "posterior.class_names",
                where=where,
                expected="the classes in the order of the network's outputs, because they are not called 0, 1, …",
                found=f"the classes {', '.join(known)}",
                fix="set it",
            )
        return source
    unknown = [name for name in known if name not in wanted]
    if unknown:
        raise ConfigError(
            "posterior.class_names",
            where=where,
            expected=f"all classes of the rows: {', '.join(known)}",
            found=f"{', '.join(wanted)}, without {unknown[0]}",
            fix="name each output of the network as the rows name the class",
        )
    codes = np.array([wanted.index(name) for name in known], int)

    def recoded(rows: Rows | None) -> Rows | None:
        return None if rows is None else Rows(rows.x, codes[rows.y.astype(int)])

    parts = (recoded(part) for part in (source.train, source.test, source.calibration))
    recoded_train, test, calibration = parts
    return replace(source, train=recoded_train, test=test, calibration=calibration, class_names=wanted)


def read_training_rows(config: ImportConfig, model: Model, dataset: Dataset, where: str) -> Rows:
    """Reads the training rows.

    Raises:
        DataError: they cannot be read, have other features or a gap, or are among the labelled rows.
    """
    classify = model.likelihood_functions.task == "classification"
    rows = read_source(where, config.data, model, classify=classify, dialect=dataset.source.dialect).train
    if rows is None or len(rows) < 2:
        raise DataError("training rows", where=where, expected="two or more, as x and y", found="none or one")
    if rows.x.shape[1:] != model.feature_shape:
        raise DataError(
            "feature shape",
            where=where,
            expected=f"{model.feature_shape}, as in {dataset.source.where}",
            found=rows.x.shape[1:],
            fix="give both files the same features",
        )
    _check_gaps(rows, where, model.feature_names)
    _check_apart(model.preprocessing, rows, dataset, where)
    return rows


def _check_gaps(rows: Rows, where: str, names: tuple[str, ...]) -> None:
    if not np.issubdtype(rows.x.dtype, np.floating) or np.isfinite(rows.x).all():
        return
    row, *feature = np.argwhere(~np.isfinite(rows.x))[0].tolist()
    name = f"column {names[feature[0]]!r}" if len(feature) == 1 and names else f"feature {feature}"
    raise DataError(
        f"row {row}, {name}",
        where=where,
        expected="a number: what the network was trained with in place of a gap is not known",
        found="a gap",
        fix="fill the gaps as for the training, or remove the rows",
    )


def _check_apart(preprocessing: Preprocessing, train: Rows, dataset: Dataset, where: str) -> None:
    """Refuses labelled rows that are training rows, apart from repetitions by chance.

    The share by chance is estimated by how many test rows equal a calibration row, times the ratio of the parts' sizes.
    """
    trained = hash_training_rows(preprocessing, train.x, dataset.calibration.x)
    test = row_hashes(trained.key, preprocessing, dataset.test.x)
    known = row_hashes(trained.key, preprocessing, dataset.calibration.x)
    share = float(np.isin(test, known).mean()) * max(1.0, len(train) / len(known))
    chance = TrainedRows(trained.key, trained.hashes, min(share, 1.0))
    labelled = np.concatenate([dataset.calibration.x, dataset.test.x])
    count = int(find_trained(trained, preprocessing, labelled).sum())
    if count > most_by_chance(chance, len(labelled)):
        raise DataError(
            "training rows",
            where=where,
            expected=f"rows that are not among those of {dataset.source.where}",
            found=f"{count:,} of its {len(labelled):,} rows",
            fix="remove them from one of the files: thresholds from training rows would reject more than stated",
        )
