"""scripts/benchmarks/bench_texts.py in its short form on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hunyuan.requests import EditRequest, EditResult
from scripts.benchmarks import bench_engine, bench_texts

SHORT = ["--device", "cpu", "--size", "256x256", "--prompt-tokens", "100", "--tokens", "9", "--steps", "1"]


def test_no_more_rows_are_measured_than_there_are() -> None:
    options = bench_texts.parse([*SHORT, "--text-batch", "4"])
    assert (options.text_batch, options.rows, options.tokens) == (4, [1, 2, 4], 9)
    assert bench_engine.parse(SHORT).text_batch == 1


@pytest.mark.slow
def test_short_run_says_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = bench_texts.parse([*SHORT, "--text-batch", "2", "--edits", "3"])
    engine = bench_engine.build(options, tmp_path)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return torch.tanh(latents[:, :3]).repeat_interleave(16, dim=-1).repeat_interleave(16, dim=-2)

    monkeypatch.setattr(engine.checkpoint.model, "decode_image", decode)
    with pytest.raises(SystemExit, match="do not fit into a row of 8192 tokens"):
        bench_texts.decode_together(engine, EditRequest("x", max_new_tokens=9000), 1, 1)
    found = bench_texts.measure(engine, options)
    assert [row["texts"] for row in found["rows"]] == [1, 2]
    for row in found["rows"]:
        assert row["steps"] >= row["steps_of_all"] > 0
        assert row["token_ms"] * row["tokens_s"] == pytest.approx(1000)
    assert found["same_bytes"]
    assert len(found["together"]["tokens"]) == 3
    assert engine.text_places == 2
    out = capsys.readouterr().out
    for words in ("2 texts: a step", "texts alone: 3 edits", "texts together: 3 edits", "an hour", "same bytes"):
        assert words in out


def test_other_bytes_are_noticed() -> None:
    from PIL import Image

    def result(colour: int, text: str = "x") -> EditResult:
        return EditResult(Image.new("RGB", (2, 2), (colour, 0, 0)), text, 0, (2, 2), 1, 1)

    assert bench_texts.same(result(1), result(1))
    assert not bench_texts.same(result(1), result(2))
    assert not bench_texts.same(result(1), result(1, "y"))
