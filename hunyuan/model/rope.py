"""Two-dimensional rotary position embedding (docs/model.md, section 8).

Knows where each token of a sequence stands and the angles that follow from it. Tables are computed for the
positions asked for, never for the whole `max_position_embeddings`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """An image's tokens in the sequence: `height * width` of them, row-major, from index `start`."""

    start: int
    height: int
    width: int

    @property
    def stop(self) -> int:
        return self.start + self.height * self.width


def positions_2d(start: int, stop: int, grids: Iterable[Grid]) -> Tensor:
    """Positions (y, x) of the tokens [start, stop) of a sequence.

    Text stands on the diagonal at its own index. An image's rows and columns are centred on the stretch
    that the image takes up in the sequence, halves rounded down.

    Returns:
        int64 `[stop - start, 2]`, on the CPU.
    """
    index = torch.arange(start, stop)
    positions = torch.stack([index, index], dim=1)  # [tokens, 2]
    for grid in grids:
        first, last = max(grid.start, start), min(grid.stop, stop)
        if first >= last:
            continue
        area = grid.height * grid.width
        offset = torch.arange(first, last) - grid.start
        positions[first - start : last - start, 0] = grid.start + (area - grid.height) // 2 + offset // grid.width
        positions[first - start : last - start, 1] = grid.start + (area - grid.width) // 2 + offset % grid.width
    return positions


def rope_axes(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """What angles are products of, for `positions` int `[tokens, 2]`: even frequencies turn with y, odd ones with x.

    Returns:
        by which position each frequency turns, fp32 `[tokens, head_dim / 2]`, and the frequencies, `[head_dim / 2]`.
    """
    half = head_dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=positions.device) * 2 / head_dim
    axis = torch.arange(half, device=positions.device) % 2  # 0: y, 1: x
    return positions.float()[:, axis], 1.0 / theta**exponent


def rope_table(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `positions` int `[tokens, 2]`: two fp32 `[tokens, head_dim]`, on its device.

    Both halves of the head use the same angles.
    """
    axes, frequency = rope_axes(positions, head_dim, theta)
    angles = axes * frequency  # [tokens, half]
    angles = torch.cat([angles, angles], dim=1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates `x` `[rows, tokens, heads, head_dim]` in fp32; the result is fp32."""
    x = x.float()
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat([-second, first], dim=-1)
    return x * cos[:, None, :] + rotated * sin[:, None, :]
