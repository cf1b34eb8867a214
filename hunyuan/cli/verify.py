"""`hunyuan verify FOLDER`: which checkpoint it is, and whether it is complete. Knows the command line alone."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Says which checkpoint a folder holds (Instruct, Distil, base, the demo, or unknown; unquantized or quantized, and how)
and whether it is complete: every shard that the index names is there and as long as its own header says, every tensor
that config.json asks for is there with its shape and type, and config.json belongs to these weights. Reads headers and
two small tensors, and asks nobody. Exit status: 0 complete, known or not; 1 not."""
EXAMPLES = """\
  hunyuan verify /models/HunyuanImage-3-Instruct"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="checkpoint folder")


def run(args: argparse.Namespace) -> int:
    from hunyuan.checkpoint import builtin, identity, verify
    from hunyuan.checkpoint.network_fit import misfits

    contents = identity.look(args.folder)
    found = verify.problems(args.folder, contents) or misfits(args.folder)
    line = identity.describe(contents, builtin.known_checkpoints(args.folder))
    return verify.report(args.folder, found, line)
