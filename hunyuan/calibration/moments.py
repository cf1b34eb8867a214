"""Second moments of inputs, estimated from those of a few requests.

The tokens of one request are much alike, so a sample's correlations are partly chance, and rounding that leans on them
makes a matrix worse on requests that it has not seen. How much the requests differ says how much is chance, and by that
share the correlations are shrunk towards none (Schaefer and Strimmer 2005, doi 10.2202/1544-6115.1175, with requests
for samples). Knows tensors only.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shrunk_moments(inputs: Tensor, weights: Tensor, requests: Tensor) -> Tensor:
    """The mean of (w x)(w x)^T, its entries off the diagonal shrunk.

    Args:
        inputs: `[tokens, columns]`; none at all give zeros.
        weights: fp32 `[tokens]`, how much each one's output counts.
        requests: int64 `[tokens]`, ascending: which request each one is of.

    Returns:
        fp32 `[columns, columns]`. Of a single request nothing is left off the diagonal: it says nothing of others.
    """
    count, columns = inputs.shape
    total, leaning = (torch.zeros(columns, columns, device=inputs.device) for _ in range(2))
    if not count:
        return total
    _, sizes = requests.unique_consecutive(return_counts=True)
    shares = (sizes / count).tolist()
    squares = torch.zeros((), dtype=torch.float64, device=inputs.device)
    for share, x, w in zip(shares, inputs.split(sizes.tolist()), weights.split(sizes.tolist()), strict=True):
        y = x.float() * w[:, None]
        part = y.T @ y / count
        total += part
        leaning += share * part
        squares += _off_diagonal(part, part)
    # Sum over requests of |part - share * total|^2: how far they are from saying the same.
    size = _off_diagonal(total, total)
    apart = squares - 2 * _off_diagonal(leaning, total) + sum(share**2 for share in shares) * size
    chance = apart * len(shares) / max(len(shares) - 1, 1)
    lost = (chance / size.clamp(min=1e-300)).clamp(0, 1) if len(shares) > 1 else torch.ones_like(size)
    diagonal = torch.diag(total.diagonal())
    return diagonal + (1 - lost.float()) * (total - diagonal)


def _off_diagonal(a: Tensor, b: Tensor) -> Tensor:
    """Sum of the products of the entries off the diagonal, fp64."""
    whole = (a * b).sum(dtype=torch.float64)
    return whole - (a.diagonal() * b.diagonal()).sum(dtype=torch.float64)
