"""README is true: its request is answered with the fields it shows, and its folder map names what there is."""

import json
import re
from pathlib import Path

import httpx
import numpy as np

from abstain.models.bundles.bundle import load
from abstain.training.config.reading import read_config
from abstain.training.fit import fit
from abstain.training.initialize import initialize
from tests.helpers.fits import silent
from tests.helpers.paths import PROJECT
from tests.helpers.processes import PATIENCE

README = (PROJECT / "README.md").read_text("utf-8")


def test_the_request_in_readme_gets_the_fields_shown(server):
    """The body of its curl command is answered 200, with exactly the fields of the answer at its top."""
    body = re.search(r"-d '(\{.*?\})'", README, re.DOTALL).group(1)
    shown = json.loads(re.search(r"```json\n(\{.*?\})\n```", README, re.DOTALL).group(1))
    response = httpx.post(
        f"{server.url}/predict", content=body, headers={"Content-Type": "application/json"}, timeout=PATIENCE
    )
    assert response.status_code == 200, response.text
    assert list(response.json()["predictions"][0]) == list(shown)


def test_the_folder_map_names_every_room():
    """Every folder of code is in the map, under its stage, and every folder and file in the map is there."""
    folders = README.split("## Folders", 1)[1].split("```")[1]
    for stage in ("models", "training", "service"):
        part = re.search(rf"^{stage}/.*?(?=^\w+/)", folders, re.DOTALL | re.MULTILINE).group()
        named = set(re.findall(r"\b(\w+)/", part)) - {stage, "configs"}
        assert named == {init.parent.name for init in (PROJECT / stage).glob("*/__init__.py")}
        assert [file for file in re.findall(r"\b\w+\.py\b", part) if not (PROJECT / stage / file).is_file()] == []
    assert len(folders.strip().splitlines()) <= 18


def test_the_quick_start_asks_for_the_columns_of_its_table(tmp_path, monkeypatch):
    """`abstain init` accepts more rows of the table shown, and the record in the request has the columns that it keeps."""
    table = re.search(r"```text\n(id,.*?)```", README, re.DOTALL).group(1).split()
    asked = json.loads(re.findall(r"-d '(\{.*?\})'", README, re.DOTALL)[1])
    rng = np.random.default_rng(0)
    colours, qualities = ([line.split(",")[place] for line in table[1:]] for place in (1, 3))
    rows = [f"{i},{rng.choice(colours)},{rng.gamma(3):.2f},{rng.choice(qualities)}" for i in range(300)]
    monkeypatch.chdir(tmp_path)
    Path("wine.csv").write_text("\n".join([table[0], *rows]))
    written = initialize(Path("wine.csv"), "quality")
    features = written.proposal.features
    assert (str(written.path), written.proposal.name) == ("wine.toml", asked["model"])
    assert features.drop == {"id": "an id: it numbers the rows"}
    assert [{*record} for record in asked["records"]] == [{*features.numbers, *features.categorical}]


def test_the_config_of_a_table_in_the_docs_is_fitted(tmp_path, monkeypatch):
    """As it stands but for fewer steps, on a table of its columns."""
    (config,) = re.findall(r"```toml\n(name = .*?)```", (PROJECT / "docs" / "data.md").read_text(), re.DOTALL)
    rng = np.random.default_rng(0)
    sweet = rng.normal(size=700)
    rows = [f"{i},{'red' if s > 0 else 'white'},{s:.3f},{'good' if s > 0.5 else 'poor'}" for i, s in enumerate(sweet)]
    (tmp_path / "wine.csv").write_text("\n".join(["id,colour,sugar,quality", *rows]))
    (tmp_path / "wine.toml").write_text(config)
    monkeypatch.chdir(tmp_path)
    shorter = ("steps=300", "starts=1", "draws=20", "reports=1")
    fit(read_config(Path("wine.toml"), shorter), None, tmp_path / "store", silent, report=False)
    bundle = load(tmp_path / "store" / "wine" / "1")
    assert bundle.manifest.model.feature_names == ("colour", "sugar")
    assert bundle.manifest.model.class_names == ("good", "poor")
    assert bundle.manifest.shortfalls == ()
