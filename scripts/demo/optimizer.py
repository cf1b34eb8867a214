"""The optimizer of all three trainings: Muon for the matrices inside, AdamW for tables, norms and biases.

Muon (Jordan et al., 2024) steps along the orthogonalized momentum of a matrix, which makes small models learn in
about half the steps of AdamW. Knows parameters and their gradients; knows no model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: five rounds bring singular values to about 1
_ROUNDS = 5
_MOST_ZEROS = 2_000_000  # values that a stack of matrices is filled up with, rather than being a group of its own


def orthogonalized(matrices: Tensor) -> Tensor:
    """`[n, rows, columns]` to the nearest semi-orthogonal matrices, about: all singular values between .7 and 1.2.

    Rows and columns of zeros stay so, and change nothing in the others.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        square = x @ x.transpose(1, 2)  # [n, side, side]
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, factor, x, beta=a)
    return (x.transpose(1, 2) if tall else x).to(matrices.dtype)


def as_matrices(tensor: Tensor) -> Tensor:
    """A matrix, a stack of experts' matrices `[n, rows, columns]`, or a convolution's kernel `[o, i, h, w]`."""
    if tensor.dim() == 4:
        return tensor.flatten(1)[None]
    return tensor if tensor.dim() == 3 else tensor[None]


def groups_of(shapes: Sequence[tuple[int, int, int]]) -> list[list[int]]:
    """Which stacks of matrices go together, filled up with zeros to the shape of the group's first.

    Args:
        shapes: of each stack `(n, rows, columns)`, rows <= columns.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(shapes)), key=lambda i: shapes[i][1] * shapes[i][2], reverse=True):
        n, rows, columns = shapes[index]
        fitting = [(shapes[group[0]], group) for group in groups]
        zeros = [(n * (r * c - rows * columns), group) for (_, r, c), group in fitting if r >= rows and c >= columns]
        fewest, group = min(zeros, key=lambda z: z[0], default=(_MOST_ZEROS + 1, []))
        if fewest > _MOST_ZEROS:
            groups.append(group := [])
        group.append(index)
    return groups


class _Matrices:
    """Muon's memory: one flat momentum, and stacks of matrices that are orthogonalized a group at a time.

    For a GPU these matrices are small: what a step takes is how many operations are started, not how large they are.

    Attributes:
        flat: gradients of all parameters one after the other, then their updates.
        momentum: of all parameters, as long.
        updates: `flat`, as views in the parameters' shapes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for parameter in parameters:
            by_shape[as_matrices(parameter).shape[1:]].append(parameter)
        self.parameters = [p for stack in by_shape.values() for p in stack]
        self.values: list[Tensor] = list(self.parameters)
        device = self.parameters[0].device
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters), device=device)
        self.momentum = torch.zeros_like(self.flat)
        parts = self.flat.split([p.numel() for p in self.parameters])
        self.updates = [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]
        stacks = self.flat.split([sum(p.numel() for p in stack) for stack in by_shape.values()])
        views = [stack.view(-1, *shape) for stack, shape in zip(stacks, by_shape, strict=True)]
        self.stacks = [v.transpose(1, 2) if v.shape[1] > v.shape[2] else v for v in views]  # [n, rows, columns], wide
        self._group(device)

    def _group(self, device: torch.device) -> None:
        """Makes the groups' tensors `[n, rows, columns]`, their scales, and `inside`: the stacks' places in them."""
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.groups: list[tuple[Tensor, Tensor]] = []
        inside: dict[int, Tensor] = {}
        for indices in groups_of([(v.shape[0], v.shape[1], v.shape[2]) for v in self.stacks]):
            members = [self.stacks[i] for i in indices]
            counts = [len(v) for v in members]
            made = torch.zeros(sum(counts), *members[0].shape[1:], dtype=dtype, device=device)
            scales = [0.2 * v.shape[2] ** 0.5 for v in members for _ in range(len(v))]
            self.groups.append((made, torch.tensor(scales, device=device)[:, None, None]))
            for index, part in zip(indices, made.split(counts), strict=True):
                _, rows, columns = self.stacks[index].shape
                inside[index] = part[:, :rows, :columns]
        self.inside = [inside[i] for i in range(len(self.stacks))]

    def step(self, rate: float, decay: float, mass: float) -> None:
        """One update, by the parameters' gradients."""
        torch.cat([gradient(p).flatten() for p in self.parameters], out=self.flat)
        self.momentum.lerp_(self.flat, 1 - mass)
        self.flat.lerp_(self.momentum, mass)  # Nesterov's look ahead
        torch._foreach_copy_(self.inside, self.stacks)
        for matrices, scales in self.groups:
            torch.mul(orthogonalized(matrices), scales, out=matrices)  # what was filled up stays zero
        torch._foreach_copy_(self.stacks, self.inside)
        torch._foreach_mul_(self.values, 1 - rate * decay)
        torch._foreach_add_(self.values, self.updates, alpha=-rate)


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
        self.matrices, rest = _Matrices(matrices), list(others)
        self.parameters = self.matrices.parameters + rest
        self.adam = torch.optim.AdamW(
            rest, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=rest[0].is_cuda, eps=1e-9
        )

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update at `factor` times the full learning rates; clears the gradients."""
        torch.nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], 1.0)
        self.adam.param_groups[0]["lr"] = self.other_rate * factor
        self.adam.step()
        self.matrices.step(self.matrix_rate * factor, self.decay, self.mass)
        for parameter in self.parameters:
            parameter.grad = None


def gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient; zeros where no batch has used it."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


class Average:
    """An exponential moving average of the parameters, which is what is exported."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.decay = decay
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """`step` counts from 1; the first averages are short, so that the start is forgotten."""
        decay = min(self.decay, step / (step + 10))
        torch._foreach_lerp_(self.values, self.parameters, 1 - decay)

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
