"""Attention over a sequence of causal text runs and bidirectional image blocks (docs/model.md, sections 5 and 14).

Knows which keys a query may see. No dense mask is needed: a text run is causal over everything before it, an
image block sees everything before it and all of itself, and nothing sees past its own run or block. Does not know the
layers, nor who owns the key-value buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Segment:
    """Queries [start, stop) of the sequence: they see keys [0, stop), causally or all of them."""

    start: int
    stop: int
    causal: bool


def split_segments(start: int, stop: int, full_blocks: Iterable[tuple[int, int]]) -> list[Segment]:
    """Cuts the tokens [start, stop) into text runs and image blocks.

    Args:
        full_blocks: sorted, disjoint [first, last) ranges with bidirectional attention inside.

    Raises:
        ValueError: the range begins or ends inside a block, whose tokens must be computed together.
    """
    segments, here = [], start
    for first, last in full_blocks:
        if last <= start or first >= stop:
            continue
        if first < start or last > stop:
            raise ValueError(f"tokens [{start}, {stop}) cut the image block [{first}, {last}) in two")
        if here < first:
            segments.append(Segment(here, first, causal=True))
        segments.append(Segment(first, last, causal=False))
        here = last
    if here < stop:
        segments.append(Segment(here, stop, causal=True))
    return segments


def split_heads(qkv: Tensor, heads: int, kv_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Takes a fused projection `[rows, tokens, (heads + 2 * kv_heads) * head_dim]` apart.

    Its columns lie per key-value head: that head's group of q heads, then its k, then its v.

    Returns:
        q `[rows, tokens, heads, head_dim]`, k and v `[rows, tokens, kv_heads, head_dim]`.
    """
    rows, tokens, _ = qkv.shape
    group = heads // kv_heads
    qkv = qkv.view(rows, tokens, kv_heads, group + 2, head_dim)
    q = qkv[:, :, :, :group].reshape(rows, tokens, heads, head_dim)
    return q, qkv[:, :, :, group], qkv[:, :, :, group + 1]


def attend(q: Tensor, k: Tensor, v: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Attention by segments, query heads grouped over the key-value heads.

    Args:
        q: `[rows, tokens, heads, head_dim]`, the tokens of `segments` in order.
        k, v: `[rows, stop or more, kv_heads, head_dim]`, from the start of the sequence.

    Returns:
        `[rows, tokens, heads, head_dim]`, q's dtype.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [rows, heads, tokens, head_dim]
    begin = segments[0].start
    parts = []
    for s in segments:
        queries = q[:, :, s.start - begin : s.stop - begin]
        bias = causal_lower_right(s.stop - s.start, s.stop) if s.causal and s.stop - s.start > 1 else None
        keys, values = k[:, :, : s.stop], v[:, :, : s.stop]
        parts.append(scaled_dot_product_attention(queries, keys, values, attn_mask=bias, enable_gqa=True))
    return torch.cat(parts, dim=2).transpose(1, 2)
