#!/usr/bin/env python
"""A short look at the product under the Python that runs this: `PYTHON scripts/checks/smoke.py`.

For the version that the tests do not run under (the image's Python 3.12). Needs the packages of requirements.txt and
nothing of the tests'. Imports every module, writes a tiny checkpoint, verifies and quantizes it, edits a photo with
both, and compares with recorded values. Warnings of our own files are errors.
"""

from __future__ import annotations

import importlib
import pkgutil
import platform
import sys
import tempfile
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import hunyuan
from hunyuan.cli.main import main as command
from hunyuan.compare.sample_photos import photo
from scripts.check_goldens import main as check_goldens

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = ("resolution", "scheduler", "mask_rope", "vit", "backbone")


def import_everything() -> int:
    """Returns how many modules there are. Ours must not warn; what they import may."""
    warnings.filterwarnings("error", module=r"hunyuan\b")
    names = [found.name for found in pkgutil.walk_packages(hunyuan.__path__, "hunyuan.")]
    for name in names:
        if name != "hunyuan.__main__":  # runs the command line
            importlib.import_module(name)
    importlib.import_module("service")
    return len(names)


def main() -> int:
    print(f"Python {platform.python_version()}: {import_everything()} modules imported", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photo(96, 64).save(folder / "photo.jpg")
        whole, small = str(folder / "model"), str(folder / "model-fp8")
        steps = [
            ["tiny", whole, "--shards", "2"],
            ["verify", whole],
            ["quantize", whole, small, "--weights", "fp8", "--device", "cpu"],
            ["edit", str(folder / "photo.jpg"), "blue", "-o", f"{name}/a.png", "--model", whole, "--steps", "2"],
            ["generate", "a crane", "-o", f"{name}/b.png", "--model", small, "--steps", "2", "--resolution", "1:1"],
        ]
        for step in steps:
            if command([*step, *(["--quiet"] if step[0] in ("edit", "generate") else [])]) != 0:
                print(f"FAILED: hunyuan {step[0]}")
                return 1
    chosen = [part for section in SECTIONS for part in ("--section", section)]
    return check_goldens([str(ROOT / "tests/data/golden_a"), *chosen])


if __name__ == "__main__":
    sys.exit(main())
