"""The JSON that commands print and that manifests hold: its keys, their order and the kinds of their values.

`tests/data/json_keys.json` has them as they were written down. Where a change of them is meant, write the file anew:

    ABSTAIN_WRITE_JSON_KEYS=1 python -m pytest tests/training/test_json_keys.py
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.paths import PROJECT

KEPT = PROJECT / "tests" / "data" / "json_keys.json"
DIGITS = ("evaluate", "digits:1", "--data", "digits", "--percentile", "95", "--ood")


def structure(value):
    """The keys of a JSON document in their order, and each value's kind; a list of equal elements is one of them.

    How many sentences or names a list has is not its structure: an empty list counts as one of strings.
    """
    if isinstance(value, dict):
        return {key: structure(member) for key, member in value.items()}
    if isinstance(value, list):
        if all(isinstance(element, str) for element in value):
            return ["str"]
        elements = [structure(element) for element in value]
        return elements[:1] if all(element == elements[0] for element in elements) else elements
    return type(value).__name__


def compare(name: str, document) -> None:
    """Holds a document's structure against the one that was written down, order of keys included."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    found = structure(document)
    if os.environ.get("ABSTAIN_WRITE_JSON_KEYS"):
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in (kept | {name: found}).items()]
        KEPT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    assert json.dumps(found, indent=1) == json.dumps(kept[name], indent=1)


def manifest_in(folder: Path) -> dict[str, object]:
    """A version's manifest, but for what names files and packages, and the commit, which an installed copy has not."""
    content = json.loads((folder / "manifest.json").read_text())
    return {key: value for key, value in content.items() if key not in {"files", "packages", "git_commit"}}


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """A set of strange images."""
    np.savez(tmp_path / "noise.npz", x=16 * np.random.default_rng(1).random((90, 8, 8)))
    return tmp_path / "noise.npz"


def test_evaluate_prints_the_keys_of_a_classification(run, store, noise):
    """Figures, intervals, parts, classes, an OOD set and the twin, at a percentile that rejects some rows."""
    code, out, err = run(*DIGITS, f"noise={noise}", "--store", store, "--json")
    assert code == 0, err
    compare("evaluate classification", json.loads(out))


def test_evaluate_prints_the_keys_of_a_regression(run, store):
    """Figures, intervals, parts and the twin."""
    code, out, err = run("evaluate", "wave", "--data", "wave", "--percentile", "90", "--store", store, "--json")
    assert code == 0, err
    compare("evaluate regression", json.loads(out))


def test_calibrate_prints_and_writes_the_keys_it_did(run, store, noise, tmp_path):
    """The output of the command and the manifest of the new version, with an OOD set."""
    target = tmp_path / "store"
    (target / "digits").mkdir(parents=True)
    shutil.copytree(store / "digits" / "1", target / "digits" / "1", dirs_exist_ok=True)
    code, out, err = run(
        "calibrate", "digits", "--data", "digits", "--ood", f"noise={noise}", "--store", target, "--json"
    )
    assert code == 0, err
    compare("calibrate", json.loads(out))
    compare("manifest after calibrate", manifest_in(target / "digits" / "2"))


@pytest.mark.parametrize("name", ["digits", "wave"])
def test_a_manifest_holds_the_keys_it_did(store, name):
    """Metrics and diagnostics of a fit by variational inference, and of one by chains."""
    compare(f"manifest of {name}", manifest_in(store / name / "1"))


def test_fit_prints_the_keys_it_did(run, tmp_path):
    """A mode, after few steps: it has learned nothing, which is a sentence."""
    config = PROJECT / "training" / "configs" / "wave-nuts.toml"
    quick = ("method={kind='map', steps=2, reports=2}", "draws=1", "decision='range'", "hidden=[4]")
    settings = [argument for setting in quick for argument in ("--set", setting)]
    code, out, err = run("fit", config, *settings, "--store", tmp_path, "--json", "--no-report")
    assert code == 0, err
    document = json.loads(out)
    assert document["shortfalls"]
    compare("fit", document)
