"""The router in Triton: logits with fp32 weights, softmax, the best experts, weights normalized over them.

Tokens are bf16, exactly. A fp32 weight is the sum of three bf16 numbers (8 + 8 + 8 bits of its 24), so three bf16
products, each exact in fp32, make up the fp32 product; what is left is the rounding of the sum over `hidden`, which
the plain form has too. So both choose alike unless two logits agree to about 1e-6 of their size; of equal ones this
takes the expert with the lower number. One token, or a few, are multiplied in fp32 directly.

Routing in bf16 takes the first of the three numbers, which is the weight rounded to bf16, and rounds the logits. Many
of them are then equal, and the lower number decides.
Importing this file needs Triton.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hunyuan.accel.kernels.gemv import gemv
from hunyuan.accel.kernels.launch import INTERPRETED, on_device_of
from hunyuan.accel.kernels.overlap import take_turn, turns

_TOKENS = 64  # tokens of one program: 8,240 are one round on 132 multiprocessors
_DEPTH = 64


@triton.jit
def _in_bf16(x):
    """fp32 rounded to the nearest bf16 number, ties to even; by its bits, as Triton's interpreter cuts off instead."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
    # The sum could carry what is no number into the sign.
    return tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)  # noqa: PLR0124


@triton.jit
def _choose(
    logits, token, inside, weights, index, topk: tl.constexpr, slots: tl.constexpr, experts: tl.constexpr,
    columns: tl.constexpr,
):  # fmt: skip
    """Writes the best of `logits` `[tokens, columns]`, of which the first `experts` count."""
    c = tl.arange(0, columns)[None, :]
    logits = tl.where(c < experts, logits, float("-inf"))
    probs = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    probs = probs / tl.sum(probs, axis=1)[:, None]
    probs = tl.where(c < experts, probs, -1.0)
    slot = tl.arange(0, slots)[None, :]
    best = tl.zeros([logits.shape[0], slots], tl.float32)
    chosen = tl.zeros([logits.shape[0], slots], tl.int32)
    for k in tl.static_range(topk):
        top = tl.max(probs, axis=1)[:, None]
        where = tl.min(tl.where(probs == top, c, columns), axis=1)[:, None]
        best = tl.where(slot == k, top, best)
        chosen = tl.where(slot == k, where, chosen)
        probs = tl.where(c == where, -1.0, probs)
    best = best / tl.maximum(tl.sum(best, axis=1), 1e-8)[:, None]
    target = token.to(tl.int64)[:, None] * topk + slot
    inside = inside[:, None] & (slot < topk)
    tl.store(weights + target, best, mask=inside)
    tl.store(index + target, chosen, mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def _route_kernel(
    x, parts, weights, index, tokens, hidden: tl.constexpr, experts: tl.constexpr, columns: tl.constexpr,
    topk: tl.constexpr, slots: tl.constexpr, exact: tl.constexpr, rows: tl.constexpr, depth: tl.constexpr,
    wide: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * rows + tl.arange(0, rows)
    inside = token < tokens
    e, d = tl.arange(0, columns), tl.arange(0, depth)
    xs = x + token.to(tl.int64)[:, None] * hidden + d[None, :]
    ws = parts + e[None, :] * hidden + d[:, None]
    known = (e < experts)[None, :]
    high = tl.zeros([rows, columns], tl.float32)
    low = tl.zeros([rows, columns], tl.float32)
    for k in range(0, hidden, depth):
        deep = d < hidden - k
        value = tl.load(xs + k, mask=inside[:, None] & deep[None, :], other=0.0)
        used = known & deep[:, None]
        one = tl.load(ws + k, mask=used, other=0.0)
        if wide:
            value, one = value.to(tl.float32), one.to(tl.float32)
        high = tl.dot(value, one, high, input_precision="ieee")
        if exact:
            two = tl.load(ws + experts * hidden + k, mask=used, other=0.0)
            three = tl.load(ws + 2 * experts * hidden + k, mask=used, other=0.0)
            if wide:
                two, three = two.to(tl.float32), three.to(tl.float32)
            low = tl.dot(value, two, low, input_precision="ieee")
            low = tl.dot(value, three, low, input_precision="ieee")
    logits = high + low if exact else _in_bf16(high)
    _choose(logits, token, inside, weights, index, topk, slots, experts, columns)


@triton.jit
def _choose_kernel(
    logits, weights, index, experts: tl.constexpr, columns: tl.constexpr, topk: tl.constexpr, slots: tl.constexpr,
    exact: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    take_turn(pdl)
    token = tl.program_id(0) + tl.arange(0, 1)
    c = tl.arange(0, columns)[None, :]
    values = tl.load(logits + token[:, None] * experts + c, mask=c < experts, other=0.0)
    values = values if exact else _in_bf16(values)
    _choose(values, token, token >= 0, weights, index, topk, slots, experts, columns)


def split_weight(router: Tensor) -> Tensor:
    """fp32 `[experts, hidden]` as three bf16 numbers each, whose sum it is: `[3, experts, hidden]`."""
    parts, rest = [], router.float()
    for _ in range(3):
        parts.append(rest.bfloat16())
        rest = rest - parts[-1].float()
    return torch.stack(parts)


def route(
    x: Tensor, router: Tensor, parts: Tensor, topk: int, dtype: torch.dtype = torch.float32, few: int = 1
) -> tuple[Tensor, Tensor]:
    """Chooses `topk` experts per token.

    Args:
        x: bf16 `[tokens, hidden]`.
        router: fp32 `[experts, hidden]`, and `parts` what `split_weight` makes of it.
        dtype: of the products and logits, fp32 or bf16.
        few: up to so many tokens are multiplied one by one, with the same bits whatever is beside them.

    Returns:
        weights fp32 and indices int32 `[tokens, topk]`, best first.
    """
    (tokens, hidden), experts = x.shape, len(router)
    if tokens <= few:
        return choose(gemv(x, router if dtype == torch.float32 else parts[0], None, torch.float32), topk, dtype)
    weights, index, sizes = _choice(x, experts, topk, dtype)
    with on_device_of(x):
        _route_kernel[(triton.cdiv(tokens, _TOKENS),)](
            x.contiguous(), parts, weights, index, tokens, hidden=hidden, rows=_TOKENS, depth=_DEPTH, **sizes,
            wide=INTERPRETED, num_warps=4, num_stages=4,
        )  # fmt: skip
    return weights, index


def choose(logits: Tensor, topk: int, dtype: torch.dtype = torch.float32, pdl: bool = False) -> tuple[Tensor, Tensor]:
    """The second half of `route`, from fp32 `logits` `[tokens, experts]`."""
    weights, index, sizes = _choice(logits, logits.shape[1], topk, dtype)
    with on_device_of(logits):
        _choose_kernel[(len(logits),)](logits, weights, index, **sizes, **turns(pdl), num_warps=1)
    return weights, index


def _choice(x: Tensor, experts: int, topk: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Where the choice for each row of x goes, and the kernels' sizes."""
    weights = torch.empty(len(x), topk, dtype=torch.float32, device=x.device)
    index = torch.empty(len(x), topk, dtype=torch.int32, device=x.device)
    columns, slots = max(16, triton.next_power_of_2(experts)), triton.next_power_of_2(topk)
    exact = dtype == torch.float32
    return weights, index, {"experts": experts, "columns": columns, "topk": topk, "slots": slots, "exact": exact}
