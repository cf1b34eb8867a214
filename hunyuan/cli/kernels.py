"""`hunyuan kernels`: compiles the FlashInfer kernels that the engine calls, for Hopper.

Knows the command line. The image's build runs it while only these files of the project are there (service.py names
them), so it imports nothing else.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from hunyuan.cli.types import positive
from hunyuan.errors import InvalidRequest

DESCRIPTION = """\
Compiles the FlashInfer kernels that the engine calls, for Hopper, into FlashInfer's own folder of compiled modules;
without options those that are not there yet. Needs nvcc (the image's is 12.8), a C++ compiler and about 6 GB of memory
per job; no GPU and no network. The mixture of experts is cut to the types and tiles of the engine's table of tactics;
--full builds FlashInfer's stock module (248 sources). See docs/kernels.md."""
EXAMPLES = """\
  hunyuan kernels --check                 # which are there; exit status 1 and their names if some are not
  hunyuan kernels --jobs 16               # compile those that are not
  hunyuan kernels --list                  # modules, sources and tiles
  hunyuan kernels --sources 'bf16_*.cu'   # compile single sources and time each, keep nothing"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from hunyuan.accel.build.command import default_jobs

    parser.add_argument("--check", action="store_true", help="say which modules are compiled")
    parser.add_argument("--list", action="store_true", help="say what would be compiled")
    parser.add_argument("--sources", metavar="PATTERN", help="compile the sources whose name matches, keep nothing")
    parser.add_argument("--full", action="store_true", help="the stock mixture of experts: every type and tile")
    parser.add_argument("--force", action="store_true", help="build modules that are there too")
    parser.add_argument("--jobs", type=positive, default=default_jobs(), help="compilers at a time")
    parser.add_argument("--work", type=Path, help="build folder to keep, so that a second run goes on where it was")
    parser.add_argument("--module", action="append", metavar="NAME", help="only this one; may be given again")


def run(args: argparse.Namespace) -> int:
    from hunyuan.accel import flashinfer_modules
    from hunyuan.accel.build import command
    from hunyuan.accel.build.specs import prepare_environment

    names = tuple(args.module or flashinfer_modules.BUILT_MODULES)
    if args.check:
        return command.check(names)
    known = (*flashinfer_modules.BUILT_MODULES, flashinfer_modules.NORM)
    for name in args.module or ():
        if name not in known:
            raise InvalidRequest("--module", f"there is no module {name!r}; allowed are {', '.join(known)}")
    with tempfile.TemporaryDirectory(prefix="kernels-") as scratch:
        prepare_environment(args.work or Path(scratch), args.jobs)
        if args.list:
            return command.show(names, args.full)
        if args.sources:
            return command.compile_sources(names, args.sources, args.full)
        return command.build(names, args.full, args.force)
