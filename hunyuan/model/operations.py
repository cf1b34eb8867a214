"""The operations between the transformer's weights, in their obviously right form.

This is the reference, on any device and in any dtype. A model computes with `PLAIN` until `use_operations` gives it
another set, which overrides single operations and keeps their meaning; nothing else about the model changes. Knows
tensors and the attention rule; does not know layers, checkpoints or requests. Keeps nothing between two calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from hunyuan.model.attention import Segment, attend, split_heads
from hunyuan.model.rope import apply_rope


def swiglu(x: Tensor) -> Tensor:
    """`[..., 2 * width]` -> `[..., width]`: the first half times the SiLU of the second."""
    up, gate = x.chunk(2, dim=-1)
    return up * nn.functional.silu(gate)


class KeyValueBuffers(Protocol):
    """Where a request keeps its keys and values.

    `write` serves the plain operations, `buffers` fast ones, which write in place.

    Attributes:
        lanes: None: row i of a call is row i of the buffers. While texts of several requests are decoded: int32
            `[rows]` on the device, which row of the buffers each row of the call is.
    """

    lanes: Tensor | None

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v `[rows, tokens, kv_heads, head_dim]` at `start`; returns all up to their end."""
        ...

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        """The whole tensors for keys and values, `[rows, capacity, kv_heads, head_dim]`, not copied.

        A fast set of operations writes into them in place. The last two dimensions are contiguous; rows may lie
        any distance apart. A captured step finds the same memory at every replay.
        """
        ...


@dataclass(frozen=True)
class HeadShape:
    """How the rows of a fused q, k and v projection are shared out."""

    heads: int
    kv_heads: int
    head_dim: int

    @property
    def group(self) -> int:
        """Query heads per key-value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class HeadNorms:
    """Weights `[head_dim]` of the norms on q and on k, and their epsilon."""

    query: Tensor
    key: Tensor
    eps: float


def rms_normalize(x: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum from left to right."""
    out = parts[0]
    for part in parts[1:]:
        out = out + part
    return out


class Operations:
    """What the transformer computes between its weights.

    A position is a Python int where tokens come in stretches. While text is decoded, one token per call, it is an
    int32 tensor on the device, so that a captured step can be replayed with other values in it: `[1]` for all rows, or
    `[rows]`. This plain set reads it on the host and cannot be captured.

    Args:
        router_dtype: fp32, or bf16 as under autocast: the products of the router are then those of bf16 numbers, the
            logits are rounded to bf16, and everything behind them is fp32 in either case.
    """

    name = "plain"

    def __init__(self, router_dtype: torch.dtype = torch.float32) -> None:
        self.router_dtype = router_dtype

    def for_a_few(self, tokens: int) -> AbstractContextManager[None]:
        """Inside, up to `tokens` tokens of a call have the bits that each has alone, where this set can do that."""
        return nullcontext()

    def prepare(self, model: nn.Module) -> None:
        """Called once with the loaded model; may rearrange weights in memory, never their values."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`[..., size]`: `x / rms(x)` in fp32, cast to x's dtype, then times the weight."""
        return weight * rms_normalize(x, eps).to(x.dtype)

    def add(self, x: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        """The residual stream `x` plus the sum of `deltas`, all of one shape."""
        return x + total(deltas)

    def add_rms_norm(self, x: Tensor, deltas: Sequence[Tensor], weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """`add`, and the norm of its result."""
        x = self.add(x, deltas)
        return x, self.rms_norm(x, weight, eps)

    def linear(self, x: Tensor, layer: nn.Module) -> Tensor:
        """`layer` is a matrix without bias, in some number format: `[..., inputs]` -> `[..., outputs]`."""
        return layer(x)

    def logits(self, x: Tensor, weight: Tensor, eps: float, head: nn.Module) -> Tensor:
        """The final norm and the language model's head: `[..., hidden]` -> fp32 `[..., vocab]`."""
        return self.linear(self.rms_norm(x, weight, eps), head).float()

    def swiglu(self, x: Tensor) -> Tensor:
        """`[..., 2 * width]` -> `[..., width]`: the first half times the SiLU of the second."""
        return swiglu(x)

    def route(self, x: Tensor, router: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """`[tokens, hidden]` -> weights fp32 and indices (int32 or int64) `[tokens, topk]`, best first.

        `router` is fp32 `[experts, hidden]`, and its products with x are taken in `router_dtype`. Which of two equal
        experts comes first is not defined.
        """
        logits = nn.functional.linear(x.to(self.router_dtype), router.to(self.router_dtype))
        probabilities = logits.float().softmax(dim=-1)  # [tokens, experts]
        weights, index = probabilities.topk(topk, dim=-1)
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-8), index

    def rope_norm_store(
        self,
        qkv: Tensor,
        shape: HeadShape,
        rope: tuple[Tensor, Tensor],
        norms: HeadNorms | None,
        kv: KeyValueBuffers,
        layer: int,
        start: int | Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Splits the projection, applies RoPE and QK norm, and writes k and v into the buffers from `start`.

        Args:
            qkv: `[rows, tokens, kv_heads * (group + 2) * head_dim]`, per key-value head its q heads, k, v.
            rope: cosines and sines fp32 `[tokens, head_dim]`; both halves of a head have the same angles.
            start: position of the first token; a device tensor while decoding. With a position for each row, rows have
                one token, and `rope` a line for each row.

        Returns:
            q `[rows, tokens, heads, head_dim]`, and keys and values `[rows, stop or more, kv_heads, head_dim]`.
        """
        apart = isinstance(start, Tensor) and len(start) > 1
        q, k, v = split_heads(qkv, shape.heads, shape.kv_heads, shape.head_dim)
        if apart:  # a row's angles as if its token were one of many
            q, k = (apply_rope(t.transpose(0, 1), *rope).transpose(0, 1) for t in (q, k))
        else:
            q, k = (apply_rope(t, *rope) for t in (q, k))
        if norms is not None:
            q, k = self.rms_norm(q, norms.query, norms.eps), self.rms_norm(k, norms.key, norms.eps)
        q, k = q.to(qkv.dtype), k.to(qkv.dtype)
        if not apart and kv.lanes is None:
            return q, *kv.write(layer, int(start), k, v)
        assert isinstance(start, Tensor)
        keys, values = kv.buffers(layer)
        for i, (row, here) in enumerate(_places(len(q), start, kv.lanes)):
            keys[row, here], values[row, here] = k[i, 0], v[i, 0]
        return q, keys, values

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
        """Attention by segments, see `hunyuan.model.attention.attend`."""
        return attend(q, keys, values, segments)

    def decode_attention(
        self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor, lanes: Tensor | None = None
    ) -> Tensor:
        """One query per row at `position` (int32 `[1]` or `[rows]`, on the device), over the keys [0, position].

        q `[rows, 1, heads, head_dim]`, keys and values `[rows, position + 1 or more, kv_heads, head_dim]`
        -> `[rows, 1, heads, head_dim]`. `lanes` as in `KeyValueBuffers`.
        """
        out = []
        for query, (row, here) in zip(q.split(1), _places(len(q), position, lanes), strict=True):
            segment = Segment(here, here + 1, causal=False)
            out.append(attend(query, keys[row : row + 1], values[row : row + 1], [segment]))
        return torch.cat(out)


def _places(rows: int, position: Tensor, lanes: Tensor | None) -> list[tuple[int, int]]:
    """For each row of a decode step its row of the buffers and its token's position there, read on the host."""
    positions = position.expand(rows).tolist()
    return list(zip(range(rows) if lanes is None else lanes.tolist(), positions, strict=True))


PLAIN = Operations()


def use_operations(model: nn.Module, operations: Operations) -> None:
    """Makes every part of `model` that computes with operations use this set; once, before anything runs."""
    operations.prepare(model)
    for module in model.modules():
        if isinstance(getattr(module, "operations", None), Operations):
            setattr(module, "operations", operations)  # noqa: B010 - a module declares its attributes as tensors or modules
