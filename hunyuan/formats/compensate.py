"""MXFP4 values chosen for what a matrix computes instead of for its weights.

A matrix W meets inputs x whose second moments H are known. Then the squared error of its output is the sum over its
rows of (w - q) H (w - q), and an error in one column can be made good by the columns that go with it. Columns are
rounded one after the other and each one's error is pushed onto those still to come (GPTQ, arXiv 2210.17323); then every
column is rounded again, given all the others, as often as asked (coordinate descent, arXiv 2309.01885). A block's scale
is the one of three under which its columns, rounded in this way, leave the smallest error of the output. Knows tensors;
where the moments come from is `hunyuan.calibration`'s business.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from hunyuan.formats.numbers import E2M1_VALUES, E8M0_BIAS, MXFP4_BLOCK, MXFP4_OCTAVES

DAMPING = 0.1
"""Added to the moments' diagonal, as a share of its mean: inputs that were hardly seen count a little all the same."""
SWEEPS = 2
_STEPS = (-1, 0, 1)  # scales tried for a block: 0 puts its largest value between 4 and 8
_MIDDLES = tuple((a + b) / 2 for a, b in pairwise(E2M1_VALUES))
_LEAST, _MOST = 1, 227  # as in numbers.py
_MOST_DAMPING = 1e3


def compensate_mxfp4(
    weight: Tensor, moments: Tensor, damping: float = DAMPING, sweeps: int = SWEEPS
) -> tuple[Tensor, Tensor]:
    """Values and scales of small output error, in the format of `numbers.quantize_mxfp4`.

    Scales of a matrix span at most `MXFP4_OCTAVES`, and minus zero is never stored.

    Args:
        weight: floating `[matrices, rows, columns]`, finite, columns a multiple of 32.
        moments: fp32 `[matrices, columns, columns]`, the sum of x x^T over the inputs, in any positive unit.
        sweeps: how often every column is rounded again.

    Returns:
        uint8 `[matrices, rows, columns / 2]` and uint8 `[matrices, rows, columns / 32]`.

    Raises:
        ValueError: columns that are no multiple of 32, values that are not finite or too large, moments of the wrong
            shape or not finite.
    """
    columns = weight.shape[-1]
    if columns % MXFP4_BLOCK:
        raise ValueError(f"MXFP4 needs a multiple of {MXFP4_BLOCK} columns, got {columns}")
    if moments.shape != (len(weight), columns, columns) or not bool(moments.isfinite().all()):
        raise ValueError(f"moments must be finite and of shape {(len(weight), columns, columns)}")
    wanted = weight.float()
    damped = damp(moments, damping)
    limits = _limits(wanted)
    found, scale = _push_forward(wanted.clone(), _inverse_root(damped), limits)
    for _ in range(sweeps):
        _sweep(wanted, found, scale, damped, limits)
    return _pack(found, scale), scale.to(torch.uint8)


def output_error(difference: Tensor, moments: Tensor) -> Tensor:
    """Sum over the rows of d H d, `[matrices]` in fp64: the squared error of the outputs that the moments stand for."""
    return ((difference.float() @ moments) * difference).sum((-2, -1), dtype=torch.float64)


def damp(moments: Tensor, damping: float) -> Tensor:
    """In units of the mean of the diagonal, with `damping` added to it. Without any input: the unit matrix."""
    mean = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    unit = torch.eye(moments.shape[-1], device=moments.device)
    return torch.where(mean > 0, moments / mean.clamp(min=1e-30), unit) + damping * unit


def _inverse_root(damped: Tensor) -> Tensor:
    """The upper triangular U of H^-1 = U^T U, `[matrices, columns, columns]`; one after the other: as a batch, large
    matrices take a GPU's solver far longer."""
    return torch.stack([_one_inverse_root(matrix) for matrix in damped])


def _one_inverse_root(damped: Tensor) -> Tensor:
    """Where rounding leaves H without a root, it is damped further."""
    more = 1e-4
    while True:
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed):
            root, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not bool(failed):
                return root
        more *= 10
        if more > _MOST_DAMPING:
            raise ValueError("the moments are no moments: they have no Cholesky decomposition")
        damped = damped + more * torch.eye(len(damped), device=damped.device)


def _limits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest scale byte that each matrix may use, int32 `[matrices, 1]`."""
    largest = _first_bytes(weight).amax((-2, -1)) + max(_STEPS)
    if not bool(weight.isfinite().all()) or int(largest.max()) > _MOST:
        raise ValueError("a weight is not a finite number, or too large for MXFP4")
    largest = largest.clamp(min=_LEAST)[:, None]
    return (largest - MXFP4_OCTAVES).clamp(min=_LEAST), largest


def _first_bytes(values: Tensor) -> Tensor:
    """Scale bytes that put each block's largest value between 4 and 8: `[..., columns]` -> int32 `[..., blocks]`."""
    largest = values.abs().unflatten(-1, (-1, MXFP4_BLOCK)).amax(-1)
    return (largest.view(torch.int32) >> 23) - 2


def _candidates(block: Tensor, limits: tuple[Tensor, Tensor]) -> Tensor:
    """Scale bytes to try for `block` `[matrices, rows, 32]`: int32 `[candidates, matrices, rows]`."""
    first = _first_bytes(block)[..., 0]
    return torch.stack([first + step for step in _STEPS]).clamp(*limits)


def _unit(scale: Tensor) -> Tensor:
    """2^(byte - 127), fp32."""
    return torch.exp2(scale.float() - E8M0_BIAS)


def _rounded(values: Tensor, unit: Tensor) -> Tensor:
    """The grid's nearest to `values` under scales `unit` of the same shape."""
    ratio = (values / unit).clamp_(-E2M1_VALUES[-1], E2M1_VALUES[-1])
    size = ratio.abs()
    step = 0.5 * (1 + (size >= 2) + 2 * (size >= 4))  # how far apart the grid's values lie there
    return (ratio / step).round_().mul_(step).mul_(unit)


def _push_forward(rest: Tensor, root: Tensor, limits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Rounds column after column. Uses up `rest`; returns values `[m, rows, columns]` and bytes `[m, rows, blocks]`."""
    found, scales = torch.empty_like(rest), []
    for start in range(0, rest.shape[-1], MXFP4_BLOCK):
        here, later = slice(start, start + MXFP4_BLOCK), slice(start + MXFP4_BLOCK, None)
        candidates = _candidates(rest[..., here], limits)  # [candidates, m, rows]
        unit, part = _unit(candidates), root[:, here, here]  # part: [m, 32, 32]
        left = rest[..., here].expand(len(candidates), -1, -1, -1).clone()  # [candidates, m, rows, 32]
        values, errors = torch.empty_like(left), torch.empty_like(left)
        for j in range(MXFP4_BLOCK):
            values[..., j] = _rounded(left[..., j], unit)
            errors[..., j] = (left[..., j] - values[..., j]) / part[:, j, j, None]
            left[..., j + 1 :] -= errors[..., j, None] * part[:, j, None, j + 1 :]
        best = errors.square().sum(-1).argmin(0, keepdim=True)  # [1, m, rows]
        found[..., here] = _picked(values, best)
        rest[..., later] -= _picked(errors, best) @ root[:, here, later]
        scales.append(candidates.gather(0, best)[0])
    return found, torch.stack(scales, -1)


def _sweep(wanted: Tensor, found: Tensor, scale: Tensor, moments: Tensor, limits: tuple[Tensor, Tensor]) -> None:
    """Rounds each column again, given all the others; a block may change its scale. Never makes the error larger."""
    pull = (wanted - found) @ moments  # [m, rows, columns]: minus half the error's slope
    for block in range(scale.shape[-1]):
        here = slice(block * MXFP4_BLOCK, (block + 1) * MXFP4_BLOCK)
        part = moments[:, here, here]
        old = found[..., here]
        candidates = torch.cat([scale[None, ..., block], _candidates(wanted[..., here], limits)])
        unit = _unit(candidates)
        slope = pull[..., here].expand(len(candidates), -1, -1, -1).clone()
        change, gain = torch.empty_like(slope), torch.zeros_like(unit)
        for j in range(MXFP4_BLOCK):
            weight = part[:, j, j, None]
            moved = _rounded(old[..., j] + slope[..., j] / weight, unit) - old[..., j]
            gain += moved * (2 * slope[..., j] - moved * weight)
            slope -= moved[..., None] * part[:, j, None, :]
            change[..., j] = moved
        best = gain.argmax(0, keepdim=True)  # the first of equals: the scale stays
        change = _picked(change, best)
        found[..., here] += change
        scale[..., block] = candidates.gather(0, best)[0]
        pull -= change @ moments[:, here, :]


def _picked(values: Tensor, best: Tensor) -> Tensor:
    """Of `[candidates, m, rows, 32]` the one that `best` `[1, m, rows]` says: `[m, rows, 32]`."""
    return values.gather(0, best[..., None].expand(1, *values.shape[1:]))[0]


def _pack(values: Tensor, scale: Tensor) -> Tensor:
    """Codes of values that lie on the grid, two to a byte."""
    ratio = values.unflatten(-1, (-1, MXFP4_BLOCK)) / _unit(scale)[..., None]
    codes = torch.bucketize(ratio.abs(), torch.tensor(_MIDDLES, device=values.device))
    codes = (codes + 8 * ((ratio < 0) & (codes > 0))).flatten(-2)
    return (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)
