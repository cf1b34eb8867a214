"""scripts/benchmarks/stream_cost.py in its short form on a CPU."""

from __future__ import annotations

import pytest

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
