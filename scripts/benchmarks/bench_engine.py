#!/usr/bin/env python
"""Measures our engine by stage at the real model's sizes, with random weights: no checkpoint is needed.

    scripts/benchmarks/bench_engine.py [--layers 32] [--weights 4bit|fp8|bf16] [--dense bf16|fp8]
                            [--attention bf16|fp8] [--size 1024x1024] [--prompt-tokens 5700] [--tokens 1000]
                            [--steps 28] [--guidance 2.5] [--repeat 2] [--step-cache taylor|spectrum] [--distil]
                            [--gpus 1|2] [--unfused] [--launches] [--json FILE] [--check]

Prints, for each stage of a whole edit (one source picture, thinking first), what it took, the rate reached, and the
shortest time that the rates measured on the same device in the same run allow; at the default set-up also what is
aimed at on H100s; at the end, which kernels and which tiles of the experts were at work. With `--gpus 2` a second GPU
holds a copy and runs the unguided row; a step's limit is then that of one row on one GPU, and how far its latents are
from those of both rows in one pass is printed (`two_copies.py`). `--check` compares the fast path with the plain one
instead (`engine_check.py`). Steps attend to the whole text, which is made of words for that (`words_engine.py`).
Without a GPU, the tiny model runs through the same code, and no rate means anything. It does not know how good the
pictures are, and random weights route tokens more evenly than real ones may.

Not included: HTTP, the queue, decoding and encoding of image files, reading weights from a disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from hunyuan.accel import prepare as acceleration  # noqa: E402
from hunyuan.accel.experts.backends import moe_blocks  # noqa: E402
from hunyuan.accel.experts.flashinfer import FlashInferExperts  # noqa: E402
from hunyuan.checkpoint.folder import read_config  # noqa: E402
from hunyuan.checkpoint.full_size import full_size_config  # noqa: E402
from hunyuan.checkpoint.load import copy_for_painting, empty_model, load_model  # noqa: E402
from hunyuan.checkpoint.tiny import TinyShape, write_tiny_checkpoint  # noqa: E402
from hunyuan.engines.native import NativeEngine, choose_impl, read_small_files  # noqa: E402
from hunyuan.formats.config import CheckpointConfig  # noqa: E402
from hunyuan.generation.job import EditJob  # noqa: E402
from hunyuan.model.attention import Segment, split_segments  # noqa: E402
from hunyuan.pictures.reader import load_image  # noqa: E402
from hunyuan.plan.weights import FORMATS  # noqa: E402
from hunyuan.prompt.images import prepare_cond_image  # noqa: E402
from hunyuan.requests import STAGES, EditRequest, EditResult  # noqa: E402
from hunyuan.settings import Settings  # noqa: E402
from scripts.benchmarks.engine_check import check  # noqa: E402
from scripts.benchmarks.engine_work import Work, WorkCounter  # noqa: E402
from scripts.benchmarks.launch_time import launch_line  # noqa: E402
from scripts.benchmarks.two_copies import difference_line  # noqa: E402
from scripts.benchmarks.words_engine import WordsEngine  # noqa: E402
from scripts.support.full_size import randomize, write_small_files  # noqa: E402

TIMED = (*STAGES, "total")
AIMS_MS = {
    "prepare": 80.0,
    "think": 1000 / 250,
    "denoise": 230.0,
    "vae": 150.0,
    "total": 11_000.0,
}
"""Of one unit of each stage at the default set-up, on one H100 with 4-bit experts."""
AIMS_MS_ON_TWO = {"total": 8_000.0}
FIXED_BY_AIMS = ("layers", "weights", "size", "prompt_tokens", "tokens", "steps", "guidance", "step_cache", "distil")
GIB = 2**30


@dataclass(frozen=True)
class Ceilings:
    """What this device reaches in the simplest use: large matrix products and a large copy."""

    bf16_flops: float
    fp8_flops: float
    bandwidth: float


def measure_ceilings() -> Ceilings:
    device = torch.device("cuda")
    n = 8192
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    bf16 = 2 * n**3 / best_seconds(lambda: a @ b)
    low = [x.to(torch.float8_e4m3fn) for x in (a, b.t().contiguous())]
    one = torch.ones((), device=device)
    fp8 = (
        2
        * n**3
        / best_seconds(lambda: torch._scaled_mm(low[0], low[1].t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16))
    )
    source = torch.empty(4 * GIB, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = 2 * source.numel() / best_seconds(lambda: target.copy_(source))
    return Ceilings(bf16, fp8, copy)


def best_seconds(function: Callable[[], Any], repeat: int = 12) -> float:
    """The median of GPU times, after a warm-up."""
    times = []
    for _ in range(repeat + 3):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1e3)
    return statistics.median(times[3:])


def build(options: argparse.Namespace, folder: Path) -> NativeEngine:
    """The engine over random weights: the real sizes on a GPU, the tiny ones on a CPU."""
    attention = options.attention
    settings = Settings(
        model_id=folder,
        dense=options.dense,
        moe_impl=options.moe_impl,
        weights=options.weights,
        text_batch=options.text_batch,
        attention=attention,
    )
    if options.device == "cpu":
        write_tiny_checkpoint(folder, TinyShape(distil=options.distil), force=True)
        config = read_config(folder)
        model = load_model(folder, config, torch.device("cpu"), torch.float32)
    else:
        raw = full_size_config(options.layers, FORMATS[options.weights], options.dense, options.distil)
        write_small_files(folder, raw, options.distil)
        config = read_config(folder)
        model = empty_model(config, torch.device("cuda"), torch.bfloat16)
        randomize(model, options.layers)
    other = torch.device("cuda:1" if options.device == "cuda" else "cpu")
    second = copy_for_painting(model, config, other) if options.gpus == 2 else None
    acceleration.FUSED_DECODING = not options.unfused
    impl = choose_impl(config, model.device, model.dtype, options.moe_impl)
    return WordsEngine.assemble(model, read_small_files(folder, config), impl, settings, second=second)


def noise_picture(size: str, seed: int = 1) -> Image.Image:
    """`size` is WIDTHxHEIGHT."""
    width, height = (int(side) for side in size.split("x"))
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())


def request_of(options: argparse.Namespace, engine: NativeEngine) -> EditRequest:
    """One source picture of the output's size, and a prompt that makes the text stage's sequence as long as asked."""
    picture = noise_picture(options.size)

    def request(words: int) -> EditRequest:
        return EditRequest(
            prompt="make it " * max(words, 1),
            images=[picture],
            seed=1,
            steps=options.steps,
            resolution=options.size,
            max_new_tokens=options.tokens,
            guidance_scale=options.guidance,
            step_cache=options.step_cache,
        )

    job = EditJob(engine.checkpoint, request(1), 1, options.steps, True)
    job.look_up()
    shapes = source_shapes(job)

    def length(words: int) -> int:
        prompt = "make it " * max(words, 1)
        return len(engine.checkpoint.layouts.text_layout(job.system, prompt, shapes, "think", None, False))

    words = 1
    while length(words) < options.prompt_tokens and words < 20_000:
        words += max(1, (options.prompt_tokens - length(words)) // 8)
    return request(words)


def source_shapes(job: EditJob) -> list[Any]:
    job.images = [prepare_cond_image(load_image(s), job.config, True) for s in job.request.images]
    return job.shapes


def run_edits(engine: NativeEngine, request: EditRequest, options: argparse.Namespace) -> list[EditResult]:
    """One edit to warm up, then the measured ones."""
    results = []
    for number in range(options.repeat + 1):
        result = engine.run(request, seed=1, steps=options.steps, on_progress=None, cancel=None)
        shown = ", ".join(f"{stage} {result.timings[stage]:.3f}" for stage in TIMED)
        print(f"{'warm-up' if number == 0 else 'edit'}: {shown} s, {result.tokens} tokens", flush=True)
        if number == 0 and options.device == "cuda":
            for device in range(options.gpus):
                torch.cuda.reset_peak_memory_stats(device)
        results.append(result)
    return results[1:]


def stage_work(engine: NativeEngine, request: EditRequest, result: EditResult) -> dict[str, tuple[Work, int]]:
    """By stage: the work of one unit, and how many units the stage's time holds."""
    job = EditJob(engine.checkpoint, request, 1, result.steps, True)
    job.look_up()
    shapes, layouts = source_shapes(job), engine.checkpoint.layouts
    text = layouts.text_layout(job.system, request.prompt, shapes, "think", None, False)
    output = job.group.nearest(job.requested_size) if job.requested_size else job.group.square
    layout = layouts.image_layout(job.system, request.prompt, shapes, output, result.cot_text, False)
    assert isinstance(job.config, CheckpointConfig)  # the loader built it from a folder's
    block, counter = layout.generated, WorkCounter(job.config)
    guided = job.options.guidance_scale > 1 and not job.config.cfg_distilled
    rows = 2 if guided and engine.checkpoint.second is None else 1  # of one GPU
    fixed = split_segments(0, len(text), text.full_blocks)
    image = [Segment(block.timestep, block.image.stop, causal=False)]
    step = counter.step(rows, image, block.image.height * block.image.width)
    decode = counter.decode(len(text) + result.tokens // 2)
    return {
        "prefill": (counter.tokens(1, fixed), 1),
        "think": (decode, result.tokens),
        "denoise": (step, max(1, result.steps - 1)),
    }


def table(
    engine: NativeEngine,
    request: EditRequest,
    results: list[EditResult],
    ceilings: Ceilings | None,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    work, aims = stage_work(engine, request, results[0]), aims_of(options)
    rows = []
    for stage in TIMED:
        seconds = statistics.median(result.timings[stage] for result in results)
        row: dict[str, Any] = {"stage": stage, "seconds": seconds}
        unit, count = work.get(stage, (None, 1))
        row["unit_ms"] = seconds / max(1, count) * 1e3
        if stage in aims:
            row["aim_ms"] = aims[stage]
        if unit is not None and seconds > 0 and ceilings is not None:
            low = ceilings.bf16_flops if options.weights == "bf16" else ceilings.fp8_flops
            dense_low = options.dense == "fp8"
            least = unit.least_seconds(low, ceilings.bf16_flops, ceilings.bandwidth, dense_low=dense_low)
            row |= {
                "least_ms": least * 1e3,
                "tflops": unit.flop * count / seconds / 1e12,
                "gb_s": unit.bytes * count / seconds / 1e9,
                "percent_of_limit": 100 * least * count / seconds,
            }
        rows.append(row)
    return rows


def aims_of(options: argparse.Namespace) -> dict[str, float]:
    """None for any other set-up than the one that they were set for."""
    usual = parse([])
    same = all(getattr(options, name) == getattr(usual, name) for name in FIXED_BY_AIMS)
    if not same or options.device != "cuda":
        return {}
    return AIMS_MS if options.gpus == 1 else AIMS_MS_ON_TWO


def show(rows: list[dict[str, Any]]) -> None:
    titles = f"{'stage':12} {'s':>9} {'ms a unit':>10} {'aim ms':>9} {'limit ms':>9} {'% of limit':>10}"
    print(f"{titles} {'TFLOP/s':>9} {'GB/s':>8}")
    for row in rows:
        aim = f"{row['aim_ms']:9.3f}" if "aim_ms" in row else f"{'-':>9}"
        line = f"{row['stage']:12} {row['seconds']:9.3f} {row['unit_ms']:10.3f} {aim}"
        if "least_ms" in row:
            line += f" {row['least_ms']:9.3f} {row['percent_of_limit']:10.1f}"
            line += f" {row['tflops']:9.1f} {row['gb_s']:8.1f}"
        print(line)
    print("a unit: one decoded token, one denoising step after the first; of other stages the whole")


def kernel_lines(engine: NativeEngine) -> list[str]:
    """What computes, and which pair of tiles the experts take for how many tokens (the nearest entry serves)."""
    model = engine.checkpoint.model
    kernels, experts = model.model.ln_f.operations, [block.experts for block in moe_blocks(model)]
    lines = [f"kernels: {kernels.name}, attention {getattr(kernels, 'attention', 'sdpa')}"]
    decoder = engine.workspace and engine.workspace.decoder
    lines.append(f"decoding: {type(decoder.step).__name__ if decoder else 'from the host'}")
    lines.append(f"experts: {', '.join(sorted({type(e).__name__ for e in experts}))}")
    shared = {e.shared.key: e.shared for e in experts if isinstance(e, FlashInferExperts)}
    for key, common in shared.items():
        entries = sorted(common.tactics.entries.get(key.text(), {}).items())
        lines.append(f"tiles for {key.text()}, by tokens: {', '.join(f'{n}: {list(ids)}' for n, ids in entries)}")
    return lines


def finish(
    rows: list[dict[str, Any]], ceilings: Ceilings | None, lines: list[str], options: argparse.Namespace
) -> None:
    """Prints what was measured, and writes it where asked."""
    show(rows)
    used = range(options.gpus) if options.device == "cuda" else []
    peaks = [torch.cuda.max_memory_allocated(device) / GIB for device in used]
    print("\n".join(lines))
    for device, peak in zip(used, peaks, strict=True):
        reserved = torch.cuda.max_memory_reserved(device) / GIB
        print(f"peak memory of GPU {device}: {peak:.1f} GiB allocated, {reserved:.1f} GiB reserved")
    print("not included: HTTP, the queue, image files, reading weights from a disk")
    if options.json:
        content = {
            "settings": {key: str(value) for key, value in vars(options).items()},
            "ceilings": asdict(ceilings) if ceilings else None,
            "stages": rows,
            "kernels": lines,
            "peak_gib": peaks,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--weights", choices=sorted(FORMATS), default="4bit")
    parser.add_argument("--dense", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--attention", choices=("bf16", "fp8"), default="bf16", help="of denoising")
    parser.add_argument("--moe-impl", choices=("auto", "flashinfer", "torch", "eager"), default="auto")
    parser.add_argument("--size", default="1024x1024", help="WIDTHxHEIGHT of source and output")
    parser.add_argument("--prompt-tokens", type=int, default=5700, help="length of the text stage's prompt")
    parser.add_argument("--tokens", type=int, default=1000, help="decoded tokens")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, default=2.5)
    parser.add_argument("--step-cache", choices=("taylor", "spectrum"))
    parser.add_argument("--distil", action="store_true")
    parser.add_argument("--gpus", type=int, choices=(1, 2), default=1, help="2: a copy on each, a row of guidance each")
    parser.add_argument("--unfused", action="store_true", help="decode operation by operation, as texts together are")
    parser.add_argument("--launches", action="store_true", help="also measure the host's part of a step")
    parser.add_argument("--repeat", type=int, default=2, help="measured edits after the warm-up")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--check", action="store_true", help="compare with the plain path instead (4 layers are enough)"
    )
    parser.set_defaults(text_batch=1)  # bench_texts.py has more
    options = parser.parse_args(arguments)
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.gpus == 2 and (options.distil or options.guidance <= 1 or options.check):
        parser.error("--gpus 2 is for two rows: not for --distil, nor for --guidance 1, nor for --check")
    if options.gpus == 2 and options.device == "cuda" and torch.cuda.device_count() < 2:
        parser.error(f"--gpus 2, and torch sees {torch.cuda.device_count()}")
    return options


def setup_lines(options: argparse.Namespace) -> list[str]:
    names = [torch.cuda.get_device_name(device) for device in range(options.gpus if options.device == "cuda" else 0)]
    name = ", ".join(names) or "CPU: the tiny model, sizes below not used"
    chosen = ", ".join(f"{key}={value}" for key, value in vars(options).items() if key not in ("json", "check"))
    return [f"{name}; torch {torch.__version__}, CUDA {torch.version.cuda}; {time.strftime('%Y-%m-%d')}", chosen]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print("\n".join(setup_lines(options)))
    if options.check:
        return check(options)
    ceilings = measure_ceilings() if options.device == "cuda" else None
    if ceilings:
        print(
            f"ceilings here: bf16 {ceilings.bf16_flops / 1e12:.0f} TFLOP/s, fp8 {ceilings.fp8_flops / 1e12:.0f} "
            f"TFLOP/s, copy {ceilings.bandwidth / 1e12:.2f} TB/s"
        )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        engine = build(options, Path(folder))
        print(f"engine ready after {time.perf_counter() - began:.1f} s", flush=True)
        request = request_of(options, engine)
        results = run_edits(engine, request, options)
        rows = table(engine, request, results, ceilings, options)
        lines = kernel_lines(engine)
        lines += [launch_line(engine, request)] if options.launches else []
        lines += [difference_line(engine, request)] if options.gpus == 2 else []
    finish(rows, ceilings, lines, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
