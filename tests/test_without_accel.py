"""The product without what makes it fast: `hunyuan.accel`, Triton and FlashInfer cannot be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT = """
import sys

import torch  # looks for Triton by itself

sys.modules |= dict.fromkeys(("hunyuan.accel", "triton", "flashinfer"))  # None: cannot be imported
"""
EDIT = """
import logging
from PIL import Image
from hunyuan import Editor, EditRequest, Settings

logging.basicConfig(level=logging.WARNING)
editor = Editor.load(settings=Settings(device="cpu"))
result = editor.run(EditRequest("a red fox", [Image.new("RGB", (64, 64), "white")], seed=1, steps=1, max_new_tokens=2))
print(result.size, [name for name, module in sys.modules.items() if name.startswith("hunyuan.accel") and module])
"""
REFUSED = """
from hunyuan import Editor, Settings

Editor.load(settings=Settings(device="cpu", moe_impl="torch"))
"""
GOLDENS = """
import json

from scripts import check_goldens

check_section = check_goldens.check_section

def told(golden, section):
    check = check_section(golden, section)
    facts = {"failures": check.failures, "present": check.present}
    facts |= {"compared": sorted(check.compared), "left_out": check.left_out}
    print("FACTS", json.dumps({section: facts}), flush=True)
    return check

check_goldens.check_section = told
sys.exit(check_goldens.main(["tests/data/golden_a"]))
"""
SECTIONS = json.loads((ROOT / "tests/data/golden_a/manifest.json").read_text())["sections"]


def run(program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT + program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_edit_runs_plainly_and_says_so():
    done = run(EDIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(" []")
    assert done.stderr.count("hunyuan.accel is not there") == 1


@pytest.mark.slow
def test_a_fast_backend_that_is_not_there_is_refused():
    done = run(REFUSED)
    assert done.returncode != 0
    assert "HUNYUAN_MOE_IMPL=torch needs hunyuan.accel" in done.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def goldens() -> subprocess.CompletedProcess[str]:
    return run(GOLDENS)


@pytest.mark.slow
def test_the_goldens_pass(goldens):
    assert goldens.returncode == 0, goldens.stdout + goldens.stderr
    assert "every section agrees" in goldens.stdout


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.slow
def test_everything_recorded_in_a_section_is_compared_or_named(goldens, section):
    told: dict[str, Any] = {}
    for line in goldens.stdout.splitlines():
        told |= json.loads(line.removeprefix("FACTS ")) if line.startswith("FACTS ") else {}
    check = told[section]
    present, compared = set(check["present"]), set(check["compared"])
    assert check["failures"] == []
    assert present == (compared | set(check["left_out"])) & present
    assert compared & present
