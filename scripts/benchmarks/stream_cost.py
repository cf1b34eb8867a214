#!/usr/bin/env python
"""What a stream costs: edits with two previews, progress and text against edits without, in turns.

    scripts/benchmarks/stream_cost.py [--previews 2] [--repeat 3] [the set-up's options of bench_engine.py]

The engine has random weights of the real sizes, as in `bench_engine.py`; without a GPU it is the tiny model, and no
figure means anything. The editor runs in a thread, its reports go through the service's own outbox to an event loop,
and previews are encoded as PNG there, by a thread of their own. Printed are whole edits, the previews' own decoding,
and what is left between the two ways, which is to be less than 5 %.

Not included: HTTP, the queue, decoding of uploads, the last picture's encoding, reading weights from a disk.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from hunyuan.engines.native import NativeEngine  # noqa: E402
from hunyuan.requests import EditRequest, EditResult  # noqa: E402
from hunyuan.serving.openai.answers import Painter  # noqa: E402
from hunyuan.serving.openai.call import ImageCall, call_of  # noqa: E402
from hunyuan.serving.openai.events import event_of, is_slow  # noqa: E402
from hunyuan.serving.openai.outbox import Finished, Outbox  # noqa: E402
from hunyuan.settings import Settings  # noqa: E402
from scripts.benchmarks import bench_engine  # noqa: E402

AIM_PERCENT = 5.0
PAINTER = Painter("random weights", "0", show_prompt=False)


def plain(engine: NativeEngine, request: EditRequest, steps: int) -> EditResult:
    return engine.run(request, seed=1, steps=steps, on_progress=None, cancel=None)


async def streamed(engine: NativeEngine, request: EditRequest, steps: int, call: ImageCall) -> tuple[EditResult, int]:
    """The result, and how many events came on the way."""
    outbox, events = Outbox(progress=True), 0
    watcher = outbox.watcher(previews=True)
    work = asyncio.create_task(
        asyncio.to_thread(
            engine.run,
            request,
            seed=1,
            steps=steps,
            on_progress=watcher.on_progress,
            cancel=None,
            on_text=watcher.on_text,
            on_preview=watcher.on_preview,
        )
    )
    work.add_done_callback(lambda _: outbox.close())
    while not outbox.over:
        report = await outbox.next(1.0)
        if report is None or isinstance(report, Finished):
            continue
        events += 1
        if is_slow(report):
            await asyncio.to_thread(event_of, report, call, PAINTER)
        else:
            event_of(report, call, PAINTER)
    return await work, events


def compare(engine: NativeEngine, request: EditRequest, options: argparse.Namespace) -> float:
    """Prints both ways; returns what a stream costs beyond its previews' decoding, in percent of an edit."""
    call = call_of("image_edit", {"prompt": "x", "stream": True}, [b""], Settings())
    watched = replace(request, previews=options.previews)
    without, beside, decoding, events = list[float](), list[float](), list[float](), 0
    for number in range(options.repeat + 1):
        one = plain(engine, request, options.steps)
        other, events = asyncio.run(streamed(engine, watched, options.steps, call))
        spent = other.timings.get("previews", 0.0)
        shown = (
            f"without {one.timings['total']:.3f} s, with {other.timings['total']:.3f} s, of it previews {spent:.3f} s"
        )
        print(f"{'warm-up' if number == 0 else 'edits'}: {shown}", flush=True)
        if number:
            without.append(one.timings["total"])
            beside.append(other.timings["total"] - spent)
            decoding.append(spent)
    a, b = statistics.median(without), statistics.median(beside)
    percent = 100 * (b - a) / a
    print(f"median without {a:.3f} s; with, its previews' {statistics.median(decoding):.3f} s taken off, {b:.3f} s")
    print(f"a stream costs {percent:+.2f} % beyond that; {events} events; aimed at less than {AIM_PERCENT:g} %")
    print("not included: HTTP, the queue, uploads, the last picture's encoding, reading weights from a disk")
    return percent


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--previews", type=int, default=2, choices=(1, 2, 3))
    own, rest = parser.parse_known_args(arguments)
    options = bench_engine.parse(rest)
    options.previews = own.previews
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    print("\n".join(bench_engine.setup_lines(options)))
    with tempfile.TemporaryDirectory() as folder:
        engine = bench_engine.build(options, Path(folder))
        percent = compare(engine, bench_engine.request_of(options, engine), options)
    return 0 if options.device == "cpu" or percent < AIM_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
