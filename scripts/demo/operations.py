"""A differentiable set of operations, so that the product's own network can be trained in whole sequences.

The product runs a sequence in stretches against a cache of keys and values. In training all of it runs at once, for
many samples, with an attention rule that gives every token the same keys. Also the experts as two large products
(every expert for every token, weighted by the router), with the product's parameters. Knows the layers' contract
(the `Operations` class); knows no tokens and no losses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from hunyuan.model.attention import Segment, split_heads
from hunyuan.model.operations import HeadNorms, HeadShape, KeyValueBuffers, Operations, rms_normalize

BLOCK = 128  # FlexAttention's tiles
MOST_CONDS = 2
TILES = [f"{full}{side}_{what}" for full in ("", "full_") for side in ("kv", "q") for what in ("num_blocks", "indices")]
"""What a block mask says of its tiles, by the names of its attributes."""


@dataclass
class Rule:
    """Which keys each query sees, for batches of one number of source pictures.

    A sequence is `room` tokens of prefix, padded at the end, then `copies` stretches of `stretch` tokens, each the
    timestep token and the image's, which see the prefix and themselves but no other copy. A source's tokens see each
    other, the other prefix tokens only what is before them. What changes from batch to batch is in tensors, so that
    compiled code stays valid.

    Attributes:
        length: int32 `[n]`, real tokens of each prefix.
        conds: int32 `[2, 2]`, first and last + 1 of each source's tokens; equal where there is none.
        area: int32 `[1]`, real image tokens of a copy.
        blocks: FlexAttention's block mask, with the tiles of `latest`.
    """

    room: int
    stretch: int
    copies: int
    length: Tensor
    conds: Tensor
    area: Tensor
    blocks: BlockMask | None = None
    latest: BlockMask | None = None

    @classmethod
    def create(cls, count: int, room: int, stretch: int, copies: int, device: torch.device) -> Rule:
        length, conds, area = (
            torch.zeros(*shape, dtype=torch.int32, device=device) for shape in ((count,), (MOST_CONDS, 2), (1,))
        )
        return cls(room, stretch, copies, length, conds, area)

    @property
    def tokens(self) -> int:
        return self.room + self.copies * self.stretch

    def set(self, length: Tensor, conds: Tensor, area: int, tiles: BlockMask | None = None) -> None:
        """Takes over one batch; from the device's own tensors, because the GPU waits for none of them.

        Args:
            tiles: what `tiles` gives for batches like this one; only FlexAttention reads them.
        """
        self.length.copy_(length)
        self.conds.copy_(conds)
        self.area.fill_(area)
        if tiles is None or tiles is self.latest:
            return
        if self.blocks is None:
            self.blocks = copy.copy(tiles)
            for name in TILES:
                setattr(self.blocks, name, getattr(tiles, name).clone())
        for name in TILES:  # compiled code knows the mask's tensors: what is in them changes
            getattr(self.blocks, name).copy_(getattr(tiles, name))
        self.latest = tiles

    def visible(self, sample: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether each query sees each key; the four indices broadcast."""
        early_query, early_key = query < self.room, key < self.room
        together = torch.zeros_like(query + key, dtype=torch.bool)
        for cond in range(MOST_CONDS):
            first, last = self.conds[cond, 0], self.conds[cond, 1]
            together = together | (query >= first) & (query < last) & (key >= first) & (key < last)
        prefix = early_query & early_key & ((key <= query) | together)
        known = ~early_query & early_key & (key < self.length[sample])
        q, k = query - self.room, key - self.room
        own = ~early_query & ~early_key & (q // self.stretch == k // self.stretch)
        place_q, place_k = q % self.stretch, k % self.stretch
        own = own & ((place_k == 0) | ((place_q > 0) & (place_k <= self.area[0])))
        return prefix | known | own

    def dense(self) -> Tensor:
        """The rule as a mask, bool `[n, 1, tokens, tokens]`."""
        index = torch.arange(self.tokens, device=self.length.device)
        sample = torch.arange(len(self.length), device=index.device)[:, None, None]
        return self.visible(sample, sample, index[:, None], index)[:, None]

    def tiles(self, conds: Tensor, area: int) -> BlockMask:
        """FlexAttention's tiles for batches that paint `area` tokens, their sources at `conds`, on the CPU.

        Where every query sees every key in all of these batches, the kernel need not ask token by token; where none
        does, it leaves the tile out. Only the lengths differ among them: a text ends behind its last source, or later.
        """
        shortest, longest = (self._seen(length, conds, area) for length in (int(conds[:, 1].max()), self.room))
        full = shortest.all(3).all(1)  # [rows, columns]
        part = longest.any(3).any(1) & ~full
        device = self.length.device
        asked, whole = ([x.to(device) for x in _ordered(kind)] for kind in (part, full))
        return BlockMask.from_kv_blocks(
            *(asked[0], asked[1], whole[0], whole[1]),
            BLOCK_SIZE=BLOCK,
            mask_mod=self.visible,
            seq_lengths=(self.tokens, self.tokens),
        )

    def _seen(self, length: int, conds: Tensor, area: int) -> Tensor:
        """What is seen in a batch of such texts, bool `[rows, BLOCK, columns, BLOCK]`."""
        alike = replace(self, length=torch.tensor([length]), conds=conds, area=torch.tensor([area]))
        fill = -self.tokens % BLOCK
        seen = F.pad(alike.dense()[0, 0], (0, fill, 0, fill))
        return seen.unflatten(1, (-1, BLOCK)).unflatten(0, (-1, BLOCK))


def _ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles of each row are set, int32 `[1, 1, rows]`, and these first, int32 `[1, 1, rows, columns]`."""
    places = tiles.int().argsort(dim=1, descending=True, stable=True)
    return tiles.sum(1, dtype=torch.int32)[None, None], places.int()[None, None]


class TrainingOperations(Operations):
    """Whole sequences, differentiable: nothing is written into buffers.

    Attributes:
        rule: of the current batch; its `dense()` mask or its blocks are set beside it by `use`.
        balance: the balance loss of the router that ran last, a scalar.
    """

    name = "training"

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None
        self.blocks: BlockMask | None = None
        self.balance = torch.zeros(())

    def use(self, rule: Rule, flex: bool) -> None:
        """Attention by `rule` from now on."""
        self.blocks, self.mask = (rule.blocks, None) if flex else (None, rule.dense())

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
        """As the contract says, but `rope` is fp32 `[rows, tokens, 1, head_dim]` and all keys are these tokens'."""
        q, k, v = split_heads(qkv, shape.heads, shape.kv_heads, shape.head_dim)
        q, k = (turned(t, *rope) for t in (q, k))
        if norms is not None:
            q = norms.query * rms_normalize(q, norms.eps)
            k = norms.key * rms_normalize(k, norms.eps)
        return q.to(qkv.dtype), k.to(qkv.dtype), v

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
        """By the rule in use; `segments` is not read."""
        q, keys, values = (t.transpose(1, 2) for t in (q, keys, values))
        if self.blocks is not None:
            out = cast(Tensor, flex_attention(q, keys, values, block_mask=self.blocks, enable_gqa=True))
        else:
            out = F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask, enable_gqa=True)
        return out.transpose(1, 2)

    def route(self, x: Tensor, router: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        """As the contract says; leaves the balance loss (Shazeer et al., 2017) behind: 1 for an even load."""
        with torch.autocast(x.device.type, enabled=False):
            share = F.linear(x.float(), router).softmax(dim=-1)
        weights, index = top(share, topk)
        load = torch.zeros_like(share).scatter(1, index, 1.0).mean(0) / topk
        self.balance = share.shape[1] * (load * share.mean(0)).sum()
        return weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-8), index


def top(share: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `topk`, of few columns: one maximum after the other joins the softmax's kernel, which `topk` does not."""
    left, places = share.detach(), torch.arange(share.shape[1], device=share.device)
    index: list[Tensor] = []
    for _ in range(count):
        best = left.argmax(dim=-1, keepdim=True)
        left = torch.where(places == best, -1.0, left)
        index.append(best)
    chosen = torch.cat(index, dim=-1)  # [tokens, count]
    return share.gather(-1, chosen), chosen


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding with angles per sample: x `[rows, tokens, heads, dim]`, cos `[rows, tokens, 1, dim]`."""
    x = x.float()
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class DenseExperts(nn.Module):
    """All experts for all tokens in two products; takes the shape and the parameters' names of the product's stack."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        up, down = experts.get_parameter("gate_and_up_proj"), experts.get_parameter("down_proj")
        self.gate_and_up_proj = nn.Parameter(torch.empty_like(up))  # [experts, 2 * width, hidden]
        self.down_proj = nn.Parameter(torch.empty_like(down))  # [experts, hidden, width]

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        """`x` `[tokens, hidden]`, `weights` and `index` `[tokens, topk]` -> `[tokens, hidden]`."""
        count, hidden, width = self.down_proj.shape
        up, gate = F.linear(x, self.gate_and_up_proj.view(-1, hidden)).view(-1, count, 2, width).unbind(2)
        share = torch.zeros(len(x), count, dtype=weights.dtype, device=x.device).scatter(1, index, weights)
        inner = (up * F.silu(gate) * share[..., None].to(up.dtype)).reshape(-1, count * width)
        return F.linear(inner, self.down_proj.permute(1, 0, 2).reshape(hidden, -1))
