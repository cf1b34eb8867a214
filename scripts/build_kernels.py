#!/usr/bin/env python
"""Compiles the FlashInfer kernels that the engine calls, for Hopper, into FlashInfer's own folder of compiled modules.

    python scripts/build_kernels.py             # the modules of the engine that are not there yet
    python scripts/build_kernels.py --check     # which are there; exit status 1 and their names if some are not
    python scripts/build_kernels.py --list      # modules, sources and tiles
    python scripts/build_kernels.py --sources PATTERN   # compiles single sources and times each, keeps nothing

Needs nvcc (the image's is 12.8), a C++ compiler and about 6 GB of memory a job; no GPU and no network. The mixture of
experts is cut to the types and tiles of the engine's table of tactics; `--full` builds FlashInfer's stock module (248
sources). See docs/kernels.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernels.specs import build_together, prepare_environment, spec_of
from kernels.wanted import wanted_tiles

from hunyuan.accel import flashinfer_modules

GB_A_JOB = 6  # the peak of one compiler on the largest sources


def main() -> int:
    arguments = _arguments()
    names = tuple(arguments.module or flashinfer_modules.ENGINE_MODULES)
    if arguments.check:
        return check(names)
    with tempfile.TemporaryDirectory(prefix="kernels-") as scratch:
        prepare_environment(arguments.work or Path(scratch), arguments.jobs)
        if arguments.list:
            return show(names, arguments.full)
        if arguments.sources:
            return compile_sources(names, arguments.sources, arguments.full)
        return build(names, arguments.full, arguments.force)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="say which modules are compiled")
    parser.add_argument("--list", action="store_true", help="say what would be compiled")
    parser.add_argument("--sources", metavar="PATTERN", help="compile the sources whose name matches, keep nothing")
    parser.add_argument("--full", action="store_true", help="the stock mixture of experts: every type and tile")
    parser.add_argument("--force", action="store_true", help="build modules that are there too")
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="compilers at a time (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="build folder to keep, so that a second run goes on where it was")
    parser.add_argument("--module", action="append", help="only this one; may be given again")
    return parser.parse_args()


def default_jobs() -> int:
    """One compiler a core, as far as memory goes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return max(1, min(os.cpu_count() or 1, int(memory // GB_A_JOB)))


def check(names: tuple[str, ...]) -> int:
    missing = flashinfer_modules.missing_modules(names)
    for name in names:
        print(f"{'missing' if name in missing else 'present'}  {name}")
    return 1 if missing else 0


def show(names: tuple[str, ...], full: bool) -> int:
    for name in names:
        sources = spec_of(name, full).sources
        print(f"{name}: {len(sources)} sources")
        for source in sources:
            print(f"  {Path(source).name}")
    if flashinfer_modules.FUSED_MOE in names and not full:
        for mode, tiles in wanted_tiles().items():
            print(f"{flashinfer_modules.FUSED_MOE} {mode}: {len(tiles)} tiles")
            for tile in sorted(tiles, key=str):
                print(f"  {tile}")
    return 0


def build(names: tuple[str, ...], full: bool, force: bool) -> int:
    folder = flashinfer_modules.aot_folder()
    if folder is None:
        print("FlashInfer is not installed", file=sys.stderr)
        return 1
    specs = {name: spec_of(name, full) for name in (names if force else flashinfer_modules.missing_modules(names))}
    started = time.monotonic()
    for name, spec in specs.items():
        print(f"building {name}: {len(spec.sources)} sources", flush=True)
    build_together(list(specs.values()))
    for name, spec in specs.items():
        library = flashinfer_modules.library(name, folder)
        library.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(spec.jit_library_path, library)
        print(f"built {name}: {library.stat().st_size / 2**20:.1f} MiB", flush=True)
    print(f"{time.monotonic() - started:.0f} s with up to {os.environ['MAX_JOBS']} compilers at a time", flush=True)
    return check(names)


def compile_sources(names: tuple[str, ...], pattern: str, full: bool) -> int:
    """Each matching source on its own, in order, with the module's exact command."""
    failed = matched = 0
    for name in names:
        spec = spec_of(name, full)
        for entry in spec.get_compile_commands():
            if fnmatch.fnmatch(Path(entry["file"]).name, pattern):
                matched += 1
                failed += not _compile_one(name, entry)
    if not matched:
        print(f"no source matches {pattern}", file=sys.stderr)
    return 1 if failed or not matched else 0


def _compile_one(name: str, entry: dict[str, Any]) -> bool:
    Path(entry["directory"]).mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    result = subprocess.run(entry["command"], shell=True, cwd=entry["directory"], check=False)
    verdict = "ok" if result.returncode == 0 else f"exit status {result.returncode}"
    print(f"{name}  {Path(entry['file']).name}  {verdict}  {time.monotonic() - started:.0f} s", flush=True)
    return result.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
