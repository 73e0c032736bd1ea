"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = {"help_option_names": ["-h", "--help"]}
StoreOption = Annotated[
    Path, typer.Option("--store", envvar="ABSTAIN_STORE", help="The folder of models.", show_default=True)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="name, name:version or name@label")]
DEFAULT_STORE = Path("artifacts")


def check_percentile(percentile: float) -> None:
    """Refuses an invalid percentile, or a share such as .99: wrong usage, exit code 2."""
    if not 1 < percentile < 100:
        raise typer.BadParameter(
            f"expected a percentile above 1 and below 100, such as 99, found {percentile:g}", param_hint="--percentile"
        )
