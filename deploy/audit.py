"""`make audit`: known vulnerabilities, lists of the installed packages (SBOM, CycloneDX), and licences.

    python deploy/audit.py [--tools .venv-audit/bin] [--out build/audit] [--strict]

Run it with the Python of the environment that it checks, which `make test` makes. It starts pip-audit and cyclonedx-py, which have
their own environment, so that no test depends on them.

Exits with 1 if a vulnerability is known, an SBOM cannot be written, or a licence is not admitted. If the vulnerability
service cannot be reached, prints "not checked" and exits with 0, or with 1 if --strict is set.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from importlib.metadata import PackageMetadata, PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any

import orjson
from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[1]
OURS = "abstain"
SECONDS = 900
"""Time limit of pip-audit for all packages together."""

ADMITTED = frozenset({
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear", "BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT",
    "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
})  # fmt: skip
"""SPDX licences that put no conditions on code under Apache-2.0 that depends on the package."""
TOOLS: Mapping[str, str] = {}
"""The reason for each package with another licence; only packages that neither serving nor training needs."""
SPDX_NAMES = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    # The number of clauses is not stated; each of these licences is admitted.
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "gnu lesser general public license v2 (lgplv2)": "LGPL-2.0-only",
    "gnu lesser general public license v2 or later (lgplv2+)": "LGPL-2.0-or-later",
    "gnu lesser general public license v3 (lgplv3)": "LGPL-3.0-only",
    "gnu lesser general public license v3 or later (lgplv3+)": "LGPL-3.0-or-later",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
}
"""SPDX expressions for other names of licences, in lower case; a name that is not here is refused."""
UNREACHABLE = ("requests.exceptions.", "Could not connect", "your network may be blocking")
"""Texts of pip-audit if the service does not respond; it has no separate exit code for that."""


class Verdict(IntEnum):
    """The verdict on a licence. For `A AND B` the lower one counts, for `A OR B` the higher one."""

    REFUSED = 0
    NAMED = 1
    ADMITTED = 2


class Status(IntEnum):
    """The status of a check, the worst first."""

    FAILED = 0
    NOT_CHECKED = 1
    PASSED = 2


@dataclass(frozen=True)
class Outcome:
    """The result of a check."""

    check: str
    status: Status
    detail: str


@dataclass(frozen=True)
class Package:
    """An installed package, its purpose, and its stated licences."""

    name: str
    version: str
    purpose: str
    stated: tuple[str, ...]

    @property
    def licence(self) -> str:
        """All stated licences in one line."""
        return "; ".join(self.stated) or "none stated"


def main() -> int:
    """Runs all checks, prints their results, and writes the SBOMs and the table of licences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, default=PROJECT / ".venv-audit" / "bin", help="folder of the programs")
    parser.add_argument("--out", type=Path, default=PROJECT / "build" / "audit", help="folder for the results")
    parser.add_argument("--osv-url", help="URL of another OSV service")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if something could not be checked")
    options = parser.parse_args()
    absent = [name for name in ("pip-audit", "cyclonedx-py") if not (options.tools / name).is_file()]
    if absent:
        parser.error(f"--tools {options.tools}: expected {', '.join(absent)} there; `make audit` installs them")
    options.out.mkdir(parents=True, exist_ok=True)
    outcomes = [
        check_vulnerabilities(options.tools, options.osv_url),
        *write_sboms(options.tools, options.out),
        check_licences(read_packages(), options.out / "licences.csv"),
    ]
    print()
    for outcome in outcomes:
        print(f"{outcome.check:<16} {outcome.status.name.lower().replace('_', ' '):<12} {outcome.detail}")
    worst = min(outcome.status for outcome in outcomes)
    return int(worst < (Status.PASSED if options.strict else Status.NOT_CHECKED))


def check_vulnerabilities(tools: Path, osv_url: str | None) -> Outcome:
    """Asks OSV about every package of requirements.lock, of which the serving lock is a part."""
    print_progress("asking OSV about the packages of requirements.lock")
    lock = str(PROJECT / "requirements.lock")
    command = [str(tools / "pip-audit"), "--requirement", lock, "--require-hashes", "--disable-pip"]
    command += ["--vulnerability-service", "osv", "--format", "json", "--desc", "off", "--progress-spinner", "off"]
    if osv_url:
        command += ["--osv-url", osv_url]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Outcome("vulnerabilities", Status.NOT_CHECKED, f"OSV did not respond within {SECONDS} s")
    status, detail = judge_vulnerabilities(done.stdout, done.stderr)
    return Outcome("vulnerabilities", status, f"OSV: {detail}")


def judge_vulnerabilities(stdout: str, stderr: str) -> tuple[Status, str]:
    """Returns status and detail from pip-audit's JSON, because its exit code is 1 both for a vulnerability and a failure.

    pip-audit skips packages that the service does not know, and reports that nothing was found; here they are not checked.
    """
    try:
        packages = orjson.loads(stdout)["dependencies"]
    except (orjson.JSONDecodeError, KeyError):
        last = (stderr.strip().splitlines() or ["pip-audit printed nothing"])[-1]
        unreachable = any(text in stderr for text in UNREACHABLE)
        return (Status.NOT_CHECKED, f"cannot be reached: {last}") if unreachable else (Status.FAILED, last)
    skipped = [package for package in packages if "skip_reason" in package]
    vulnerable = [_describe_vulnerabilities(package) for package in packages if package.get("vulns")]
    if vulnerable:
        return Status.FAILED, "; ".join(vulnerable)
    if skipped or not packages:
        reason = f", such as: {skipped[0]['skip_reason']}" if skipped else ""
        return Status.NOT_CHECKED, f"{len(skipped)} of {len(packages)} packages could not be looked up{reason}"
    return Status.PASSED, f"none known of {len(packages)} packages"


def write_sboms(tools: Path, out: Path) -> Iterator[Outcome]:
    """Writes two SBOMs: the packages of serving with hashes, and this environment with licences and dependencies."""
    program, pyproject = str(tools / "cyclonedx-py"), ("--pyproject", str(PROJECT / "pyproject.toml"))
    commands = {
        "serving": [program, "requirements", str(PROJECT / "requirements-serving.lock"), *pyproject],
        "environment": [program, "environment", sys.executable, *pyproject],
    }
    for name, command in commands.items():
        path = out / f"{name}.cdx.json"
        print_progress(f"writing {path}")
        path.unlink(missing_ok=True)
        done = subprocess.run(
            [*command, "--output-reproducible", "--output-file", str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode or not path.exists():
            last = (done.stderr.strip().splitlines() or ["cyclonedx-py printed nothing"])[-1]
            yield Outcome(f"SBOM {name}", Status.FAILED, last)
        else:
            components = orjson.loads(path.read_bytes())["components"]
            yield Outcome(f"SBOM {name}", Status.PASSED, f"{len(components)} components: {path}")


def read_packages() -> list[Package]:
    """Returns all installed packages except abstain, sorted by name."""
    serving, training = find_dependencies(""), find_dependencies("training")
    packages: dict[str, Package] = {}
    for installed in distributions():
        name = canonicalize_name(installed.metadata["Name"])
        purpose = "serving" if name in serving else "training" if name in training else "development"
        packages.setdefault(name, Package(name, installed.version, purpose, stated_licences(installed.metadata)))
    return [packages[name] for name in sorted(packages) if name != OURS]


def find_dependencies(extra: str) -> set[str]:
    """Returns the direct and indirect dependencies of abstain with an extra, or without one ("")."""
    visited: set[tuple[str, str]] = set()
    waiting = [(OURS, extra)]
    while waiting:
        name, own_extra = key = waiting.pop()
        if key in visited:
            continue
        visited.add(key)
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:  # a package of another platform
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": own_extra}):
                waiting += [(canonicalize_name(requirement.name), more) for more in ("", *requirement.extras)]
    return {name for name, _ in visited}


def stated_licences(metadata: PackageMetadata) -> tuple[str, ...]:
    """Returns a package's SPDX expression, or else its licence classifiers and its licence field if that is one line."""
    expressions = metadata.get_all("License-Expression")
    if expressions:
        return tuple(expressions)
    classifiers = [line.split(" :: ") for line in metadata.get_all("Classifier") or () if line.startswith("License ::")]
    names = [parts[-1] for parts in classifiers if parts[-1] != "OSI Approved"]
    names += [field.strip() for field in metadata.get_all("License") or () if "\n" not in field.strip()]
    several = [name for name in dict.fromkeys(filter(None, names)) if name != "Dual License"]
    # That text says only that the package states several.
    return tuple(several if len(several) > 1 else dict.fromkeys(filter(None, names)))


def judge(package: Package, tools: Mapping[str, str] = TOOLS) -> tuple[Verdict, str]:
    """Returns the verdict on a package and its reason; all stated licences must be admitted."""
    verdict = min((judge_licence(text) for text in package.stated), default=Verdict.REFUSED)
    if verdict is Verdict.NAMED:
        return verdict, "LGPL: a separate package that is not modified, so that users can replace it"
    if verdict is Verdict.REFUSED and package.purpose == "development" and package.name in tools:
        return Verdict.NAMED, tools[package.name]
    if verdict is Verdict.REFUSED:
        return verdict, "admitted are " + ", ".join(sorted(ADMITTED))
    return verdict, ""


def judge_licence(text: str) -> Verdict:
    """Returns the verdict on an SPDX expression or a name in `SPDX_NAMES`; REFUSED for any other text."""
    try:
        expression = canonicalize_license_expression(SPDX_NAMES.get(text.lower(), text))
    except InvalidLicenseExpression:
        return Verdict.REFUSED
    tokens = re.findall(r"[()]|[^\s()]+", expression)[::-1]  # reversed, so that pop() returns the next one
    return _judge_choice(tokens)


def _judge_choice(tokens: list[str]) -> Verdict:
    verdict = _judge_all(tokens)
    while tokens and tokens[-1] == "OR":
        tokens.pop()
        verdict = max(verdict, _judge_all(tokens))
    return verdict


def _judge_all(tokens: list[str]) -> Verdict:
    verdict = _judge_one(tokens)
    while tokens and tokens[-1] == "AND":
        tokens.pop()
        verdict = min(verdict, _judge_one(tokens))
    return verdict


def _judge_one(tokens: list[str]) -> Verdict:
    token = tokens.pop()
    if token == "(":  # noqa: S105 - a bracket, no password
        verdict = _judge_choice(tokens)
        tokens.pop()
        return verdict
    if tokens and tokens[-1] == "WITH":
        del tokens[-2:]  # an exception only permits more
    if token in ADMITTED:
        return Verdict.ADMITTED
    return Verdict.NAMED if token.startswith("LGPL-") else Verdict.REFUSED


def check_licences(packages: Sequence[Package], path: Path) -> Outcome:
    """Writes a table of all packages, prints them by licence, and lists those with another verdict than ADMITTED."""
    print_progress(f"checking the licences of {len(packages)} packages, listed in {path}")
    verdicts = [(package, *judge(package)) for package in packages]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("package", "version", "needed for", "licence", "verdict"))
        for package, verdict, _ in verdicts:
            table.writerow((package.name, package.version, package.purpose, package.licence, verdict.name.lower()))
    by_licence: dict[str, list[str]] = defaultdict(list)
    for package, _, _ in verdicts:
        by_licence[package.licence].append(package.name)
    for licence, names in sorted(by_licence.items(), key=lambda item: -len(item[1])):
        print(f"  {len(names):>3}  {licence}: {', '.join(names)}")
    for package, verdict, reason in verdicts:
        if verdict is not Verdict.ADMITTED:
            print(
                f"  {package.name} {package.version} ({package.purpose}): {package.licence}: {verdict.name}: {reason}"
            )
    counts = [sum(verdict is value for _, verdict, _ in verdicts) for value in Verdict]
    status = Status.FAILED if counts[Verdict.REFUSED] or not verdicts else Status.PASSED
    return Outcome(
        "licences",
        status,
        f"{len(verdicts)} packages: {counts[Verdict.ADMITTED]} admitted, {counts[Verdict.NAMED]} named, "
        f"{counts[Verdict.REFUSED]} refused",
    )


def print_progress(text: str) -> None:
    """Prints a line of progress."""
    print(f"· {text}", flush=True)


def _describe_vulnerabilities(package: Mapping[str, Any]) -> str:
    vulnerabilities = ", ".join(
        f"{item['id']} (fixed in {', '.join(item['fix_versions']) or 'no version'})" for item in package["vulns"]
    )
    return f"{package['name']} {package['version']}: {vulnerabilities}"


if __name__ == "__main__":
    raise SystemExit(main())
