"""What one request keeps on the device while it runs: keys and values, and its own random numbers.

Knows nothing of the network but the shape of its heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

import torch
from torch import Tensor

from hunyuan.model.config import ModelConfig

_TEXT_SALT = 0x5DEECE66D  # any constant: text draws must not repeat the image's draws
_SEED_MASK = (1 << 63) - 1
_BLOCK = 16


class KVCache:
    """Keys and values of every layer for `rows` sequences of up to `capacity` tokens.

    Per layer one tensor for keys and one for values, `[rows, capacity, kv_heads, head_dim]`. Writing a position
    again replaces it in place, as the denoising steps do with the image's tokens.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor]) -> None:
        self.keys, self.values = keys, values

    @classmethod
    def allocate(
        cls, config: ModelConfig, rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> KVCache:
        shape = (rows, capacity, config.num_key_value_heads, config.attention_head_dim)
        layers = range(config.num_hidden_layers)
        return cls(*([torch.empty(shape, dtype=dtype, device=device) for _ in layers] for _ in range(2)))

    @property
    def rows(self) -> int:
        return self.keys[0].shape[0]

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[1]

    def select(self, row: int) -> KVCache:
        """One row, sharing memory with the whole."""
        return KVCache([k[row : row + 1] for k in self.keys], [v[row : row + 1] for v in self.values])

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v `[rows, tokens, kv_heads, head_dim]` from `start`; returns everything up to their end."""
        stop = start + k.shape[1]
        self.keys[layer][:, start:stop] = k
        self.values[layer][:, start:stop] = v
        return self.keys[layer][:, :stop], self.values[layer][:, :stop]

    def copy_prefix(self, source: KVCache, length: int) -> None:
        """Takes over the first `length` positions of a one-row cache into every row."""
        for ours, theirs in zip(self.keys + self.values, source.keys + source.values, strict=True):
            ours[:, :length] = theirs[:, :length]


def shared_prefix(first: Sequence[int], second: Sequence[int], *block_lists: Iterable[tuple[int, int]]) -> int:
    """How many leading tokens of two sequences can share keys and values.

    Equal ids at equal positions give equal keys, but an image block's tokens also depend on the rest of the
    block: the prefix ends before any block of `block_lists` that it does not hold whole.
    """
    pairs = zip(first, second, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    for start, stop in sorted(block for blocks in block_lists for block in blocks):
        if start < length < stop:
            return start
    return length


class RequestRandom:
    """The random numbers of one request, all from its one seed (spec section 17).

    `image` draws the condition images' posteriors in order and then the initial noise, on the model's device or,
    for results that do not depend on the device, on the CPU. `text` samples tokens.
    """

    def __init__(self, seed: int, device: torch.device, noise_on_cpu: bool) -> None:
        self.device = torch.device("cpu") if noise_on_cpu else device
        self.image = torch.Generator(self.device).manual_seed(seed)
        self.text = torch.Generator(device).manual_seed((seed ^ _TEXT_SALT) & _SEED_MASK)

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal values of `shape` in `dtype`, drawn on this request's noise device."""
        shape = tuple(shape)
        if self.device.type == "cpu" and dtype != torch.float32:
            return half_normal_on_cpu(shape, dtype, self.image).to(device)
        # A GPU draws 16-bit values as fp32 and rounds them.
        return torch.randn(shape, generator=self.image, device=self.device).to(dtype).to(device)


def half_normal_on_cpu(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """What recent versions of `torch.randn` draw in a 16-bit dtype on the CPU; torch 2.10 draws other values.

    It works in fp32 blocks of 16. When the last block is short, a whole new one is drawn and laid over the
    last 16 places.
    """
    size = prod(shape)
    if size < _BLOCK:
        return torch.randn(shape, generator=generator).to(dtype)
    whole = -(-size // _BLOCK) * _BLOCK
    values = torch.randn(whole, generator=generator)
    return torch.cat([values[: size - _BLOCK], values[whole - _BLOCK :]]).to(dtype).view(shape)
