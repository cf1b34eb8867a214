"""Dense layers of the backbone, in bf16 (or fp32) and in fp8.

The fp8 layer computes in the obviously right way here, on any device; its fast form is chosen where the model is
prepared for a GPU. Does not know which layer of the model it is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hunyuan.model.moe.formats import FP8, dequantize_fp8


class Fp8Linear(nn.Module):
    """`x @ weight.T` without bias: weight float8_e4m3fn `[outputs, inputs]`, one fp32 scale an output row."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=FP8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(outputs, dtype=torch.float32), requires_grad=False)

    def dequantized(self) -> Tensor:
        """fp32 `[outputs, inputs]`."""
        return dequantize_fp8(self.weight, self.weight_scale[:, None])

    def forward(self, x: Tensor) -> Tensor:  # [..., inputs] -> [..., outputs]
        return linear(x, self.dequantized().to(x.dtype))


def dense_linear(inputs: int, outputs: int, dense_format: str) -> nn.Module:
    """A layer without bias, stored as "bf16" (the model's dtype) or "fp8"."""
    return Fp8Linear(inputs, outputs) if dense_format == "fp8" else nn.Linear(inputs, outputs, bias=False)
