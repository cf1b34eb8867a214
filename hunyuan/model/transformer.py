"""The decoder stack: attention and mixture-of-experts blocks (spec sections 5 to 7).

Holds weights and no request state: keys and values go into buffers that the caller owns. Does not know
tokens, images or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from hunyuan.model.attention import Segment, attend
from hunyuan.model.config import ModelConfig
from hunyuan.model.linear import dense_linear
from hunyuan.model.moe.layer import GatedMlp, MoE
from hunyuan.model.rope import apply_rope


class KeyValueBuffers(Protocol):
    """Where a request keeps its keys and values."""

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v `[rows, tokens, kv_heads, head_dim]` at `start`; returns all up to their end."""
        ...


class RMSNorm(nn.Module):
    """`x / rms(x)` in fp32, cast to x's dtype, then times the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * rms_normalise(x, self.eps).to(x.dtype)


def rms_normalise(x: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + eps)


class SelfAttention(nn.Module):
    """Grouped-query attention: rotary embedding first, then a norm per head on q and k."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.attention_head_dim
        width, dense = (self.heads + 2 * self.kv_heads) * self.head_dim, config.dense_format
        self.qkv_proj = dense_linear(config.hidden_size, width, dense)
        self.o_proj = dense_linear(self.heads * self.head_dim, config.hidden_size, dense)
        norm = config.use_qk_norm
        self.query_layernorm = RMSNorm(self.head_dim, config.rms_norm_eps) if norm else None
        self.key_layernorm = RMSNorm(self.head_dim, config.rms_norm_eps) if norm else None

    def split_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The projection's rows lie per kv head: its group of q heads, then its k, then its v."""
        rows, tokens, _ = x.shape
        group = self.heads // self.kv_heads
        qkv = self.qkv_proj(x).view(rows, tokens, self.kv_heads, group + 2, self.head_dim)
        q = qkv[:, :, :, :group].reshape(rows, tokens, self.heads, self.head_dim)
        return q, qkv[:, :, :, group], qkv[:, :, :, group + 1]

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], kv: KeyValueBuffers, layer: int, segments: Sequence[Segment]
    ) -> Tensor:  # [rows, tokens, hidden] -> the same
        q, k, v = self.split_qkv(x)  # [rows, tokens, heads or kv_heads, head_dim]
        q, k = (apply_rope(t, *rope) for t in (q, k))
        if self.query_layernorm is not None and self.key_layernorm is not None:
            q, k = self.query_layernorm(q), self.key_layernorm(k)
        keys, values = kv.write(layer, segments[0].start, k.to(x.dtype), v)
        out = attend(q.to(x.dtype), keys, values, segments)
        return self.o_proj(out.reshape(*x.shape[:2], self.heads * self.head_dim))


class DecoderLayer(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _feed_forward(config, layer)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], kv: KeyValueBuffers, segments: Sequence[Segment]
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rope, kv, self.layer, segments)
        return x + self.mlp(self.post_attention_layernorm(x))


def _feed_forward(config: ModelConfig, layer: int) -> nn.Module:
    if not config.is_moe(layer):
        return GatedMlp(config.hidden_size, config.intermediate_size, config.dense_format)
    return MoE(
        config.hidden_size,
        config.moe_intermediate_size[layer],
        config.num_experts[layer],
        config.moe_topk[layer],
        config.num_shared_expert[layer] if config.use_mixed_mlp_moe else 0,
        config.expert_formats[layer],
        config.dense_format,
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
            The residual stream `[rows, tokens, hidden]`, not normalised.
        """
        for layer in self.layers:
            x = layer(x, rope, kv, segments)
        return x
