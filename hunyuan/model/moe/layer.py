"""One mixture-of-experts block: router, shared MLP and stacked experts (spec section 7).

Holds the weights under the checkpoint's names, experts stacked. Does not know the transformer around it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hunyuan.model.kernels import EAGER, Kernels
from hunyuan.model.kernels.eager import total
from hunyuan.model.linear import dense_linear
from hunyuan.model.moe.experts import EXPERT_FORMATS


class GatedMlp(nn.Module):
    """`down_proj(up * silu(gate))`; the weights carry no bias."""

    kernels: Kernels = EAGER

    def __init__(self, hidden: int, width: int, dense_format: str = "bf16") -> None:
        super().__init__()
        self.gate_and_up_proj = dense_linear(hidden, 2 * width, dense_format)
        self.down_proj = dense_linear(width, hidden, dense_format)

    def forward(self, x: Tensor) -> Tensor:  # [..., hidden] -> [..., hidden]
        ops = self.kernels
        return ops.linear(ops.swiglu(ops.linear(x, self.gate_and_up_proj)), self.down_proj)

    def parts(self, x: Tensor) -> list[Tensor]:
        """What is added to the residual stream, the result alone here."""
        return [self(x)]


class Router(nn.Module):
    """The gate. Its weight stays fp32 whatever the model's dtype is."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.wg = nn.Linear(hidden, experts, bias=False, dtype=torch.float32)


class MoE(nn.Module):
    """Shared MLP plus the routed experts."""

    kernels: Kernels = EAGER

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
        return total(self.parts(x))

    def parts(self, x: Tensor) -> list[Tensor]:
        """The experts' result and, where there is one, the shared MLP's: `[rows, tokens, hidden]` each, to be added."""
        flat = x.reshape(-1, x.shape[-1])  # [rows * tokens, hidden]
        weights, index = self.kernels.route(flat, self.gate.wg.weight, self.topk)
        out = [self.experts(flat, weights, index)]
        if self.shared_mlp is not None:
            out.append(self.shared_mlp(flat))
        return [part.view_as(x) for part in out]
