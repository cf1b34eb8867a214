"""The optimizer of both trainings: Muon for the matrices inside, AdamW for tables, norms and biases.

Muon (Jordan et al., 2024) steps along the orthogonalized momentum of a matrix, which makes small models learn in
about half the steps of AdamW. Knows parameters and their gradients; knows no model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: five rounds bring singular values to about 1
_ROUNDS = 5


def orthogonalized(matrices: Tensor) -> Tensor:
    """`[n, rows, columns]` to the nearest semi-orthogonal matrices, about: all singular values between .7 and 1.2."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


@dataclass
class _Stack:
    """Parameters that are stacks of equally shaped matrices, and their momentum `[n, rows, columns]`."""

    parameters: list[nn.Parameter]
    momentum: Tensor


def as_matrices(tensor: Tensor) -> Tensor:
    """A matrix, a stack of experts' matrices `[n, rows, columns]`, or a convolution's kernel `[o, i, h, w]`."""
    if tensor.dim() == 4:
        return tensor.flatten(1)[None]
    return tensor if tensor.dim() == 3 else tensor[None]


class Optimizer:
    """Steps `matrices` by Muon and `others` by AdamW; learning rates are those at the height of the schedule.

    Args:
        matrices: their update has an RMS of `.2 * matrix_rate` whatever their shape.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        matrix_rate: float,
        other_rate: float,
        decay: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        self.matrix_rate, self.other_rate, self.decay, self.mass = matrix_rate, other_rate, decay, momentum
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in matrices:
            by_shape[as_matrices(parameter).shape[1:]].append(parameter)
        self.stacks = [_Stack(p, torch.cat([torch.zeros_like(as_matrices(m)) for m in p])) for p in by_shape.values()]
        rest = list(others)
        self.parameters = [p for stack in self.stacks for p in stack.parameters] + rest
        self.adam = torch.optim.AdamW(
            rest, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=rest[0].is_cuda, eps=1e-9
        )

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update at `factor` times the full learning rates; clears the gradients."""
        torch.nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], 1.0)
        self.adam.param_groups[0]["lr"] = self.other_rate * factor
        self.adam.step()
        for stack in self.stacks:
            self._step_stack(stack, self.matrix_rate * factor)
        for parameter in self.parameters:
            parameter.grad = None

    def _step_stack(self, stack: _Stack, rate: float) -> None:
        gradient = torch.cat([as_matrices(_gradient(p)) for p in stack.parameters])
        stack.momentum.lerp_(gradient, 1 - self.mass)
        update = orthogonalized(gradient.lerp(stack.momentum, self.mass))  # Nesterov's look ahead
        update *= -0.2 * rate * max(update.shape[1:]) ** 0.5
        values = [p.data for p in stack.parameters]
        torch._foreach_mul_(values, 1 - rate * self.decay)
        counts = [as_matrices(p).shape[0] for p in stack.parameters]
        parts = [u.view(p.shape) for u, p in zip(update.split(counts), stack.parameters, strict=True)]
        torch._foreach_add_(values, parts)

    def state(self) -> dict[str, Any]:
        return {"momentum": [stack.momentum for stack in self.stacks], "adam": self.adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        for stack, momentum in zip(self.stacks, state["momentum"], strict=True):
            stack.momentum.copy_(momentum)
        self.adam.load_state_dict(state["adam"])


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


class Average:
    """An exponential moving average of the parameters, which is what is exported."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """`step` counts from 1; the first averages are short, so that the start is forgotten."""
        decay = min(self.decay, step / (step + 10))
        torch._foreach_lerp_(self.values, [p.data for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average and the parameters; a second call undoes the first."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)


def trapezoid(progress: float, falling: float) -> float:
    """The learning rate's factor when `progress` (0 to 1) of a training is over: flat, then down to 0."""
    return max(0.0, min(1.0, (1 - progress) / falling))
