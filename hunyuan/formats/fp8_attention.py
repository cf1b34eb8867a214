"""Attention in fp8 for denoising, in its obviously right form: what `HUNYUAN_ATTENTION=fp8` computes.

q, k and v become e4m3 with one scale per row and head, k less its mean over the tokens: that changes a query's scores
by one number, which softmax does not see, and takes away what would use up the three bits of a mantissa. The softmax's
weights become e4m3 too; sums are fp32. Knows tensors and the attention rule, not layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from hunyuan.formats.numbers import FP8, FP8_MAX
from hunyuan.model.attention import Segment
from hunyuan.model.operations import Operations

Attention = Callable[[Tensor, Tensor, Tensor, Sequence[Segment]], Tensor]
BlockAttention = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""q, keys, values and where the result goes: every query sees every key."""

TINY = 1e-12  # heads of zeros get this for their largest value
_QUERIES = 512  # at a time: their scores over 22,800 keys are 45 MiB


def quantize_heads(x: Tensor, center: bool) -> tuple[Tensor, Tensor]:
    """`[rows, tokens, heads, head_dim]` to e4m3 of that shape and fp32 scales `[rows, heads]`: x = e4m3 * scale.

    Args:
        center: quantize what is left of x without its mean over the tokens.
    """
    x = x.float()
    if center:
        x = x - x.mean(dim=1, keepdim=True)
    scale = x.abs().amax(dim=(1, 3)).clamp(min=TINY) / FP8_MAX  # [rows, heads]
    return (x / scale[:, None, :, None]).clamp(-FP8_MAX, FP8_MAX).to(FP8), scale


def attend_block(q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
    """Every query sees every key.

    Args:
        q, out: `[rows, tokens, heads, head_dim]`.
        keys, values: `[rows, keys, kv_heads, head_dim]`.
    """
    rows, tokens, heads, head_dim = q.shape
    group = heads // keys.shape[2]
    (q8, q_scale), (k8, k_scale) = quantize_heads(q, center=False), quantize_heads(keys, center=True)
    v8, v_scale = quantize_heads(values, center=False)
    for row, head in product(range(rows), range(heads)):
        own = head // group
        scale = q_scale[row, head] * k_scale[row, own] * head_dim**-0.5
        k, v = k8[row, :, own].float(), v8[row, :, own].float()  # [keys, head_dim]
        for start in range(0, tokens, _QUERIES):
            part = slice(start, start + _QUERIES)
            scores = q8[row, part, head].float() @ k.T * scale  # [queries, keys]
            weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
            sums = (weights * FP8_MAX).to(FP8).float() @ v  # [queries, head_dim]
            out[row, part, head] = (sums * (v_scale[row, own] / FP8_MAX) / weights.sum(dim=-1, keepdim=True)).to(
                out.dtype
            )


def attend_last_block(
    attention: Attention, block: BlockAttention, q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]
) -> Tensor:
    """`attention`, but an image block at the end goes through `block`.

    A denoising step ends with the image that is painted; every other call ends with text.
    """
    *before, last = segments
    if last.causal:
        return attention(q, keys, values, segments)
    out, begin = torch.empty_like(q), last.start - segments[0].start
    if before:
        out[:, :begin] = attention(q[:, :begin], keys, values, before)
    block(q[:, begin:], keys[:, : last.stop], values[:, : last.stop], out[:, begin:])
    return out


class Fp8AttentionOperations(Operations):
    """The plain operations with denoising's attention in fp8."""

    attention = "sdpa, fp8"

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
        return attend_last_block(super().attend, attend_block, q, keys, values, segments)
