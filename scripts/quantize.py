"""Turns the official checkpoint folder into a smaller one: `python scripts/quantize.py SRC OUT --weights 4bit`.

Needs no GPU and little memory; run again after an interruption, it goes on where it was. docs/weights.md describes
what is written.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from hunyuan.checkpoint.quantize import RESERVE_GIB, QuantizeOptions, quantize_folder
from hunyuan.checkpoint.quantize_report import table
from hunyuan.errors import CheckpointError


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Quantise a checkpoint folder.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="the official folder, in 16 bits")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; made if absent")
    parser.add_argument("--weights", choices=("4bit", "fp8", "mixed"), default="4bit", help="format of the experts")
    parser.add_argument("--dense", choices=("bf16", "fp8"), default="bf16", help="attention, shared MLP and lm_head")
    parser.add_argument("--budget-gib", type=float, default=70.0, help="GPU memory that mixed may count on")
    parser.add_argument(
        "--reserve-gib", type=float, default=RESERVE_GIB, help="of it, what an edit needs beside the weights"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument("--workers", type=int, default=0, help="matrices worked on at a time; 0: one a CPU, 4 on a GPU")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    cuda = torch.cuda.is_available()
    if args.device == "cuda" and not cuda:
        parser.error("torch finds no CUDA device; use --device cpu")
    device = torch.device("cuda" if args.device == "cuda" or (args.device == "auto" and cuda) else "cpu")
    # One thread a matrix and several matrices: better than several threads on the small pieces of one.
    torch.set_num_threads(1)
    options = QuantizeOptions(args.weights, args.dense, args.budget_gib, args.reserve_gib, device, args.workers)
    started = time.monotonic()
    try:
        report = quantize_folder(args.source, args.out, options)
    except CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(report))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes on Linux
    print(f"{time.monotonic() - started:.1f} s, peak resident memory {peak:.2f} GiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
