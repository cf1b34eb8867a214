"""`hunyuan quantize SRC OUT`: turns the official checkpoint folder into a smaller one.

Knows the command line. Needs no GPU and little memory; run again after an interruption, it goes on where it was.
docs/weights.md describes what is written.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

from hunyuan.cli.plan import MEMORIES
from hunyuan.cli.types import not_negative, positive
from hunyuan.errors import InvalidRequest, SettingsError

if TYPE_CHECKING:
    import torch

    from hunyuan.calibration.run import Calibration

DESCRIPTION = """Quantizes a checkpoint folder. Needs no GPU and little memory; started again after an interruption, it
goes on where it was. docs/weights.md describes what is written.

With --calibrate the 4-bit values are chosen by what the experts compute on requests, not by their weights: the model
goes through the device one layer at a time, in bfloat16 on a GPU, so that a layer's 4.8 GB and the requests' hidden
states are all that it holds. The files are as large and as fast as without.

--weights mixed fills what memory the plan leaves with layers in fp8: those that lose most in 4 bits and gain most from
fp8, measured on held out requests with --calibrate, on the weights without. It prints what each layer costs and
gains."""
EXAMPLES = """\
  hunyuan quantize /models/HunyuanImage-3-Instruct /models/HunyuanImage-3-Instruct-4bit
  hunyuan quantize SRC OUT --calibrate                     # on requests that are built in
  hunyuan quantize SRC OUT --calibrate my_requests.jsonl   # {"prompt": ..., "images": ["a.jpg"], "cot_text": ...}
  hunyuan quantize SRC OUT --weights mixed --calibrate     # and fp8 where it gains most, as far as an H100 has room
  hunyuan quantize SRC OUT --weights fp8 --dense fp8
  hunyuan quantize SRC OUT --lora watercolour.safetensors:0.8 --lora /adapters/faces"""

BUILT_IN = ""  # no file has this name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="the official folder, in 16 bits")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; made if absent")
    parser.add_argument("--weights", choices=("4bit", "fp8", "mixed"), default="4bit", help="format of the experts")
    parser.add_argument("--dense", choices=("bf16", "fp8"), default="bf16", help="attention, shared MLP and lm_head")
    parser.add_argument(
        "--calibrate",
        nargs="?",
        const=BUILT_IN,
        metavar="REQUESTS",
        help=".jsonl file, or folder with requests.jsonl or pictures and .txt beside them; alone: built-in requests",
    )
    parser.add_argument(
        "--budget-gib",
        type=float,
        default=MEMORIES["h100"],
        help=f"GPU memory that mixed may count on; default {MEMORIES['h100']}, what a process gets of an H100",
    )
    parser.add_argument(
        "--reserve-gib",
        type=float,
        help="of it, what mixed leaves beside the weights; default: all that the memory plan wants for the largest "
        "edit (`hunyuan plan`)",
    )
    parser.add_argument(
        "--text-batch",
        default=1,
        type=positive,
        metavar="N",
        help="with which HUNYUAN_TEXT_BATCH mixed will be served: its rows of keys and values are left free as well",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute")
    parser.add_argument(
        "--workers", type=not_negative, default=0, help="matrices worked on at a time; 0: one per CPU, 4 on a GPU"
    )
    parser.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="PATH[:SCALE]",
        help="adapter (safetensors) to merge into the weights first; may be given several times",
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from hunyuan.adapters import adapters_of
    from hunyuan.checkpoint.folder import read_config
    from hunyuan.checkpoint.quantize import QuantizeOptions, quantize_folder
    from hunyuan.checkpoint.quantize_report import table
    from hunyuan.placement import choose_device

    try:
        lora = adapters_of(args.lora)
    except ValueError as error:
        raise SettingsError(f"--lora: {error}") from error
    device = choose_device(args.device, "--device")
    # One thread per matrix and several matrices: better than several threads on the small pieces of one.
    torch.set_num_threads(1)
    chosen = calibration(args, device)
    reserve = reserve_gib(args) if args.weights == "mixed" else 0.0
    options = QuantizeOptions(args.weights, args.dense, args.budget_gib, reserve, device, args.workers, chosen, lora)
    started = time.monotonic()
    report = quantize_folder(args.source, args.out, options)
    print(table(report, read_config(args.out)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kilobytes on Linux
    print(f"{time.monotonic() - started:.1f} s, peak resident memory {peak:.2f} GiB")
    return 0


def reserve_gib(args: argparse.Namespace) -> float:
    """What the memory plan wants beside the weights. Raises `CheckpointError`: the source's config cannot be read."""
    if args.reserve_gib is not None:
        return float(args.reserve_gib)
    from hunyuan.checkpoint.folder import read_config
    from hunyuan.plan.memory import GIB, Work, plan_memory, text_rows

    config = read_config(args.source)
    work = Work.create(config, texts=text_rows(args.text_batch))
    plan = plan_memory(config, [1 << 50], work)  # on one GPU of any size
    return (plan.needed - plan.weights.total) / GIB


def calibration(args: argparse.Namespace, device: torch.device) -> Calibration | None:
    """What --calibrate asks for. Raises `InvalidRequest` and `CheckpointError` before anything is written."""
    if args.calibrate is None:
        return None
    if args.weights == "fp8":
        raise InvalidRequest("--calibrate", "chooses 4-bit values; --weights fp8 has none")
    from hunyuan.calibration.run import Calibration

    return Calibration.of_folder(args.source, Path(args.calibrate) if args.calibrate != BUILT_IN else None, device)
