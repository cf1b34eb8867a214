"""Decode attention in Triton, with split KV: one query per row over many keys.

The keys are cut into a fixed number of equal parts, each read by one program for all query heads of its key-value
head; a second kernel adds the parts up in a fixed order. The length is read on the device, so a CUDA graph can be
replayed while the text grows, and one length always gives the same bits. Importing this file needs Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hunyuan.accel.kernels.launch import INTERPRETED, on_device_of
from hunyuan.accel.kernels.overlap import take_turn, turns

_LOG2_E = 1.4426950408889634
_QUERIES = 16  # the least rows of a product on tensor cores


@dataclass(frozen=True)
class Cut:
    """`parts` (a power of two) programs per key-value head, which take `keys` keys at a time."""

    parts: int
    keys: int
    stages: int
    warps: int = 4


# 8 key-value heads x 32 parts are 256 programs: two for each of 132 multiprocessors, all at work at once.
CUT = Cut(32, 64, 3)


@triton.jit
def _part_kernel(
    q, keys, values, position, lanes, sums, peaks, masses, scale, key_row, key_token, value_row, value_token,
    apart: tl.constexpr, laned: tl.constexpr, kv_heads: tl.constexpr, group: tl.constexpr, padded: tl.constexpr,
    head_dim: tl.constexpr, parts: tl.constexpr, block: tl.constexpr, wide: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """One part of the keys for the `group` query heads of one key-value head: unnormalised softmax partial sums."""
    take_turn(pdl)
    pair, part = tl.program_id(0), tl.program_id(1)
    query_row, head = pair // kv_heads, pair % kv_heads
    row = (tl.load(lanes + query_row) if laned else query_row).to(tl.int64)
    length = tl.load(position + query_row if apart else position) + 1
    chunk = (length + parts - 1) // parts
    first = part * chunk
    last = tl.minimum(first + chunk, length)
    g, d = tl.arange(0, padded), tl.arange(0, head_dim)
    query = tl.load(q + ((pair * group + g) * head_dim)[:, None] + d[None, :], mask=(g < group)[:, None], other=0.0)
    if wide:
        query = query.to(tl.float32)
    keys += row * key_row + head * head_dim
    values += row * value_row + head * head_dim

    peak = tl.full([padded], float("-inf"), tl.float32)
    mass = tl.zeros([padded], tl.float32)
    total = tl.zeros([padded, head_dim], tl.float32)
    for at in range(first, last, block):
        n = at + tl.arange(0, block)
        inside = n < last
        k = tl.load(keys + n.to(tl.int64)[None, :] * key_token + d[:, None], mask=inside[None, :], other=0.0)
        v = tl.load(values + n.to(tl.int64)[:, None] * value_token + d[None, :], mask=inside[:, None], other=0.0)
        if wide:
            k, v = k.to(tl.float32), v.to(tl.float32)
        score = tl.dot(query, k, input_precision="ieee") * scale
        score = tl.where(inside[None, :], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        probs = tl.exp2(score - higher[:, None])
        fade = tl.exp2(peak - higher)
        mass = mass * fade + tl.sum(probs, axis=1)
        total = tl.dot(probs.to(v.dtype), v, total * fade[:, None], input_precision="ieee")
        peak = higher

    slot = (pair * group + g) * parts + part
    tl.store(peaks + slot, peak, mask=g < group)
    tl.store(masses + slot, mass, mask=g < group)
    tl.store(sums + slot.to(tl.int64)[:, None] * head_dim + d[None, :], total, mask=(g < group)[:, None])


@triton.jit
def _join_kernel(sums, peaks, masses, out, parts: tl.constexpr, head_dim: tl.constexpr, pdl: tl.constexpr):
    """Adds up the parts of one query head."""
    take_turn(pdl)
    head = tl.program_id(0).to(tl.int64)
    slot, d = head * parts + tl.arange(0, parts), tl.arange(0, head_dim)
    peak = tl.load(peaks + slot)
    share = tl.exp2(peak - tl.max(peak, axis=0))  # 0 for a part without keys
    mass = tl.sum(share * tl.load(masses + slot), axis=0)
    total = tl.sum(share[:, None] * tl.load(sums + slot[:, None] * head_dim + d[None, :]), axis=0)
    tl.store(out + head * head_dim + d, (total / mass).to(out.dtype.element_ty))


def decode_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    position: Tensor,
    cut: Cut = CUT,
    pdl: bool = False,
    lanes: Tensor | None = None,
) -> Tensor:
    """`softmax(q k / sqrt(head_dim)) v` over the keys [0, position].

    Args:
        q: `[rows, 1, heads, head_dim]`.
        keys, values: `[rows, capacity, kv_heads, head_dim]`, the last two dimensions contiguous.
        position: int32 on the device, `[1]` for all rows or `[rows]`.
        pdl: begin while the launch before ends, see `overlap.py`.
        lanes: int32 `[rows]` on the device, each query's row of the buffers; None: its own number.

    Returns:
        `[rows, 1, heads, head_dim]`, q's dtype.
    """
    rows, _, heads, head_dim = q.shape
    kv_heads, q = keys.shape[2], q.contiguous()
    group = heads // kv_heads
    out = torch.empty_like(q)
    sums = torch.empty(rows * heads, cut.parts, head_dim, dtype=torch.float32, device=q.device)
    peaks, masses = torch.empty(2, rows * heads, cut.parts, dtype=torch.float32, device=q.device)
    with on_device_of(q):
        _part_kernel[(rows * kv_heads, cut.parts)](
            q, keys, values, position, position if lanes is None else lanes, sums, peaks, masses,
            _LOG2_E / head_dim**0.5, *keys.stride()[:2], *values.stride()[:2], apart=len(position) > 1,
            laned=lanes is not None, kv_heads=kv_heads, group=group,
            padded=max(_QUERIES, triton.next_power_of_2(group)), head_dim=head_dim, parts=cut.parts,
            block=cut.keys, wide=INTERPRETED, num_warps=cut.warps, num_stages=cut.stages, **turns(pdl),
        )  # fmt: skip
        _join_kernel[(rows * heads,)](sums, peaks, masses, out, parts=cut.parts, head_dim=head_dim, **turns(pdl))
    return out
