"""One Triton kernel from the fused q, k and v projection to q and the key-value buffers.

Takes the projection apart, turns q and k, norms them per head, and writes k and v where they stay. All in fp32
between reading and writing. Importing this file needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hunyuan.accel.kernels.launch import on_device_of
from hunyuan.accel.kernels.overlap import take_turn, turns
from hunyuan.model.operations import HeadNorms, HeadShape

_TOKENS = 8  # tokens that one program takes, of one key-value head


@triton.jit
def _rope_and_norm(first, second, cos, sin, weight, eps, at, norm: tl.constexpr, half: tl.constexpr):
    """Two halves `[tokens, half]` of a head; `at` `[1, half]` are the columns of the first."""
    one = first * cos - second * sin
    two = second * cos + first * sin
    if norm:
        mean = (tl.sum(one * one, axis=1) + tl.sum(two * two, axis=1)) / (2 * half)
        scale = (1.0 / tl.sqrt(mean + eps))[:, None]
        one = one * scale * tl.load(weight + at).to(tl.float32)
        two = two * scale * tl.load(weight + half + at).to(tl.float32)
    return one, two


@triton.jit(do_not_specialize=["start", "tokens", "count"])
def _rope_norm_store_kernel(
    qkv, cos, sin, q_weight, k_weight, q, keys, values, start, start_at, lanes, tokens, count,
    key_row, key_token, value_row, value_token, eps, from_device: tl.constexpr, apart: tl.constexpr,
    laned: tl.constexpr, norm: tl.constexpr, kv_heads: tl.constexpr, group: tl.constexpr, half: tl.constexpr,
    block: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """`block` tokens of one key-value head; `count` is rows * tokens."""
    take_turn(pdl)
    head = tl.program_id(1)
    place = tl.program_id(0) * block + tl.arange(0, block)
    inside = (place < count)[:, None]
    row, token = (place // tokens).to(tl.int64), place % tokens
    position = (token + (tl.load(start_at + row if apart else start_at) if from_device else start)).to(tl.int64)
    at = tl.arange(0, half)[None, :]

    angle = (row if apart else token)[:, None] * (2 * half) + at
    c = tl.load(cos + angle, mask=inside, other=0.0)
    s = tl.load(sin + angle, mask=inside, other=0.0)
    source = qkv + (place.to(tl.int64)[:, None] * kv_heads + head) * ((group + 2) * 2 * half) + at
    target = q + (place.to(tl.int64)[:, None] * kv_heads + head) * (group * 2 * half) + at
    for i in tl.static_range(group):
        first = tl.load(source + i * 2 * half, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(source + (2 * i + 1) * half, mask=inside, other=0.0).to(tl.float32)
        first, second = _rope_and_norm(first, second, c, s, q_weight, eps, at, norm, half)
        tl.store(target + i * 2 * half, first.to(q.dtype.element_ty), mask=inside)
        tl.store(target + (2 * i + 1) * half, second.to(q.dtype.element_ty), mask=inside)

    if laned:
        row = tl.load(lanes + row).to(tl.int64)
    source += group * 2 * half
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    first, second = _rope_and_norm(first, second, c, s, k_weight, eps, at, norm, half)
    target = keys + (row * key_row + position * key_token)[:, None] + head * 2 * half + at
    tl.store(target, first.to(keys.dtype.element_ty), mask=inside)
    tl.store(target + half, second.to(keys.dtype.element_ty), mask=inside)

    target = values + (row * value_row + position * value_token)[:, None] + head * 2 * half + at
    tl.store(target, tl.load(source + 2 * half, mask=inside, other=0.0), mask=inside)
    tl.store(target + half, tl.load(source + 3 * half, mask=inside, other=0.0), mask=inside)


def rope_norm_store(
    qkv: Tensor,
    shape: HeadShape,
    rope: tuple[Tensor, Tensor],
    norms: HeadNorms | None,
    keys: Tensor,
    values: Tensor,
    start: int | Tensor,
    pdl: bool = False,
    lanes: Tensor | None = None,
) -> Tensor:
    """Writes k and v into the buffers from position `start` and returns q `[rows, tokens, heads, head_dim]`.

    Args:
        qkv: `[rows, tokens, kv_heads * (group + 2) * head_dim]`.
        rope: fp32 `[tokens, head_dim]`; the first half of the columns is used, the second holds the same.
        keys, values: `[rows, capacity, kv_heads, head_dim]`, the last two dimensions contiguous.
        start: an int, or an int32 tensor on the device: `[1]`, or `[rows]` with one token and one line of `rope` a row.
        pdl: begin while the launch before ends, see `overlap.py`.
        lanes: int32 `[rows]` on the device, each row's row of the buffers; None: its own number.

    Raises:
        ValueError: positions past the buffers' capacity (not seen for a tensor), or buffers laid out otherwise.
    """
    rows, tokens, _ = qkv.shape
    _check_buffers(shape, rows if lanes is None else len(keys), keys, values)
    known, apart = isinstance(start, int), isinstance(start, Tensor) and len(start) > 1
    if apart and tokens > 1:
        raise ValueError(f"{tokens} tokens a row where each row has a position of its own")
    if known and start + tokens > keys.shape[1]:
        raise ValueError(f"{tokens} tokens from position {start} do not fit into buffers of {keys.shape[1]}")
    qkv, (cos, sin) = qkv.contiguous(), (t.contiguous() for t in rope)
    q = torch.empty(rows, tokens, shape.heads, shape.head_dim, dtype=qkv.dtype, device=qkv.device)
    block = _TOKENS if known else 1  # not by the number of tokens: a length never seen before would compile a kernel
    with on_device_of(qkv):
        _rope_norm_store_kernel[(triton.cdiv(rows * tokens, block), shape.kv_heads)](
            qkv, cos, sin, cos if norms is None else norms.query, cos if norms is None else norms.key, q, keys, values,
            start if known else 0, cos if known else start, cos if lanes is None else lanes, tokens, rows * tokens,
            *keys.stride()[:2], *values.stride()[:2], 0.0 if norms is None else norms.eps,
            from_device=not known, apart=apart, laned=lanes is not None, norm=norms is not None,
            kv_heads=shape.kv_heads, group=shape.group, half=shape.head_dim // 2, block=block,
            num_warps=4 if block > 1 else 1, **turns(pdl),
        )  # fmt: skip
    return q


def _check_buffers(shape: HeadShape, rows: int, keys: Tensor, values: Tensor) -> None:
    for buffer in (keys, values):
        expected = (rows, buffer.shape[1], shape.kv_heads, shape.head_dim)
        if buffer.shape != expected or buffer.stride()[2:] != (shape.head_dim, 1):
            raise ValueError(f"a key-value buffer is {tuple(buffer.shape)} with strides {buffer.stride()}")
