"""The layout in which FlashInfer's "humming" mode (MXFP4 weights, fp8 activations, Hopper) wants its weights.

Three steps, all exact unless said: scales become small offsets from one factor per expert (blocks more than 2^11 below
an expert's largest scale are rounded once more), 4-bit values of 16 rows are interleaved so that one 32-bit word holds
four columns of rows r and r + 8, and the scales of 64 rows by 128 columns lie together. A weight is then
`e2m1 * 2^(offset - 6) * factor`. Plain torch on any device, so that the preparation needs no compiled kernel and is
tested without a GPU. Knows tensors only.

Word layout, low bit first: row r has its magnitudes in bits 0-15 (column i at 4 i) and its signs at 8 i + 7; row r + 8
has its magnitudes in bits 16-31 and its signs at 8 i + 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hunyuan.formats.numbers import E2M1_VALUES, E8M0_BIAS, MXFP4_BLOCK

MAX_OFFSET = 11  # 2^12 * 6 is the largest magnitude that e4m3 holds after FlashInfer's conversion
OFFSET_BIAS = 6  # the conversion yields e2m1 * 2^(offset - 6)
CHUNK = 2  # experts prepared at a time: at the real sizes the temporaries then take about 1 GiB
_MAGNITUDES = 0x77777777
_SHIFTS = (4, 8, 12, 16, -16, -12, -8, -4)  # of the sign of value 0 to 7 of a word, to the left
_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def split_scales(scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Takes the e8m0 `scale` uint8 `[experts, rows, blocks]` apart.

    Returns:
        offset: uint8, the same shape, 1 to 12.
        factor: fp32 `[experts]`; offset and factor give 2^(offset - 6) * factor.
        lost: uint8, the same shape: how many powers of two the block's values must be divided by, mostly 0.
    """
    experts = len(scale)
    flat = scale.reshape(experts, -1).int()
    largest = flat.amax(dim=1, keepdim=True)
    smallest = torch.maximum(flat.amin(dim=1, keepdim=True), largest - MAX_OFFSET)
    kept = torch.maximum(flat, smallest)
    offset, lost = kept - smallest + 1, kept - flat
    factor = torch.exp2(smallest.squeeze(1).float() - E8M0_BIAS + OFFSET_BIAS - 1)
    return offset.to(torch.uint8).view_as(scale), factor, lost.to(torch.uint8).view_as(scale)


def divide_values(packed: Tensor, lost: Tensor) -> Tensor:
    """`packed` uint8 `[..., columns / 2]` with each block's values divided by 2^lost, ties away from zero."""
    codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)  # [..., columns]
    by = lost.repeat_interleave(MXFP4_BLOCK, dim=-1)
    table = _division_table().to(packed.device)
    codes = table[by.int() * 16 + codes]
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def _division_table() -> Tensor:
    """uint8 `[256 * 16]`: the code for `code / 2^lost`; minus zero becomes zero, a number rounded to it does not."""
    values = torch.tensor(E2M1_VALUES, dtype=torch.float64)
    divided = values[None, :] * torch.exp2(-torch.arange(256, dtype=torch.float64))[:, None]  # [256, 8]
    size = torch.bucketize(divided, torch.tensor(_MIDPOINTS, dtype=torch.float64), right=True)
    both = torch.cat([size, size | 8], dim=1)  # [256, 16]
    both[:, 8] = 0
    return both.to(torch.uint8).flatten()


def interleave_values(packed: Tensor) -> Tensor:
    """uint8 `[experts, rows, columns / 2]` to the same shape in the word layout; 16 | rows, 64 | columns."""
    experts, rows, half = packed.shape
    parts = packed.view(experts, rows // 16, 2, 8, half // 32, 2, 2, 4, 2)
    # [experts, groups, low or high row, r, parts of 64 columns, block of 32, half block, quad, byte]
    words = parts.permute(0, 1, 6, 3, 4, 5, 7, 2, 8).flatten(-2).view(torch.int32)
    return _move_signs(words).view(torch.uint8).view(experts, rows, half)


def _move_signs(words: Tensor) -> Tensor:
    moved = words & _MAGNITUDES
    for value, shift in enumerate(_SHIFTS):
        bit = words >> (4 * value + 3) & 1
        moved |= bit << (4 * value + 3 + shift)
    return moved


def fold_scales(offset: Tensor) -> Tensor:
    """uint8 `[experts, rows, columns / 32]` to `[experts, rows / 64, columns / 128, 16, 16]`."""
    experts, rows, blocks = offset.shape
    parts = offset.view(experts, rows // 64, 4, 16, blocks // 4, 4)
    return parts.permute(0, 1, 4, 3, 2, 5).reshape(experts, rows // 64, blocks // 4, 16, 16)


def humming_layout(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Neutral MXFP4 stacks to what `cutlass_fused_moe` takes, new tensors.

    Args:
        packed: uint8 `[experts, rows, columns / 2]`, rows and columns divisible by 128.
        scale: e8m0 uint8 `[experts, rows, columns / 32]`.

    Returns:
        values uint8 `[experts, rows, columns / 2]`, offsets uint8 `[experts, rows / 64, columns / 128, 16, 16]` and the
        factors fp32 `[experts]`.
    """
    offset, factor, lost = split_scales(scale)
    return interleave_values(divide_values(packed, lost)), fold_scales(offset), factor


@torch.no_grad()
def humming_layout_in_place(packed: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `humming_layout`, overwriting both tensors a few experts at a time: no second copy of the weights."""
    factors = []
    for start in range(0, len(packed), CHUNK):
        part = slice(start, start + CHUNK)
        values, offsets, factor = humming_layout(packed[part], scale[part])
        packed[part].copy_(values)
        scale[part].copy_(offsets.view_as(scale[part]))
        factors.append(factor)
    experts, rows, blocks = scale.shape
    return packed, scale.view(experts, rows // 64, blocks // 4, 16, 16), torch.cat(factors)


def plain_layout(values: Tensor, offsets: Tensor, factor: Tensor) -> Tensor:
    """The way back: fp32 weights `[experts, rows, columns]` from `humming_layout`'s three tensors."""
    experts, rows, half = values.shape
    words = values.view(torch.int32).view(experts, rows // 16, 2, 8, half // 32, 2, 4)
    table = torch.tensor(E2M1_VALUES, device=values.device)
    columns = []
    for i in range(8):
        sign = 8 * (i % 4) + (7 if i < 4 else 3)
        columns.append(table[(words >> (4 * i) & 7).long()] * (1 - 2 * (words >> sign & 1)))
    numbers = torch.stack(columns, dim=-1).unflatten(-1, (2, 4))
    # [experts, groups, half block, r, parts, block, quad, low or high row, column of the quad]
    plain = numbers.permute(0, 1, 7, 3, 4, 5, 2, 6, 8).reshape(experts, rows, 2 * half)
    powers = (
        offsets.view(experts, rows // 64, half // 64, 16, 4, 4).permute(0, 1, 4, 3, 2, 5).reshape(experts, rows, -1)
    )
    size = torch.exp2(powers.float() - OFFSET_BIAS) * factor[:, None, None]  # [experts, rows, columns / 32]
    return (plain.unflatten(-1, (-1, MXFP4_BLOCK)) * size[..., None]).flatten(-2)
