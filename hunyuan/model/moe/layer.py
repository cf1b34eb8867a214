"""One mixture-of-experts block: router, shared MLP and stacked experts (spec section 7).

Holds the weights under the checkpoint's names, experts stacked. Does not know the transformer around it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hunyuan.model.moe.eager import eager_experts, gated_mlp, route

ExpertsFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

# HUNYUAN_MOE_IMPL -> (x, weights, index, gate_and_up, down) -> out
EXPERT_BACKENDS: dict[str, ExpertsFunction] = {"eager": eager_experts}


class GatedMlp(nn.Module):
    """`down_proj(up * silu(gate))`; the weights carry no bias."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_and_up_proj = nn.Linear(hidden, 2 * width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [..., hidden] -> [..., hidden]
        return gated_mlp(x, self.gate_and_up_proj.weight, self.down_proj.weight)


class Router(nn.Module):
    """The gate. Its weight stays fp32 whatever the model's dtype is."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.wg = nn.Linear(hidden, experts, bias=False, dtype=torch.float32)


class Experts(nn.Module):
    """All experts of a layer: gate_and_up `[experts, 2 * width, hidden]`, down `[experts, hidden, width]`."""

    def __init__(self, experts: int, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_and_up_proj = nn.Parameter(torch.empty(experts, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, width))


class MoE(nn.Module):
    """Shared MLP plus the routed experts."""

    def __init__(self, hidden: int, width: int, experts: int, topk: int, shared_experts: int) -> None:
        super().__init__()
        self.topk = topk
        self.gate = Router(hidden, experts)
        self.experts = Experts(experts, hidden, width)
        self.shared_mlp = GatedMlp(hidden, width * shared_experts) if shared_experts else None
        self.run_experts: ExpertsFunction = eager_experts

    def forward(self, x: Tensor) -> Tensor:  # [rows, tokens, hidden] -> the same
        flat = x.reshape(-1, x.shape[-1])  # [rows * tokens, hidden]
        weights, index = route(flat, self.gate.wg.weight, self.topk)
        out = self.run_experts(flat, weights, index, self.experts.gate_and_up_proj, self.experts.down_proj)
        if self.shared_mlp is not None:
            out = out + self.shared_mlp(flat)
        return out.view_as(x)
