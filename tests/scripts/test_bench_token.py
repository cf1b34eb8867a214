"""The benchmark of one token: what it calls right and best, and a short run of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.benchmarks.bench_token import best_of, right, summary
from scripts.benchmarks.token_cases import Case, Made

ROOT = Path(__file__).parents[2]


def never(_sets: int) -> Made:
    raise NotImplementedError


def test_the_best_is_the_fastest_right_one() -> None:
    found = {"now": (5.0, 1e-3), "wrong": (1.0, 0.5), "nan": (1.0, float("nan")), "good": (3.0, 4e-3)}
    cases = [Case("qkv", way, never, 0) for way in [*found, "failed"]]
    lines = [{"part": "qkv", "way": way, "us": us, "error": error} for way, (us, error) in found.items()]
    lines.append({"part": "qkv", "way": "failed", "failed": "out of memory"})
    assert [right(line) for line in lines] == [True, False, False, True, False]
    assert best_of(cases, lines)["qkv"][0].way == "good"


def test_a_token_is_layers_head_and_sampling() -> None:
    parts = {"layer": 100.0, "lm_head": 200.0, "sampling": 50.0}
    lines = [{"part": part, "way": "now", "us": us, "error": 0.0} for part, us in parts.items()]
    cases = [Case(part, "now", never, 0) for part in parts]
    assert "a token of 32 layers, now: 3.450 ms" in summary(best_of(cases, lines), lines)
    assert "a token" not in summary(best_of(cases[1:], lines[1:]), lines[1:])


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
def test_it_runs_small_and_interpreted() -> None:
    pytest.importorskip("triton")
    script = ROOT / "scripts" / "benchmarks" / "bench_token.py"
    command = [sys.executable, str(script), "--device", "cpu", "--repeats", "1", "--only", "down,sampling"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "best of down: " in done.stdout
    assert "sampling        now" in done.stdout
