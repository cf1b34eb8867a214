"""scripts/benchmarks/words_engine.py: random weights' texts stand before the picture at their whole length."""

from __future__ import annotations

from pathlib import Path

import pytest
from quick_edits import quick_decode

from hunyuan.model.network import HunyuanImage3
from hunyuan.requests import EditRequest, EditResult
from scripts.benchmarks import bench_engine
from scripts.benchmarks.words_engine import LEAST_TOKENS, WordsEngine

SHORT = ["--device", "cpu", "--size", "256x256"]
REQUEST = EditRequest("make it", resolution="256x256", max_new_tokens=40, guidance_scale=1, seed=1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HunyuanImage3, "decode_image", staticmethod(quick_decode))


def edited(engine: WordsEngine, together: bool) -> EditResult:
    if not together:
        return engine.run(REQUEST, seed=1, steps=2, on_progress=None, cancel=None)
    job = engine.begin(REQUEST, seed=1, steps=2, on_progress=None, cancel=None)
    return engine.finish(job)


@pytest.mark.parametrize("together", [False, True])
def test_as_many_tokens_stand_before_the_picture_as_were_decoded(tmp_path: Path, quick: None, together: bool) -> None:
    options = bench_engine.parse(SHORT)
    options.text_batch = 2 if together else 1
    engine = bench_engine.build(options, tmp_path)
    assert isinstance(engine, WordsEngine)
    result = edited(engine, together)
    assert result.tokens >= LEAST_TOKENS
    tokenizer = engine.checkpoint.tokenizer
    assert len(tokenizer.encode(result.cot_text or "")) == result.tokens + 1  # the tag that the prompt ends with


def test_what_a_step_is_measured_against_has_the_whole_text(tmp_path: Path, quick: None) -> None:
    options = bench_engine.parse([*SHORT, "--tokens", "40", "--steps", "2", "--prompt-tokens", "60"])
    engine = bench_engine.build(options, tmp_path)
    result = edited(engine, together=False)
    work, _ = bench_engine.stage_work(engine, REQUEST, result)["denoise"]
    result.cot_text = None
    silent, _ = bench_engine.stage_work(engine, REQUEST, result)["denoise"]
    assert work.flop > silent.flop
