"""What `edit` and `generate` share: their options, and one request from the command line to a file.

Knows files and the terminal. What the fields may hold is checked by `hunyuan.editor`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from hunyuan.cli.types import old_name
from hunyuan.errors import InvalidRequest
from hunyuan.requests import BotTask, EditRequest

if TYPE_CHECKING:
    from hunyuan.requests import EditResult

BOT_TASK_HELP = "what the model writes before it paints; image: nothing"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help=f"file to write: {', '.join(FORMATS)}"
    )
    parser.add_argument("--model", metavar="FOLDER", help="checkpoint folder, demo or tiny; default: MODEL_ID, or demo")
    parser.add_argument("--seed", type=int, help="the same seed gives the same picture; default: drawn")
    parser.add_argument("--steps", type=int, help="denoising steps, 1 to 100; default: 28, Distil and the demo 8")
    parser.add_argument(
        "--resolution", default="auto", metavar="SIZE", help="auto (the model chooses), WIDTHxHEIGHT or W:H"
    )
    parser.add_argument("--bot-task", default="think_recaption", choices=get_args(BotTask), help=BOT_TASK_HELP)
    parser.add_argument("--max-new-tokens", type=int, default=2048, metavar="N", help="longest text")
    old_name(parser, "--size", "resolution")
    old_name(parser, "--task", "bot_task", choices=get_args(BotTask))
    parser.add_argument("--quiet", action="store_true", help="no progress and no text")


def make_picture(args: argparse.Namespace, photos: list[Path]) -> int:
    """Runs the request and writes the picture; the exit status."""
    check_out(args.out)

    from hunyuan.cli.progress import Progress
    from hunyuan.editor import Editor
    from hunyuan.pictures.reader import load_image
    from hunyuan.settings import Settings
    from hunyuan.validation import validate

    settings = Settings() if args.model is None else Settings(model_id=args.model)
    request = EditRequest(
        args.prompt,
        images=[load_image(photo) for photo in photos],  # before minutes of loading
        seed=args.seed,
        steps=args.steps,
        resolution=args.resolution,
        bot_task=args.bot_task,
        max_new_tokens=args.max_new_tokens,
    )
    validate(request, settings)
    editor = Editor.load(settings)
    with Progress(args.quiet) as progress:
        result = editor.run(request, on_progress=progress.on_progress, on_text=progress.on_text)
    write(result, args.out, editor.model_name)
    width, height = result.size
    print(f"{args.out}: {width}x{height}, seed {result.seed}, {result.steps} steps, {result.timings['total']:.1f} s")
    return 0


def check_out(out: Path) -> None:
    if out.suffix.lower() not in FORMATS:
        raise InvalidRequest("--out", f"got {str(out)!r}; a name that ends in {', '.join(FORMATS)} is allowed")
    if not out.parent.is_dir():
        raise InvalidRequest("--out", f"there is no folder {out.parent}")


def write(result: EditResult, out: Path, model_name: str) -> None:
    """A PNG says how it came about, as the service's does; the prompt is in no file."""
    from hunyuan import __version__
    from hunyuan.serving.png import encode_png

    if FORMATS[out.suffix.lower()] == "PNG":
        out.write_bytes(encode_png(result, model_name=model_name, version=__version__))
    else:
        result.image.save(out, quality=95)
