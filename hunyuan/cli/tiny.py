"""`hunyuan tiny OUT`: a small random checkpoint in the official layout.

Knows the command line. For trying the service, for tests and, with sizes that its kernels accept, for a GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

DESCRIPTION = """\
Writes a small random checkpoint in the official layout. Its pictures are noise; what it says is fixed."""
EXAMPLES = """\
  hunyuan tiny /tmp/tiny
  hunyuan tiny /tmp/tiny --shards 3 --distil --force
  hunyuan tiny /tmp/tiny --hidden 256 --head-dim 128 --expert-width 128   # sizes that the GPU's kernels accept"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hunyuan.checkpoint.tiny_config import DTYPES, TinyShape

    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; made if absent")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    for name, field in TinyShape.model_fields.items():
        option, choices = f"--{name.replace('_', '-')}", get_args(field.annotation) or None
        if field.annotation is bool:
            parser.add_argument(option, action="store_true", help=field.description)
        else:
            kind, default = type(field.default), field.default
            parser.add_argument(option, type=kind, default=default, choices=choices, help=field.description)
    parser.add_argument("--shards", type=int, default=1, help="number of weight files")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="of the stored weights")
    parser.add_argument("--force", action="store_true", help="replace the checkpoint in a folder that is not empty")


def run(args: argparse.Namespace) -> int:
    from hunyuan.checkpoint.tiny import write_tiny_checkpoint
    from hunyuan.checkpoint.tiny_config import TinyShape

    shape = TinyShape(**{name: getattr(args, name) for name in TinyShape.model_fields})
    folder = write_tiny_checkpoint(
        args.out, shape, seed=args.seed, shards=args.shards, dtype=args.dtype, force=args.force
    )
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    print(f"wrote {folder}: {size / 1e6:.1f} MB")
    return 0
