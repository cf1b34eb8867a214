"""FlashInfer's tactic numbers on Hopper, and the tile of each.

`profile_ids=[i, j]` of `cutlass_fused_moe` are positions in a list that FlashInfer builds at run time (its
`get_candidate_configs` and `getTmaWarpSpecializedConfigs`, C++): the tactics of the first matrix product, then those of
the second. This writes the same list down for GPUs of compute capability 9.0, for the version in `FLASHINFER_VERSION`
only. Knows no tensors and imports nothing of FlashInfer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

FLASHINFER_VERSION = "0.7.2.post1"

CLUSTERS = ((1, 1), (2, 1), (1, 2), (2, 2))
PLAIN_TILES = ((128, 16), (128, 32), (128, 64), (128, 128), (128, 256), (256, 128))
MIXED_TILES = (
    *product((64,), (16, 32, 64, 128), (128, 256, 512)),
    *product((128,), (16, 32, 64, 128), (128, 256, 512)),
    *((128, 256, 128), (128, 256, 256), (256, 128, 128), (256, 128, 256), (256, 256, 128)),
)
SMALL_K_TOKENS = (8, 16, 32, 40, 64)
ROW_BYTES = 128  # the depth of a plain tile


@dataclass(frozen=True)
class Tile:
    """One compiled matrix product: what a block computes and how.

    Attributes:
        shape: rows, columns and depth of a block's tile, in elements.
        cluster: blocks that share their loads.
        schedule: "cooperative", "pingpong", or of the single-warpgroup kernels "prefill" and "rolling".
        finalize: the sum over a token's experts happens in the product's last step.
    """

    shape: tuple[int, int, int]
    cluster: tuple[int, int] = (1, 1)
    schedule: str = "cooperative"
    swapped: bool = False
    finalize: bool = False


@dataclass(frozen=True)
class Mode:
    """One pair of activation and weight types.

    Attributes:
        fallbacks: tactics for older GPUs at the end of each list; never chosen here.
    """

    name: str
    mixed: bool
    depth: int = 0
    fallbacks: int = 0


BF16 = Mode("bf16", mixed=False, depth=ROW_BYTES // 2, fallbacks=9)
FP8 = Mode("fp8", mixed=False, depth=ROW_BYTES)
HUMMING = Mode("humming", mixed=True)
MODES = {mode.name: mode for mode in (BF16, FP8, HUMMING)}


def tactics(mode: Mode, fused_finalize: bool = True) -> list[Tile | None]:
    """Every tactic of `mode` in FlashInfer's order; None is one that this GPU never runs."""
    if mode.mixed:
        once: list[Tile | None] = [*_mixed(), *_small_k()]
        return once + once
    first = _both_orders(_plain(mode.depth))
    second = _both_orders(_with_finalize(_plain(mode.depth)) if fused_finalize else _plain(mode.depth))
    old: list[Tile | None] = [None] * mode.fallbacks
    return [*first, *old, *second, *old]


def tiles_of(mode: Mode, profile_ids: set[int], fused_finalize: bool = True) -> set[Tile]:
    """Raises `ValueError` for a number that is no tactic of `mode`."""
    known = tactics(mode, fused_finalize)
    wrong = sorted(i for i in profile_ids if not 0 <= i < len(known) or known[i] is None)
    if wrong:
        raise ValueError(f"{mode.name}: no such tactics {wrong}; FlashInfer {FLASHINFER_VERSION} has {len(known)}")
    return {tile for i in profile_ids if (tile := known[i]) is not None}


def _plain(depth: int) -> list[Tile]:
    """Loads can be shared along the rows always, along the columns from 128 columns on."""
    return [
        Tile((rows, columns, depth), cluster)
        for rows, columns in PLAIN_TILES
        for cluster in CLUSTERS
        if cluster[1] == 1 or columns >= 128
    ]


def _with_finalize(tiles: list[Tile]) -> list[Tile]:
    return tiles + [replace(tile, finalize=True) for tile in tiles]


def _both_orders(tiles: list[Tile]) -> list[Tile]:
    return tiles + [replace(tile, swapped=True) for tile in tiles]


def _mixed() -> list[Tile]:
    return [Tile(shape, cluster, _schedule(shape)) for shape in MIXED_TILES for cluster in CLUSTERS]


def _schedule(shape: tuple[int, int, int]) -> str:
    rows, columns, depth = shape
    deep_and_wide = columns >= 128 and depth == 512
    return "cooperative" if rows >= 128 and not deep_and_wide else "pingpong"


def _small_k() -> list[Tile]:
    return [Tile((128, n, 128), (1, 1), kind) for n in SMALL_K_TOKENS for kind in ("prefill", "rolling")]
