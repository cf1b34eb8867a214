"""Attention with a dense mask, the form that `hunyuan.model.attention` is compared with."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def dense_mask(length: int, full_blocks: Iterable[tuple[int, int]]) -> Tensor:
    """The same rule as a mask: bool `[length, length]`, True where query row may see key column."""
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    for first, last in full_blocks:
        mask[first:last, first:last] = True
    return mask


def attend_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Reference for `attend`: a dense mask `[tokens, keys]`, keys and values repeated per query head."""
    group = q.shape[2] // k.shape[2]
    k, v = (t.repeat_interleave(group, dim=2) for t in (k, v))
    scores = torch.einsum("rqhd,rkhd->rhqk", q.float(), k.float()) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.einsum("rhqk,rkhd->rqhd", scores.softmax(dim=-1), v.float()).to(q.dtype)
