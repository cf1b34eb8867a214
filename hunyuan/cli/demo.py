"""`hunyuan demo OUT`: the built-in demo as a checkpoint folder of its own.

Knows the command line. `hunyuan quantize`, `compare` and `plan` take a folder; `MODEL_ID=demo` needs none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hunyuan.errors import CheckpointError

DESCRIPTION = """\
Writes the built-in demo as a checkpoint folder in the official layout, in bf16: to quantize it, to compare formats on a
model that really edits, or to look at. To serve it, nothing has to be written."""
EXAMPLES = """\
  hunyuan demo /tmp/demo"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; made if absent")


def run(args: argparse.Namespace) -> int:
    from hunyuan.checkpoint.packed import unpack
    from hunyuan.demo import FOLDER

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise CheckpointError(f"{args.out} is there already and no empty folder; choose another")
    unpack(FOLDER, args.out)
    size = sum(path.stat().st_size for path in args.out.iterdir())
    print(f"wrote {args.out}: {size / 1e6:.1f} MB")
    return 0
