"""How a frame `[1, channels, height, width]` of the fast autoencoder lies in memory: channels-last.

The rows of channels may lie further apart than the channels take. Knows no operation.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frame_rows(x: Tensor) -> tuple[int, int, int]:
    """How many places a frame `[1, channels, height, width]` has, how far apart they lie, and its channels.

    Raises:
        ValueError: its channels do not lie side by side.
    """
    _, channels, height, width = x.shape
    row = x.stride(3) if width > 1 else x.stride(2)
    if x.stride(1) != 1 or (height > 1 and width > 1 and x.stride(2) != width * row):
        raise ValueError(f"a frame must have its channels fastest, not shape {tuple(x.shape)}, strides {x.stride()}")
    return height * width, row, channels


def empty_frame(like: Tensor, channels: int, height: int, width: int) -> Tensor:
    """`[1, channels, height, width]` with the channels fastest, of like's dtype and device."""
    shape = (1, channels, height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
