#!/usr/bin/env python
"""Writes docs/licences.md, the licence of every Python package in the image, and optionally an SBOM.

    python scripts/checks/licences.py PYTHON [--sbom build/sbom.json] [--check]

PYTHON is the interpreter of an environment with exactly requirements.lock in it (scripts/image/replay_image.py makes
one: WORK/app/.venv/bin/python). Licences are what the packages' own metadata say (pip-licenses); the SBOM is CycloneDX.
With --check the document is compared, not written: exit status 1 where it is out of date.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs/licences.md"
HEAD = """\
# Licences of what the image holds

Written by `scripts/checks/licences.py` from the packages' own metadata; one line per package of `requirements.lock`.
Besides these the image holds its base, `nvidia/cuda:12.8.1-devel-ubuntu24.04`, under NVIDIA's Deep Learning Container
License and Ubuntu's packages' own licences (`/usr/share/doc/*/copyright`), and Python 3.12 (PSF-2.0) from Ubuntu. The
model's weights are not in the image. The wheel of `pi-heif` holds libheif and libde265 as shared libraries of their own
(`pi_heif.libs/`), unchanged, under the LGPL-3.0: they may be replaced there.

| package | version | licence |
|---|---|---|
"""
UNCLEAR = "Other/Proprietary License"  # a class of licences that NVIDIA's packages name
NVIDIA = "NVIDIA, proprietary: the package's own License.txt (CUDA Toolkit EULA and its like)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("python", help="interpreter of the environment to describe")
    parser.add_argument("--sbom", type=Path, help="also write a CycloneDX SBOM (JSON) here")
    parser.add_argument("--check", action="store_true", help="compare docs/licences.md instead of writing it")
    arguments = parser.parse_args()
    locked = locked_versions((ROOT / "requirements.lock").read_text())
    rows = {normal(row["Name"]): row for row in pip_licenses(arguments.python)}
    absent = sorted(name for name, version in locked.items() if rows.get(name, {}).get("Version") != version)
    if absent:
        print(f"not as locked in that environment: {', '.join(absent)}", file=sys.stderr)
        return 1
    text = HEAD + "".join(line(rows[name]) for name in sorted(locked))
    if not arguments.check:
        OUT.write_text(text, encoding="utf-8")
    elif OUT.read_text(encoding="utf-8") != text:
        print("docs/licences.md is not what scripts/checks/licences.py writes", file=sys.stderr)
        return 1
    print(f"{OUT.relative_to(ROOT)}: {len(locked)} packages")
    if arguments.sbom:
        arguments.sbom.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "cyclonedx_py", "environment", arguments.python, "--output-reproducible"]
        subprocess.run([*command, "--validate", "--output-file", str(arguments.sbom)], check=True)
    return 0


def locked_versions(text: str) -> dict[str, str]:
    return {normal(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pip_licenses(python: str) -> list[dict[str, str]]:
    command = [
        str(Path(sys.executable).parent / "pip-licenses"),
        "--python",
        python,
        "--format",
        "json",
        "--with-system",
    ]
    result = subprocess.run([*command, "--from", "mixed"], check=True, capture_output=True, text=True)
    return json.loads(result.stdout)


def line(row: dict[str, str]) -> str:
    licence = " ".join(row["License"].split()).replace("|", "/")
    if licence == UNCLEAR and normal(row["Name"]).startswith("nvidia-"):
        licence = NVIDIA
    short = licence if len(licence) <= 120 else licence[:117] + "..."
    return f"| {normal(row['Name'])} | {row['Version']} | {short} |\n"


if __name__ == "__main__":
    sys.exit(main())
