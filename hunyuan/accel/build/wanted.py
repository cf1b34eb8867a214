"""Which tiles of the fused mixture of experts are compiled into the image by default.

Those of the engine's table of tactics, and those that its warm-up tries where the table has no entry. A tile outside
them throws when it is called; it never becomes a slower one. The table's file is read without the rest of the engine,
so that it alone has to be in the image when the kernels are built.
"""

from __future__ import annotations

from hunyuan.accel.experts import tactics as engine
from hunyuan.accel.build.tactics import MODES, Mode, Tile, tiles_of

# FlashInfer sizes the mixed modes' workspace with this tile; a plain mode's with any tile that is not swapped.
WORKSPACE_MIXED = Tile((128, 64, 256))
WORKSPACE_PLAIN = (128, 256)


def wanted_tiles() -> dict[str, set[Tile]]:
    """The tiles to compile, by mode. Raises `ValueError` for a mode or a number that is not FlashInfer's."""
    chosen = engine.all_profile_ids()
    unknown = sorted(chosen.keys() - MODES.keys())
    if unknown:
        raise ValueError(f"no kernels are known for the modes {unknown}")
    found = {}
    for name, ids in chosen.items():
        tried = {number for both in engine.candidates(name) for number in both}
        found[name] = tiles_of(MODES[name], set(ids) | tried) | for_workspace(MODES[name])
    return found


def for_workspace(mode: Mode) -> set[Tile]:
    if mode.mixed:
        return {WORKSPACE_MIXED}
    shape = (*WORKSPACE_PLAIN, mode.depth)
    return {Tile(shape, (2, 1), finalize=finalize) for finalize in (False, True)}
