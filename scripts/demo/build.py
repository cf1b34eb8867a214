"""The demo checkpoint from nothing, in one command: pictures, tokenizer, autoencoder, transformer, folder, test set.

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

RESULTS = {"autoencoder": "autoencoder_average", "transformer": "transformer"}
"""What a finished training has left in the state folder."""
UNFINISHED = 75
"""Exit status (EX_TEMPFAIL): the slice is over, not the training."""


@dataclass(frozen=True)
class Part:
    """One command, and whether it need not run."""

    name: str
    command: list[str]
    done: Callable[[], bool]


def parts_of(args: argparse.Namespace) -> list[Part]:
    """What makes a checkpoint, in its order."""
    work, python = args.work, [sys.executable, "-m"]
    pack, tokenizer, kept = work / "pack.npz", work / "tokenizer.json", work / "state"
    many = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(args.gpus), "-m"] if args.gpus > 1 else []
    common = ["--pack", str(pack), "--tokenizer", str(tokenizer), "--state", str(kept), "--device", args.device]
    common += ["--seed", str(args.seed)]
    if args.slice_seconds:
        common += ["--seconds", str(args.slice_seconds)]
    trained = {"autoencoder": args.autoencoder_steps, "transformer": args.transformer_steps}
    train = {
        name: ["scripts.demo.train", name, "--steps", str(steps), "--count", str(count), *common]
        for (name, steps), count in zip(trained.items(), (args.autoencoder_count, args.count), strict=True)
    }
    folder = str(work / "folder")
    export = ["scripts.demo.export", folder, "--state", str(kept), "--tokenizer", str(tokenizer)]
    judge = ["scripts.demo.judge", folder, "--steps", "8", "--sheet", str(work / "sheet.png")]
    return [
        Part("pictures", [*python, "scripts.demo.pack", str(work), str(pack)], pack.exists),
        Part("tokenizer", [*python, "scripts.demo.tokenizer", str(tokenizer)], tokenizer.exists),
        *(
            Part(name, [*python, *(many if name == "transformer" else []), *train[name]], _trained(kept, name, steps))
            for name, steps in trained.items()
        ),
        Part("folder", [*python, *export, "--packed", str(work / "packed")], lambda: False),
        Part("test set", [*python, *judge], lambda: False),
    ]


def _trained(folder: Path, name: str, steps: int) -> Callable[[], bool]:
    def done() -> bool:
        kept = state.load(folder, RESULTS[name])
        return kept is not None and int(kept.get("step", 0)) >= steps  # `resume` leaves an autoencoder without a step

    return done


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
    parser.add_argument("--gpus", type=int, default=max(1, torch.cuda.device_count()), help="for the transformer")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--slice-seconds", type=float, help="end each training of a call after that long")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    for part in parts_of(args):
        if part.done():
            print(f"{part.name}: done before", flush=True)
            continue
        print(f"{part.name}: {' '.join(part.command)}", flush=True)
        if (status := subprocess.run(part.command, check=False).returncode) != 0:
            print(f"{part.name}: failed with status {status}", file=sys.stderr)
            return status
        if part.name in ("autoencoder", "transformer") and not part.done():
            print(f"{part.name}: this slice is over; run the same command again", flush=True)
            return UNFINISHED
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
