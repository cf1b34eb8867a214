"""`hunyuan generate PROMPT -o OUT`: a picture from words alone, without a server. Knows the command line alone."""

from __future__ import annotations

import argparse

from hunyuan.cli.picture import add_options, make_picture

DESCRIPTION = """\
Makes a picture from the prompt alone, in this process. Shows how far it is, and the model's text as it is thought."""
EXAMPLES = """\
  hunyuan generate "A lighthouse on a cliff at dusk, film grain" -o lighthouse.png
  hunyuan generate "A paper crane" -o crane.jpg --resolution 3:2 --seed 7
  hunyuan generate "A red square" -o square.png --bot-task image --steps 8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="what to show")
    add_options(parser)


def run(args: argparse.Namespace) -> int:
    return make_picture(args, [])
