#!/usr/bin/env python
"""Asks pip-audit for known vulnerabilities of everything in requirements.lock: `python scripts/checks/audit.py`.

Exit status 1 for any that is not excepted below, 0 otherwise, each exception printed with its reason. Where the
vulnerability service cannot be reached, or knows none of the packages (a mirror of the index without the data), that
is said in so many words and the exit status is 0, or 3 with --must-reach.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXCEPTIONS: dict[str, str] = {}
"""Vulnerability id -> why it does not touch this service. Take an entry out when its package moves on."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--must-reach", action="store_true", help="exit status 3 when nothing could be looked up")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.lock")
    arguments = parser.parse_args()
    report, error = run_pip_audit(arguments.requirements)
    if report is None:
        print(f"NOT AUDITED: the vulnerability service does not answer: {error}")
        return 3 if arguments.must_reach else 0
    found, audited, skipped = sort_out(report)
    if not audited:
        print(f"NOT AUDITED: the index has no vulnerability data for any of {len(skipped)} packages; {skipped[0]}")
        return 3 if arguments.must_reach else 0
    for line in skipped:
        print(f"not audited: {line}")
    bad = [line for identifiers, line in found if not identifiers & EXCEPTIONS.keys()]
    for identifiers, line in found:
        reasons = [EXCEPTIONS[i] for i in sorted(identifiers & EXCEPTIONS.keys())]
        print(f"{'excepted' if reasons else 'VULNERABLE'}: {line}{': ' if reasons else ''}{'; '.join(reasons)}")
    print(f"{audited} packages audited, {len(skipped)} not; {len(found)} vulnerabilities, {len(bad)} not excepted")
    return 1 if bad else 0


def run_pip_audit(requirements: Path) -> tuple[dict | None, str]:
    """pip-audit's report, or None and the last line of what it complained about."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--disable-pip", "--no-deps"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", "15"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return json.loads(result.stdout), ""
    except ValueError:
        lines = result.stderr.strip().splitlines()
        return None, lines[-1] if lines else f"exit status {result.returncode}"


def sort_out(report: dict) -> tuple[list[tuple[set[str], str]], int, list[str]]:
    """Vulnerabilities (all their ids, a line), the number of packages looked up, and the others with the reason."""
    found: list[tuple[set[str], str]] = []
    skipped: list[str] = []
    audited = 0
    for package in report["dependencies"]:
        if "skip_reason" in package:
            skipped.append(f"{package['name']}: {package['skip_reason']}")
            continue
        audited += 1
        for vulnerability in package["vulns"]:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no release"
            identifiers = {vulnerability["id"], *vulnerability.get("aliases", ())}
            line = f"{package['name']} {package['version']} {vulnerability['id']}, fixed in {fixed}"
            found.append((identifiers, line))
    return found, audited, skipped


if __name__ == "__main__":
    sys.exit(main())
