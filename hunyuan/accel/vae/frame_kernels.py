"""Triton kernels of the autoencoder: GroupNorm with SiLU, residual sums, depth to space and back; channels are fastest.

Every kernel sees one frame `[1, channels, height, width]` as rows (places) of neighbouring channels. A row may be
longer than its channels, so a frame can be a part of a wider tensor. Importing this file needs Triton; only
`hunyuan.accel.vae.frame_operations` does so, and only for tensors on a GPU. The plain forms are there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hunyuan.accel.kernels.launch import on_device_of
from hunyuan.accel.vae.frames import frame_rows

_PLACES = 32  # rows of one tile
_CHANNELS = 128  # columns of one tile at most
_ROUNDS = 16  # tiles that one program adds up; bounds how much is summed in fp32

# `do_not_specialize` names the sizes that differ from request to request: for a size that is divisible by 16 Triton
# compiles another kernel than for one that is not. Row lengths and channels are the network's own.


@triton.jit
def _write_sums_of(value, out, apart, inside):
    """Adds up a tile's rows, fp32: sums to `out`, those of the squares `apart` values behind."""
    tl.store(out, tl.sum(value, axis=0), mask=inside)
    tl.store(out + apart, tl.sum(value * value, axis=0), mask=inside)


@triton.jit(do_not_specialize=["width"])
def _in_the_doubled(p, width, corner):
    """Where place (r, c) of a frame `width` wide has its corner (i, j), `2 i + j`, in one twice as high and wide."""
    return (2 * (p // width) + corner // 2) * (2 * width) + 2 * (p % width) + corner % 2


@triton.jit(do_not_specialize=["places"])
def _sums_kernel(x, sums, places, row, channels, rounds: tl.constexpr, bp: tl.constexpr, bc: tl.constexpr):
    """Sums and sums of squares of each channel over `rounds` tiles: `sums` `[programs, 2, channels]`."""
    c = tl.program_id(1) * bc + tl.arange(0, bc)
    first = tl.program_id(0).to(tl.int64) * rounds * bp
    plain = tl.zeros([bp, bc], tl.float32)
    square = tl.zeros([bp, bc], tl.float32)
    for i in range(rounds):
        p = first + i * bp + tl.arange(0, bp)
        inside = (p[:, None] < places) & (c[None, :] < channels)
        value = tl.load(x + p[:, None] * row + c[None, :], mask=inside, other=0.0).to(tl.float32)
        plain += value
        square += value * value
    out = sums + tl.program_id(0).to(tl.int64) * 2 * channels + c
    tl.store(out, tl.sum(plain, axis=0), mask=c < channels)
    tl.store(out + channels, tl.sum(square, axis=0), mask=c < channels)


@triton.jit(do_not_specialize=["places"])
def _normalize_kernel(
    x,
    out,
    scale,
    shift,
    places,
    row,
    out_row,
    channels,
    activate: tl.constexpr,
    bp: tl.constexpr,
    bc: tl.constexpr,
):
    """`out = silu(x * scale + shift)`, or without the activation."""
    c = tl.program_id(1) * bc + tl.arange(0, bc)
    p = tl.program_id(0).to(tl.int64) * bp + tl.arange(0, bp)
    inside = (p[:, None] < places) & (c[None, :] < channels)
    value = tl.load(x + p[:, None] * row + c[None, :], mask=inside, other=0.0).to(tl.float32)
    a = tl.load(scale + c, mask=c < channels, other=0.0)
    b = tl.load(shift + c, mask=c < channels, other=0.0)
    value = value * a[None, :] + b[None, :]
    if activate:
        value = value / (1.0 + tl.exp(-value))
    tl.store(out + p[:, None] * out_row + c[None, :], value.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["places"])
def _residual_kernel(
    x,
    y,
    bias,
    sums,
    places,
    row,
    y_row,
    channels,
    rounds: tl.constexpr,
    bp: tl.constexpr,
    bc: tl.constexpr,
):
    """`x += y + bias` in place, and the sums of the new `x` as `_sums_kernel` has them."""
    c = tl.program_id(1) * bc + tl.arange(0, bc)
    first = tl.program_id(0).to(tl.int64) * rounds * bp
    b = tl.load(bias + c, mask=c < channels, other=0.0)
    plain = tl.zeros([bp, bc], tl.float32)
    square = tl.zeros([bp, bc], tl.float32)
    for i in range(rounds):
        p = first + i * bp + tl.arange(0, bp)
        inside = (p[:, None] < places) & (c[None, :] < channels)
        old = tl.load(x + p[:, None] * row + c[None, :], mask=inside, other=0.0).to(tl.float32)
        new = tl.load(y + p[:, None] * y_row + c[None, :], mask=inside, other=0.0).to(tl.float32)
        # The next norm sees the rounded values, so these are what is summed.
        value = (old + (new + b[None, :])).to(x.dtype.element_ty)
        tl.store(x + p[:, None] * row + c[None, :], value, mask=inside)
        kept = tl.where(inside, value.to(tl.float32), 0.0)
        plain += kept
        square += kept * kept
    out = sums + tl.program_id(0).to(tl.int64) * 2 * channels + c
    tl.store(out, tl.sum(plain, axis=0), mask=c < channels)
    tl.store(out + channels, tl.sum(square, axis=0), mask=c < channels)


@triton.jit(do_not_specialize=["places", "width", "depth"])
def _depth_to_space_kernel(
    y,
    bias,
    x,
    out,
    sums,
    places,
    width,
    y_row,
    x_row,
    out_row,
    depth,
    channels,
    repeats: tl.constexpr,
    bp: tl.constexpr,
    bc: tl.constexpr,
):
    """One quarter of a doubled frame: place (r, c) of `y` goes to (2 r + i, 2 c + j), `program_id(2) = 2 i + j`."""
    corner = tl.program_id(2)
    c = tl.program_id(1) * bc + tl.arange(0, bc)
    p = tl.program_id(0).to(tl.int64) * bp + tl.arange(0, bp)
    inside = (p[:, None] < places) & (c[None, :] < channels)
    deep = (depth + corner) * channels + c
    value = tl.load(y + p[:, None] * y_row + deep[None, :], mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + deep, mask=c < channels, other=0.0)[None, :]
    value += tl.load(x + p[:, None] * x_row + (deep // repeats)[None, :], mask=inside, other=0.0).to(tl.float32)
    value = value.to(out.dtype.element_ty)
    at = _in_the_doubled(p, width, corner)
    tl.store(out + at[:, None] * out_row + c[None, :], value, mask=inside)
    kept = tl.where(inside, value.to(tl.float32), 0.0)
    into = sums + (tl.program_id(0).to(tl.int64) * 4 + corner) * 2 * channels + c
    _write_sums_of(kept, into, channels, c < channels)


@triton.jit(do_not_specialize=["places", "width"])
def _space_to_depth_kernel(
    y,
    bias,
    x,
    out,
    sums,
    places,
    width,
    y_row,
    x_row,
    out_row,
    channels,
    group: tl.constexpr,
    bp: tl.constexpr,
    bc: tl.constexpr,
):
    """One quarter of the places of `y`: (2 r + i, 2 c + j) goes to place (r, c), `program_id(2) = 2 i + j`."""
    corner = tl.program_id(2)
    c = tl.program_id(1) * bc + tl.arange(0, bc)
    p = tl.program_id(0).to(tl.int64) * bp + tl.arange(0, bp)
    inside = (p[:, None] < places) & (c[None, :] < channels)
    at = _in_the_doubled(p, width, corner)
    value = tl.zeros([bp, bc], tl.float32)
    for g in tl.static_range(group):
        value += tl.load(x + at[:, None] * x_row + (c * group + g)[None, :], mask=inside, other=0.0).to(tl.float32)
    value = value / group
    value += tl.load(y + at[:, None] * y_row + c[None, :], mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + c, mask=c < channels, other=0.0)[None, :]
    value = value.to(out.dtype.element_ty)
    tl.store(out + p[:, None] * out_row + (corner * channels + c)[None, :], value, mask=inside)
    kept = tl.where(inside, value.to(tl.float32), 0.0)
    into = sums + tl.program_id(0).to(tl.int64) * 8 * channels + corner * channels + c
    _write_sums_of(kept, into, 4 * channels, c < channels)


@triton.jit(do_not_specialize=["count"])
def _affine_kernel(
    sums,
    weight,
    bias,
    offset,
    scale,
    shift,
    count,
    channels,
    size,
    eps: tl.constexpr,
    has_offset: tl.constexpr,
    bs: tl.constexpr,
):
    """One group's factors and summands, fp64 inside; `sums` `[2, channels]` fp64, the others `[channels]` fp32."""
    i = tl.arange(0, bs)
    c = tl.program_id(0) * size + i
    inside = i < size
    n = tl.cast(count, tl.float64)
    plain = tl.load(sums + c, mask=inside, other=0.0)
    square = tl.load(sums + channels + c, mask=inside, other=0.0)
    ahead = tl.zeros([bs], tl.float64)
    if has_offset:
        ahead = tl.load(offset + c, mask=inside, other=0.0).to(tl.float64)
    square += ahead * (2 * plain + n * ahead)
    plain += n * ahead
    values = n * size
    mean = tl.sum(plain, axis=0) / values
    variance = tl.maximum(tl.sum(square, axis=0) / values - mean * mean, 0.0)
    factor = tl.load(weight + c, mask=inside, other=0.0).to(tl.float64) / tl.sqrt(variance + eps)
    added = tl.load(bias + c, mask=inside, other=0.0).to(tl.float64) + (ahead - mean) * factor
    tl.store(scale + c, factor.to(tl.float32), mask=inside)
    tl.store(shift + c, added.to(tl.float32), mask=inside)


def group_affine(
    sums: Tensor, count: int, weight: Tensor, bias: Tensor, offset: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """See `hunyuan.accel.vae.frame_operations.group_affine`."""
    channels = weight.numel()
    size = channels // groups
    scale, shift = (torch.empty(channels, dtype=torch.float32, device=sums.device) for _ in range(2))
    ahead = weight if offset is None else offset  # not read without an offset
    blocks = (count, channels, size, eps, offset is not None, triton.next_power_of_2(size))
    with on_device_of(sums):
        _affine_kernel[(groups,)](sums, weight, bias, ahead, scale, shift, *blocks)
    return scale, shift


def channel_sums(x: Tensor) -> Tensor:
    """See `hunyuan.accel.vae.frame_operations.channel_sums`."""
    places, row, channels = frame_rows(x)
    bc = _columns(channels)
    grid = (triton.cdiv(places, _ROUNDS * _PLACES), triton.cdiv(channels, bc))
    sums = torch.empty((grid[0], 2, channels), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        _sums_kernel[grid](x, sums, places, row, channels, _ROUNDS, _PLACES, bc)
    return sums.sum(0, dtype=torch.float64)


def normalize(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor, activate: bool) -> None:
    """See `hunyuan.accel.vae.frame_operations.normalize`."""
    places, row, channels = frame_rows(x)
    bc = _columns(channels)
    grid = (triton.cdiv(places, _PLACES), triton.cdiv(channels, bc))
    with on_device_of(x):
        _normalize_kernel[grid](x, out, scale, shift, places, row, frame_rows(out)[1], channels, activate, _PLACES, bc)


def add_residual(x: Tensor, y: Tensor, bias: Tensor) -> Tensor:
    """See `hunyuan.accel.vae.frame_operations.add_residual`."""
    places, row, channels = frame_rows(x)
    bc = _columns(channels)
    grid = (triton.cdiv(places, _ROUNDS * _PLACES), triton.cdiv(channels, bc))
    sums = torch.empty((grid[0], 2, channels), dtype=torch.float32, device=x.device)
    with on_device_of(x):
        _residual_kernel[grid](x, y, bias, sums, places, row, frame_rows(y)[1], channels, _ROUNDS, _PLACES, bc)
    return sums.sum(0, dtype=torch.float64)


def depth_to_space(y: Tensor, bias: Tensor, x: Tensor, out: Tensor, frame: int) -> Tensor:
    """See `hunyuan.accel.vae.frame_operations.depth_to_space`."""
    places, y_row, _ = frame_rows(y)
    _, x_row, inputs = frame_rows(x)
    _, out_row, channels = frame_rows(out)
    bc = _columns(channels)
    grid = (triton.cdiv(places, _PLACES), triton.cdiv(channels, bc), 4)
    sums = torch.empty((grid[0] * 4, 2, channels), dtype=torch.float32, device=x.device)
    repeats = bias.numel() // inputs
    sizes = (places, y.shape[-1], y_row, x_row, out_row, 4 * frame, channels)
    with on_device_of(x):
        _depth_to_space_kernel[grid](y, bias, x, out, sums, *sizes, repeats, _PLACES, bc)
    return sums.sum(0, dtype=torch.float64)


def space_to_depth(y: Tensor, bias: Tensor, x: Tensor, out: Tensor) -> Tensor:
    """See `hunyuan.accel.vae.frame_operations.space_to_depth`."""
    _, y_row, channels = frame_rows(y)
    _, x_row, inputs = frame_rows(x)
    places, out_row, _ = frame_rows(out)
    bc = _columns(channels)
    grid = (triton.cdiv(places, _PLACES), triton.cdiv(channels, bc), 4)
    sums = torch.empty((grid[0], 2, 4 * channels), dtype=torch.float32, device=x.device)
    sizes = (places, out.shape[-1], y_row, x_row, out_row, channels)
    with on_device_of(x):
        _space_to_depth_kernel[grid](y, bias, x, out, sums, *sizes, inputs // channels, _PLACES, bc)
    return sums.sum(0, dtype=torch.float64)


def _columns(channels: int) -> int:
    return min(_CHANNELS, triton.next_power_of_2(channels))
