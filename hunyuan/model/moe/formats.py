"""The weight formats smaller than bf16: what a stored byte means, and the plain way from and to it.

MXFP4 is the Open Compute Project's (OCP Microscaling Formats v1.0): e2m1 values, two a byte, the even column in the
low half, and an e8m0 scale (2^(byte - 127)) for each 32 columns. Knows tensors, not layers or files.
"""

from __future__ import annotations

import torch
from torch import Tensor

MXFP4_BLOCK = 32
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # by the low three bits; the fourth is the sign
E8M0_BIAS = 127
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def dequantize_mxfp4(packed: Tensor, scale: Tensor) -> Tensor:
    """`packed` uint8 `[..., columns / 2]` and `scale` uint8 `[..., columns / 32]` to fp32 `[..., columns]`, exactly."""
    table = torch.tensor([*E2M1_VALUES, *(-v for v in E2M1_VALUES)], device=packed.device)
    codes = torch.stack([packed & 0xF, packed >> 4], dim=-1).flatten(-2)  # [..., columns]
    values = table[codes.int()].unflatten(-1, (-1, MXFP4_BLOCK))  # [..., blocks, 32]
    return (values * torch.exp2(scale.float() - E8M0_BIAS)[..., None]).flatten(-2)


def dequantize_fp8(values: Tensor, scale: Tensor) -> Tensor:
    """float8 `values` times fp32 `scale` (broadcastable): fp32."""
    return values.float() * scale
