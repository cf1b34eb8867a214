#!/usr/bin/env python
"""Shows how an edit's cost grows with pictures, size, thinking and steps, at the real model's sizes, random weights.

    scripts/benchmarks/bench_growth.py [--pictures 1,2,3] [--sizes 1024x1024,1280x720,720x1280]
                            [--token-counts 0,500,1000,2000] [--step-counts 8,28,50] [--repeat 1]
                            [the set-up's options of bench_engine.py, such as --dense fp8 and --json FILE]

The default set-up is bench_engine.py's: one picture of `--size`, `--tokens`, `--steps`. Each row of the table, which is
Markdown, changes one thing of it. The engine is built once; a row's stages or a unit of each are measured in short
edits (`growth_units.py`), after one to warm up, and whole edits are sums of those units. The default set-up is also run
as one whole edit, and both are printed. `--prompt-tokens` is the prompt of the default set-up; its text is the same in
every row, so that more or other pictures change the prompt's length. Without a GPU, the tiny model runs through the
same code, and no time means anything. It does not know how good the pictures are, nor how long a real model thinks,
and random weights route tokens more evenly than real ones may.

Not included: HTTP, the queue, decoding and encoding of image files, reading weights from a disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from hunyuan.compare.report import markdown  # noqa: E402
from hunyuan.engines.native import NativeEngine  # noqa: E402
from hunyuan.prompt.resolution import parse_resolution, resolution_group  # noqa: E402
from hunyuan.requests import MAX_IMAGES, MAX_STEPS, EditRequest  # noqa: E402
from scripts.benchmarks import bench_engine  # noqa: E402
from scripts.benchmarks.growth_units import (  # noqa: E402
    MEASURED_STEPS,
    MEASURED_TOKENS,
    Units,
    measure,
    run_edit,
)
from scripts.benchmarks.words_engine import LEAST_TOKENS  # noqa: E402

COLUMNS = (
    *("pictures", "size", "thinking tokens", "steps", "prompt tokens"),
    *("prepare", "prefill", "a token", "first step", "a further step", "autoencoder"),
    *("thinking (sum)", "further steps (sum)", "whole edit (sum)", "times the first row"),
)


@dataclass(frozen=True)
class Point:
    """One row's set-up; `size` is WIDTHxHEIGHT of sources and output."""

    pictures: int
    size: str
    tokens: int
    steps: int

    @property
    def shape(self) -> Point:
        """What must be measured by itself: any number of steps costs the same each."""
        return replace(self, steps=0)


def points_of(options: argparse.Namespace) -> list[Point]:
    """The default set-up, then all that differ from it in one thing."""
    usual = Point(1, options.size, options.tokens, options.steps)
    others = [
        *(replace(usual, pictures=pictures) for pictures in options.pictures),
        *(replace(usual, size=size) for size in options.sizes),
        *(replace(usual, tokens=tokens) for tokens in options.token_counts),
        *(replace(usual, steps=steps) for steps in options.step_counts),
    ]
    return list(dict.fromkeys([usual, *others]))


def request_for(point: Point, usual: EditRequest) -> EditRequest:
    """The usual one with the point's pictures, size and length of text."""
    pictures = [bench_engine.noise_picture(point.size, seed) for seed in range(1, point.pictures + 1)]
    return replace(usual, images=pictures, resolution=point.size, max_new_tokens=point.tokens)


def growth_of(units: Iterable[Units]) -> float:
    """Seconds by which a decoded token takes longer for each token before it: between shortest and longest prompt."""
    texts = sorted((each for each in units if each.decoded), key=lambda each: each.context)
    if not texts or texts[0].prompt == texts[-1].prompt:
        return 0.0
    return (texts[-1].token - texts[0].token) / (texts[-1].context - texts[0].context)


def sums_of(point: Point, units: Units, growth: float) -> dict[str, float]:
    """Seconds of each stage of the whole edit, and of all, under bench_engine.py's names."""
    average = units.token + growth * (point.tokens - units.decoded) / 2
    stages = {
        "prepare": units.prepare,
        "prefill": units.prefill,
        "think": units.text_start + (point.tokens - 1) * average if point.tokens else 0.0,
        "first_step": units.first_step,
        "denoise": (point.steps - 1) * units.step,
        "vae": units.vae,
    }
    return stages | {"total": sum(stages.values())}


def measure_all(engine: NativeEngine, usual: EditRequest, points: list[Point], repeat: int) -> dict[Point, Units]:
    """By shape."""
    found: dict[Point, Units] = {}
    # Once more than other shapes: the first edit of a process is the slowest, and most rows are held against this one.
    run_edit(engine, request_for(points[0], usual), MEASURED_STEPS, MEASURED_TOKENS)
    for shape in dict.fromkeys(point.shape for point in points):
        began = time.perf_counter()
        found[shape] = measure(engine, request_for(shape, usual), repeat)
        what = f"{shape.pictures} pictures, {shape.size}, {shape.tokens} tokens"
        print(f"measured: {what} ({time.perf_counter() - began:.1f} s)", flush=True)
    return found


def table(points: list[Point], measured: Mapping[Point, Units], bucket: Mapping[str, str]) -> list[dict[str, Any]]:
    """Args: bucket: by size that was asked for, the one that the model paints."""
    growth, rows = growth_of(measured.values()), []
    for point in points:
        units = measured[point.shape]
        rows.append(
            {
                **asdict(point),
                "bucket": bucket[point.size],
                "measured": asdict(units),
                "sums": sums_of(point, units, growth),
            }
        )
    return rows


def check_of(engine: NativeEngine, usual: EditRequest, point: Point, sums: Mapping[str, float]) -> list[dict[str, Any]]:
    """Runs the point whole; by stage its sum, what it took, and by how many percent the sum is off."""
    result, _ = run_edit(engine, request_for(point, usual), point.steps, point.tokens)
    rows = []
    for stage in bench_engine.TIMED:
        took = result.timings[stage]
        percent = 100 * (sums[stage] - took) / took if took else 0.0
        rows.append({"stage": stage, "sum_seconds": sums[stage], "seconds": took, "percent": percent})
    return rows


def buckets_of(engine: NativeEngine, points: list[Point]) -> dict[str, str]:
    config = engine.checkpoint.model.config
    group, found = resolution_group(config.image_base_size, config.has_extra_ratios), {}
    for size in {point.size for point in points}:
        asked = parse_resolution(size)
        assert asked is not None  # `parse` has seen to it
        found[size] = str(group.nearest(asked).size)
    return found


def table_lines(rows: list[dict[str, Any]]) -> list[str]:
    shown = []
    for row in rows:
        units, sums, text = row["measured"], row["sums"], row["tokens"] > 0
        cells = [str(row["pictures"]), row["bucket"], f"{row['tokens']:,}", str(row["steps"])]
        cells += [
            f"{units['prompt']:,.0f}",
            f"{units['prepare']:.3f} s",
            f"{units['prefill']:.3f} s" if text else "in the first step",
        ]
        cells += [f"{units['token'] * 1e3:.2f} ms" if text else "none"]
        cells += [f"{units[name]:.3f} s" for name in ("first_step", "step", "vae")]
        cells += [f"{sums[name]:.2f} s" for name in ("think", "denoise", "total")]
        cells += [f"{sums['total'] / rows[0]['sums']['total']:.2f}"]
        shown.append(cells)
    return markdown([COLUMNS, *shown])


def check_lines(rows: list[dict[str, Any]]) -> list[str]:
    titles = ("stage of the default set-up", "sum of units", "measured in one whole edit", "the sum is off by")
    cells = [[r["stage"], f"{r['sum_seconds']:.3f} s", f"{r['seconds']:.3f} s", f"{r['percent']:+.1f} %"] for r in rows]
    return markdown([titles, *cells])


def explanation(units: Iterable[Units], growth: float) -> list[str]:
    """What was measured, what was summed, and what is in none of it."""
    contexts = [round(each.context) for each in units if each.decoded]
    low, high = min(contexts), max(contexts)
    first = f"a token: over up to {MEASURED_TOKENS - 1} tokens right behind the row's prompt"
    if growth:
        slope = f"; for each token of context {growth * 1e9:.1f} ns more, by those measured at {low:,} and {high:,}"
    else:
        slope = f"; measured at one length of context ({low:,}) and taken as the same over the whole text"
    return [
        "the first row is the default set-up; each other one changes one thing of it",
        "measured: prepare, prefill, a token, first step, a further step, autoencoder, in short edits of each row's "
        "pictures, size and tokens; rows that differ in steps alone share what was measured",
        first + slope,
        f"a further step: the mean of {MEASURED_STEPS - 1}, behind a text of the row's length that was put there in "
        "one pass; without a text, the prompt's pass is in the first step",
        "the text: its tokens are decoded at random, then taken for words that read back as just as many, so that "
        "the steps see them; what random weights say would read back as almost none",
        "sums: thinking = its start + (tokens - 1) x a token halfway through the text; further steps = (steps - 1) x a "
        "step; whole edit = all stages; what an edit does between its stages is not in a sum",
        "not included: HTTP, the queue, image files, reading weights from a disk",
    ]


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    # No abbreviations: --size is bench_engine.py's, not short for --sizes.
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], epilog="More: bench_engine.py's options.", allow_abbrev=False
    )
    parser.add_argument("--pictures", type=numbers, default=[1, 2, 3], help="source pictures, comma between them")
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=["1024x1024", "1280x720", "720x1280"])
    parser.add_argument("--token-counts", type=numbers, default=[0, 500, 1000, 2000], help="of thinking; 0: none")
    parser.add_argument("--step-counts", type=numbers, default=[8, 28, 50])
    own, rest = parser.parse_known_args(arguments)
    options = bench_engine.parse(["--repeat", "1", *rest])
    vars(options).update(vars(own))
    if options.gpus != 1 or options.check or options.launches or options.step_cache:
        parser.error("--gpus 2, --check, --launches and --step-cache are bench_engine.py's alone")
    if not all(re.fullmatch(r"\d+x\d+", size) for size in (options.size, *options.sizes)):
        parser.error("--size and --sizes: WIDTHxHEIGHT")
    if not all(1 <= count <= MAX_IMAGES for count in options.pictures):
        parser.error(f"--pictures: 1 to {MAX_IMAGES} each")
    if options.tokens < LEAST_TOKENS or any(0 < count < LEAST_TOKENS for count in options.token_counts):
        parser.error(f"--tokens and --token-counts: at least {LEAST_TOKENS}; --token-counts may have 0")
    if not all(1 <= steps <= MAX_STEPS for steps in (options.steps, *options.step_counts)) or options.repeat < 1:
        parser.error(f"--steps and --step-counts: 1 to {MAX_STEPS}; --repeat: at least 1")
    return options


def show(
    rows: list[dict[str, Any]], check: list[dict[str, Any]], measured: Mapping[Point, Units], engine: NativeEngine
) -> None:
    told = explanation(measured.values(), growth_of(measured.values()))
    for lines in (table_lines(rows), check_lines(check), told, bench_engine.kernel_lines(engine)):
        print("", *lines, sep="\n")
    if torch.cuda.is_initialized():
        print(f"peak memory: {torch.cuda.max_memory_allocated() / bench_engine.GIB:.1f} GiB allocated")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print("\n".join(bench_engine.setup_lines(options)))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        engine = bench_engine.build(options, Path(folder))
        print(f"engine ready after {time.perf_counter() - began:.1f} s", flush=True)
        usual, points = bench_engine.request_of(options, engine), points_of(options)
        measured = measure_all(engine, usual, points, options.repeat)
        rows = table(points, measured, buckets_of(engine, points))
        check = check_of(engine, usual, points[0], rows[0]["sums"])
    show(rows, check, measured, engine)
    print(f"all of it took {time.perf_counter() - began:.0f} s")
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        growth = growth_of(measured.values())
        content = {"settings": settings, "token_growth_seconds": growth, "rows": rows, "check": check}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
