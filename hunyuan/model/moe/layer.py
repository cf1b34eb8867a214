"""One mixture-of-experts block: router, shared MLP and stacked experts (spec section 7).

Holds the weights under the checkpoint's names, experts stacked. Does not know the transformer around it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from hunyuan.model.linear import dense_linear
from hunyuan.model.moe.eager import route
from hunyuan.model.moe.experts import EXPERT_FORMATS


class GatedMlp(nn.Module):
    """`down_proj(up * silu(gate))`; the weights carry no bias."""

    def __init__(self, hidden: int, width: int, dense_format: str = "bf16") -> None:
        super().__init__()
        self.gate_and_up_proj = dense_linear(hidden, 2 * width, dense_format)
        self.down_proj = dense_linear(width, hidden, dense_format)

    def forward(self, x: Tensor) -> Tensor:  # [..., hidden] -> [..., hidden]
        up, gate = self.gate_and_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * silu(gate))


class Router(nn.Module):
    """The gate. Its weight stays fp32 whatever the model's dtype is."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.wg = nn.Linear(hidden, experts, bias=False, dtype=torch.float32)


class MoE(nn.Module):
    """Shared MLP plus the routed experts."""

    def __init__(
        self,
        hidden: int,
        width: int,
        experts: int,
        topk: int,
        shared_experts: int,
        expert_format: str = "bf16",
        dense_format: str = "bf16",
    ) -> None:
        super().__init__()
        self.topk = topk
        self.gate = Router(hidden, experts)
        self.experts: nn.Module = EXPERT_FORMATS[expert_format](experts, hidden, width)
        self.shared_mlp = GatedMlp(hidden, width * shared_experts, dense_format) if shared_experts else None

    def forward(self, x: Tensor) -> Tensor:  # [rows, tokens, hidden] -> the same
        flat = x.reshape(-1, x.shape[-1])  # [rows * tokens, hidden]
        weights, index = route(flat, self.gate.wg.weight, self.topk)
        out = self.experts(flat, weights, index)
        if self.shared_mlp is not None:
            out = out + self.shared_mlp(flat)
        return out.view_as(x)
