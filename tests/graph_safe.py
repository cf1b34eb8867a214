"""Plain torch stand-ins for the fast backends: slow, but no part of a decode step waits for the device.

With them a tiny model's decode step can be captured as a CUDA graph without any compiled kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

from hunyuan.model.attention import split_heads
from hunyuan.model.moe import Experts
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import HeadNorms, HeadShape, KeyValueBuffers, Operations, use_operations
from hunyuan.model.rope import apply_rope


class GraphSafeOperations(Operations):
    """The eager set, except that a position on the device stays there."""

    name = "graph safe"

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
        if not isinstance(start, Tensor):
            return super().rope_norm_store(qkv, shape, rope, norms, kv, layer, start)
        q, k, v = split_heads(qkv, shape.heads, shape.kv_heads, shape.head_dim)
        q, k = (apply_rope(t, *rope) for t in (q, k))
        if norms is not None:
            q, k = self.rms_norm(q, norms.query, norms.eps), self.rms_norm(k, norms.key, norms.eps)
        keys, values = kv.buffers(layer)
        keys.index_copy_(1, start.long(), k.to(qkv.dtype))
        values.index_copy_(1, start.long(), v.to(qkv.dtype))
        return q.to(qkv.dtype), keys, values

    def decode_attention(
        self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor, lanes: Tensor | None = None
    ) -> Tensor:
        seen = (torch.arange(keys.shape[1], device=q.device) <= position)[None]  # [1, capacity]
        q, keys, values = (t.transpose(1, 2) for t in (q, keys, values))  # [rows, heads, tokens, head_dim]
        group = q.shape[1] // keys.shape[1]
        keys, values = (t.repeat_interleave(group, dim=1) for t in (keys, values))
        return scaled_dot_product_attention(q, keys, values, attn_mask=seen).transpose(1, 2)


class EveryExpert(nn.Module):
    """Runs all experts for all tokens and weighs the ones that were not chosen with 0."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.gate_and_up, self.down = experts.gate_and_up_proj, experts.down_proj

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        up, gate = torch.einsum("th,ewh->tew", x, self.gate_and_up).chunk(2, dim=-1)  # [tokens, experts, width]
        out = torch.einsum("tew,ehw->teh", up * silu(gate), self.down)  # [tokens, experts, hidden]
        share = torch.zeros(*out.shape[:2], device=x.device).scatter(1, index, weights)  # [tokens, experts]
        return (out * share[..., None]).sum(dim=1).to(x.dtype)


def make_graph_safe(model: HunyuanImage3) -> None:
    """Exchanges the operations of a loaded model with bf16 or fp32 experts."""
    use_operations(model, GraphSafeOperations())
    layers: Sequence[nn.Module] = list(model.model.layers)
    for layer in layers:
        mlp = layer.mlp
        if isinstance(getattr(mlp, "experts", None), Experts):
            mlp.experts = EveryExpert(mlp.experts)
