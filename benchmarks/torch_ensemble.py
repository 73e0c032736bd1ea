"""Trains an ensemble in PyTorch and saves it as safetensors, for `benchmarks/imports.py`, in an environment with torch.

    python benchmarks/torch_ensemble.py FOLDER

FOLDER has `classes_train.npz`, `classes.npz` and `asked.npz`. Writes `torch-N.safetensors`, and `torch.npz` with the probabilities of each
asked row by PyTorch itself: the mean over the networks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

MEMBERS, STEPS = 5, 400


def main() -> None:
    """Trains, saves, and predicts."""
    folder = Path(sys.argv[1])
    rows = np.load(folder / "classes_train.npz")
    x, y = torch.tensor(rows["x"]), torch.tensor(rows["y"]).long()
    asked = torch.tensor(np.load(folder / "asked.npz")["x"])
    probabilities = []
    for member in range(MEMBERS):
        torch.manual_seed(member)
        network = torch.nn.Sequential(
            torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(STEPS):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(network(x), y).backward()
            optimiser.step()
        save_file(network.state_dict(), folder / f"torch-{member}.safetensors")
        with torch.no_grad():
            probabilities.append(torch.softmax(network(asked).double(), dim=1).numpy())
    np.savez(folder / "torch.npz", probabilities=np.mean(probabilities, axis=0), version=torch.__version__)


if __name__ == "__main__":
    main()
