"""What an engine keeps on the device between requests: key-value buffers and the captured decode step.

Made once, after the weights and the backends are in their final place; a request borrows it. Knows the network's
`decode` and how much memory a token costs. Holds no request's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hunyuan.generation.decode_graph import DecodeStep, Forward, GraphedDecoder
from hunyuan.generation.state import KVCache, KVPool, bytes_per_token
from hunyuan.model.config import ModelConfig
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.rope import positions_2d, rope_table

_CAPACITY_STEP = 64


@dataclass(frozen=True)
class Workspace:
    """An engine's buffers.

    Attributes:
        decoder: works on the pool's first row; None: text is decoded token by token from the host.
    """

    pool: KVPool
    decoder: GraphedDecoder | None = None

    @classmethod
    def create(cls, model: HunyuanImage3, capacity: int, fast_decode: bool = True) -> Workspace:
        """Allocates and, on a GPU, captures.

        Args:
            capacity: tokens per row; a request that needs more allocates buffers of its own.
            fast_decode: the layers' decode path may be captured: no part of it waits for the device. Without
                effect for a model spread over several devices, whose steps no single graph holds.
        """
        config, devices = model.config, layer_devices(model)
        pool = KVPool(KVCache.allocate(config, rows_needed(config), capacity, model.dtype, devices))
        for buffer in pool.cache.keys + pool.cache.values:
            buffer.zero_()  # a kernel may weigh keys and values behind the text's end with 0, and 0 * nan is nan
        if not fast_decode or len(set(devices)) > 1:
            return cls(pool)
        forward = text_forward(model, pool.cache.select(0))
        return cls(pool, GraphedDecoder(DecodeStep(forward, config.vocab_size, capacity, model.device)))


def rows_needed(config: ModelConfig) -> int:
    """A distilled checkpoint has no unguided row."""
    return 1 if config.cfg_distilled else 2


def layer_devices(model: HunyuanImage3) -> Sequence[torch.device]:
    """Where each layer lies, and with it its keys and values."""
    return [next(layer.parameters()).device for layer in model.model.layers]


def fitting_capacity(config: ModelConfig, dtype: torch.dtype, free_bytes: int) -> int:
    """Tokens per row that fit into `free_bytes`: at most the checkpoint's longest sequence, possibly 0."""
    fitting = free_bytes // bytes_per_token(config, rows_needed(config), dtype)
    if fitting >= config.max_position_embeddings:
        return config.max_position_embeddings
    return max(0, fitting) // _CAPACITY_STEP * _CAPACITY_STEP


def text_forward(model: HunyuanImage3, kv: KVCache) -> Forward:
    """The network's side of a decode step, on a one-row cache; without a wait for the device."""
    config = model.config
    # Generated text stands on the diagonal at its own index, whatever images came before it.
    positions = positions_2d(0, kv.capacity, []).to(model.device)
    cos, sin = rope_table(positions, config.attention_head_dim, config.rope_theta)  # [capacity, head_dim]

    def forward(token: Tensor, position: Tensor) -> Tensor:
        x = model.embed_tokens(token)[None]  # [1, 1, hidden]
        rope = (cos.index_select(0, position), sin.index_select(0, position))  # [1, head_dim] each
        hidden = model.model.decode(x, rope, kv, position)  # [1, 1, hidden]
        return model.logits(hidden[0, -1])

    return forward
