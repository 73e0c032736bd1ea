"""abstain: predictions of Bayesian neural networks, with their uncertainty and a calibrated reject flag.

Examples:
    Fit a model, load it, and ask about rows that it has never met:

    >>> import abstain
    >>> abstain.fit("training/configs/digits-vi.toml")
    FitResult(digits:1, sound, in artifacts/digits/1)
    >>> model = abstain.load("digits")
    >>> answers = model.predict(rows)
    >>> answers.label[~answers.reject]
    array(['3', '8', '1'], dtype=object)

    Everything that abstain raises on purpose is an `AbstainError`, in one line that says what is wrong, where, and what to
    do about it:

    >>> try:
    ...     model.predict([[0.5, None]])
    ... except abstain.InputError as error:
    ...     print(error)
    inputs[0][1]: expected a number, found null

To import the package imports nothing else: JAX is loaded with the first name that needs it, so that the environment
(`JAX_PLATFORMS`, `NPROC` …) can be set after `import abstain`, and before.

Where the code lies:

    abstain.models     what both stages share: networks, bundles, scores, the decision
    abstain.training   from a config and data to a published bundle
    abstain.service    from a bundle to answers over HTTP

Installed, these lie in this package. In a checkout and in a Bento they lie in folders of the same names next to it.
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

    __version__: str

__all__ = [
    "AbstainError",
    "BundleError",
    "CalibrationError",
    "ClassificationPredictions",
    "ConfigError",
    "DataError",
    "FitError",
    "FitResult",
    "InputError",
    "LoadedModel",
    "Predictions",
    "RegressionPredictions",
    "Score",
    "SignatureError",
    "StoreError",
    "UnknownModel",
    "__version__",
    "fit",
    "load",
]

_HOMES = {
    "FitResult": "abstain.fitting",
    "fit": "abstain.fitting",
    "LoadedModel": "abstain.loaded_model",
    "load": "abstain.loaded_model",
    "ClassificationPredictions": "abstain.predictions",
    "Predictions": "abstain.predictions",
    "RegressionPredictions": "abstain.predictions",
    "Score": "abstain.predictions",
}
"""The module of each name that is not an error; imported when the name is first used (PEP 562)."""

# A type checker reads the imports above; with this function it would take any misspelt name for one of ours.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """A public name, imported at its first use. A Bento has no metadata of the package, and so no version."""
        if name == "__version__":
            try:
                return version("abstain")
            except PackageNotFoundError:
                return "unknown"
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOMES.get(name, "abstain.models.errors")), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
