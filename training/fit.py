"""The steps of `abstain fit`: config → data → split → preprocessing → posterior → feature scores → calibration → evaluation → bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Num

from abstain.models.bundles.bundle import Bundle, load_published
from abstain.models.bundles.manifest import DataRecord, Manifest, MethodRecord
from abstain.models.bundles.shortfalls import Shortfall
from abstain.models.bundles.store import check_writable, resolve
from abstain.models.bundles.trained_rows import (
    TrainedRows,
    find_trained,
    hash_training_rows,
    most_by_chance,
    read_trained,
)
from abstain.models.decisions.judging import judge
from abstain.models.errors import ConfigError, FitError
from abstain.models.networks.specs import ModuleSpec
from abstain.models.prediction.feature_scores import shapes_of
from abstain.models.prediction.likelihoods import LIKELIHOODS
from abstain.models.prediction.posterior import Model, Posterior, check_draws
from abstain.progress import ProgressCallback
from abstain.training.calibration.far_rows import try_far_rows
from abstain.training.calibration.feature_scores import fit_feature_scores
from abstain.training.calibration.pipeline import (
    Calibrated,
    build_record,
    calibrate_posterior,
    check_calibration_settings,
)
from abstain.training.calibration.record import unseen_notes
from abstain.training.calibration.reference import set_aside
from abstain.training.config.config import Config, recorded_settings
from abstain.training.config.requirements import check_needs, check_servable, count_parameters, least_parameters
from abstain.training.data.augmentation import build_augmentation
from abstain.training.data.categories import fit_categories
from abstain.training.data.dataset import Dataset, fit_preprocessing, split
from abstain.training.data.ood_sets import read_ood_sets
from abstain.training.data.sources import read_source
from abstain.training.evaluation.baselines import training_baseline
from abstain.training.evaluation.checks import (
    decision_notes,
    draws_notes,
    draws_shortfalls,
    metric_shortfalls,
    prediction_notes,
    prediction_shortfalls,
)
from abstain.training.evaluation.quality import average_terms, proper_terms
from abstain.training.evaluation.records import ReportData
from abstain.training.evaluation.report_data import (
    predict_curve,
    predict_test_part,
    served_quality,
    served_quality_without_view,
)
from abstain.training.evaluation.served_quality import ServedQuality
from abstain.training.inference.bnn import BNN, observe
from abstain.training.inference.class_weights import weigh_classes
from abstain.training.inference.diagnostics import agreement
from abstain.training.inference.methods import chees, ensemble, hmc, laplace, mile, nuts, vi
from abstain.training.inference.methods import map as mode
from abstain.training.inference.problem import Fitted, Method, Problem
from abstain.training.publish import git_commit, installed_packages, now, publish_version
from abstain.training.report.export import Exports, write_exports
from abstain.training.runs.failures import Failure, Result, attempt
from abstain.training.runs.journal import RESUME, Journal
from abstain.training.runs.progress import stage
from abstain.training.runs.resume import can_be_lengthened, close_journal, open_journal

METHODS: dict[str, Method] = {
    "map": mode.fit,
    "ensemble": ensemble.fit,
    "vi": vi.fit,
    "laplace": laplace.fit,
    "hmc": hmc.fit,
    "nuts": nuts.fit,
    "chees": chees.fit,
    "mile": mile.fit,
}


NO_SETS = (
    "No OOD set was given: name some in the config under [evaluation] ood, or pass them to abstain evaluate "
    "with --ood NAME=PATH."
)


class FitResult(NamedTuple):
    """The result of a fit: the version's number, its metrics on the test part, its shortfalls and notes."""

    version: int
    metrics: ServedQuality
    shortfalls: tuple[Shortfall, ...]
    notes: tuple[str, ...]


def fit(
    config: Config,
    where: str | None,
    store: Path,
    progress: ProgressCallback,
    *,
    resume: bool = False,
    report: bool = True,
    exports: Exports = Exports(),  # noqa: B008 - a frozen record of two Nones
) -> FitResult:
    """Fits a posterior and publishes it as a new version of `config.name`.

    Args:
        where: a path or the name of an embedded set; the config's source if None.
        progress: called after every block of steps, and as each stage after the last step begins and ends.
        resume: whether to continue an interrupted fit of these settings, or to lengthen a finished one.
        report: whether to draw and write `report.html`.
        exports: files to write in addition to the bundle.

    Raises:
        ConfigError, DataError, CalibrationError: the config or the data cannot be used; nothing has been fitted.
        FitError: inference failed.
    """
    check_needs(config, least_parameters(config.network), 1)
    dataset = load_dataset(config, where)
    model = build_model(config, dataset)
    check_needs(config, count_parameters(model), len(dataset.train))
    check_servable(config, model)
    check_calibration_settings(config.calibration, model, dataset.calibration.y)
    check_writable(store, config.name)
    reading = config.data.reading.model_copy(update={"dialect": dataset.source.dialect})
    strange = read_ood_sets(config.evaluation.ood, dataset.test.x, model, reading)
    earlier = load_earlier(config, model, store)
    problem = build_problem(config, model, dataset, earlier)
    start_warnings = start_notes(earlier, dataset)
    packages = installed_packages()
    with open_journal(store, config, dataset.fingerprint, packages, progress, resume=resume) as journal:
        fitted = infer(config, problem, journal)
        with stage(progress, "feature scores"):
            reference, rest = set_aside(dataset.train, config.seed)
            feature_scores = fit_feature_scores(fitted.posterior, rest, config.seed, config.calibration.densities)
        with stage(progress, "calibration"):
            calibrated = calibrate_posterior(
                config.calibration, fitted.posterior, feature_scores, dataset.calibration, reference, config.seed
            )
        with stage(progress, "evaluation"):
            report_data, failures = make_report_data(config, fitted, calibrated, dataset, strange)
            fitted = fitted._replace(notes=(*fitted.notes, *start_warnings, *failures))
            metrics = evaluate_posterior(fitted.posterior, calibrated, dataset, report_data)
            weighted = config.data.class_weights is not None
            fitted = add_shortfalls(fitted, calibrated, report_data, metrics, dataset, weighted=weighted)
        with stage(progress, "report and bundle"):
            write_exports(exports, problem, fitted)
            manifest = build_manifest(config, dataset, fitted, calibrated, metrics)
            trained = hash_training_rows(model.preprocessing, dataset.train.x, dataset.calibration.x)
            shown = report_data if report else None
            version = publish_version(store, manifest, fitted.posterior, calibrated, shown, trained, RESUME)
        close_journal(journal, keep=can_be_lengthened(config))
    return FitResult(version.number, metrics, fitted.shortfalls, version.notes)


def load_dataset(config: Config, where: str | None) -> Dataset:
    """Reads the rows and splits them into train, calibration and test part.

    Raises:
        ConfigError: no source is set.
        DataError: the source cannot be read or split, or a category is refused.
    """
    source = where or config.data.source
    if source is None:
        raise ConfigError(
            "data.source", expected="a path or an embedded set", found="nothing", fix="set it, or pass --data"
        )
    classify = LIKELIHOODS[config.likelihood].task == "classification"
    dataset = split(read_source(source, config.data, classify=classify), config.data, config.seed)
    return fit_categories(dataset, config.data)


def build_model(config: Config, dataset: Dataset) -> Model:
    """Builds the model: network, likelihood and fitted preprocessing.

    Raises:
        ConfigError: the likelihood does not fit the classes, or the network does not fit the inputs.
    """
    source, train = dataset.source, dataset.train
    classify = LIKELIHOODS[config.likelihood].task == "classification"
    if config.likelihood == "bernoulli" and len(source.class_names) != 2:
        raise ConfigError(
            "likelihood",
            expected="two classes for bernoulli",
            found=f"{len(source.class_names)}",
            fix='use "categorical"',
        )
    model = Model(
        network=config.network,
        likelihood=config.likelihood,
        preprocessing=fit_preprocessing(train, config.data, source.columns, source.feature_names, classify=classify),
        feature_shape=train.x.shape[1:],
        feature_names=source.feature_names,
        class_names=source.class_names,
        target_name=config.data.target or "y",
    ).allow(_modules(config))
    model.parameter_shapes()
    return model


def _modules(config: Config) -> tuple[str, ...]:
    """Returns the module that the config names as its network; only this module may be imported."""
    return (config.network.module,) if isinstance(config.network, ModuleSpec) else ()


class EarlierRun(NamedTuple):
    """The published version that a fit starts from, and the hashes of its training rows, if it has them."""

    bundle: Bundle
    trained: TrainedRows | None


def load_earlier(config: Config, model: Model, store: Path) -> EarlierRun | None:
    """Loads the version that `start_from` names, and checks its draws; None if the config names none.

    A label is resolved here alone, because it may be moved while the fit begins.

    Raises:
        UnknownModel: the store has no such version.
        BundleError: the version is damaged, or its draws are of another network.
    """
    start_from = config.method.earlier_run
    if start_from is None:
        return None
    name, version = resolve(store, start_from)
    bundle = load_published(store, name, version, modules=_modules(config))
    check_draws(model, bundle.posterior.draws, where=f"method.start_from = {start_from!r}")
    return EarlierRun(bundle, read_trained(store / name / str(version), bundle.manifest.files))


def build_problem(config: Config, model: Model, dataset: Dataset, earlier: EarlierRun | None = None) -> Problem:
    """Builds the inference problem, and checks prior and class weights against the network before anything is fitted.

    Raises:
        ConfigError: the prior does not fit the network's parameters, or class weights do not fit the classes or the network.
    """
    draws = None if earlier is None else earlier.bundle.posterior.draws
    # Chains are compared at calibration inputs: the test part is used once, after the fit.
    setting = config.data.class_weights
    weights = None if setting is None else weigh_classes(setting, dataset.train.y, model.class_names)
    bnn, train = BNN(model, config.prior, weights), observe(model, dataset.train)
    diagnostic_rows = observe(model, dataset.calibration)
    problem = Problem(bnn, train, diagnostic_rows, draws, build_augmentation(config, model, dataset.train.x))
    _ = problem.target.sites
    return problem


def start_notes(earlier: EarlierRun | None, dataset: Dataset) -> tuple[str, ...]:
    """Returns a note if the run that the fit starts from was trained on calibration rows of this fit."""
    if earlier is None or earlier.trained is None:
        return ()
    manifest, trained = earlier.bundle.manifest, earlier.trained
    equal_rows = int(find_trained(trained, manifest.model.preprocessing, dataset.calibration.x).sum())
    if equal_rows <= most_by_chance(trained, len(dataset.calibration)):
        return ()
    return (
        f"{equal_rows:,} of {len(dataset.calibration):,} calibration rows were training rows of "
        f"{manifest.name}:{manifest.version}, which this fit starts from: new rows may be rejected more often than stated; fit with the seed of that run, {manifest.seed}",
    )


def infer(config: Config, problem: Problem, journal: Journal) -> Fitted:
    """Runs the config's inference method.

    Raises:
        FitError: a draw is not finite.
    """
    method = METHODS[config.method.kind]
    fitted = method(jax.random.key(config.seed), problem, config.method, config.draws, journal)
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted.posterior.draws)):
        raise FitError(
            "the fit diverged",
            where=f"{config.name}, method {config.method.kind}",
            expected="finite draws",
            found="NaN or infinity",
            fix="lower method.learning_rate or method.step_size, narrow prior.scale, or check the scale of the data",
        )
    return fitted


def make_report_data(
    config: Config, fitted: Fitted, calibrated: Calibrated, dataset: Dataset, strange: dict[str, Num[np.ndarray, "..."]]
) -> tuple[ReportData, list[str]]:
    """Computes the data of the report: predictions for the test part, OOD sets and curve, and the chains' agreement.

    Returns:
        The data, and a sentence for each part that could not be computed.
    """
    posterior, failures, absent = fitted.posterior, list[str](), dict[str, str]()

    def try_to_make(key: str, what: str, make: Callable[[], Result], fallback: Result) -> Result:
        result = attempt(what, make, failures)
        if isinstance(result, Failure):
            absent[key] = result.sentence
            return fallback
        return result

    view, view_absent = try_to_make(
        "test",
        "the predictions for the test part",
        lambda: predict_test_part(config.name, posterior, calibrated, dataset.test, strange),
        (None, {}),
    )
    curve, curve_absent = try_to_make(
        "curve", "the curve", lambda: predict_curve(posterior.model, calibrated, dataset.train), (None, {})
    )
    chains = fitted.chains
    chain_agreement = try_to_make(
        "chains", "the ranks", lambda: agreement(chains.column("values")) if chains else None, None
    )
    if not strange:
        absent["ood"] = NO_SETS
    return ReportData(view, curve, chain_agreement, view_absent | curve_absent | absent), failures


def evaluate_posterior(
    posterior: Posterior, calibrated: Calibrated, dataset: Dataset, report_data: ReportData
) -> ServedQuality:
    """Computes the metrics on the test part, and on OOD sets."""
    baseline = training_baseline(dataset.train.y, posterior.model.class_names)
    if report_data.view:
        return served_quality(report_data.view, baseline)
    return served_quality_without_view(posterior, calibrated, dataset.test, baseline)


def add_shortfalls(
    fitted: Fitted,
    calibrated: Calibrated,
    report_data: ReportData,
    metrics: ServedQuality,
    dataset: Dataset,
    *,
    weighted: bool,
) -> Fitted:
    """Adds the shortfalls and notes of the predictions, the draws and the decision to those of the method.

    Args:
        weighted: whether the fit has class weights.
    """
    test, baseline = dataset.test, training_baseline(dataset.train.y, fitted.posterior.model.class_names)
    prediction = report_data.view.familiar.prediction if report_data.view else calibrated.predictor(test.x)
    far_rows = try_far_rows(calibrated)
    terms, average = proper_terms(fitted.posterior, prediction, test), average_terms(prediction, test.y)
    judgement = report_data.view.familiar.judgement if report_data.view else judge(calibrated.calibration, prediction)
    shortfalls = (
        *prediction_shortfalls(terms, average, test.y, dataset.train.y, calibrated.calibration),
        *draws_shortfalls(fitted, test),
        *metric_shortfalls(metrics.metrics),
        *far_rows.shortfalls,
    )
    notes = (
        *fitted.notes,
        *draws_notes(fitted.posterior.size),
        *dataset.notes,
        *far_rows.notes,
        *unseen_notes(calibrated.calibration),
        *prediction_notes(terms, prediction, test.y, baseline, shortfalls, weighted=weighted),
        *decision_notes(judgement, prediction, test.y),
    )
    return fitted._replace(shortfalls=(*fitted.shortfalls, *shortfalls), notes=notes)


def build_manifest(
    config: Config, dataset: Dataset, fitted: Fitted, calibrated: Calibrated, metrics: ServedQuality
) -> Manifest:
    """Builds the manifest, without the version's number and the hashes."""
    settings, names = recorded_settings(config), fitted.posterior.model.class_names
    return Manifest(
        name=config.name,
        version=0,
        created=now(),
        model=fitted.posterior.model,
        draws=fitted.posterior.size,
        method=MethodRecord(kind=config.method.kind, settings=settings["method"] | {"prior": settings["prior"]}),
        calibration=build_record(calibrated, config.calibration, fitted.posterior.model),
        densities=shapes_of(calibrated.feature_scores),
        diagnostics=fitted.diagnostics.to_json(),
        shortfalls=fitted.shortfalls,
        notes=fitted.notes,
        metrics=metrics.to_json(),
        data=DataRecord(
            source=Path(dataset.source.where).name,
            settings=settings["data"],
            fingerprint=dataset.fingerprint,
            train_rows=len(dataset.train),
            calibration_rows=len(dataset.calibration),
            test_rows=len(dataset.test),
            class_rows=tuple(np.bincount(dataset.train.y, minlength=len(names)).tolist()) if names else (),
            dialect=dataset.source.dialect,
        ),
        seed=config.seed,
        packages=installed_packages(),
        git_commit=git_commit(),
    )
