"""Modules that hold a layer's weights in fewer bits, and the exchange of a plain network's modules for them.

Every class here computes with dequantized matrices, on any device; a fast form is chosen where the model is prepared
for a GPU. Knows the formats' arithmetic through `numbers.py`; does not know files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.numbers import FP8, MXFP4_BLOCK, dequantize_fp8, dequantize_mxfp4
from hunyuan.model.moe import Experts, GatedMlp, MoE
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.transformer import SelfAttention


class Fp8Linear(nn.Module):
    """`x @ weight.T` without bias: weight float8_e4m3fn `[outputs, inputs]`, one fp32 scale per output row."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=FP8), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(outputs, dtype=torch.float32), requires_grad=False)

    def dequantized(self) -> Tensor:
        """fp32 `[outputs, inputs]`."""
        return dequantize_fp8(self.weight, self.weight_scale[:, None])

    def forward(self, x: Tensor) -> Tensor:  # [..., inputs] -> [..., outputs]
        return linear(x, self.dequantized().to(x.dtype))


class Fp8Experts(Experts):
    """float8_e4m3fn matrices and one fp32 scale per expert and matrix: value = fp8 * scale."""

    format = "fp8"

    def _make(self, name: str, rows: int, columns: int) -> None:
        self._add(f"{name}_proj", (self.count, rows, columns), torch.float8_e4m3fn)
        self._add(f"{name}_scale", (self.count,), torch.float32)

    def matrix(self, name: str, expert: int, dtype: torch.dtype) -> Tensor:
        matrix, scale = getattr(self, f"{name}_proj"), getattr(self, f"{name}_scale")
        return dequantize_fp8(matrix[expert], scale[expert]).to(dtype)


class Mxfp4Experts(Experts):
    """MXFP4 matrices: two 4-bit values per byte and one power-of-two scale per 32 values along the input."""

    format = "mxfp4"

    def _make(self, name: str, rows: int, columns: int) -> None:
        if columns % MXFP4_BLOCK:
            raise ValueError(f"{name}_proj: {columns} columns; MXFP4 needs a multiple of {MXFP4_BLOCK}")
        self._add(f"{name}_proj", (self.count, rows, columns // 2), torch.uint8)
        self._add(f"{name}_scale", (self.count, rows, columns // MXFP4_BLOCK), torch.uint8)

    def matrix(self, name: str, expert: int, dtype: torch.dtype) -> Tensor:
        matrix, scale = getattr(self, f"{name}_proj"), getattr(self, f"{name}_scale")
        return dequantize_mxfp4(matrix[expert], scale[expert]).to(dtype)


EXPERT_FORMATS: dict[str, type[Experts]] = {kind.format: kind for kind in (Experts, Fp8Experts, Mxfp4Experts)}


def use_weight_formats(model: HunyuanImage3, config: CheckpointConfig) -> None:
    """Gives a freshly built network the modules that hold its weights as `config` says; their contents are undefined.

    Dense layers are attention's, the shared MLP's and the head, unless that is tied to the embedding table.

    Raises:
        ValueError: a matrix does not divide into a format's blocks.
    """
    for layer, block in enumerate(model.model.layers):
        feed_forward = block.get_submodule("mlp")
        if isinstance(feed_forward, MoE):
            plain = feed_forward.experts
            assert isinstance(plain, Experts)
            kind = EXPERT_FORMATS[config.expert_formats[layer]]
            try:
                feed_forward.experts = kind(plain.count, plain.hidden, plain.width)
            except ValueError as error:
                raise ValueError(f"model.layers.{layer}.mlp.experts.{error}") from error
    if config.dense_format == "fp8":
        for part in model.model.modules():
            if isinstance(part, SelfAttention):
                part.qkv_proj, part.o_proj = _fp8(part.qkv_proj), _fp8(part.o_proj)
            elif isinstance(part, GatedMlp):
                part.gate_and_up_proj, part.down_proj = _fp8(part.gate_and_up_proj), _fp8(part.down_proj)
        if not config.tie_word_embeddings:
            model.lm_head = _fp8(model.lm_head)


def _fp8(plain: nn.Module) -> Fp8Linear:
    assert isinstance(plain, nn.Linear)
    with torch.device(plain.weight.device):
        return Fp8Linear(plain.in_features, plain.out_features)
