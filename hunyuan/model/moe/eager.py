"""The mixture of experts, written to be obviously right (spec sections 6 and 7).

Routing keeps every token: no expert has a capacity. This is the reference for every faster backend.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear, silu


def route(x: Tensor, router: Tensor, topk: int) -> tuple[Tensor, Tensor]:
    """Chooses `topk` experts a token, in fp32, weights normalised over the chosen ones.

    Args:
        x: `[tokens, hidden]`.
        router: fp32 `[experts, hidden]`.

    Returns:
        weights fp32 `[tokens, topk]` and expert indices int64 `[tokens, topk]`, best first.
    """
    probabilities = linear(x.float(), router).softmax(dim=-1)  # [tokens, experts]
    weights, index = probabilities.topk(topk, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-8), index


def gated_mlp(x: Tensor, gate_and_up: Tensor, down: Tensor) -> Tensor:
    """`down(up * silu(gate))`, `up` being the FIRST half of the rows of `gate_and_up`."""
    up, gate = linear(x, gate_and_up).chunk(2, dim=-1)
    return linear(up * silu(gate), down)


def eager_experts(
    x: Tensor, weights: Tensor, index: Tensor, expert_weights: Callable[[int], tuple[Tensor, Tensor]]
) -> Tensor:
    """Loops over the experts that were chosen by any token.

    Args:
        x: `[tokens, hidden]`.
        weights, index: from `route`.
        expert_weights: an expert's gate_and_up `[2 * width, hidden]` and down `[hidden, width]`, by its number.

    Returns:
        `[tokens, hidden]`, x's dtype; the sum over a token's choices is taken in fp32.
    """
    outputs = torch.empty(*index.shape, x.shape[-1], dtype=x.dtype, device=x.device)  # [tokens, topk, hidden]
    for expert in index.unique().tolist():
        chosen = index == expert  # [tokens, topk]
        outputs[chosen] = gated_mlp(x[chosen.any(dim=-1)], *expert_weights(expert))
    return (outputs * weights[..., None]).sum(dim=1).to(x.dtype)
