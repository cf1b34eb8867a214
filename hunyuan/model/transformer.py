"""The decoder stack: attention and mixture-of-experts blocks (docs/model.md, sections 5 to 7).

Holds weights and no request state: keys and values go into buffers that the caller owns. What happens between the
weights is a set of operations that can be exchanged (`hunyuan.model.operations`, with the contract for the buffers).
Does not know tokens, images or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn, ones

from hunyuan.model.attention import Segment
from hunyuan.model.config import ModelConfig
from hunyuan.model.moe import GatedMlp, MoE
from hunyuan.model.operations import PLAIN, HeadNorms, HeadShape, KeyValueBuffers, Operations

# Which tokens a call runs: stretches at positions that the host knows, or, while decoding, the position of each
# row's one token, int32 on the device, [1] for all rows or [rows].
Positions = Sequence[Segment] | Tensor


class RMSNorm(nn.Module):
    """`x / rms(x)` in fp32, cast to x's dtype, then times the weight."""

    operations: Operations = PLAIN

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.operations.rms_norm(x, self.weight, self.eps)


class SelfAttention(nn.Module):
    """Grouped-query attention: rotary embedding first, then a norm per head on q and k."""

    operations: Operations = PLAIN

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.shape = HeadShape(config.num_attention_heads, config.num_key_value_heads, config.attention_head_dim)
        inner = self.shape.heads * self.shape.head_dim
        width = inner + 2 * self.shape.kv_heads * self.shape.head_dim
        self.qkv_proj: nn.Module = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj: nn.Module = nn.Linear(inner, config.hidden_size, bias=False)
        norm = config.use_qk_norm
        self.query_layernorm = RMSNorm(self.shape.head_dim, config.rms_norm_eps) if norm else None
        self.key_layernorm = RMSNorm(self.shape.head_dim, config.rms_norm_eps) if norm else None

    def norms(self) -> HeadNorms | None:
        query, key = self.query_layernorm, self.key_layernorm
        return None if query is None or key is None else HeadNorms(query.weight, key.weight, query.eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], kv: KeyValueBuffers, layer: int, positions: Positions
    ) -> Tensor:  # [rows, tokens, hidden] -> the same
        ops, start = self.operations, positions if isinstance(positions, Tensor) else positions[0].start
        qkv = ops.linear(x, self.qkv_proj)
        q, keys, values = ops.rope_norm_store(qkv, self.shape, rope, self.norms(), kv, layer, start)
        if isinstance(positions, Tensor):
            out = ops.decode_attention(q, keys, values, positions, kv.lanes)
        else:
            out = ops.attend(q, keys, values, positions)
        return ops.linear(out.flatten(2), self.o_proj)


@dataclass
class NextNorm:
    """Hands the norm of the residual stream from one layer to the next, so that it can be fused with the add.

    Attributes:
        norm: the norm that follows the layer; None after the last one.
        normed: its result, once the layer has run; what the layer itself begins with, before.
    """

    norm: RMSNorm | None = None
    normed: Tensor | None = None


class DecoderLayer(nn.Module):
    """Pre-norm residual block."""

    operations: Operations = PLAIN

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _feed_forward(config, layer)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        kv: KeyValueBuffers,
        positions: Positions,
        following: NextNorm | None = None,
    ) -> Tensor:  # [rows, tokens, hidden] -> the same
        ops, following = self.operations, NextNorm() if following is None else following
        normed = self.input_layernorm(x) if following.normed is None else following.normed
        attention = self.self_attn(normed, rope, kv, self.layer, positions)
        norm = self.post_attention_layernorm
        x, normed = ops.add_rms_norm(x, [attention], norm.weight, norm.eps)
        deltas = self.mlp.parts(normed)
        if following.norm is None:
            return ops.add(x, deltas)
        x, following.normed = ops.add_rms_norm(x, deltas, following.norm.weight, following.norm.eps)
        return x


def _feed_forward(config: ModelConfig, layer: int) -> GatedMlp | MoE:
    if not config.is_moe(layer):
        return GatedMlp(config.hidden_size, config.intermediate_size)
    return MoE(
        config.hidden_size,
        config.moe_intermediate_size[layer],
        config.num_experts[layer],
        config.moe_topk[layer],
        config.num_shared_expert[layer] if config.use_mixed_mlp_moe else 0,
    )


class Transformer(nn.Module):
    """Token embedding, the layers, and the final norm, which only text logits use."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.ln_f = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], kv: KeyValueBuffers, segments: Sequence[Segment]
    ) -> Tensor:
        """Runs the tokens of `segments` through all layers.

        Args:
            x: embeddings `[rows, tokens, hidden]` of consecutive tokens.
            rope: cosines and sines `[tokens, head_dim]`, fp32.
            kv: holds the keys and values of all earlier tokens; those of these tokens are written into it.

        Returns:
            The residual stream `[rows, tokens, hidden]`, not normalized.
        """
        return self._run(x, rope, kv, segments)

    def decode(self, x: Tensor, rope: tuple[Tensor, Tensor], kv: KeyValueBuffers, position: Tensor) -> Tensor:
        """Runs one token per row through all layers; fast operations wait for nothing on the way.

        Args:
            x: embeddings `[rows, 1, hidden]`.
            rope: cosines and sines, fp32, `[1, head_dim]` or a line for each row.
            kv: holds the keys and values of the positions before; this token's are written at `position`.
            position: int32 `[1]` or `[rows]` on x's device. The plain operations read it on the host.

        Returns:
            The residual stream `[rows, 1, hidden]`, not normalized.
        """
        return self._run(x, rope, kv, position)

    def _run(self, x: Tensor, rope: tuple[Tensor, Tensor], kv: KeyValueBuffers, positions: Positions) -> Tensor:
        norms = [cast(DecoderLayer, layer).input_layernorm for layer in self.layers]
        following = NextNorm()
        for layer, following.norm in zip(self.layers, [*norms[1:], None], strict=True):
            x = layer(x, rope, kv, positions, following)
        return x
