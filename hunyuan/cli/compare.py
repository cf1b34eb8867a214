"""`hunyuan compare A B`: how far two sets of weights are apart, on the same edits.

Knows the command line and the requests that are built in; `hunyuan.compare` runs them and measures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from hunyuan.errors import InvalidRequest

if TYPE_CHECKING:
    from hunyuan.editor import Editor
    from hunyuan.requests import EditRequest, ProgressCallback

DESCRIPTION = """\
Runs the same edits through two sets of weights and reports how far apart they are. A and B are checkpoint folders, or
one folder twice with two --weights. A is the reference; only one is in memory at a time. Each thinks for itself once,
for the text; both pictures are painted with A's text, so that they differ by the painting alone.

  PSNR, SSIM, largest difference: of the two pictures
  velocity: |B - A| / |A| of what the network predicts at each step, B being given A's latents
  text, free: tokens that the greedy texts of A and B have in common before they part, of all tokens of A's
  text, forced: share of positions with the same likeliest next token, both reading A's text"""
EXAMPLES = """\
  hunyuan compare /models/HunyuanImage-3-Instruct /models/HunyuanImage-3-Instruct-4bit
  hunyuan compare A B --sheet sheet.png --json numbers.json
  hunyuan compare A A --weights-a bf16 --weights-b 4bit --prompt "Make the sky orange" --image photo.jpg"""

BUILT_IN: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    ("Make the sky orange and keep everything else", ((960, 640),)),
    ("Turn it into a watercolour painting", ((640, 640),)),
    ("Put the first picture's colours on the second", ((720, 480), (480, 640))),
    ("A lighthouse on a cliff at dusk, film grain", ()),
)
"""Prompts and the sizes of the made-up photos that go with them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hunyuan.cli.picture import BOT_TASK_HELP
    from hunyuan.requests import BotTask
    from hunyuan.settings import Dense, Device, Dtype, Weights

    parser.add_argument("a", type=Path, metavar="A", help="checkpoint folder of the reference")
    parser.add_argument("b", type=Path, metavar="B", help="checkpoint folder of the other; may be the same")
    for side in "AB":
        weights, dense = f"format of {side}'s experts", f"format of {side}'s attention, shared MLP and lm_head"
        parser.add_argument(f"--weights-{side.lower()}", default="auto", choices=get_args(Weights), help=weights)
        parser.add_argument(f"--dense-{side.lower()}", default="bf16", choices=get_args(Dense), help=dense)
    parser.add_argument("--device", default="auto", choices=get_args(Device), help="where both compute")
    parser.add_argument(
        "--dtype", default="auto", choices=get_args(Dtype), help="what both compute in; auto: bfloat16 on a GPU"
    )
    parser.add_argument("--prompt", help="one request of your own instead of the built-in ones")
    parser.add_argument("--image", action="append", default=[], type=Path, help="with --prompt; up to three")
    parser.add_argument(
        "--requests", type=int, default=len(BUILT_IN), metavar="N", help="how many of the built-in requests"
    )
    parser.add_argument("--resolution", metavar="SIZE", help="WIDTHxHEIGHT or W:H; default: the first picture's ratio")
    parser.add_argument("--seed", type=int, default=42, help="of every request")
    parser.add_argument("--steps", type=int, help="default: A's own, which is 28, and 8 for a Distil checkpoint")
    parser.add_argument("--bot-task", default="think_recaption", choices=get_args(BotTask), help=BOT_TASK_HELP)
    parser.add_argument("--max-new-tokens", type=int, default=2048, metavar="N", help="longest text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE", help="write source, A, B and their difference there (PNG)"
    )


def run(args: argparse.Namespace) -> int:
    from hunyuan.compare.weights import compare, table

    if args.image and args.prompt is None:
        raise InvalidRequest("--image", "needs --prompt")
    if not 1 <= args.requests <= len(BUILT_IN):
        raise InvalidRequest("--requests", f"got {args.requests}; 1 to {len(BUILT_IN)} are allowed")
    for option, path in (("--json", args.json), ("--sheet", args.sheet)):
        if path is not None and not path.parent.is_dir():
            raise InvalidRequest(option, f"there is no folder {path.parent}")
    sides = (
        loader(args, args.a, args.weights_a, args.dense_a),
        loader(args, args.b, args.weights_b, args.dense_b),
    )
    comparisons, sheet = compare(*sides, build_cases(args), watch)
    print(table(comparisons))
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(c) for c in comparisons], indent=2) + "\n", encoding="utf-8")
    if args.sheet is not None:
        sheet.save(args.sheet)
    return 0


@contextmanager
def watch(what: str) -> Iterator[ProgressCallback]:
    """A line for what begins, and bars for its stages, on standard error: the numbers come minutes later."""
    from hunyuan.cli.progress import Progress

    print(what, file=sys.stderr, flush=True)
    with Progress() as shown:
        yield shown.on_progress


def loader(args: argparse.Namespace, folder: Path, weights: str, dense: str) -> Callable[[], Editor]:
    from hunyuan.editor import Editor
    from hunyuan.settings import Settings

    # Here and not at its turn: a folder that is not there is said before the other side has worked for minutes.
    settings = Settings(
        model_id=folder, engine="native", device=args.device, dtype=args.dtype, weights=weights, dense=dense
    )
    return lambda: Editor.load(settings)


def build_cases(args: argparse.Namespace) -> list[EditRequest]:
    """The built-in requests, or the one of --prompt and --image."""
    from PIL import Image

    from hunyuan.compare.sample_photos import photo
    from hunyuan.pictures.reader import load_image
    from hunyuan.requests import EditRequest

    chosen: list[tuple[str, tuple[Image.Image, ...]]]
    if args.prompt is not None:
        chosen = [(args.prompt, tuple(load_image(path) for path in args.image))]
    else:
        made = [(prompt, tuple(photo(*size, seed=i) for i, size in enumerate(sizes))) for prompt, sizes in BUILT_IN]
        chosen = made[: args.requests]
    common = {"seed": args.seed, "steps": args.steps, "bot_task": args.bot_task, "max_new_tokens": args.max_new_tokens}
    common |= {"do_sample": False, "drop_think": False}
    # The size is the first picture's ratio: "auto" would be A's choice and then B's.
    ratios = ["{}:{}".format(*images[0].size) if images else "1:1" for _, images in chosen]
    return [
        EditRequest(prompt, images, resolution=args.resolution or ratio, **common)
        for (prompt, images), ratio in zip(chosen, ratios, strict=True)
    ]
