#!/usr/bin/env python
"""Compares every recorded value of a golden folder with what our code computes from its checkpoint.

    python scripts/check_goldens.py FOLDER [--section NAME ...] [--device cpu|cuda]

One line a section; the exit code is 1 on any difference and on anything recorded that was neither compared nor
left out by name. Everything runs in fp32 with the plain loop over the experts and noise drawn on the CPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from scripts.goldens import dropped, edits, network, static
from scripts.goldens.folder import Golden
from scripts.goldens.report import Check

SECTIONS: dict[str, Callable[[Golden, str], Check]] = {
    "resolution": static.resolution,
    "preprocess": static.preprocess,
    "tokens": static.tokens,
    "scheduler": static.scheduler,
    "mask_rope": network.mask_rope,
    "vae": network.vae,
    "vit": network.vit,
    "embed": network.embed,
    "moe": network.moe,
    "backbone": network.backbone,
    "backbone_easymoe": network.backbone,
}


def checker(section: str) -> Callable[[Golden, str], Check] | None:
    """The function that checks a section; edits go by the way their names are built."""
    if section in SECTIONS:
        return SECTIONS[section]
    if section.startswith("e2e_"):
        return edits.easy_edit if section.endswith("_easymoe") else dropped.dropped_edit
    return None


@torch.inference_mode()
def check_section(golden: Golden, section: str) -> Check:
    """A section that raises or that no function knows is a failure, not a gap."""
    run = checker(section)
    if run is None:
        return Check(section, [section], golden.check(section, []).tolerance, failures=["unknown section"])
    try:
        return run(golden, section)
    except Exception as error:
        return Check(
            section, [section], golden.check(section, []).tolerance, failures=[f"{type(error).__name__}: {error}"]
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="holds manifest.json and checkpoint/")
    parser.add_argument("--section", action="append", help="check this section only; may be repeated")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = parser.parse_args(argv)
    golden = Golden(args.folder, args.device)
    failed = compared = recorded = 0
    for section in args.section or list(golden.sections):
        check = check_section(golden, section)
        failed += bool(check.failures)
        recorded += len(check.present)
        compared += sum(name in check.compared for name in check.present)
        print(check.line(), flush=True)
        for failure in check.failures:
            print(f"         {failure}")
        for name, reason in check.left_out.items():
            print(f"         left out: {name} ({reason})")
    print(f"{compared:,} of {recorded:,} recorded values compared, the others are named above")
    print(f"{failed} sections failed" if failed else "every section agrees")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
