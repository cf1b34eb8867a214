"""What the fast autoencoder does between its convolutions (docs/model.md, section 9), on frames `[1, channels, h, w]`.

Each operation has two forms: plain torch here, and a Triton kernel (`frame_kernels.py`) that is taken for tensors on a
GPU. Frames are channels-last (`frames.py`). Sums and norms are fp32 or better whatever the frames' dtype. Knows no
weights by name.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import silu

from hunyuan.accel.vae.frames import frame_rows


def channel_sums(x: Tensor) -> Tensor:
    """Sum and sum of squares of each channel of a frame: `[2, channels]`, fp64."""
    if x.is_cuda:
        return _kernels().channel_sums(x)
    frame_rows(x)
    wide = x.double()  # [1, channels, h, w]
    return torch.stack([wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3))])


def group_affine(
    sums: Tensor, count: int, weight: Tensor, bias: Tensor, offset: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """GroupNorm as one factor and one summand per channel, `[channels]` fp32 each.

    `sums` `[2, channels]` are of `count` values per channel. The norm is of those values plus `offset` `[channels]`
    (a convolution's bias that was not added yet); the pair applies to the values without it.
    """
    if sums.is_cuda:
        return _kernels().group_affine(sums, count, weight, bias, offset, groups, eps)
    plain, square = sums
    ahead = torch.zeros_like(plain) if offset is None else offset.double()
    square = square + ahead * (2 * plain + count * ahead)
    plain = plain + count * ahead
    size = plain.numel() // groups
    mean = plain.view(groups, size).sum(1) / (count * size)  # [groups]
    variance = (square.view(groups, size).sum(1) / (count * size) - mean.square()).clamp(min=0)
    inverse = (variance + eps).rsqrt().repeat_interleave(size)  # [channels]
    scale = weight.double() * inverse
    shift = bias.double() + (ahead - mean.repeat_interleave(size)) * scale
    return scale.float(), shift.float()


def normalize(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor, activate: bool) -> None:
    """Writes `silu(x * scale + shift)` (or without the SiLU) to `out`, a frame of x's shape."""
    if x.is_cuda:
        return _kernels().normalize(x, scale, shift, out, activate)
    frame_rows(x), frame_rows(out)
    value = x.float() * scale[:, None, None] + shift[:, None, None]
    out.copy_(silu(value) if activate else value)
    return None


def add_residual(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """`x += y + bias` in place, `bias` `[channels]` fp32; returns the new frame's `channel_sums`."""
    if x.is_cuda:
        return _kernels().add_residual(x, y, bias)
    frame_rows(y)
    x.copy_(x.float() + (y.float() + bias[:, None, None]))
    return channel_sums(x)


def depth_to_space(y: Tensor, bias: Tensor, x: Tensor, out: Tensor, frame: int) -> Tensor:
    """Fills `out`, one frame of doubled height and width, and returns its `channel_sums`.

    Args:
        y: the convolution's output `[1, frames * 4 * channels, h, w]`, channels in the order (frame, row, column, c).
        bias: the convolution's bias `[frames * 4 * channels]`, fp32, not added yet.
        x: the convolution's input `[1, inputs, h, w]`; each of its channels is repeated until there are as many.
        out: `[1, channels, 2 * h, 2 * w]`.
        frame: which of the frames in `y`.
    """
    if y.is_cuda:
        return _kernels().depth_to_space(y, bias, x, out, frame)
    channels = out.shape[1]
    frame_rows(y), frame_rows(x)
    for corner in range(4):
        first = (4 * frame + corner) * channels
        deep = torch.arange(first, first + channels, device=x.device)
        shortcut = x[:, deep // (bias.numel() // x.shape[1])].float()
        value = y[:, first : first + channels].float() + bias[first : first + channels, None, None] + shortcut
        out[:, :, corner // 2 :: 2, corner % 2 :: 2] = value
    return channel_sums(out)


def space_to_depth(y: Tensor, bias: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """Fills `out`, a frame of half the height and width, and returns its `channel_sums`.

    Args:
        y: the convolution's output `[1, channels, 2 * h, 2 * w]`.
        bias: the convolution's bias `[channels]`, fp32, not added yet.
        x: the convolution's input `[1, inputs, 2 * h, 2 * w]`; neighbouring channels are averaged until there are as
            many as y has.
        out: `[1, 4 * channels, h, w]`, channels in the order (row, column, c); may be a part of a wider frame.
    """
    if y.is_cuda:
        return _kernels().space_to_depth(y, bias, x, out)
    channels = y.shape[1]
    frame_rows(y), frame_rows(x)
    value = x.unflatten(1, (channels, -1)).mean(2, dtype=torch.float32)  # [1, channels, 2 * h, 2 * w]
    value += y
    value += bias[:, None, None]
    for corner in range(4):
        out[:, corner * channels : (corner + 1) * channels] = value[:, :, corner // 2 :: 2, corner % 2 :: 2]
    return channel_sums(out)


def _kernels() -> ModuleType:
    from hunyuan.accel.vae import frame_kernels  # Triton: only where there is a GPU

    return frame_kernels
