"""A model of a table with names, `crew`, and a server of it in this process."""

import datetime
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import uvicorn
from pyarrow import csv

from abstain.service.http import build_app
from abstain.service.live_versions import LiveVersions
from abstain.service.process import Process, Traffic
from abstain.service.settings import Settings
from abstain.training.config.reading import config_from_dict
from abstain.training.fit import fit
from tests.helpers.fits import silent
from tests.helpers.processes import PATIENCE


def crew(rows: int = 160) -> pa.Table:
    """Age with gaps, a category, a boolean and a date, on which `mood` depends."""
    rng = np.random.default_rng(0)
    age, job, night = rng.integers(18, 66, rows).astype(float), rng.integers(0, 3, rows), rng.integers(0, 2, rows)
    days = rng.integers(0, 5_000, rows)
    mood = np.array(["bad", "good"])[(age + 15 * job + 10 * night > 60).astype(int)]
    age[::16] = np.nan
    return pa.table(
        {
            "age": pa.array(age, from_pandas=True),
            "job": np.array(["baker", "nurse", "1"])[job],
            "night": np.array(["false", "true"])[night],
            "since": [str(datetime.date(2010, 1, 1) + datetime.timedelta(days=int(day))) for day in days],
            "mood": mood,
        }
    )


def fit_crew(store: Path) -> None:
    """Publishes `crew`, a classifier of the rows of `crew()`; an unseen category is rejected."""
    store.mkdir()
    csv.write_csv(crew(), store / "crew.csv")
    data = {"target": "mood", "categorical": ["job", "night"], "dates": ["since"]}
    config = config_from_dict(
        {
            "name": "crew",
            "likelihood": "categorical",
            "draws": 4,
            "data": {**data, "calibration_size": 40, "test_size": 20},
            "network": {"kind": "mlp", "hidden": [4]},
            "method": {"kind": "vi", "steps": 60, "reports": 1},
            "calibration": {"percentile": 90, "decision": ["entropy"]},
        }
    )
    fit(config, str(store / "crew.csv"), store, silent, report=False)
    (store / "crew.csv").unlink()


@contextmanager
def serving(store: Path, folder: Path) -> Iterator[str]:
    """Serves a store in a thread of this process, with programs of one size; the URL."""
    versions = LiveVersions(store)
    versions.load_all(buckets=(8,))
    assert versions.reasons_not_ready() == []
    app = build_app(
        Settings(store=folder), Process(1, 1, folder), Traffic(), versions, lambda *_: None, lambda *_: None
    )
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        end = time.monotonic() + PATIENCE
        while not server.started and time.monotonic() < end:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(PATIENCE)
