"""Shortfalls in a manifest: a sentence in the JSON, a record with its check's code once read."""

import json

import pytest
from pydantic import ValidationError

from abstain.models.bundles.bundle import load
from abstain.models.bundles.manifest import Manifest, read_manifest
from abstain.models.bundles.shortfalls import Shortfall, recognise, texts
from tests.helpers.paths import PROJECT

GOLDEN = PROJECT / "tests" / "data" / "golden" / "2"


def manifest_with(*shortfalls: object) -> Manifest:
    """The manifest of schema 2 that is kept, with other shortfalls."""
    return Manifest.model_validate(json.loads((GOLDEN / "manifest.json").read_text()) | {"shortfalls": shortfalls})


def test_the_code_of_an_earlier_versions_sentence_is_found():
    """The bundle was written before there were codes, with other advice at the sentence's end."""
    (lack,) = load(GOLDEN).manifest.shortfalls
    assert lack.code == "learned_nothing"
    assert json.loads((GOLDEN / "manifest.json").read_text())["shortfalls"] == [lack.text]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("chain 12 hardly moves: it accepts 0.0% of its proposals", "acceptance"),
        ("chain 12 moves slowly between energies: E-BFMI is below 0.3", "e_bfmi"),
        ("17 of 4000 transitions diverged, more than 0.1%", "divergences"),
        ("the samples of predictions are worth too few independent ones: bulk ESS is 12, below 400", "ess"),
        ("member 1 left the numbers at every step and never moved", "still_member"),
        ("a check of tomorrow", None),
        ("note: its decision score, std, is the same", None),
        ("", None),
    ],
)
def test_a_sentence_is_recognised_by_how_it_begins(text, code):
    """Whatever numbers it has; one that is not known has no code, and keeps its text."""
    assert recognise(text) == Shortfall(code, text)


def test_the_json_is_a_list_of_sentences():
    """What was read is written as it was, a sentence that is not known as well."""
    given = ("its decision score, std, is the same for every row", "a check of tomorrow")
    manifest = manifest_with(*given)
    assert manifest.model_dump(mode="json")["shortfalls"] == list(given) == texts(manifest.shortfalls)
    assert json.loads(manifest.model_dump_json())["shortfalls"] == list(given)
    assert manifest_with(*manifest.shortfalls) == manifest
    assert [str(lack) for lack in manifest.shortfalls] == list(given)


@pytest.mark.parametrize("value", [3, None, ["a"], {"code": "ess", "text": "a"}])
def test_what_is_no_sentence_is_refused(value):
    """A record in the JSON as well: a manifest has sentences and nothing else."""
    with pytest.raises(ValidationError, match="Input should be a valid string"):
        manifest_with(value)


def test_a_shortfall_cannot_be_changed():
    """It is a frozen record."""
    with pytest.raises(AttributeError):
        read_manifest(GOLDEN).shortfalls[0].code = None  # type: ignore[misc]
