"""Small random experts in every weight format, and tokens with their choices, for the tests of the fast backends."""

from __future__ import annotations

import torch
from small_model import noise
from torch import Tensor

from hunyuan.formats.modules import EXPERT_FORMATS
from hunyuan.formats.numbers import FP8
from hunyuan.model.moe import Experts

BF16 = torch.bfloat16
EXPERTS, TOPK, HIDDEN, WIDTH = 6, 2, 128, 256


def mxfp4(experts: int, rows: int, columns: int, low: int = 117, high: int = 125) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    packed = torch.randint(256, (experts, rows, columns // 2), dtype=torch.uint8, generator=generator)
    return packed, torch.randint(low, high, (experts, rows, columns // 32), dtype=torch.uint8, generator=generator)


def filled(kind: str, dtype: torch.dtype = BF16) -> Experts:
    """Small experts of a format, random."""
    experts = EXPERT_FORMATS[kind](EXPERTS, HIDDEN, WIDTH)
    for seed, (name, columns) in enumerate((("gate_and_up", HIDDEN), ("down", WIDTH))):
        matrix = experts.get_parameter(f"{name}_proj")
        if kind == "mxfp4":
            packed, scale = mxfp4(EXPERTS, matrix.shape[1], columns, 119, 124)
            matrix.data, experts.get_parameter(f"{name}_scale").data = packed, scale
            continue
        values = noise(*matrix.shape, seed=seed) / columns**0.5
        matrix.data = values.to(FP8 if kind == "fp8" else dtype)
        if kind == "fp8":
            experts.get_parameter(f"{name}_scale").data = torch.linspace(0.5, 1.5, EXPERTS)
    return experts.requires_grad_(False)


def choices(tokens: int, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    weights, index = noise(tokens, EXPERTS, seed=seed).softmax(-1).topk(TOPK)
    return noise(tokens, HIDDEN, seed=seed + 1).to(BF16), weights / weights.sum(-1, keepdim=True), index


def error(out: Tensor, expected: Tensor) -> float:
    return ((out.float() - expected.float()).norm() / expected.float().norm()).item()
