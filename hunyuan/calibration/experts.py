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
from hunyuan.formats.numbers import dequantize_fp8, dequantize_mxfp4, quantize_fp8, quantize_mxfp4
from hunyuan.model.moe import gated_mlp
from hunyuan.model.operations import swiglu

CPU_GROUP, GPU_GROUP = 1, 16
"""Experts worked on at a time: on a GPU the work of one matrix is too little for it."""
FEW = 32
"""An expert that fewer tokens than this chose, or fewer than a 32nd of its inputs, is rounded plainly."""
_ROWS = 16384  # tokens that go through an expert at a time

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

    In 4 bits rounded plainly, in those that were chosen, and in fp8. Lists are by expert; the layer's own figures are
    of the sum over the experts.
    """

    plain: list[float] = field(default_factory=list)
    chosen: list[float] = field(default_factory=list)
    fp8: list[float] = field(default_factory=list)
    square: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    few: list[int] = field(default_factory=list)
    layer_plain: float = 0.0
    layer_chosen: float = 0.0
    layer_fp8: float = 0.0
    layer_square: float = 0.0


def quantize_experts(
    read: Callable[[int], Matrices], count: int, routed: Routed, out: Tensor, errors: OutputErrors
) -> Iterator[Quantized]:
    """Goes through a layer's experts in order.

    Args:
        read: an expert's matrices on the tokens' device.
        out: fp32 zeros `[tokens, hidden]`; the quantized experts' outputs are added to it.
        errors: is filled.
    """
    held = routed.held.nonzero()[:, 0]
    place = torch.full((len(routed.x),), -1, device=held.device)
    place[held] = torch.arange(len(held), device=held.device)
    exact, plain, fp8 = (torch.zeros(len(held), out.shape[1], device=out.device) for _ in range(3))
    group = GPU_GROUP if out.is_cuda else CPU_GROUP
    for first in range(0, count, group):
        experts = range(first, min(first + group, count))
        originals = [read(expert) for expert in experts]
        rounded = [(quantize_mxfp4(up), quantize_mxfp4(down)) for up, down in originals]
        chosen = _choose(experts, originals, rounded, routed)
        for expert, original, plainly, made in zip(experts, originals, rounded, chosen, strict=True):
            tokens, weights = routed.of(expert)
            x = routed.x[tokens]
            values = _outputs(x, weights, _matrices(made.gate_and_up, made.down, x.dtype))
            out.index_add_(0, tokens, values)
            seen = routed.held[tokens]
            measured, w, rows = x[seen], weights[seen], place[tokens[seen]]
            wanted = _outputs(measured, w, tuple(m.to(x.dtype) for m in original))
            exact.index_add_(0, rows, wanted)
            errors.chosen.append(_square(values[seen] - wanted))
            for matrices, total, squares in (
                (_matrices(*plainly, x.dtype), plain, errors.plain),
                (tuple(dequantize_fp8(*quantize_fp8(m)).to(x.dtype) for m in original), fp8, errors.fp8),
            ):
                apart = _outputs(measured, w, matrices) - wanted  # [held tokens of the expert, hidden]
                total.index_add_(0, rows, apart)
                squares.append(_square(apart))
            errors.square.append(_square(wanted))
            errors.tokens.append(made.tokens)
            if made.plain:
                errors.few.append(expert)
            yield made
    errors.layer_square = _square(exact)
    errors.layer_plain, errors.layer_fp8 = _square(plain), _square(fp8)
    errors.layer_chosen = _square(exact.sub_(out[held]))


def _choose(
    experts: Sequence[int], originals: Sequence[Matrices], rounded: Sequence[tuple[Packed, Packed]], routed: Routed
) -> list[Quantized]:
    """A group's stored forms; the matrices of all that saw enough tokens at once, `rounded` for the others.

    Inputs are gathered for one expert at a time: a popular one's alone may take gigabytes.
    """
    taught = [_taught(routed, expert) for expert in experts]
    least = max(FEW, routed.x.shape[1] // 32)
    enough = [i for i, (tokens, _) in enumerate(taught) if len(tokens) >= least]
    outer, inner = [first for first, _ in rounded], [second for _, second in rounded]

    def moments(i: int, through: Tensor | None) -> Tensor:
        """Of an expert's inputs, or of what its outer matrix makes of them."""
        tokens, weights = taught[i]
        inputs = routed.x[tokens]
        if through is not None:
            parts = inputs.split(_ROWS)
            inputs = torch.cat([swiglu(linear(part.float(), through)) for part in parts])  # [tokens, width]
        return shrunk_moments(inputs, weights, routed.requests[tokens])

    if enough:
        found = torch.stack([moments(i, None) for i in enough])
        values, scale = compensate_mxfp4(torch.stack([originals[i][0] for i in enough]), found)
        for n, i in enumerate(enough):
            outer[i] = (values[n], scale[n])
        del found
        found = torch.stack([moments(i, dequantize_mxfp4(*outer[i])) for i in enough])
        values, scale = compensate_mxfp4(torch.stack([originals[i][1] for i in enough]), found)
        for n, i in enumerate(enough):
            inner[i] = (values[n], scale[n])
    return [
        Quantized(expert, len(taught[i][0]), i not in enough, outer[i], inner[i]) for i, expert in enumerate(experts)
    ]


def _taught(routed: Routed, expert: int) -> tuple[Tensor, Tensor]:
    """Those of an expert's tokens that choose, by their numbers, and their weights."""
    tokens, weights = routed.of(expert)
    kept = ~routed.held[tokens]
    return tokens[kept], weights[kept]


def _matrices(first: Packed, second: Packed, dtype: torch.dtype) -> Matrices:
    return dequantize_mxfp4(*first).to(dtype), dequantize_mxfp4(*second).to(dtype)


def _outputs(x: Tensor, weights: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """What an expert adds to its tokens, fp32 `[tokens, hidden]`; some thousand rows at a time, for memory's sake."""
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    up, down = matrices
    for part, values, w in zip(x.split(_ROWS), out.split(_ROWS), weights.split(_ROWS), strict=True):
        values.copy_(gated_mlp(part, up, down)).mul_(w[:, None])
    return out


def _square(values: Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))
