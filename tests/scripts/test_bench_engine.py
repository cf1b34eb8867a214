"""scripts/benchmarks/bench_engine.py in its short form on a CPU, and the arithmetic of engine_work.py beside it."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from small_model import noise

from hunyuan import Editor
from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.attention import Segment, attend
from hunyuan.prompt.resolution import Size, resolution_group
from scripts.benchmarks import bench_engine, engine_check
from scripts.benchmarks.engine_check import HeadByHead
from scripts.benchmarks.engine_work import Work, WorkCounter, pairs_of

ROOT = Path(__file__).parents[2]
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
    "2",
    "--repeat",
    "1",
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts/benchmarks/bench_engine.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


def real(dense: str = "bf16") -> WorkCounter:
    return WorkCounter(CheckpointConfig.from_dict(full_size_config(32, "mxfp4", dense)))


@pytest.mark.slow
def test_short_run_says_what_was_measured(tmp_path: Path) -> None:
    done = run(*SHORT, "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    words = ("CPU: the tiny model", "size=256x256", "steps=2", "warm-up:", "edit:", "not included: HTTP")
    for word in (*words, *bench_engine.TIMED, "kernels: plain, attention sdpa", "experts: Experts"):
        assert word in done.stdout, word
    content = json.loads((tmp_path / "out.json").read_text())
    assert tuple(row["stage"] for row in content["stages"]) == bench_engine.TIMED
    assert all(row["seconds"] > 0 and row["unit_ms"] > 0 for row in content["stages"])
    assert not any("aim_ms" in row or "least_ms" in row for row in content["stages"])
    assert content["settings"]["prompt_tokens"] == "100"


@pytest.mark.slow
def test_two_copies_are_measured_and_the_host_s_part_of_a_step() -> None:
    done = run(*SHORT, "--gpus", "2", "--launches")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gpus=2" in done.stdout
    assert "guidance: the guided row on cpu, the unguided one on cpu" in done.stderr
    assert re.search(r"host: \d+\.\d ms to launch a step, one row on each of two devices \(median of 5\)", done.stdout)
    found = re.search(r"two copies: the same bits twice; .*: (\S+) after 1, (\S+) after 6 steps", done.stdout)
    assert found is not None
    assert all(float(value) < 1e-4 for value in found.groups())


@pytest.mark.parametrize("more", [["--distil"], ["--guidance", "1"], ["--check"]], ids=str)
def test_one_row_is_not_shared_out(more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_engine.parse(["--gpus", "2", *more])
    assert "--gpus 2 is for two rows" in capsys.readouterr().err


def test_the_plain_form_of_a_check_attends_as_the_model_does() -> None:
    q, k, v = noise(2, 12, 8, 16), noise(2, 30, 2, 16, seed=1), noise(2, 30, 2, 16, seed=2)
    segments = [Segment(10, 15, causal=True), Segment(15, 22, causal=False)]
    assert torch.allclose(HeadByHead().attend(q, k, v, segments), attend(q, k, v, segments), atol=1e-6)


@torch.inference_mode()
def test_a_check_runs_its_token_once_more_in_the_fused_form(golden_editor: Editor) -> None:
    checkpoint, model = golden_editor.engine.checkpoint, golden_editor.engine.checkpoint.model
    bucket = resolution_group(model.config.image_base_size).nearest(Size(64, 64))
    layout = checkpoint.layouts.image_layout("Paint.", "a boat", [], bucket, None)
    block, hidden, asked = layout.generated, model.config.hidden_size, []

    def fused(*args: object) -> torch.Tensor:
        asked.append(args)
        return 2 * model.model.decode(*args)

    inputs = noise(1, block.timestep, hidden), noise(2, block.image.stop - block.timestep, hidden), noise(1, 1, hidden)
    found = engine_check.run(model, layout, *inputs, fused)
    assert list(found) == ["prefill", "step", "decode", "decode, fused"]
    assert len(asked) == 1
    assert torch.allclose(found["decode, fused"], 2 * found["decode"])
    assert list(engine_check.run(model, layout, *inputs)) == ["prefill", "step", "decode"]


def test_check_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    bench_engine.main(["--check", "--device", "cpu"])
    assert "not run" in capsys.readouterr().out


def options(**changes: object) -> argparse.Namespace:
    chosen = bench_engine.parse([])
    vars(chosen).update({"device": "cuda", **changes})
    return chosen


def test_aims_are_shown_for_their_own_set_up_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_engine.aims_of(options()) == bench_engine.AIMS_MS
    assert bench_engine.aims_of(options(dense="fp8", repeat=5)) == bench_engine.AIMS_MS
    assert bench_engine.aims_of(options(gpus=2)) == {"total": 8_000.0}
    others: list[dict[str, object]] = [{"device": "cpu"}, {"size": "512x512"}, {"steps": 8}, {"step_cache": "taylor"}]
    assert not any(bench_engine.aims_of(options(**changes)) for changes in others)
    bench_engine.show([{"stage": "vae", "seconds": 0.1, "unit_ms": 100.0, "aim_ms": 150.0}])
    assert "100.000   150.000" in capsys.readouterr().out


def test_the_aims_are_those_of_the_readme() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- speed -->")[1]
    shown = dict(re.findall(r"^\| ([^|]+?) \|.*\|\s*([^|]*?)\s*\|$", section, re.M))
    rows = {
        "prepare": "prepare",
        "think": "decoding, per token",
        "denoise": "denoising, per step",
        "vae": "autoencoder",
        "total": "whole edit",
    }
    for stage, row in rows.items():
        value, unit = re.fullmatch(r"([\d.]+)(/s| s)", shown[row]).groups()  # type: ignore[union-attr]
        aim = 1e3 / float(value) if unit == "/s" else 1e3 * float(value)
        assert bench_engine.AIMS_MS[stage] == pytest.approx(aim), row
    assert set(bench_engine.AIMS_MS) == set(rows)
    assert not shown["prefill"]
    assert not shown["first step"]


@pytest.mark.parametrize(("start", "count", "causal"), [*product((0, 3), (1, 5), (True, False))])
def test_pairs_are_those_that_see_each_other(start: int, count: int, causal: bool) -> None:
    segment = Segment(start, start + count, causal)
    seen = [k <= q or not causal for q in range(start, segment.stop) for k in range(segment.stop)]
    assert pairs_of(segment) == sum(seen)


def test_a_step_is_as_much_work_as_was_counted_by_hand() -> None:
    """4,120 queries and 11,000 keys in each of two rows, the patch layers left out; in TFLOP."""
    step = real().step(2, [Segment(6880, 11_000, causal=False)], pixels=0)
    assert step.expert_flop / 1e12 == pytest.approx(159.3, abs=0.05)
    assert step.attention_flop / 1e12 == pytest.approx(47.5, abs=0.05)
    assert step.dense_flop / 1e12 == pytest.approx(22.1 + 19.9, abs=0.1)
    assert step.flop / 1e12 == pytest.approx(248.8, abs=0.1)
    assert step.conv_flop == 0
    assert real().step(2, [Segment(6880, 11_000, causal=False)], pixels=4096).conv_flop > 0


@pytest.mark.parametrize(("dense", "width"), [("bf16", 2), ("fp8", 1)])
def test_a_token_moves_its_experts_the_dense_weights_and_the_keys_and_values(dense: str, width: int) -> None:
    experts = 8 * 3 * 4096 * 3072 * (0.5 + 1 / 32)  # 4 bits, and a byte for each 32
    projections, shared = 4096 * 128 * (32 + 8 + 8) + 4096 * 4096, 3 * 4096 * 3072
    kept = 2 * 2 * 8 * 128 * 7000
    expected = 32 * (experts + (projections + shared) * width + kept) + 133_120 * 4096 * width
    assert real(dense).decode(7000).bytes == pytest.approx(expected, rel=1e-12)


def test_the_limit_of_decoding_is_the_known_one() -> None:
    seconds = real().decode(7000).least_seconds(1332e12, 798e12, 3.0e12, dense_low=False)
    assert 1 / seconds == pytest.approx(244, rel=0.02)


def test_the_slower_of_arithmetic_and_memory_counts() -> None:
    work = Work(expert_flop=8, dense_flop=4, attention_flop=2, conv_flop=2, bytes=12)
    assert work.least_seconds(4, 2, 100, dense_low=False) == 2 + 2 + 2
    assert work.least_seconds(4, 2, 100, dense_low=True) == 2 + 1 + 2
    assert work.least_seconds(4, 2, 1, dense_low=True) == 12
