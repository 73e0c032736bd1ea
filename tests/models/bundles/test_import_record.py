"""The record of imported draws: what a manifest may claim, and that fits do not have it."""

import pytest

from abstain.models.bundles.import_record import ImportedFile, ImportRecord, import_claims
from abstain.models.bundles.manifest import read_manifest
from abstain.models.bundles.plausible import refuse_implausible
from abstain.models.errors import BundleError
from tests.helpers.paths import PROJECT

DIGEST = "sha256:" + "0" * 64


def record_of(**changes):
    """A record of five draws, with changes."""
    sources = (ImportedFile(name="draws.npz", digest=DIGEST),)
    return ImportRecord(**({"kind": "npz", "sources": sources, "digest": DIGEST, "found": 5, "chains": 0} | changes))


def test_a_plausible_record_passes():
    """Also none."""
    for record in (record_of(), record_of(sources=(), kind="mcmc", chains=5), None):
        refuse_implausible(import_claims(record, 5), "m")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"found": 4}, "imported.found: expected from 5 to"),
        ({"found": 10**12}, "imported.found"),
        ({"chains": -1}, "imported.chains"),
        ({"chains": 6}, "imported.chains"),
        ({"sources": (ImportedFile(name="../a", digest=DIGEST),)}, "names without a path, found '../a'"),
        ({"sources": (ImportedFile(name="..", digest=DIGEST),)}, "names without a path"),
        ({"sources": (ImportedFile(name="a", digest=DIGEST),) * 10_001}, "imported.sources: expected at most 10,000"),
    ],
)
def test_implausible_claims_are_refused(changes, text):
    """Fewer draws in the source than kept, more chains than draws, names with a path, too many files."""
    with pytest.raises(BundleError) as caught:
        refuse_implausible(import_claims(record_of(**changes), 5), "m")
    assert text in str(caught.value)


@pytest.mark.parametrize("change", [{"kind": "pickle"}, {"digest": "sha256:0"}, {"more": 1}])
def test_records_of_another_form_are_refused(change):
    """An unknown kind, no digest, an unknown key."""
    with pytest.raises(ValueError, match="validation error"):
        record_of(**change)


def test_fits_do_not_have_it():
    """Their manifests are written as before."""
    manifest = read_manifest(PROJECT / "tests" / "data" / "golden" / "2")
    assert manifest.imported is None
    assert "imported" not in manifest.model_dump(mode="json")
