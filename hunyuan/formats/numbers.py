"""The weight formats smaller than bf16: what a stored byte means, and the way from and to it.

MXFP4 is the Open Compute Project's (OCP Microscaling Formats v1.0): e2m1 values, two per byte, the even column in the
low half, and an e8m0 scale (2^(byte - 127)) for each 32 columns. Knows tensors, not layers or files.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

MXFP4_BLOCK = 32
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by the low three bits; the fourth is the sign
E8M0_BIAS = 127
MXFP4_OCTAVES = 11
"""How far apart the scales of one matrix may lie: the GPU kernel folds them into 4 bits and clamps what is beyond."""
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0

# Exponents tried for a block, from the one that puts its largest value between 4 and 8; one more never clips. One less
# was never better, on Gaussian and on heavy-tailed weights (docs/weights.md).
_CANDIDATES = (0, 1)
_EXPONENT = 0x7F800000  # of a float32
_SHIFT = 22 << 23  # added to a float32's exponent: a sum with 2^(e + 22) is rounded to steps of 2^(e - 1)
_LEAST, _MOST = 1, 227  # scale bytes; above, the sums of the rounding would overflow float32
_CPU_CHUNK, _GPU_CHUNK = 1 << 18, 1 << 22  # values at a time: what stays in a core's cache, what hides a launch


def dequantize_mxfp4(packed: Tensor, scale: Tensor) -> Tensor:
    """`packed` uint8 `[..., columns / 2]` and `scale` uint8 `[..., columns / 32]` to fp32 `[..., columns]`, exactly."""
    table = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], device=packed.device)
    codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)  # [..., columns]
    values = table[codes.int()].unflatten(-1, (-1, MXFP4_BLOCK))  # [..., blocks, 32]
    return (values * torch.exp2(scale.float() - E8M0_BIAS)[..., None]).flatten(-2)


def dequantize_fp8(values: Tensor, scale: Tensor) -> Tensor:
    """float8 `values` times fp32 `scale` (broadcastable): fp32."""
    return values.float() * scale


def quantize_mxfp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_mxfp4_measured` without the error."""
    return quantize_mxfp4_measured(weight)[:2]


def quantize_mxfp4_measured(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The values and scales of least squared error that the GPU kernel computes with as they are.

    Within a matrix (the last two dimensions) scales span at most `MXFP4_OCTAVES`: values below are rounded more
    coarsely. Minus zero is never stored.

    Args:
        weight: floating `[..., columns]`, finite, columns a multiple of 32.

    Returns:
        uint8 `[..., columns / 2]` and uint8 `[..., columns / 32]`, as `dequantize_mxfp4` takes them; and the sum of
        the squared errors, float64 `[matrices]`.

    Raises:
        ValueError: columns that are no multiple of 32, or values that are not finite or too large (2^100).
    """
    columns = weight.shape[-1]
    if columns % MXFP4_BLOCK:
        raise ValueError(f"MXFP4 needs a multiple of {MXFP4_BLOCK} columns, got {columns}")
    packed = torch.empty((*weight.shape[:-1], columns // 2), dtype=torch.uint8, device=weight.device)
    scale = torch.empty((*weight.shape[:-1], columns // MXFP4_BLOCK), dtype=torch.uint8, device=weight.device)
    rows = weight.shape[-2] if weight.dim() > 1 else 1
    whole, packed_all, scale_all = (t.reshape(-1, rows, t.shape[-1]) for t in (weight, packed, scale))
    errors = [_quantize_matrix(whole[n], packed_all[n], scale_all[n]) for n in range(len(whole))]
    return packed, scale, torch.stack(errors)


def quantize_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """One scale per matrix: `weight` `[..., rows, columns]` to float8 of that shape and fp32 `[...]`.

    Raises:
        ValueError: a value is not finite.
    """
    scale = _fp8_scale(weight, (-2, -1))
    return _to_fp8(weight, scale[..., None, None]), scale


def quantize_fp8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """One scale per row: `weight` `[rows, columns]` to float8 of that shape and fp32 `[rows]`.

    Raises:
        ValueError: a value is not finite.
    """
    scale = _fp8_scale(weight, (-1,))
    return _to_fp8(weight, scale[:, None]), scale


def fp8_squared_error(weight: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """Sum of the squared errors of `values` times `scale` (broadcastable to rows), a float64."""
    scale = scale.expand(*weight.shape[:-1], 1).reshape(-1, 1)  # [rows, 1]
    flat, flat_values = weight.reshape(-1, weight.shape[-1]), values.reshape(-1, weight.shape[-1])
    errors = [
        (dequantize_fp8(flat_values[part], scale[part]) - flat[part]).square_().sum(dtype=torch.float64)
        for part in _row_chunks(flat)
    ]
    return torch.stack(errors).sum()


def _fp8_scale(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    low, high = weight.amin(dims).float(), weight.amax(dims).float()
    largest = torch.maximum(high, -low)
    if not bool(largest.isfinite().all()):
        raise ValueError("a weight is not a finite number")
    # Zeros alone take any scale; a subnormal one would not divide.
    return torch.where(largest > 1e-30, largest / FP8_MAX, 1.0)


def _to_fp8(weight: Tensor, scale: Tensor) -> Tensor:
    out = torch.empty(weight.shape, dtype=FP8, device=weight.device)
    scale = scale.expand(*weight.shape[:-1], 1).reshape(-1, 1)  # [rows, 1]
    flat, flat_out = weight.reshape(-1, weight.shape[-1]), out.view(-1, weight.shape[-1])
    for part in _row_chunks(flat):
        # The quotient of the largest value may round to just above 448, which float8 cannot hold.
        flat_out[part] = (flat[part].float() / scale[part]).clamp_(-FP8_MAX, FP8_MAX)
    return out


def _row_chunks(matrix: Tensor) -> list[slice]:
    """Slices of the rows that bound what is computed on at a time."""
    values = _CPU_CHUNK if matrix.device.type == "cpu" else _GPU_CHUNK
    step = max(1, values // matrix.shape[-1])
    return [slice(start, start + step) for start in range(0, len(matrix), step)]


class _Scratch:
    """Buffers `[blocks, 32]` that every step writes into: fresh ones would cost more than the arithmetic."""

    def __init__(self, blocks: int, device: torch.device) -> None:
        made = [torch.empty(blocks, MXFP4_BLOCK, device=device) for _ in range(5)]
        self.x, self.size, self.exponents, self.other, self.magic = made

    def first(self, blocks: int) -> _Scratch:
        """The same buffers for fewer blocks."""
        part = copy(self)
        part.x, part.size = self.x[:blocks], self.size[:blocks]
        part.exponents, part.other, part.magic = (b[:blocks] for b in (self.exponents, self.other, self.magic))
        return part


def _quantize_matrix(weight: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """Fills `packed` and `scale` of one matrix `weight` `[rows, columns]`; returns its squared error, a float64."""
    chunks = _row_chunks(weight)
    scratch = _Scratch(weight[chunks[0]].numel() // MXFP4_BLOCK, weight.device)
    parts = [(weight[rows], scratch.first(weight[rows].numel() // MXFP4_BLOCK)) for rows in chunks]
    first = [_first_exponents(*part) for part in parts]
    # On the safe side of the largest scale that will be chosen, so that the whole matrix spans the allowed octaves.
    largest = torch.stack([exponents.max() for exponents in first]).max() + max(_CANDIDATES)
    if int(largest) > _MOST:
        raise ValueError("a weight is not a finite number, or too large for MXFP4")
    least = (largest - MXFP4_OCTAVES).clamp(min=_LEAST)
    errors = []
    for rows, (values, buffers), exponents in zip(chunks, parts, first, strict=True):
        _read(values, buffers)
        best, error = _best_exponents(buffers, exponents.clamp(min=least))  # [blocks]
        errors.append(error.sum(dtype=torch.float64))
        scale[rows] = best.to(torch.uint8).view_as(scale[rows])
        packed[rows] = _codes(buffers, best).view_as(packed[rows])
    return torch.stack(errors).sum()


def _read(weight: Tensor, s: _Scratch) -> None:
    """Values and their sizes of `weight` `[rows, columns]` to `x` and `size`."""
    s.x.view_as(weight).copy_(weight)
    torch.abs(s.x, out=s.size)


def _first_exponents(weight: Tensor, s: _Scratch) -> Tensor:
    """Scale bytes int32 `[blocks]` that put each block's largest value between 4 and 8."""
    _read(weight, s)
    return (s.size.amax(-1).view(torch.int32) >> 23) - 2


def _best_exponents(s: _Scratch, first: Tensor) -> tuple[Tensor, Tensor]:
    """For each block the candidate scale byte of least squared error, and that error."""
    _exponents_of_size(s)
    tried = []
    for step in _CANDIDATES:
        difference = _rounded(s, first + step).sub_(s.size)
        tried.append(difference.mul_(difference).sum(-1))
    error, choice = torch.stack(tried).min(0)  # [blocks]
    return first + torch.tensor(_CANDIDATES, dtype=torch.int32, device=first.device)[choice], error


def _exponents_of_size(s: _Scratch) -> None:
    """Each value's own power of two, times 2^22, as a float32's bits."""
    torch.bitwise_and(s.size.view(torch.int32), _EXPONENT, out=s.exponents.view(torch.int32)).add_(_SHIFT)


def _rounded(s: _Scratch, candidate: Tensor) -> Tensor:
    """`size` rounded to the nearest grid value of each block's scale, in the buffer `other`.

    The grid's steps are half the power of two below the value, and half the scale at least: what has 2^23 such steps
    rounds a value when it is added and taken away again.
    """
    torch.maximum(s.exponents.view(torch.int32), _least_magic(candidate), out=s.magic.view(torch.int32))
    return torch.minimum(s.size, _most(candidate), out=s.other).add_(s.magic).sub_(s.magic)


def _least_magic(scale: Tensor) -> Tensor:
    return ((scale << 23) + _SHIFT)[:, None]


def _most(scale: Tensor) -> Tensor:
    """The largest value under scale bytes int32 `[blocks]`: `[blocks, 1]`."""
    return (scale << 23).view(torch.float32)[:, None] * E2M1_VALUES[-1]


def _codes(s: _Scratch, scale: Tensor) -> Tensor:
    """Packed codes uint8 `[blocks, 16]` of `x` under scale bytes int32 `[blocks]`; uses up the buffers."""
    torch.minimum(s.size, _most(scale), out=s.size)
    _exponents_of_size(s)
    exponents, least = s.exponents.view(torch.int32), _least_magic(scale)
    torch.maximum(exponents, least, out=exponents)
    sums = s.size.add_(s.exponents).view(torch.int32).sub_(least)
    # Now exponents say which of the grid's three step sizes applies and the low bits how many such steps.
    codes = torch.bitwise_right_shift(sums, 22, out=exponents).add_(sums.bitwise_and_(7))  # two codes a doubling
    # The sign, for all but zero: 8 is a bit of code + 7 from code 1 on.
    signs = torch.add(codes, 7, out=s.other.view(torch.int32)).bitwise_and_(8)
    codes.add_(signs.bitwise_and_(s.x.view(torch.int32).bitwise_right_shift_(31)))
    pairs = codes.to(torch.uint8).view(torch.int16)  # the even column in the low byte
    return pairs.bitwise_or_(pairs >> 4).to(torch.uint8)
