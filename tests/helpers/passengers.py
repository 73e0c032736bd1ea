"""A table with few distinct rows, and a model fitted on it."""

from pathlib import Path

import numpy as np

from abstain.training.config.config import Config
from abstain.training.fit import fit
from tests.helpers.fits import silent

ROWS = 1_500


def passenger_table() -> tuple[np.ndarray, np.ndarray]:
    """Passengers of a ship: rank, sex, relatives on board and port; and who survived."""
    rng = np.random.default_rng(0)
    rank, sex = rng.choice(3, ROWS, p=[0.24, 0.21, 0.55]), rng.integers(0, 2, ROWS)
    relatives, port = np.minimum(rng.geometric(0.6, ROWS) - 1, 5), rng.choice(3, ROWS, p=[0.72, 0.19, 0.09])
    x = np.stack([rank, sex, relatives, port], axis=1).astype(np.float32)
    return x, (rng.random(ROWS) < 1 / (1 + np.exp(0.8 * rank + 0.3 * relatives - 2.5 * sex))).astype(int)


def fit_passengers(store: Path) -> None:
    """Publishes `passengers`, at percentile 90, in a new store."""
    store.mkdir()
    x, y = passenger_table()
    np.savez(store / "table.npz", x=x, y=y)
    config = Config.model_validate(
        {
            "name": "passengers",
            "draws": 10,
            "network": {"kind": "mlp", "hidden": [16]},
            "method": {"kind": "vi", "steps": 200, "learning_rate": 1e-2, "reports": 1},
            "calibration": {"percentile": 90.0, "sets": "aps"},
        }
    )
    fit(config, str(store / "table.npz"), store, silent)
