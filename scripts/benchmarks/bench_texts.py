#!/usr/bin/env python
"""Measures texts decoded together (HUNYUAN_TEXT_BATCH) at the real model's sizes, with random weights.

    scripts/benchmarks/bench_texts.py [--text-batch 8] [--edits 8] [--rows 1,2,4,8] and bench_engine.py's options

Prints, for so many texts at a time, the milliseconds of a step, tokens a second of all together and milliseconds a
token; then how many edits an hour a full queue gets with each text alone and with texts together, the edits' order and
turns as in the service. Alone they go operation by operation, as together: in fused launches, as with a batch of 1, a
token takes less (`bench_engine.py`), so the gain over that service is smaller. Every text has its own seed, so that
its tokens take experts of their own. Says whether the texts and pictures of the two queues have the same bytes, and
exits with 1 if not. Without a GPU, the tiny model runs through the same code, row by row, and no rate means anything.

Not included: HTTP and image files. Random weights route tokens more evenly than real ones may, so that texts share
fewer experts, and a text seldom ends before its last token.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hunyuan.engines.native import NativeEngine  # noqa: E402
from hunyuan.generation.shared_text import SharedTextJob  # noqa: E402
from hunyuan.requests import EditRequest, EditResult  # noqa: E402
from scripts.benchmarks import bench_engine  # noqa: E402

HOUR_S = 3600


def begin(engine: NativeEngine, request: EditRequest, seed: int, steps: int) -> SharedTextJob:
    return engine.begin(replace(request, seed=seed), seed=seed, steps=steps, on_progress=None, cancel=None)


def decode_together(engine: NativeEngine, request: EditRequest, count: int, steps: int) -> dict[str, Any]:
    """`count` texts from their prompts to the end of the last one."""
    company = engine.company
    assert company is not None
    jobs = [begin(engine, request, seed, steps) for seed in range(count)]
    lanes = [job.lane for job in jobs if job.lane is not None]
    if len(lanes) < count:
        raise SystemExit(f"prompt and text do not fit into a row of {company.capacity} tokens")
    launches, launch = Counter[int](), company.launch

    def counted(count: int) -> None:
        launches[count] += 1
        launch(count)

    company.launch = counted  # type: ignore[method-assign]
    began = time.perf_counter()
    try:
        for lane in lanes:
            company.decode(lane)
        seconds = time.perf_counter() - began
    finally:
        del company.launch
        for job in jobs:
            job.close()
    taken = sum(launches.values())
    return {
        "texts": count,
        "steps": taken,
        "steps_of_all": launches[count],
        "step_ms": seconds / max(1, taken) * 1e3,
        "tokens_s": sum(running * n for running, n in launches.items()) / seconds,
        "token_ms": seconds / max(1, sum(running * n for running, n in launches.items())) * 1e3,
    }


def queue_alone(engine: NativeEngine, request: EditRequest, edits: int, steps: int) -> tuple[float, list[EditResult]]:
    began, results = time.perf_counter(), []
    for seed in range(edits):
        one = replace(request, seed=seed)
        results.append(engine.run(one, seed=seed, steps=steps, on_progress=None, cancel=None))
    return time.perf_counter() - began, results


def queue_together(
    engine: NativeEngine, request: EditRequest, edits: int, steps: int
) -> tuple[float, list[EditResult]]:
    """As `hunyuan/serving/texts_ahead.py` does it: at the turn of an edit whose text runs, those behind it begin."""
    began, results = time.perf_counter(), list[EditResult]()
    waiting, jobs = list(range(edits)), list[SharedTextJob]()
    while waiting or jobs:
        if not jobs:
            jobs.append(begin(engine, request, waiting.pop(0), steps))
        while jobs[0].thinking and waiting and engine.text_places:
            jobs.append(begin(engine, request, waiting.pop(0), steps))
        results.append(engine.finish(jobs.pop(0)))
    return time.perf_counter() - began, results


def same(first: EditResult, second: EditResult) -> bool:
    texts = first.cot_text == second.cot_text and first.tokens == second.tokens
    return texts and first.image.tobytes() == second.image.tobytes()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="More: bench_engine.py's options.")
    parser.add_argument("--text-batch", type=int, default=8)
    parser.add_argument("--edits", type=int, default=8, help="in each queue")
    parser.add_argument("--rows", default="1,2,4,8", help="texts at a time, comma between them")
    own, rest = parser.parse_known_args(arguments)
    options = bench_engine.parse(rest)
    options.text_batch, options.edits = own.text_batch, own.edits
    options.rows = [int(rows) for rows in own.rows.split(",") if int(rows) <= own.text_batch]
    return options


def measure(engine: NativeEngine, options: argparse.Namespace) -> dict[str, Any]:
    request = bench_engine.request_of(options, engine)
    decode_together(engine, replace(request, max_new_tokens=min(options.tokens, 16)), 1, options.steps)  # warm-up
    rows = []
    for count in options.rows:
        rows.append(decode_together(engine, request, count, options.steps))
        print(
            "{texts} texts: a step {step_ms:.2f} ms, {tokens_s:.0f} tokens/s, a token {token_ms:.2f} ms "
            "({steps_of_all} of {steps} steps with all of them)".format(**rows[-1]),
            flush=True,
        )
    queue_alone(engine, request, 1, options.steps)  # warm-up
    found: dict[str, Any] = {"rows": rows}
    results = []
    for name, queue in (("alone", queue_alone), ("together", queue_together)):
        seconds, pictures = queue(engine, request, options.edits, options.steps)
        hourly = HOUR_S * options.edits / seconds
        think = sum(picture.timings["think"] for picture in pictures) / options.edits
        print(f"texts {name}: {options.edits} edits in {seconds:.2f} s, {hourly:.0f} an hour; think {think:.2f} s each")
        found[name] = {"seconds": seconds, "edits_an_hour": hourly, "tokens": [p.tokens for p in pictures]}
        results.append(pictures)
    found["gain"] = found["together"]["edits_an_hour"] / found["alone"]["edits_an_hour"]
    found["same_bytes"] = all(map(same, *results))
    print(f"gain {found['gain']:.3f} times, both unfused; the same bytes alone and together: {found['same_bytes']}")
    return found


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    print("\n".join(bench_engine.setup_lines(options)))
    with tempfile.TemporaryDirectory() as folder:
        engine = bench_engine.build(options, Path(folder))
        found = measure(engine, options)
    if options.json:
        settings = {key: str(value) for key, value in vars(options).items()}
        options.json.write_text(json.dumps({"settings": settings, **found}, indent=1) + "\n", encoding="utf-8")
    return 0 if found["same_bytes"] else 1


if __name__ == "__main__":
    sys.exit(main())
