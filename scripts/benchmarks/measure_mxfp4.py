"""Relative errors of ways to quantize a matrix to MXFP4: `python measure_mxfp4.py`; docs/weights.md quotes it.

Weights are Gaussian or heavy-tailed; activations are independent or correlated, with a few columns far larger than the
rest. "weights" is the error of the weights, "output" that of their product with activations which no method has seen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from hunyuan.formats import numbers
from hunyuan.formats.numbers import MXFP4_BLOCK, dequantize_fp8, dequantize_mxfp4, quantize_fp8, quantize_mxfp4

ROWS, COLUMNS, TOKENS = 256, 1024, 4096


def with_candidates(weight: Tensor, candidates: Sequence[int], importance: Tensor | None = None) -> Tensor:
    """Quantized and back, each block with the best of these exponents; 0 puts its largest value to 4..8.

    `importance` `[columns]`: how much an error in a column counts; None: all the same.
    """
    blocks = weight.reshape(-1, MXFP4_BLOCK)
    return _nearest(blocks, best_scales(weight, candidates, importance)).view_as(weight)


def best_scales(weight: Tensor, candidates: Sequence[int], importance: Tensor | None = None) -> Tensor:
    """The power of two of each block, `[blocks]`."""
    blocks = weight.reshape(-1, MXFP4_BLOCK)
    first = torch.exp2(blocks.abs().amax(1).log2().floor() - 2)
    tried = torch.stack([first * 2.0**step for step in candidates])  # [candidates, blocks]
    counts = 1.0 if importance is None else importance.view(-1, MXFP4_BLOCK).repeat(len(weight), 1)
    errors = torch.stack([((_nearest(blocks, scale) - blocks).square() * counts).sum(-1) for scale in tried])
    return tried[errors.argmin(0), torch.arange(len(blocks))]


def hadamard(size: int) -> Tensor:
    """Orthogonal `[size, size]`, size a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def rotated(weight: Tensor) -> Tensor:
    """As if both weights and activations were rotated, so that outliers spread over all columns."""
    signs = torch.randn(weight.shape[1], generator=torch.Generator().manual_seed(1)).sign()
    turn = signs[:, None] * hadamard(weight.shape[1])
    return dequantize_mxfp4(*quantize_mxfp4(weight @ turn)) @ turn.T


def compensated(weight: Tensor, activations: Tensor) -> Tensor:
    """Column after column, the error of each pushed onto the columns still to come as their correlation allows.

    Scales of a block are chosen when its first column is reached, by the weights as they are then.
    """
    moments = activations.T @ activations / len(activations)
    moments.diagonal().add_(0.01 * moments.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    rest, found = weight.clone(), torch.empty_like(weight)
    importance = moments.diagonal()
    for start in range(0, weight.shape[1], MXFP4_BLOCK):
        end = start + MXFP4_BLOCK
        scale = best_scales(rest[:, start:end], (0, 1), importance[start:end])  # [rows]
        for column in range(start, end):
            found[:, column] = _nearest(rest[:, column], scale)
            error = (rest[:, column] - found[:, column]) / inverse[column, column]
            rest[:, column + 1 :] -= error[:, None] * inverse[column, column + 1 :]
    return found


def _nearest(values: Tensor, scale: Tensor) -> Tensor:
    """The grid's nearest to `values` `[n, ...]` under a scale for each of the n."""
    grid = torch.tensor(numbers.E2M1_VALUES)
    scale = scale.view(-1, *[1] * (values.dim() - 1))
    size = values.abs() / scale
    return values.sign() * grid[(size[..., None] - grid).abs().argmin(-1)] * scale


def make_weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gauss = torch.randn(ROWS, COLUMNS, generator=generator)
    chi = torch.randn(5, ROWS, COLUMNS, generator=generator).square().mean(0).sqrt()
    columns = gauss * (1 + 5 * (torch.rand(COLUMNS, generator=generator) < 0.02))
    return {"Gaussian": gauss, "Student t, 5 degrees": gauss / chi, "Gaussian, 2% of columns x6": columns}


def make_activations() -> dict[str, tuple[Tensor, Tensor]]:
    """Of each kind some to calibrate with and some to measure with."""
    generator = torch.Generator().manual_seed(2)
    plain = torch.randn(2 * TOKENS, COLUMNS, generator=generator)
    mixing = torch.randn(COLUMNS // 4, COLUMNS, generator=generator) / (COLUMNS // 4) ** 0.5
    correlated = plain[:, : COLUMNS // 4] @ mixing + 0.5 * plain
    correlated *= 1 + 9 * (torch.rand(COLUMNS, generator=generator) < 0.02)
    return {"independent": (plain[:TOKENS], plain[TOKENS:]), "correlated": (correlated[:TOKENS], correlated[TOKENS:])}


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(description="Compare ways to quantize to MXFP4.").parse_args(argv)
    methods: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "OCP rule (largest value to 4..8)": lambda w, _: with_candidates(w, (0,)),
        "never clip": lambda w, _: with_candidates(w, (1,)),
        "best of the two (ours)": lambda w, _: dequantize_mxfp4(*quantize_mxfp4(w)),
        "best of three, one less too": lambda w, _: with_candidates(w, (0, 1, -1)),
        "Hadamard rotation": lambda w, _: rotated(w),
        "scales weighted by activations": lambda w, x: with_candidates(w, (0, 1), x.square().mean(0)),
        "GPTQ-style compensation": compensated,
        "fp8, one scale": lambda w, _: dequantize_fp8(*quantize_fp8(w)),
    }
    activations = make_activations()
    print(f"| weights | method | weights | {' | '.join(f'output, {kind}' for kind in activations)} |")
    print("|---|---|" + "---|" * (1 + len(activations)))
    for kind, weight in make_weights().items():
        for method, quantize in methods.items():
            cells = []
            for seen, unseen in activations.values():
                found, wanted = quantize(weight, seen), unseen @ weight.T
                cells += [_relative(found, weight), _relative(unseen @ found.T, wanted)]
            print(f"| {kind} | {method} | {cells[0]:.4f} | {cells[1]:.4f} | {cells[3]:.4f} |", flush=True)
    return 0


def _relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


if __name__ == "__main__":
    raise SystemExit(main())
