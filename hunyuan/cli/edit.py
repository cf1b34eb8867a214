"""`hunyuan edit PHOTO PROMPT -o OUT`: one edit in this process, without a server. Knows the command line alone."""

from __future__ import annotations

import argparse
from pathlib import Path

from hunyuan.cli.picture import add_options, make_picture
from hunyuan.cli.types import old_name

DESCRIPTION = """\
Edits a photo as the prompt says, in this process. Shows how far it is, and the model's text as it is thought. Loading
the weights takes most of the time for one edit: `hunyuan serve` keeps them loaded."""
EXAMPLES = """\
  hunyuan edit photo.jpg "Make it black and white" -o edited.png
  hunyuan edit photo.jpg "Put on this hat" --image hat.png -o edited.png --seed 42
  MODEL_ID=/models/HunyuanImage-3-Instruct hunyuan edit photo.jpg "A watercolour" -o edited.webp --steps 20"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="PHOTO", help="picture to edit: PNG, JPEG, WebP, HEIC or AVIF")
    parser.add_argument("prompt", metavar="PROMPT", help="what to change")
    parser.add_argument(
        "--image", type=Path, action="append", default=[], metavar="PHOTO", help="a second or third picture"
    )
    old_name(parser, "--photo", "image", type=Path, action="append")
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    return make_picture(args, [args.source, *args.image])
