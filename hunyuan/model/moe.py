"""The feed-forward half of a layer: the gated MLP, and the mixture of experts (docs/model.md, sections 6 and 7).

Holds the weights under the checkpoint's names, experts stacked, and computes the experts by a plain loop. Routing keeps
every token: no expert has a capacity. Does not know the transformer around it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hunyuan.model.operations import PLAIN, Operations, swiglu, total


class GatedMlp(nn.Module):
    """`down_proj(up * silu(gate))`; the weights carry no bias."""

    operations: Operations = PLAIN

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_and_up_proj: nn.Module = nn.Linear(hidden, 2 * width, bias=False)
        self.down_proj: nn.Module = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # [..., hidden] -> [..., hidden]
        ops = self.operations
        return ops.linear(ops.swiglu(ops.linear(x, self.gate_and_up_proj)), self.down_proj)

    def parts(self, x: Tensor) -> list[Tensor]:
        """What is added to the residual stream, the result alone here."""
        return [self(x)]


class Router(nn.Module):
    """The gate. Its weight stays fp32 whatever the model's dtype is."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.wg = nn.Linear(hidden, experts, bias=False, dtype=torch.float32)


class Experts(nn.Module):
    """The stacked experts of one layer: gate_and_up `[experts, 2 * width, hidden]`, down `[experts, hidden, width]`."""

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

    def matrix(self, name: str, expert: int, dtype: torch.dtype) -> Tensor:
        """Matrix `name` ("gate_and_up" or "down") of one expert, `[rows, columns]` in `dtype`."""
        return getattr(self, f"{name}_proj")[expert].to(dtype)

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """`x` `[tokens, hidden]`, `weights` and `index` `[tokens, topk]` from the router -> `[tokens, hidden]`."""

        def pair(expert: int) -> tuple[Tensor, Tensor]:
            return self.matrix("gate_and_up", expert, x.dtype), self.matrix("down", expert, x.dtype)

        return experts_loop(x, weights, index, pair)


class MoE(nn.Module):
    """Shared MLP plus the routed experts."""

    operations: Operations = PLAIN

    def __init__(self, hidden: int, width: int, experts: int, topk: int, shared_experts: int) -> None:
        super().__init__()
        self.topk = topk
        self.gate = Router(hidden, experts)
        self.shared_mlp = GatedMlp(hidden, width * shared_experts) if shared_experts else None
        self.experts: nn.Module = Experts(experts, hidden, width)

    def forward(self, x: Tensor) -> Tensor:  # [rows, tokens, hidden] -> the same
        return total(self.parts(x))

    def parts(self, x: Tensor) -> list[Tensor]:
        """The experts' result and, where there is one, the shared MLP's: `[rows, tokens, hidden]` each, to be added."""
        flat = x.reshape(-1, x.shape[-1])  # [rows * tokens, hidden]
        weights, index = self.operations.route(flat, self.gate.wg.weight, self.topk)
        out = [self.experts(flat, weights, index)]
        if self.shared_mlp is not None:
            out.append(self.shared_mlp(flat))
        return [part.view_as(x) for part in out]


def gated_mlp(x: Tensor, gate_and_up: Tensor, down: Tensor) -> Tensor:
    """`down(up * silu(gate))`, `up` being the FIRST half of the rows of `gate_and_up`."""
    return linear(swiglu(linear(x, gate_and_up)), down)


def experts_loop(
    x: Tensor, weights: Tensor, index: Tensor, expert_weights: Callable[[int], tuple[Tensor, Tensor]]
) -> Tensor:
    """Loops over the experts that were chosen by any token.

    Args:
        x: `[tokens, hidden]`.
        weights, index: from `Operations.route`.
        expert_weights: an expert's gate_and_up `[2 * width, hidden]` and down `[hidden, width]`, by its number.

    Returns:
        `[tokens, hidden]`, x's dtype; the sum over a token's choices is taken in fp32.
    """
    outputs = torch.empty(*index.shape, x.shape[-1], dtype=x.dtype, device=x.device)  # [tokens, topk, hidden]
    for expert in index.unique().tolist():
        chosen = index == expert  # [tokens, topk]
        outputs[chosen] = gated_mlp(x[chosen.any(dim=-1)], *expert_weights(expert))
    return (outputs * weights[..., None]).sum(dim=1).to(x.dtype)
