"""`hunyuan tiny OUT`: a small random checkpoint in the official layout.

Knows the command line. For trying the service, for tests and, with sizes that its kernels accept, for a GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Writes a small random checkpoint in the official layout. Its pictures are noise; what it says is fixed."""
EXAMPLES = """\
  hunyuan tiny /tmp/tiny
  hunyuan tiny /tmp/tiny --shards 3 --distil --force
  hunyuan tiny /tmp/tiny --hidden 256 --head-dim 128 --expert-width 128   # sizes that the GPU's kernels accept"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hunyuan.checkpoint.tiny_config import DEFAULT_SHAPE, DTYPES
    from hunyuan.checkpoint.tiny_tokenizer import IMAGE_SIZES

    default = DEFAULT_SHAPE
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; made if absent")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights")
    parser.add_argument("--hidden", type=int, default=default.hidden, help="backbone width, a multiple of 32")
    parser.add_argument("--layers", type=int, default=default.layers)
    parser.add_argument("--heads", type=int, default=default.heads, help="query heads, a multiple of --kv-heads")
    parser.add_argument("--kv-heads", type=int, default=default.kv_heads)
    parser.add_argument("--head-dim", type=int, default=default.head_dim, help="a multiple of 4; GPU kernels want 128")
    parser.add_argument("--experts", type=int, default=default.experts, help="experts per layer, 2 or more")
    parser.add_argument("--topk", type=int, default=default.topk, help="experts per token")
    parser.add_argument(
        "--expert-width", type=int, default=default.expert_width, help="GPU kernels want a multiple of 128"
    )
    parser.add_argument(
        "--base-size", type=int, default=default.base_size, choices=IMAGE_SIZES, help="side of a square output, pixels"
    )
    parser.add_argument("--max-positions", type=int, default=default.max_positions, help="longest token sequence")
    parser.add_argument("--shards", type=int, default=1, help="number of weight files")
    parser.add_argument("--distil", action="store_true", help="the Distil variant: no CFG row, 8 steps")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16", help="of the stored weights")
    parser.add_argument(
        "--torch-dtype", choices=list(DTYPES), default=default.torch_dtype, help="what config.json says to compute in"
    )
    parser.add_argument("--force", action="store_true", help="replace the checkpoint in a folder that is not empty")


def run(args: argparse.Namespace) -> int:
    from hunyuan.checkpoint.tiny import write_tiny_checkpoint
    from hunyuan.checkpoint.tiny_config import TinyShape

    shape = TinyShape(
        hidden=args.hidden,
        layers=args.layers,
        heads=args.heads,
        kv_heads=args.kv_heads,
        head_dim=args.head_dim,
        experts=args.experts,
        topk=args.topk,
        expert_width=args.expert_width,
        base_size=args.base_size,
        max_positions=args.max_positions,
        distil=args.distil,
        torch_dtype=args.torch_dtype,
    )
    folder = write_tiny_checkpoint(
        args.out, shape, seed=args.seed, shards=args.shards, dtype=args.dtype, force=args.force
    )
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    print(f"wrote {folder}: {size / 1e6:.1f} MB")
    return 0
