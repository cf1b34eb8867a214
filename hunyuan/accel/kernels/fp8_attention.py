"""Attention in fp8 on Hopper: FlashAttention 3 as FlashInfer ships it, and Triton kernels that quantize its inputs.

The plain form, with the reasons for what is quantized how, is `hunyuan.formats.fp8_attention`. q, k and v are read
twice, once for what their scales need and once to be written as e4m3; nothing is kept between two calls. Importing
this file needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hunyuan.accel.kernels.launch import on_device_of
from hunyuan.accel.kernels.segment_attention import flashinfer_run
from hunyuan.formats.fp8_attention import TINY, BlockAttention
from hunyuan.formats.numbers import FP8, FP8_MAX

_PARTS = 32  # that the tokens of a head are cut into, whatever their number; a power of two
_TOKENS = 32  # that a program holds at a time


@triton.jit(do_not_specialize=["tokens"])
def _measure_kernel(
    x, sums, lows, highs, tokens, row_stride, token_stride,
    heads: tl.constexpr, dim: tl.constexpr, parts: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Sum, least and largest value of each channel over one part of a head's tokens: fp32 `[dim]` each."""
    head, part, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = tl.arange(0, dim)[None, :]
    length = tl.cdiv(tokens, parts)
    first = part * length
    end = tl.minimum(first + length, tokens)
    source = x + row.to(tl.int64) * row_stride + head * dim + c
    total = tl.zeros((dim,), tl.float32)
    low = tl.full((dim,), float("inf"), tl.float32)
    high = tl.full((dim,), float("-inf"), tl.float32)
    for start in range(first, end, block):
        token = (start + tl.arange(0, block))[:, None]
        inside = token < end
        value = tl.load(source + token.to(tl.int64) * token_stride, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(value, axis=0)
        low = tl.minimum(low, tl.min(tl.where(inside, value, float("inf")), axis=0))
        high = tl.maximum(high, tl.max(tl.where(inside, value, float("-inf")), axis=0))
    at = ((row * heads + head) * parts + part) * dim + tl.arange(0, dim)
    tl.store(sums + at, total)
    tl.store(lows + at, low)
    tl.store(highs + at, high)


@triton.jit(do_not_specialize=["tokens"])
def _quantize_kernel(
    x, sums, lows, highs, out, scales, tokens, row_stride, token_stride, largest: tl.constexpr, tiny: tl.constexpr,
    heads: tl.constexpr, dim: tl.constexpr, parts: tl.constexpr, block: tl.constexpr, center: tl.constexpr,
):  # fmt: skip
    """One part of a head's tokens to e4m3; the part 0 writes the head's scale."""
    head, part, row = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c = tl.arange(0, dim)
    every = ((row * heads + head) * parts + tl.arange(0, parts))[:, None] * dim + c[None, :]
    low, high = tl.min(tl.load(lows + every), axis=0), tl.max(tl.load(highs + every), axis=0)
    mean = tl.sum(tl.load(sums + every), axis=0) / tokens if center else tl.zeros((dim,), tl.float32)
    # Of a difference with the same number the largest size lies at one of the ends.
    scale = tl.maximum(tl.max(tl.maximum(high - mean, mean - low), axis=0), tiny) / largest
    if part == 0:
        tl.store(scales + row * heads + head, scale)
    length = tl.cdiv(tokens, parts)
    first = part * length
    end = tl.minimum(first + length, tokens)
    source = x + row.to(tl.int64) * row_stride + head * dim + c[None, :]
    target = out + (row.to(tl.int64) * tokens * heads + head) * dim + c[None, :]
    for start in range(first, end, block):
        token = (start + tl.arange(0, block))[:, None].to(tl.int64)
        inside = token < end
        value = tl.load(source + token * token_stride, mask=inside, other=0.0).to(tl.float32)
        value = (value - mean[None, :]) / scale
        value = tl.minimum(tl.maximum(value, -largest), largest)
        tl.store(target + token * (heads * dim), value.to(out.dtype.element_ty), mask=inside)


def quantize_heads(x: Tensor, center: bool) -> tuple[Tensor, Tensor]:
    """As `hunyuan.formats.fp8_attention.quantize_heads`.

    Args:
        x: `[rows, tokens, heads, head_dim]`, the last two dimensions contiguous; head_dim a power of two.

    Raises:
        ValueError: x lies otherwise.
    """
    rows, tokens, heads, dim = x.shape
    if x.stride()[2:] != (dim, 1):
        raise ValueError(f"heads to quantize are {tuple(x.shape)} with strides {x.stride()}")
    out = torch.empty(x.shape, dtype=FP8, device=x.device)
    scales = torch.empty(rows, heads, dtype=torch.float32, device=x.device)
    measured = torch.empty(3, rows, heads, _PARTS, dim, dtype=torch.float32, device=x.device)
    sizes = {"heads": heads, "dim": dim, "parts": _PARTS, "block": _TOKENS}
    grid, place = (heads, _PARTS, rows), (tokens, *x.stride()[:2])
    with on_device_of(x):
        _measure_kernel[grid](x, *measured, *place, **sizes)
        _quantize_kernel[grid](x, *measured, out, scales, *place, FP8_MAX, TINY, center=center, **sizes)
    return out, scales


def flashinfer_block() -> BlockAttention:
    """FlashAttention 3 in fp8 for bf16 tensors and heads of 128.

    Raises:
        ImportError: FlashInfer is not installed.
    """
    run = flashinfer_run(FP8)

    def block(q: Tensor, keys: Tensor, values: Tensor, out: Tensor) -> None:
        (q8, q_scale), (k8, k_scale) = quantize_heads(q, center=False), quantize_heads(keys, center=True)
        v8, v_scale = quantize_heads(values, center=False)
        for row in range(len(q)):
            scales = (q_scale[row], k_scale[row], v_scale[row])
            run(q8[row], k8[row], v8[row], out[row], causal=False, scales=scales)

    return block
