"""`hunyuan verify FOLDER`: whether a checkpoint folder is complete. Knows the command line alone."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Says whether a checkpoint folder is complete: every shard that the index names is there, is as long as its own header
says, and holds the tensors that the index puts in it. Reads the headers only. Exit status: 0 complete, 1 not."""
EXAMPLES = """\
  hunyuan verify /models/HunyuanImage-3-Instruct"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="checkpoint folder")


def run(args: argparse.Namespace) -> int:
    from hunyuan.checkpoint.verify import report

    return report(args.folder)
