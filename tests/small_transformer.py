"""A transformer of the golden checkpoint's size with random weights, and buffers that it has filled."""

from __future__ import annotations

import torch
from small_model import model_config, noise, randomized
from torch import Tensor

from hunyuan.generation.kv_cache import KVCache
from hunyuan.model.attention import split_segments
from hunyuan.model.rope import positions_2d, rope_table
from hunyuan.model.transformer import Transformer

CPU = torch.device("cpu")


def small_transformer(**changes: object) -> Transformer:
    return randomized(Transformer(model_config(**changes)))


def prefilled(model: Transformer, rows: int = 2, tokens: int = 9) -> tuple[KVCache, Tensor]:
    """Buffers with `tokens` tokens in them, and one token more for each row."""
    config, dtype = model_config(), model.wte.weight.dtype
    kv = KVCache.allocate(config, rows, 16, dtype, CPU)
    x = noise(rows, tokens + 1, config.hidden_size).to(dtype)
    model(x[:, :tokens], rope_of(0, tokens), kv, split_segments(0, tokens, [(2, 6)]))
    return kv, x[:, tokens:]


def rope_of(start: int, stop: int) -> tuple[Tensor, Tensor]:
    config = model_config()
    return rope_table(positions_2d(start, stop, []), config.attention_head_dim, config.rope_theta)
