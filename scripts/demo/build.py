"""The demo checkpoint from nothing, in one command: pictures, tokenizer, the three trainings, folder, test set.

    python -m scripts.demo.build WORK

WORK keeps what is done, and the same command goes on from there: after a stop, or after `--slice-seconds` where a
machine is to be had for so long only (starts, the folder and the test set come on top). The transformer takes all GPUs.
Knows the order and when a part is done; what a part does is in the module that its command names.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scripts.demo import state

RESULTS = {"autoencoder": "autoencoder_average", "transformer": "transformer", "decoder": "autoencoder_average"}
"""What a finished training has left in the state folder."""
UNFINISHED = 75
"""Exit status (EX_TEMPFAIL): the slice is over, not the training."""


@dataclass(frozen=True)
class Part:
    """One command. `done` tells whether it has left all that it should; without it, it runs each time."""

    name: str
    command: list[str]
    done: Callable[[], bool] | None = None


def parts_of(args: argparse.Namespace) -> list[Part]:
    """What makes a checkpoint, in its order."""
    work: Path = args.work
    pack, tokenizer, folder, kept = work / "pack.npz", work / "tokenizer.json", work / "folder", work / "state"
    trained = ("--state", kept, "--tokenizer", tokenizer)
    common = ["--pack", pack, "--device", args.device, "--seed", args.seed, *trained]
    if args.slice_seconds:
        common += ["--seconds", args.slice_seconds]
    ranks = ("torch.distributed.run", "--standalone", "--nproc-per-node", args.gpus, "-m") if args.gpus > 1 else ()

    def training(name: str, steps: int, count: int, launcher: tuple[object, ...] = ()) -> Part:
        command = module(*launcher, "scripts.demo.train", name, "--steps", steps, "--count", count, *common)
        return Part(name, command, lambda: steps_of(kept, name) >= steps)

    return [
        Part("pictures", module("scripts.demo.pack", work, pack), pack.exists),
        Part("tokenizer", module("scripts.demo.tokenizer", tokenizer), tokenizer.exists),
        training("autoencoder", args.autoencoder_steps, args.autoencoder_count),
        training("transformer", args.transformer_steps, args.count, ranks),
        training("decoder", args.decoder_steps, args.decoder_count),
        Part("folder", module("scripts.demo.export", folder, *trained, "--packed", work / "packed")),
        Part("test set", module("scripts.demo.judge", folder, "--steps", 8, "--sheet", work / "sheet.png")),
    ]


def module(*words: object) -> list[str]:
    """The command that runs a Python module."""
    return [sys.executable, "-m", *map(str, words)]


def steps_of(folder: Path, name: str) -> int:
    """How many steps are in what a training has left; -1 where it has left nothing.

    The decoder's count only if the transformer is still the one whose answers it has learned from.
    """
    kept = state.load(folder, RESULTS[name])
    if kept is None:
        return -1
    if name == "decoder":
        return state.decoder_step(kept, steps_of(folder, "transformer"))
    return int(kept.get("step", 0))  # `resume` leaves an autoencoder without a step


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Make the demo checkpoint from nothing.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("work", type=Path, help="what is done is kept here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoder-steps", type=int, default=2200)
    parser.add_argument("--autoencoder-count", type=int, default=64, help="pictures per step")
    parser.add_argument("--transformer-steps", type=int, default=40000)
    parser.add_argument("--count", type=int, default=96, help="samples per step of the transformer, on each GPU")
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--decoder-count", type=int, default=32, help="samples per step of the decoder")
    parser.add_argument("--gpus", type=int, default=max(1, torch.cuda.device_count()), help="for the transformer")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--slice-seconds", type=float, help="end each training of a call after that long")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    for part in parts_of(args):
        if part.done and part.done():
            print(f"{part.name}: done before", flush=True)
            continue
        print(f"{part.name}: {' '.join(part.command)}", flush=True)
        if (status := subprocess.run(part.command, check=False).returncode) != 0:
            print(f"{part.name}: failed with status {status}", file=sys.stderr)
            return status
        if part.done and not part.done():
            print(f"{part.name}: this slice is over; run the same command again", flush=True)
            return UNFINISHED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
