"""README is true: its request is answered with the fields it shows, and its folder map names what there is."""

import json
import re

import httpx

from tests.conftest import PROJECT

README = (PROJECT / "README.md").read_text("utf-8")


def test_the_request_in_readme_gets_the_fields_shown(server):
    """The body of its curl command is answered 200, with exactly the fields of the answer at its top."""
    body = re.search(r"-d '(\{.*?\})'", README, re.DOTALL).group(1)
    shown = json.loads(re.search(r"```json\n(\{.*?\})\n```", README, re.DOTALL).group(1))
    response = httpx.post(f"{server.url}/predict", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 200, response.text
    assert list(response.json()["predictions"][0]) == list(shown)


def test_the_folder_map_names_every_file():
    """Every Python file of the three stages is in the map, and every file in the map is there."""
    folders = README.split("## Folders", 1)[1]
    named = set(re.findall(r"\b\w+\.py\b", folders))
    present = {path.name for stage in ("models", "training", "service") for path in (PROJECT / stage).glob("*.py")} - {
        "__init__.py"
    }
    assert present - named == set()
    assert named - present - {"demo.py"} == set()
