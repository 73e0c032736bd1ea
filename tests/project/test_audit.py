"""`make audit`: which licences are admitted, and when vulnerabilities count as not checked rather than as none."""

import json
from email.message import Message

import pytest

from deploy import audit
from deploy.audit import Package, Status, Verdict, judge, judge_licence, judge_vulnerabilities, stated_licences


@pytest.mark.parametrize(
    ("licence", "verdict"),
    [
        ("MIT", Verdict.ADMITTED),
        ("mit", Verdict.ADMITTED),
        ("BSD License", Verdict.ADMITTED),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", Verdict.ADMITTED),
        ("GPL-3.0-only OR MIT", Verdict.ADMITTED),
        ("MIT OR GPL-3.0-only AND AGPL-3.0-only", Verdict.ADMITTED),
        ("(MIT OR GPL-3.0-only) AND AGPL-3.0-only", Verdict.REFUSED),
        ("Apache-2.0 WITH LLVM-exception", Verdict.ADMITTED),
        ("LGPL-3.0-or-later", Verdict.NAMED),
        ("GNU Lesser General Public License v3 or later (LGPLv3+)", Verdict.NAMED),
        ("MIT AND LGPL-2.1-only", Verdict.NAMED),
        ("GPL-2.0-or-later WITH GCC-exception-3.1", Verdict.REFUSED),
        ("GPL-2.0-only AND MIT", Verdict.REFUSED),
        ("GNU General Public License v3 (GPLv3)", Verdict.REFUSED),
        ("AGPL-3.0-only", Verdict.REFUSED),
        ("Other/Proprietary License", Verdict.REFUSED),
        ("MIT OR", Verdict.REFUSED),
        ("LicenseRef-mine", Verdict.REFUSED),
        ("", Verdict.REFUSED),
    ],
)
def test_of_two_licences_the_worse_counts_unless_one_may_choose(licence, verdict):
    """As SPDX has it, AND binds closer than OR; what is not known is not admitted."""
    assert judge_licence(licence) is verdict


def test_all_that_a_package_states_must_be_admitted():
    """A classifier that contradicts the field is not overlooked, and to state nothing is no permission."""
    assert judge(Package("a", "1", "serving", ("MIT License", "Apache-2.0")))[0] is Verdict.ADMITTED
    assert judge(Package("a", "1", "serving", ("MIT License", "GPL-3.0-only")))[0] is Verdict.REFUSED
    assert judge(Package("a", "1", "serving", ()))[0] is Verdict.REFUSED


def test_another_licence_is_for_tools_alone_and_with_a_reason():
    """What serving or training needs is refused although it is listed."""
    tools = {"a": "only checks spelling"}
    assert judge(Package("a", "1", "development", ("GPL-3.0-only",)), tools) == (Verdict.NAMED, "only checks spelling")
    assert judge(Package("b", "1", "development", ("GPL-3.0-only",)), tools)[0] is Verdict.REFUSED
    assert judge(Package("a", "1", "training", ("GPL-3.0-only",)), tools)[0] is Verdict.REFUSED


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ([("License-Expression", "MIT"), ("License", "BSD")], ("MIT",)),
        ([("Classifier", "License :: OSI Approved :: BSD License"), ("License", "BSD")], ("BSD License", "BSD")),
        ([("Classifier", "License :: OSI Approved"), ("Classifier", "Topic :: Text"), ("License", "ISC")], ("ISC",)),
        (
            [("Classifier", "License :: OSI Approved :: BSD License"), ("License", "Dual License")],
            ("BSD License", "Dual License"),
        ),
        (
            [("Classifier", "License :: MIT"), ("Classifier", "License :: BSD"), ("License", "Dual License")],
            ("MIT", "BSD"),
        ),
        ([("License", "Copyright, someone\n        May be used.")], ()),
        ([], ()),
    ],
)
def test_a_licence_is_read_from_the_expression_or_from_all_other_fields(fields, stated):
    """A whole text in place of a name is not guessed at."""
    metadata = Message()
    for name, value in fields:
        metadata[name] = value
    assert stated_licences(metadata) == stated


def test_all_that_serving_and_training_need_may_be_used():
    """What is installed here, as `make audit` judges it; the two stages need what they import and no test tool."""
    packages = {package.name: package for package in audit.read_packages()}
    assert packages["bentoml"].purpose == packages["kantoku"].purpose == "serving"
    assert packages["blackjax"].purpose == "training"
    assert packages["pytest"].purpose == "development"
    refused = [p for p in packages.values() if p.purpose != "development" and judge(p)[0] is Verdict.REFUSED]
    assert refused == []


def test_a_refused_licence_is_named_and_fails(tmp_path, capsys):
    """With the package, what it is for and what would be admitted."""
    packages = [Package("good", "1", "serving", ("MIT",)), Package("bad", "2", "training", ("GPL-3.0-only",))]
    outcome = audit.check_licences(packages, tmp_path / "licences.csv")
    assert outcome.status is Status.FAILED
    assert "bad 2 (training): GPL-3.0-only: REFUSED: admitted are 0BSD, " in capsys.readouterr().out
    assert (tmp_path / "licences.csv").read_text().splitlines()[2] == "bad,2,training,GPL-3.0-only,refused"
    assert audit.check_licences([], tmp_path / "licences.csv").status is Status.FAILED


SOUND = {"name": "sound", "version": "1", "vulns": []}
HOLED = {"name": "holed", "version": "2", "vulns": [{"id": "PYSEC-0", "fix_versions": ["3"], "aliases": []}]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("packages", "status", "message"),
    [
        ([SOUND, SOUND], Status.PASSED, "none known of 2 packages"),
        ([SOUND, HOLED, UNKNOWN], Status.FAILED, "holed 2: PYSEC-0 (fixed in 3)"),
        ([SOUND, UNKNOWN], Status.NOT_CHECKED, "1 of 2 packages could not be looked up, such as: Dependency not found"),
        ([], Status.NOT_CHECKED, "0 of 0 packages"),
    ],
)
def test_a_package_that_the_service_does_not_know_is_not_checked(packages, status, message):
    """Although pip-audit then says "No known vulnerabilities found", and ends with 0."""
    found, detail = judge_vulnerabilities(json.dumps({"dependencies": packages}), "No known vulnerabilities found")
    assert found is status
    assert message in detail


@pytest.mark.parametrize(
    ("stderr", "status"),
    [
        ("Traceback …\nrequests.exceptions.ConnectionError: Failed to resolve 'api.example.org'", Status.NOT_CHECKED),
        ("ERROR:pip_audit._cli:Tip: your network may be blocking this service.", Status.NOT_CHECKED),
        ("ERROR:pip_audit._cli:requirement jax is missing hashes", Status.FAILED),
        ("", Status.FAILED),
    ],
)
def test_only_a_service_that_does_not_answer_is_not_checked(stderr, status):
    """A lock that cannot be read is no reason to carry on."""
    assert judge_vulnerabilities("", stderr)[0] is status
