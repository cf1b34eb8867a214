"""The product without what makes it fast: `hunyuan.accel`, Triton and FlashInfer cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WITHOUT = """
import runpy
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
sys.argv = ["check_goldens.py", "tests/data/golden_a"]
runpy.run_path("scripts/check_goldens.py", run_name="__main__")
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT + program]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_an_edit_runs_plainly_and_says_so():
    done = run(EDIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith(" []")
    assert done.stderr.count("hunyuan.accel is not there") == 1


def test_a_fast_backend_that_is_not_there_is_refused():
    done = run(REFUSED)
    assert done.returncode != 0
    assert "HUNYUAN_MOE_IMPL=torch needs hunyuan.accel" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_goldens_pass():
    done = run(GOLDENS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every section agrees" in done.stdout
