"""What `hunyuan kernels` does: checks, lists and compiles the FlashInfer modules that the engine calls.

Knows compilers' output and FlashInfer's folder; the command line is `hunyuan.cli.kernels`. Imports neither torch nor
FlashInfer until something is listed or compiled.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hunyuan.accel.build.specs import build_together, spec_of
from hunyuan.accel.build.wanted import wanted_tiles

from hunyuan.accel import flashinfer_modules

GB_A_JOB = 6  # the peak of one compiler on the largest sources


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
