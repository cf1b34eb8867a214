"""The stacked experts of one layer, in each format that their weights can be stored in.

Every class here computes with the obviously right loop of `eager.py`, on any device; a fast backend is built from
one of them after loading and has the same `forward`. Knows the formats' arithmetic through `formats.py`; does not
know files or the router.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hunyuan.model.moe.eager import eager_experts
from hunyuan.model.moe.formats import MXFP4_BLOCK, dequantize_fp8, dequantize_mxfp4


class Experts(nn.Module):
    """bf16 or fp32: gate_and_up `[experts, 2 * width, hidden]`, down `[experts, hidden, width]`."""

    format = "bf16"

    def __init__(self, experts: int, hidden: int, width: int) -> None:
        super().__init__()
        self.count, self.hidden, self.width = experts, hidden, width
        self._make("gate_and_up", 2 * width, hidden)
        self._make("down", hidden, width)

    def _make(self, name: str, rows: int, columns: int) -> None:
        self._add(f"{name}_proj", (self.count, rows, columns), None)

    def _add(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False))

    def dequantized(self, name: str, expert: int, dtype: torch.dtype) -> Tensor:
        """Matrix `name` ("gate_and_up" or "down") of one expert, `[rows, columns]` in `dtype`."""
        return getattr(self, f"{name}_proj")[expert].to(dtype)

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """`x` `[tokens, hidden]`, `weights` and `index` `[tokens, topk]` from the router -> `[tokens, hidden]`."""

        def pair(expert: int) -> tuple[Tensor, Tensor]:
            return self.dequantized("gate_and_up", expert, x.dtype), self.dequantized("down", expert, x.dtype)

        return eager_experts(x, weights, index, pair)


class Fp8Experts(Experts):
    """float8_e4m3fn matrices and one fp32 scale an expert and matrix: value = fp8 * scale."""

    format = "fp8"

    def _make(self, name: str, rows: int, columns: int) -> None:
        self._add(f"{name}_proj", (self.count, rows, columns), torch.float8_e4m3fn)
        self._add(f"{name}_scale", (self.count,), torch.float32)

    def dequantized(self, name: str, expert: int, dtype: torch.dtype) -> Tensor:
        matrix, scale = getattr(self, f"{name}_proj"), getattr(self, f"{name}_scale")
        return dequantize_fp8(matrix[expert], scale[expert]).to(dtype)


class Mxfp4Experts(Experts):
    """MXFP4 matrices: two 4-bit values a byte and one power-of-two scale for 32 values along the input."""

    format = "mxfp4"

    def _make(self, name: str, rows: int, columns: int) -> None:
        self._add(f"{name}_proj", (self.count, rows, columns // 2), torch.uint8)
        self._add(f"{name}_scale", (self.count, rows, columns // MXFP4_BLOCK), torch.uint8)

    def dequantized(self, name: str, expert: int, dtype: torch.dtype) -> Tensor:
        matrix, scale = getattr(self, f"{name}_proj"), getattr(self, f"{name}_scale")
        return dequantize_mxfp4(matrix[expert], scale[expert]).to(dtype)


EXPERT_FORMATS: dict[str, type[Experts]] = {kind.format: kind for kind in (Experts, Fp8Experts, Mxfp4Experts)}
