#!/usr/bin/env python3
"""Times what one decoded token is made of, as it is computed now and in every other way that the kernels know.

    scripts/benchmarks/bench_token.py                      a Hopper GPU; about two minutes on 16 cores
    scripts/benchmarks/bench_token.py --only layer,qkv     some parts
    scripts/benchmarks/bench_token.py --device cpu         small sizes, interpreted, to see that the script works

Each line: microseconds a call, GB/s of weights, and the relative error against the plain form in fp32 (of layers:
against `now`). A CUDA graph goes round weights of several times the L2 cache's size. `now` is what the engine does;
other lines are ways of `project` (rows per program x warps), of `Streamed` (units x warps, splits) and of
`FusedDecoding`; `pdl`: launches overlap. At the end, the fastest right way of each part and what a token of 32 layers
would take with it. Kernels are compiled beforehand, by a dozen processes.

Not included: the embedding of the token. Random weights, experts in MXFP4.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.benchmarks.bench_kernels import milliseconds, relative
from scripts.benchmarks.token_cases import Bench, Case

LAYERS = 32
COLD = 240e6  # bytes of weights that a measurement goes round: the L2 cache holds 50 MB
LIMIT, LAYERS_LIMIT = 2e-2, 5e-2
"""Of the error; four layers with the larger one, since a router may choose otherwise where two experts nearly tie."""


def sets_of(case: Case, bench: Bench) -> int:
    """Sets of weights that a measurement goes round."""
    if bench.device == "cpu" or not case.bytes:
        return 1
    if case.part.startswith("experts"):
        return bench.s.experts // bench.s.topk
    return 4 if case.part == "layer" else max(1, round(COLD / case.bytes))


def measure(case: Case, bench: Bench, repeats: int) -> dict[str, Any]:
    line: dict[str, Any] = {"part": case.part, "way": case.way}
    try:
        sets = sets_of(case, bench)
        made = case.make(sets)
        line["error"] = relative(made.runs[0]().clone(), made.exact())

        def all_of_them() -> None:
            for run in made.runs:
                run()

        calls = sets if case.part == "layer" else len(made.runs)  # one run goes through all layers
        line["us"] = 1e3 * milliseconds(all_of_them, bench.device, True, repeats) / calls
        line["GB/s"] = case.bytes / line["us"] / 1e3
    except Exception as error:  # one way's failure must not cost the others' figures on a borrowed GPU
        line["failed"] = f"{type(error).__name__}: {error}"[:300]
    return line


def right(line: dict[str, Any]) -> bool:
    return "us" in line and line["error"] < (LAYERS_LIMIT if line["part"] == "layer" else LIMIT)


def show(line: dict[str, Any]) -> str:
    name = f"{line['part']:<16}{line['way']:<24}"
    if "failed" in line:
        return f"{name} failed: {line['failed']}"
    return f"{name}{line['us']:>9.2f} us {line['GB/s']:>7.0f} GB/s   error {line['error']:.1e}"


def compile_ahead(arguments: argparse.Namespace, count: int) -> float:
    """Runs each case once in `count` processes, which leaves the kernels in Triton's cache: seconds."""
    began = time.perf_counter()
    command = [sys.executable, __file__, "--dense", arguments.dense, "--only", arguments.only, "--compile"]
    workers = [
        subprocess.Popen([*command, f"{i}/{count}"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for i in range(count)
    ]
    for worker in workers:
        _, errors = worker.communicate()
        if worker.returncode:
            print(f"compiling: {errors[-600:]}")  # the case fails again, by name, when it is measured
    return time.perf_counter() - began


def run_once(cases: list[Case], share: str) -> None:
    first, count = (int(part) for part in share.split("/"))
    failures = []
    for case in cases[first::count]:
        try:
            case.make(1).runs[0]()
        except Exception as error:  # the other kernels are compiled all the same
            failures.append(f"{case.part}, {case.way}: {type(error).__name__}: {error}"[:300])
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if failures:
        raise SystemExit("\n".join(failures))


def best_of(cases: list[Case], lines: list[dict[str, Any]]) -> dict[str, tuple[Case, dict[str, Any]]]:
    """By part, the fastest way whose error is within the limit."""
    best: dict[str, tuple[Case, dict[str, Any]]] = {}
    for case, line in zip(cases, lines, strict=True):
        if right(line) and (case.part not in best or line["us"] < best[case.part][1]["us"]):
            best[case.part] = case, line
    return best


def best_layer(bench: Bench, best: dict[str, tuple[Case, dict[str, Any]]]) -> Case | None:
    """A layer with the best way of each of its parts, where all of them were measured."""
    from hunyuan.accel.experts.streamed import DEFAULT
    from hunyuan.accel.fused_decoding import Cuts

    names = ("qkv", "o", "router", "gate_and_up", "down")
    cuts = {name: best[name][0].cut for name in names if name in best and best[name][0].cut is not None}
    units = [best[name][0].cut if name in best else None for name in ("experts, first", "experts, second")]
    if not cuts and not any(units):
        return None
    chosen = tuple(cut or usual for cut, usual in zip(units, DEFAULT, strict=True))
    found = Cuts(cuts, (chosen[0], chosen[1]))
    model = next(case for case in bench.layer() if case.way == "fused pdl")
    return replace(model, way="fused pdl, best", make=partial(bench.layers, True, found, True), cut=found)


def summary(best: dict[str, tuple[Case, dict[str, Any]]], lines: list[dict[str, Any]]) -> str:
    rows = [f"best of {part}: {line['way']}, {line['us']:.2f} us" for part, (_, line) in best.items()]
    now = {line["part"]: line["us"] for line in lines if line["way"] == "now" and "us" in line}
    for name, times in (("now", now), ("best", {part: line["us"] for part, (_, line) in best.items()})):
        if {"layer", "lm_head", "sampling"} <= times.keys():
            token = LAYERS * times["layer"] + times["lm_head"] + times["sampling"]
            rows.append(f"a token of {LAYERS} layers, {name}: {token / 1e3:.3f} ms")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dense", choices=("bf16", "fp8"), default="fp8")
    parser.add_argument("--only", default="", help="parts, by commas: qkv, o, router, gate_and_up, down, lm_head, ...")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, which torch may have done already
        os.execv(sys.executable, [sys.executable, *sys.argv])
    with torch.inference_mode():
        bench = Bench(arguments.device, arguments.dense, arguments.seed)
        wanted = [name.strip() for name in arguments.only.split(",") if name.strip()]
        cases = [case for case in bench.cases() if not wanted or any(case.part.startswith(name) for name in wanted)]
        if arguments.compile:
            run_once(cases, arguments.compile)
            return 0
        if arguments.device == "cuda":
            count = min(12, os.cpu_count() or 1, len(cases))
            print(torch.cuda.get_device_name(), f"compiled in {compile_ahead(arguments, count):.0f} s", flush=True)
        lines = []
        for case in cases:
            lines.append(measure(case, bench, arguments.repeats))
            print(show(lines[-1]), flush=True)
        best = best_of(cases, lines)
        if "layer" in best and (last := best_layer(bench, best)):
            lines.append(measure(last, bench, arguments.repeats))
            print(show(lines[-1]))
            best = best_of([*cases, last], lines)
        print(summary(best, lines))
    if arguments.json:
        arguments.json.write_text(json.dumps(lines, indent=1))
    return int(not all(map(right, lines)))


if __name__ == "__main__":
    sys.exit(main())
