"""`python -m hunyuan plan MODEL_ID`: what the memory of a GPU would hold, without one.

Knows the command line. The numbers come from `hunyuan.plan`; of the folder only `config.json` is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hunyuan.errors import HunyuanError
from hunyuan.plan.memory import GIB

MEMORIES = {"h100": 79.6, "h200": 140.0, "a100-80gb": 79.2}
"""GiB that the driver gives a process; less than the name says."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hunyuan", description="Tools for HunyuanImage-3.0 checkpoints.")
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser(
        "plan",
        help="print what fits a GPU, without one",
        description="Says which weights fit, and what the memory goes to. Exit code: 0 it fits, 1 it does not, "
        "2 the folder or an argument is wrong.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    plan.add_argument("model_id", type=Path, metavar="MODEL_ID", help="checkpoint folder; config.json is enough")
    plan.add_argument("--gpu", default="h100", type=_memory, metavar="NAME|GIB", help=f"{', '.join(MEMORIES)} or GiB")
    plan.add_argument("--gpus", default=1, type=_positive, metavar="N", help="how many of them")
    plan.add_argument("--weights", default="auto", choices=("auto", "bf16", "fp8", "4bit", "mixed"))
    plan.add_argument("--dense", default="bf16", choices=("bf16", "fp8"), help="attention, shared MLP and lm_head")
    plan.add_argument("--size", default="auto", metavar="WxH", help="of the picture; auto: the checkpoint's largest")
    plan.add_argument(
        "--max-tokens", type=_positive, metavar="N", help="of a sequence; unset: the checkpoint's longest"
    )
    plan.set_defaults(run=run_plan)
    return parser


def _memory(text: str) -> tuple[str, float]:
    """A name people know and GiB."""
    if text.lower() in MEMORIES:
        return text.upper(), MEMORIES[text.lower()]
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither one of {', '.join(MEMORIES)} nor a number of GiB")
    return "GPU", gib


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def run_plan(args: argparse.Namespace) -> int:
    from hunyuan.checkpoint.load import read_config
    from hunyuan.plan.choice import DoesNotFit, Gpu, choose
    from hunyuan.plan.memory import Work
    from hunyuan.plan.table import render
    from hunyuan.prompt.resolution import parse_resolution

    name, gib = args.gpu
    config = read_config(args.model_id)
    work = Work.create(config, parse_resolution(args.size, "--size"), args.max_tokens)
    gpus = [Gpu(name, int(gib * GIB))] * args.gpus
    print(f"model: {args.model_id.resolve().name}")
    try:
        choice = choose(config, args.weights, args.dense, gpus, work=work)
    except DoesNotFit as error:
        print(f"{render(error.choice)}\n\ndoes not fit: {error}")
        return 1
    print(render(choice))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except HunyuanError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
