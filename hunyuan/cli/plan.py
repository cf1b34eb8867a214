"""`hunyuan plan MODEL_ID`: what the memory of a GPU would hold, without one.

Knows the command line. The numbers come from `hunyuan.plan`; of the folder only `config.json` is read.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from hunyuan.cli.types import old_name, positive

MEMORIES = {"h100": 79.6, "h200": 140.0, "a100-80gb": 79.2}
"""GiB that the driver gives a process; less than the name says."""

DESCRIPTION = """Says which weights fit, and what the memory goes to. Exit status: 0 it fits, 1 it does not,
2 the folder or an argument is wrong."""
EXAMPLES = """\
  hunyuan plan /models/HunyuanImage-3-Instruct
  hunyuan plan /models/HunyuanImage-3-Instruct --gpu h200 --gpus 2 --weights bf16
  hunyuan plan /models/HunyuanImage-3-Instruct --gpu 47.5 --resolution 768x768"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hunyuan.settings import Dense, Weights

    parser.add_argument("model_id", type=Path, metavar="MODEL_ID", help="checkpoint folder; config.json is enough")
    parser.add_argument("--gpu", default="h100", type=_memory, metavar="NAME|GIB", help=f"{', '.join(MEMORIES)} or GiB")
    parser.add_argument("--gpus", default=1, type=positive, metavar="N", help="how many of them in one process")
    parser.add_argument("--weights", default="auto", choices=get_args(Weights), help="format of the experts")
    parser.add_argument("--dense", default="bf16", choices=get_args(Dense), help="attention, shared MLP and lm_head")
    parser.add_argument("--resolution", default="auto", metavar="SIZE", help="auto (the checkpoint's largest) or WxH")
    old_name(parser, "--size", "resolution")
    parser.add_argument(
        "--max-tokens", type=positive, metavar="N", help="of a sequence; unset: the checkpoint's longest"
    )
    parser.add_argument(
        "--text-batch", default=1, type=positive, metavar="N", help="rows for texts decoded together; 1: none"
    )


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


def run(args: argparse.Namespace) -> int:
    from hunyuan.checkpoint.folder import checkpoint_name, read_config
    from hunyuan.plan.choice import DoesNotFit, Gpu, choose
    from hunyuan.plan.memory import GIB, Work, text_rows
    from hunyuan.plan.table import render
    from hunyuan.prompt.resolution import parse_resolution

    name, gib = args.gpu
    config = read_config(args.model_id)
    size = parse_resolution(args.resolution, "--resolution")
    work = Work.create(config, size, args.max_tokens, text_rows(args.text_batch))
    gpus = [Gpu(name, int(gib * GIB))] * args.gpus
    print(f"model: {checkpoint_name(args.model_id)}")
    try:
        choice = choose(config, args.weights, args.dense, gpus, work=work)
    except DoesNotFit as error:
        print(f"{render(error.choice)}\n\ndoes not fit: {error}")
        return 1
    print(render(choice))
    return 0
