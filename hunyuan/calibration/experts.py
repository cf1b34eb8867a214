"""One layer's experts in 4 bits, chosen on the tokens that the router sends them, and how much of their output is lost.

Each expert is read, quantized and forgotten, a few at a time. Its outer matrix is chosen on its tokens, each counted
as much as the router weighs it; its inner one on what the quantized outer one makes of them. Tokens that are held out
choose nothing; all errors of outputs are theirs. Knows tensors; where weights come from and go to is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from hunyuan.calibration.moments import shrunk_moments
from hunyuan.formats.compensate import compensate_mxfp4
from hunyuan.formats.numbers import dequantize_mxfp4, quantize_mxfp4
from hunyuan.model.moe import gated_mlp
from hunyuan.model.operations import swiglu

CPU_GROUP, GPU_GROUP = 1, 8
"""Experts worked on at a time: on a GPU the work of one matrix is too little for it."""
FEW = 32
"""An expert that fewer tokens than this chose, or fewer than a 32nd of its inputs, is rounded plainly."""

Matrices = tuple[Tensor, Tensor]  # gate_and_up [2 * width, hidden], down [hidden, width]
Packed = tuple[Tensor, Tensor]  # values and scales


@dataclass(frozen=True)
class Routed:
    """A layer's tokens at its experts.

    Attributes:
        x: `[tokens, hidden]`, normed.
        weights, index: of the router, `[tokens, topk]`.
        held: bool `[tokens]`, those that only measure.
        requests: int64 `[tokens]`, ascending, the request that each is of.
    """

    x: Tensor
    weights: Tensor
    index: Tensor
    held: Tensor
    requests: Tensor

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """The numbers of the tokens that chose the expert, and their weights."""
        tokens, place = (self.index == expert).nonzero(as_tuple=True)
        return tokens, self.weights[tokens, place]


class Quantized(NamedTuple):
    """One expert's stored form; `tokens` is how many chose it with."""

    expert: int
    tokens: int
    plain: bool
    gate_and_up: Packed
    down: Packed


@dataclass
class OutputErrors:
    """Squared errors of the held out tokens' outputs, weighed as the router does, and the outputs' sum of squares.

    Lists are by expert; the layer's own figures are of the sum over the experts.
    """

    plain: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    square: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    few: list[int] = field(default_factory=list)
    layer_plain: float = 0.0
    layer_chosen: float = 0.0
    layer_square: float = 0.0


def quantize_experts(
    read: Callable[[int], Matrices], count: int, routed: Routed, out: Tensor, errors: OutputErrors
) -> Iterator[Quantized]:
    """Goes through a layer's experts in order.

    Args:
        read: an expert's matrices on the tokens' device.
        out: fp32 `[tokens, hidden]`; the quantized experts' outputs are added to it.
        errors: is filled.
    """
    held = routed.held.nonzero()[:, 0]
    place = torch.full((len(routed.x),), -1, device=held.device)
    place[held] = torch.arange(len(held), device=held.device)
    exact, plain, before = (torch.zeros(len(held), out.shape[1], device=out.device) for _ in range(3))
    before.copy_(out[held])
    group = GPU_GROUP if out.is_cuda else CPU_GROUP
    for first in range(0, count, group):
        experts = range(first, min(first + group, count))
        originals = [read(expert) for expert in experts]
        rounded = [(quantize_mxfp4(up), quantize_mxfp4(down)) for up, down in originals]
        chosen = _choose(experts, originals, rounded, routed)
        for expert, original, plainly, made in zip(experts, originals, rounded, chosen, strict=True):
            tokens, weights = routed.of(expert)
            x, w = routed.x[tokens], weights[:, None]
            values = w * gated_mlp(x, *_matrices(made.gate_and_up, made.down, x.dtype)).float()
            out.index_add_(0, tokens, values)
            seen = routed.held[tokens]
            measured, rows = x[seen], place[tokens[seen]]
            wanted = w[seen] * gated_mlp(measured, *(m.to(x.dtype) for m in original)).float()
            simple = w[seen] * gated_mlp(measured, *_matrices(*plainly, x.dtype)).float()
            exact.index_add_(0, rows, wanted)
            plain.index_add_(0, rows, simple)
            errors.plain.append(_square(simple - wanted))
            errors.chosen.append(_square(values[seen] - wanted))
            errors.square.append(_square(wanted))
            errors.tokens.append(made.tokens)
            if made.plain:
                errors.few.append(expert)
            yield made
    errors.layer_plain, errors.layer_square = _square(plain - exact), _square(exact)
    errors.layer_chosen = _square(out[held] - before - exact)


def _choose(
    experts: Sequence[int], originals: Sequence[Matrices], rounded: Sequence[tuple[Packed, Packed]], routed: Routed
) -> list[Quantized]:
    """A group's stored forms; the matrices of all that saw enough tokens at once, `rounded` for the others."""
    inputs, counted = [], []
    for expert in experts:
        tokens, w = routed.of(expert)
        kept = ~routed.held[tokens]
        inputs.append(routed.x[tokens[kept]])
        counted.append((w[kept], routed.requests[tokens[kept]]))
    least = max(FEW, routed.x.shape[1] // 32)
    enough = [i for i, x in enumerate(inputs) if len(x) >= least]
    outer, inner = [first for first, _ in rounded], [second for _, second in rounded]
    if enough:
        moments = torch.stack([shrunk_moments(inputs[i], *counted[i]) for i in enough])
        values, scale = compensate_mxfp4(torch.stack([originals[i][0] for i in enough]), moments)
        for n, i in enumerate(enough):
            outer[i] = (values[n], scale[n])
        del moments
        middle = [swiglu(linear(inputs[i].float(), dequantize_mxfp4(*outer[i]))) for i in enough]
        moments = torch.stack([shrunk_moments(h, *counted[i]) for h, i in zip(middle, enough, strict=True)])
        values, scale = compensate_mxfp4(torch.stack([originals[i][1] for i in enough]), moments)
        for n, i in enumerate(enough):
            inner[i] = (values[n], scale[n])
    return [Quantized(expert, len(inputs[i]), i not in enough, outer[i], inner[i]) for i, expert in enumerate(experts)]


def _matrices(first: Packed, second: Packed, dtype: torch.dtype) -> Matrices:
    return dequantize_mxfp4(*first).to(dtype), dequantize_mxfp4(*second).to(dtype)


def _square(values: Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))
