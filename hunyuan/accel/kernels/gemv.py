"""A matrix times one vector, or a few, in Triton: what a linear layer is while a token is decoded.

It reads each weight once and does little else, so it is as fast as memory. The vector keeps its precision, also
where the weights are fp8 (with one scale per row); sums are fp32. Of several vectors each is multiplied as if it were
alone, with the same sums in the same order: a program takes them one after the other while its part of the matrix is
in the cache. Importing this file needs Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hunyuan.accel.kernels.launch import on_device_of
from hunyuan.formats.numbers import FP8


@dataclass(frozen=True)
class Tile:
    """How much of the matrix one program takes: `rows` rows, `columns` at a time."""

    rows: int
    columns: int
    warps: int


TILES = {1: Tile(4, 1024, 4), 2: Tile(4, 512, 4), 4: Tile(1, 1024, 4)}  # by the bytes of a weight


@triton.jit
def _one_vector(
    x, line, scale, out, n, k, outputs, inputs: tl.constexpr, scaled: tl.constexpr, fp8: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """The rows `n` of the matrix times one vector; `line` `[rows, columns]` points at their first columns `k`."""
    total = tl.zeros([rows, columns], tl.float32)
    for at in tl.static_range(0, inputs, columns):
        deep = k < inputs - at
        value = tl.load(x + at + k, mask=deep, other=0.0).to(tl.float32)
        matrix = tl.load(line + at, mask=(n < outputs)[:, None] & deep[None, :], other=0)
        if fp8:  # loaded as bytes: a masked load cannot fill in a float of 8 bits
            matrix = matrix.to(tl.float8e4nv, bitcast=True)
        total += matrix.to(tl.float32) * value[None, :]
    result = tl.sum(total, axis=1)
    if scaled:
        result *= tl.load(scale + n, mask=n < outputs, other=0.0)
    tl.store(out + n, result.to(out.dtype.element_ty), mask=n < outputs)


@triton.jit(do_not_specialize=["vectors"])
def _gemv_kernel(
    x, weight, scale, out, outputs, vectors, inputs: tl.constexpr, scaled: tl.constexpr, fp8: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr, several: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * rows + tl.arange(0, rows)
    k = tl.arange(0, columns)
    line = weight + n.to(tl.int64)[:, None] * inputs + k[None, :]
    if several:
        for v in range(vectors):
            _one_vector(
                x + v * inputs, line, scale, out + v * outputs, n, k, outputs, inputs, scaled, fp8, rows, columns
            )
    else:
        _one_vector(x, line, scale, out, n, k, outputs, inputs, scaled, fp8, rows, columns)


def gemv(
    x: Tensor, weight: Tensor, scale: Tensor | None, out_dtype: torch.dtype | None = None, tile: Tile | None = None
) -> Tensor:
    """`weight @ x` for each vector of x.

    Args:
        x: `[..., inputs]`, few vectors in all; what becomes of one does not depend on the others, to the last bit.
        weight: `[outputs, inputs]`, contiguous; float8_e4m3fn, 16 bits or fp32.
        scale: fp32 `[outputs]`, multiplied to the rows of the result.
        out_dtype: x's by default.

    Returns:
        `[..., outputs]`.
    """
    outputs, inputs = weight.shape
    x, fp8 = x.contiguous(), weight.dtype == FP8
    out = torch.empty(*x.shape[:-1], outputs, dtype=out_dtype or x.dtype, device=x.device)
    tile = tile or TILES[weight.element_size()]
    columns, vectors = min(tile.columns, triton.next_power_of_2(inputs)), x.numel() // inputs
    with on_device_of(x):
        _gemv_kernel[(triton.cdiv(outputs, tile.rows),)](
            x, weight.view(torch.uint8) if fp8 else weight, x if scale is None else scale, out, outputs,
            vectors, inputs=inputs, scaled=scale is not None, fp8=fp8, rows=tile.rows, columns=columns,
            several=vectors > 1, num_warps=tile.warps,
        )  # fmt: skip
    return out
