"""Keys and values that the text stage leaves to the image stage, and the two rows of guidance to each other.

Knows which tokens are equal and so computed once. Which buffers are used is the request's business (`job.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from hunyuan.generation.kv_cache import KVCache, shared_prefix
from hunyuan.generation.prefill import Conditions, prefill
from hunyuan.model.network import HunyuanImage3
from hunyuan.prompt.layout import Layout


@dataclass
class PrefilledPrompt:
    """A one-row cache and the tokens whose keys and values it holds."""

    kv: KVCache
    ids: list[int]
    layout: Layout


def fill_fixed(
    model: HunyuanImage3,
    layout: Layout,
    conditions: Conditions,
    stop: int,
    kv: KVCache,
    known: PrefilledPrompt | None,
) -> None:
    """Fills `kv` (one or two rows) with everything before the timestep token, computed once for equal tokens.

    What the text stage has run already is taken over, without a copy where both use the lent buffers; the
    unconditional row takes over what it shares with the conditional one.

    Args:
        stop: the timestep token's place.
        known: what the text stage has left; None: it did not run.
    """
    start = 0
    if known is not None:
        start = shared_prefix(known.ids, layout.ids[:stop], known.layout.full_blocks, layout.full_blocks)
        if not kv.shares(known.kv):
            kv.select(0).copy_prefix(known.kv, start)
    if start < stop:
        prefill(model, layout, layout.ids, conditions, (start, stop), kv.select(0))
    if kv.rows == 2:
        fill_unguided(model, layout, conditions, stop, kv.select(1), kv.select(0))


def fill_unguided(
    model: HunyuanImage3, layout: Layout, conditions: Conditions, stop: int, kv: KVCache, guided: KVCache
) -> None:
    """Fills the unguided row `kv` with everything before the timestep token, at `stop`.

    What it has in common with the guided row, which is filled, is copied from there. The two may be on different
    devices; `model` is on that of `kv`.
    """
    shared = shared_prefix(layout.ids[:stop], layout.uncond_ids[:stop], layout.full_blocks)
    kv.copy_prefix(guided, shared)
    if shared < stop:
        prefill(model, layout, layout.uncond_ids, conditions, (shared, stop), kv)
