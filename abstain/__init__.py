"""abstain: predictions of Bayesian neural networks, with their uncertainty and a calibrated reject flag.

Examples:
    Fit a model, load it, and predict new rows:

    >>> import abstain
    >>> abstain.fit("training/configs/digits-vi.toml")
    FitResult(digits:1, sound, in artifacts/digits/1)
    >>> model = abstain.load("digits")
    >>> predictions = model.predict(rows)
    >>> predictions.label[~predictions.reject]
    array(['3', '8', '1'], dtype=object)

    Every error that abstain raises on purpose is an `AbstainError`. Its one line says what is wrong, where, and how to fix
    it:

    >>> try:
    ...     model.predict([[0.5, None]])
    ... except abstain.InputError as error:
    ...     print(error)
    inputs[0][1]: expected a number, found null

`import abstain` imports nothing else. The first name that needs JAX loads it, so you can still set the environment
(`JAX_PLATFORMS`, `NPROC` …) after `import abstain`.

Subpackages:

    abstain.models     the parts that training and serving share: networks, bundles, scores, the decision
    abstain.training   from a config and data to a published bundle
    abstain.service    from a bundle to responses over HTTP

In an installation they are inside this package. In a checkout and in a Bento they are folders of the same names next to it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

_PACKAGE = Path(__file__).resolve().parent

if not (_PACKAGE / "models").is_dir():
    __path__.append(str(_PACKAGE.parent))

if TYPE_CHECKING:
    from abstain.fitting import FitResult, fit
    from abstain.importing import from_numpyro, import_posterior
    from abstain.loaded_model import LoadedModel, load
    from abstain.models.errors import (
        AbstainError,
        BundleError,
        CalibrationError,
        ConfigError,
        DataError,
        FitError,
        InputError,
        SignatureError,
        StoreError,
        UnknownModel,
    )
    from abstain.predictions import ClassificationPredictions, Predictions, RegressionPredictions, Score
    from abstain.service.client.client import AsyncClient, Client
    from abstain.service.client.errors import (
        AccessRefused,
        DeadlineExceeded,
        NotReady,
        RequestError,
        TooManyRequests,
        Unreachable,
    )
    from abstain.service.client.facts import ModelVersion, Readiness, ServedModel
    from abstain.service.client.results import RowPrediction, ServedPredictions

    __version__: str

__all__ = [
    "AbstainError",
    "AccessRefused",
    "AsyncClient",
    "BundleError",
    "CalibrationError",
    "ClassificationPredictions",
    "Client",
    "ConfigError",
    "DataError",
    "DeadlineExceeded",
    "FitError",
    "FitResult",
    "InputError",
    "LoadedModel",
    "ModelVersion",
    "NotReady",
    "Predictions",
    "Readiness",
    "RegressionPredictions",
    "RequestError",
    "RowPrediction",
    "Score",
    "ServedModel",
    "ServedPredictions",
    "SignatureError",
    "StoreError",
    "TooManyRequests",
    "UnknownModel",
    "Unreachable",
    "__version__",
    "fit",
    "from_numpyro",
    "import_posterior",
    "load",
]

_MODULES = {
    "FitResult": "abstain.fitting",
    "fit": "abstain.fitting",
    "from_numpyro": "abstain.importing",
    "import_posterior": "abstain.importing",
    "LoadedModel": "abstain.loaded_model",
    "load": "abstain.loaded_model",
    "ClassificationPredictions": "abstain.predictions",
    "Predictions": "abstain.predictions",
    "RegressionPredictions": "abstain.predictions",
    "Score": "abstain.predictions",
    "AsyncClient": "abstain.service.client.client",
    "Client": "abstain.service.client.client",
    "AccessRefused": "abstain.service.client.errors",
    "DeadlineExceeded": "abstain.service.client.errors",
    "NotReady": "abstain.service.client.errors",
    "RequestError": "abstain.service.client.errors",
    "TooManyRequests": "abstain.service.client.errors",
    "Unreachable": "abstain.service.client.errors",
    "ModelVersion": "abstain.service.client.facts",
    "Readiness": "abstain.service.client.facts",
    "RowPrediction": "abstain.service.client.results",
    "ServedModel": "abstain.service.client.facts",
    "ServedPredictions": "abstain.service.client.results",
}
"""The module of each name that is not in `models.errors`; it is imported when the name is first used (PEP 562)."""

# A type checker reads the imports above. If it saw this function, it would accept every misspelt name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """Imports a public name at its first use. A Bento has no metadata of the package, so its version is unknown."""
        if name == "__version__":
            try:
                return version("abstain")
            except PackageNotFoundError:
                return "unknown"
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULES.get(name, "abstain.models.errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
