"""Triton kernels that work on each token by itself: residual add with RMSNorm, SwiGLU, quantization to fp8.

Importing this file needs Triton. Sums are taken in fp32; where the plain form rounds to 16 bits between two
operations that are one here, this rounds once, except before a norm's weight, where both round.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hunyuan.accel.kernels.launch import on_device_of
from hunyuan.formats.numbers import FP8, FP8_MAX

_WIDTH = 1024  # columns that one program of `swiglu` takes
_TINY = 1e-12  # a row of zeros gets this for its largest value


@triton.jit
def _add_norm_kernel(
    x,
    first,
    second,
    weight,
    out,
    normed,
    eps,
    size: tl.constexpr,
    deltas: tl.constexpr,
    norm: tl.constexpr,
    block: tl.constexpr,
):
    """One row of `out = x + first + second` and `normed = out / rms(out) * weight`."""
    c = tl.arange(0, block)
    inside = c < size
    row = tl.program_id(0).to(tl.int64) * size + c
    value = tl.load(x + row, mask=inside, other=0.0).to(tl.float32)
    if deltas > 0:
        delta = tl.load(first + row, mask=inside, other=0.0).to(tl.float32)
        if deltas > 1:
            delta += tl.load(second + row, mask=inside, other=0.0).to(tl.float32)
        rounded = (value + delta).to(out.dtype.element_ty)
        tl.store(out + row, rounded, mask=inside)
        value = rounded.to(tl.float32)  # the norm is that of what is stored
    if norm:
        mean = tl.sum(value * value, axis=0) / size
        scaled = (value * (1.0 / tl.sqrt(mean + eps))).to(normed.dtype.element_ty).to(tl.float32)
        scaled *= tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)
        tl.store(normed + row, scaled.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _swiglu_kernel(x, out, width: tl.constexpr, block: tl.constexpr):
    c = tl.program_id(1) * block + tl.arange(0, block)
    inside = c < width
    row = tl.program_id(0).to(tl.int64) * width
    up = tl.load(x + 2 * row + c, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + 2 * row + width + c, mask=inside, other=0.0).to(tl.float32)
    value = up * (gate / (1.0 + tl.exp(-gate)))
    tl.store(out + row + c, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _quantize_kernel(
    x, out, scales, size: tl.constexpr, largest: tl.constexpr, tiny: tl.constexpr, block: tl.constexpr
):
    c = tl.arange(0, block)
    inside = c < size
    token = tl.program_id(0).to(tl.int64)
    value = tl.load(x + token * size + c, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=0), tiny) / largest
    tl.store(scales + token, scale)
    value = tl.minimum(tl.maximum(value / scale, -largest), largest)
    tl.store(out + token * size + c, value.to(out.dtype.element_ty), mask=inside)


def add_norm(
    x: Tensor, deltas: Sequence[Tensor], weight: Tensor | None, eps: float = 0.0
) -> tuple[Tensor, Tensor | None]:
    """The residual sum and its norm, in one pass.

    Args:
        x, deltas: `[..., size]` of one dtype; at most two deltas, without any the sum is x itself.
        weight: of the norm, `[size]`; None: no norm.

    Returns:
        The sum and its norm (None without a weight), shaped like x.
    """
    x, parts = x.contiguous(), [part.contiguous() for part in deltas]
    size, count = x.shape[-1], len(parts)
    out = torch.empty_like(x) if parts else x
    normed = None if weight is None else torch.empty_like(x)
    parts += [x] * (2 - count)  # not read
    block = triton.next_power_of_2(size)
    with on_device_of(x):
        _add_norm_kernel[(x.numel() // size,)](
            x,
            parts[0],
            parts[1],
            x if weight is None else weight,
            out,
            x if normed is None else normed,
            eps,
            size=size,
            deltas=count,
            norm=weight is not None,
            block=block,
            num_warps=8 if block >= 2048 else 4,
        )
    return out, normed


def swiglu(x: Tensor) -> Tensor:
    """`[..., 2 * width]` -> `[..., width]`, x's dtype."""
    x, width = x.contiguous(), x.shape[-1] // 2
    out = torch.empty(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    block = min(_WIDTH, triton.next_power_of_2(width))
    with on_device_of(x):
        _swiglu_kernel[(out.numel() // width, triton.cdiv(width, block))](x, out, width=width, block=block)
    return out


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows `[tokens, size]` to float8_e4m3fn of the same shape and fp32 scales `[tokens, 1]`: x = fp8 * scale."""
    x = x.contiguous()
    tokens, size = x.shape
    out = torch.empty(tokens, size, dtype=FP8, device=x.device)
    scales = torch.empty(tokens, 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(size)
    with on_device_of(x):
        _quantize_kernel[(tokens,)](
            x, out, scales, size=size, largest=FP8_MAX, tiny=_TINY, block=block, num_warps=8 if block >= 2048 else 4
        )
    return out, scales
