"""`hunyuan compare A B...`: how far sets of weights are from one of them, on the same edits.

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
from typing import TYPE_CHECKING, Any, get_args

from hunyuan.errors import InvalidRequest

if TYPE_CHECKING:
    from hunyuan.compare.caches import StepCache
    from hunyuan.compare.weights import Candidate, Outcome
    from hunyuan.editor import Editor
    from hunyuan.requests import EditRequest, ProgressCallback

DESCRIPTION = """\
Runs the same edits through a reference A and any number of candidates B, and reports how far each is from A. Only one
is in memory at a time, and A runs once. Each thinks for itself once, for the text; all pictures are painted with A's
text, so that they differ by the painting alone. All must have one shape (hidden size, layers, vocabulary, tokenizer,
latents, size of pictures); number formats, adapters and Distil may differ.

A candidate is a checkpoint folder, with options behind an @ if it is to be loaded or painted otherwise:
FOLDER@weights=4bit, FOLDER@weights=fp8,dense=fp8, FOLDER@dtype=bfloat16, FOLDER@step_cache=taylor,interval=3 (a step
cache's own options are the fields of its settings in hunyuan/generation), FOLDER@name=WORD,... to call it WORD.

  weight error: of the experts, |B - A| / |A|, from the files
  layers: |B - A| / |A| of the residual stream behind each layer, at the middle step, B being given A's latents
  velocity: the same of what the network predicts, at each step
  full steps: those that no step cache forecast
  PSNR, SSIM, largest difference: of the two pictures
  text, free: tokens that the greedy texts of A and B have in common before they part, of all tokens of A's
  text, forced: share of positions with the same likeliest next token, both reading A's text"""
EXAMPLES = """\
  hunyuan compare /models/HunyuanImage-3-Instruct /models/HunyuanImage-3-Instruct-4bit
  hunyuan compare A B C A@step_cache=spectrum --sheet sheet.png --json numbers.json
  hunyuan compare A A@weights=fp8 A@weights=4bit A-calibrated --file requests.jsonl
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
    parser.add_argument(
        "b", nargs="+", metavar="B", help="folders of the candidates, each FOLDER or FOLDER@OPTION=VALUE,..."
    )
    for side in "AB":
        weights, dense = f"format of {side}'s experts", f"format of {side}'s attention, shared MLP and lm_head"
        parser.add_argument(f"--weights-{side.lower()}", default="auto", choices=get_args(Weights), help=weights)
        parser.add_argument(f"--dense-{side.lower()}", default="bf16", choices=get_args(Dense), help=dense)
    parser.add_argument("--device", default="auto", choices=get_args(Device), help="where both compute")
    parser.add_argument(
        "--dtype", default="auto", choices=get_args(Dtype), help="what both compute in; auto: bfloat16 on a GPU"
    )
    parser.add_argument("--file", type=Path, help="requests of your own, a file as quantize --calibrate takes it")
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
        "--sheet", type=Path, metavar="FILE", help="write the sources and all pictures there, labelled (PNG)"
    )


def run(args: argparse.Namespace) -> int:
    from hunyuan.compare.comparable import check_comparable
    from hunyuan.compare.report import sheet, summary, table
    from hunyuan.compare.weights import compare
    from hunyuan.prompt.resolution import parse_resolution

    if args.image and args.prompt is None:
        raise InvalidRequest("--image", "needs --prompt")
    if args.file is not None and args.prompt is not None:
        raise InvalidRequest("--file", "cannot be used with --prompt")
    if not 1 <= args.requests <= len(BUILT_IN):
        raise InvalidRequest("--requests", f"got {args.requests}; 1 to {len(BUILT_IN)} are allowed")
    if args.resolution is not None and parse_resolution(args.resolution, "--resolution") is None:
        raise InvalidRequest("--resolution", "got 'auto', which each side may read otherwise; give WIDTHxHEIGHT or W:H")
    for option, path in (("--json", args.json), ("--sheet", args.sheet)):
        if path is not None and not path.parent.is_dir():
            raise InvalidRequest(option, f"there is no folder {path.parent}")
    reference, candidates = loader(args, args.a, args.weights_a, args.dense_a), read_candidates(args)
    cases = build_cases(args)
    # The reference works for minutes or hours before a candidate's turn comes.
    check_comparable(args.a, [Path(split_candidate(text)[0]) for text in args.b], cases)
    numbers: list[dict[str, Any]] = []

    def on_outcome(outcome: Outcome) -> None:
        heading = [f"{outcome.name}:"] if len(candidates) > 1 else []
        print(*heading, table(outcome.comparisons), "", sep="\n", flush=True)
        numbers.extend({**asdict(c), "weight_error": outcome.weight_error} for c in outcome.comparisons)
        if args.json is not None:
            args.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")

    references, outcomes = compare(reference, candidates, cases, watch, on_outcome)
    print(summary(outcomes))
    if args.sheet is not None:
        sheet(cases, [reference.result.image for reference in references], outcomes).save(args.sheet)
    return 0


def read_candidates(args: argparse.Namespace) -> list[Candidate]:
    """Raises `InvalidRequest` naming the candidate and what is wrong with it, before anything is loaded."""
    from hunyuan.compare.weights import Candidate

    found = []
    for text in args.b:
        folder, options = split_candidate(text)
        weights, dense = options.pop("weights", args.weights_b), options.pop("dense", args.dense_b)
        name = options.pop("name", "B" if len(args.b) == 1 else Path(folder).name + text[len(folder) :])
        dtype = options.pop("dtype", args.dtype)
        load = loader(args, Path(folder), weights, dense, dtype)
        found.append(Candidate(name, load, read_cache(text, options)))
    return found


def split_candidate(text: str) -> tuple[str, dict[str, str]]:
    """The folder, and its options behind the last @; an @ that no `=` follows belongs to the folder."""
    folder, found, rest = text.rpartition("@")
    if not found or "=" not in rest:
        return text, {}
    pairs = [part.partition("=") for part in rest.split(",")]
    wrong = [key for key, equals, value in pairs if not (key and equals and value)]
    if wrong:
        raise InvalidRequest("B", f"{text!r}: expected FOLDER@OPTION=VALUE,OPTION=VALUE")
    return folder, {key: value for key, _, value in pairs}


def read_cache(text: str, options: dict[str, str]) -> Callable[[int], StepCache] | None:
    """The step cache that a candidate's options ask for."""
    from hunyuan.compare.caches import CACHES, make_cache

    name = options.pop("step_cache", None)
    if name is None:
        if options:
            raise InvalidRequest("B", f"{text!r}: unknown option {', '.join(options)}")
        return None
    if name not in CACHES:
        raise InvalidRequest("B", f"{text!r}: step_cache must be one of {', '.join(CACHES)}")
    try:
        return make_cache(name, options)
    except ValueError as error:
        raise InvalidRequest("B", f"{text!r}: {error}") from error


@contextmanager
def watch(what: str) -> Iterator[ProgressCallback]:
    """A line for what begins, and bars for its stages, on standard error: the numbers come minutes later."""
    from hunyuan.cli.progress import Progress

    print(what, file=sys.stderr, flush=True)
    with Progress() as shown:
        yield shown.on_progress


def loader(
    args: argparse.Namespace, folder: Path, weights: str, dense: str, dtype: str | None = None
) -> Callable[[], Editor]:
    from hunyuan.editor import Editor
    from hunyuan.settings import Settings

    # Here and not at its turn: a folder that is not there is said before the other side has worked for minutes.
    settings = Settings(
        model_id=folder, engine="native", device=args.device, dtype=dtype or args.dtype, weights=weights, dense=dense
    )
    return lambda: Editor.load(settings)


def build_cases(args: argparse.Namespace) -> list[EditRequest]:
    """The built-in requests, those of --file, or the one of --prompt and --image."""
    from PIL import Image

    from hunyuan.calibration.requests import read_requests
    from hunyuan.compare.sample_photos import photo
    from hunyuan.pictures.reader import load_image
    from hunyuan.requests import EditRequest

    chosen: list[tuple[str, tuple[Image.Image, ...]]]
    if args.prompt is not None:
        chosen = [(args.prompt, tuple(load_image(path) for path in args.image))]
    elif args.file is not None:
        own = read_requests(args.file, 0, fewest=1, setting="--file")
        chosen = [(request.prompt, tuple(load_image(path) for path in request.images)) for request in own]
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
