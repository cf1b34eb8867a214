"""scripts/benchmarks/stream_cost.py in its short form on a CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
from server_process import ROOT

from scripts.benchmarks import stream_cost

SHORT = [
    "--device",
    "cpu",
    "--size",
    "256x256",
    "--prompt-tokens",
    "100",
    "--tokens",
    "20",
    "--steps",
    "3",
    "--repeat",
    "1",
    "--previews",
    "1",
]


@pytest.mark.slow
def test_it_says_what_was_measured_and_what_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert stream_cost.main(SHORT) == 0
    told = capsys.readouterr().out
    for words in ("CPU: the tiny model", "previews=1", "warm-up: without", "edits: without", "not included: HTTP"):
        assert words in told, words
    assert "a stream costs " in told


@pytest.mark.slow
def test_it_needs_no_web_framework() -> None:
    """A machine with a GPU need not have one."""
    code = "import sys, scripts.benchmarks.stream_cost; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "torch" in done.stdout.split()
    assert not {"bentoml", "starlette", "uvicorn"} & set(done.stdout.split())
