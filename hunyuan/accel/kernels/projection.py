"""A matrix times one vector with what stands before and behind it: a norm, SwiGLU, the residual sum.

What `gemv` does, cut otherwise: one program takes whole rows, and all of its weights are on their way before it looks
at the vector. Sums are fp32; only the norm rounds on the way, as it does by itself. Importing this file needs Triton.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from hunyuan.accel.kernels.explicit import gl, jit, take_turn
from hunyuan.accel.kernels.launch import on_device_of
from hunyuan.accel.kernels.overlap import turns
from hunyuan.formats.numbers import FP8

_BYTES = 16  # of one load of one thread


@dataclass(frozen=True)
class Rows:
    """How many rows (with SwiGLU, pairs of rows) a program of `warps` takes; powers of two."""

    rows: int
    warps: int = 4


# By the bytes of a weight: 16 KiB per program, so 128 bytes per thread are on their way at once.
ROWS = {1: Rows(4), 2: Rows(2), 4: Rows(1)}


@dataclass(frozen=True)
class Norm:
    """RMSNorm of the vector, before the product.

    Attributes:
        weight: `[inputs]`.
        out: like the vector; the norm's result is written there too.
    """

    weight: Tensor
    eps: float
    out: Tensor | None = None


@jit
def _product(matrix, vector, fp8: tl.constexpr):
    """`[rows, columns]` times `[columns]`: fp32 `[rows]`. fp8 comes as bytes."""
    if fp8:
        matrix = matrix.to(gl.float8e4nv, bitcast=True)
    return gl.sum(matrix.to(gl.float32) * vector[None, :], axis=1)


@jit
def _project_kernel(
    x, weight, scale, gain, normed, residual, out, outputs, eps, inputs: tl.constexpr, columns: tl.constexpr,
    rows: tl.constexpr, fp8: tl.constexpr, scaled: tl.constexpr, norm: tl.constexpr, keep: tl.constexpr,
    gated: tl.constexpr, add: tl.constexpr, pdl: tl.constexpr, layout: tl.constexpr,
):  # fmt: skip
    n = gl.program_id(0) * rows + gl.arange(0, rows, layout=gl.SliceLayout(1, layout))
    k = gl.arange(0, columns, layout=gl.SliceLayout(0, layout))
    inside, deep = n < outputs, k < inputs
    at = weight + n.to(gl.int64)[:, None] * inputs + k[None, :]
    mask = inside[:, None] & deep[None, :]
    matrix = gl.load(at, mask=mask, other=0, eviction_policy="evict_first")
    if gated:  # the rows of the gate follow those of up
        gate = gl.load(at + outputs * inputs, mask=mask, other=0, eviction_policy="evict_first")
    if norm:
        weights = gl.load(gain + k, mask=deep, other=0.0).to(gl.float32)
    take_turn(pdl)
    vector = gl.load(x + k, mask=deep, other=0.0).to(gl.float32)
    if norm:  # rounds where the plain form does, so that a router behind it chooses alike
        vector *= 1.0 / gl.sqrt(gl.sum(vector * vector, axis=0) / inputs + eps)
        vector = (vector.to(x.dtype.element_ty).to(gl.float32) * weights).to(x.dtype.element_ty)
        if keep and gl.program_id(0) == 0:
            gl.store(normed + k, vector, mask=deep)
        vector = vector.to(gl.float32)
    result = _product(matrix, vector, fp8)
    if scaled:
        result *= gl.load(scale + n, mask=inside, other=0.0)
    if gated:
        turned = _product(gate, vector, fp8)
        if scaled:
            turned *= gl.load(scale + outputs + n, mask=inside, other=0.0)
        result *= turned / (1.0 + gl.exp(-turned))
    if add:
        result += gl.load(residual + n, mask=inside, other=0.0).to(gl.float32)
    gl.store(out + n, result.to(out.dtype.element_ty), mask=inside)


def project(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    *,
    norm: Norm | None = None,
    gated: bool = False,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    rows: Rows | None = None,
    pdl: bool = False,
) -> Tensor:
    """`weight @ norm(x)`, then SwiGLU or the residual sum where asked for.

    Args:
        x: `[..., inputs]` with one vector in all.
        weight: `[outputs, inputs]`, contiguous; float8_e4m3fn, 16 bits or fp32. With `gated`, up's rows and then the
            gate's, `[2 * outputs, inputs]`.
        scale: fp32, one for each row of `weight`.
        residual: `[outputs]`, added to the result.
        out_dtype: x's by default.
        pdl: begin while the launch before ends, see `overlap.py`.

    Returns:
        `[..., outputs]`.
    """
    inputs, fp8 = weight.shape[1], weight.dtype == FP8
    outputs = len(weight) // 2 if gated else len(weight)
    x = x.contiguous()
    out = torch.empty(*x.shape[:-1], outputs, dtype=out_dtype or x.dtype, device=x.device)
    cut = rows or _default(weight, gated)
    columns = max(triton.next_power_of_2(inputs), 32 * cut.warps * _BYTES // weight.element_size())
    keep = norm is not None and norm.out is not None
    with on_device_of(x):
        _project_kernel[(triton.cdiv(outputs, cut.rows),)](
            x, weight.view(torch.uint8) if fp8 else weight, x if scale is None else scale,
            x if norm is None else norm.weight, x if norm is None or norm.out is None else norm.out,
            x if residual is None else residual, out, outputs, 0.0 if norm is None else norm.eps, inputs=inputs,
            columns=columns, rows=cut.rows, fp8=fp8, scaled=scale is not None, norm=norm is not None, keep=keep,
            gated=gated, add=residual is not None,
            layout=_layout(cut, weight.element_size()), num_warps=cut.warps, **turns(pdl),
        )  # fmt: skip
    return out


def _default(weight: Tensor, gated: bool) -> Rows:
    cut = ROWS[weight.element_size()]
    return replace(cut, rows=max(1, cut.rows // 2)) if gated else cut


def _layout(cut: Rows, size: int) -> object:
    return gl.BlockedLayout([1, _BYTES // size], [1, 32], [1, cut.warps], [1, 0])
