"""What one request keeps on the device while it runs: keys and values, and its own random numbers.

The buffers for keys and values may be the request's own or lent by a `KVPool` that outlives it. Knows nothing of the
network but the shape of its heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
        cls,
        config: ModelConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device | Sequence[torch.device],
    ) -> KVCache:
        """New buffers, their contents undefined. `device` is one for all layers or a list with each layer's."""
        shape = (rows, capacity, config.num_key_value_heads, config.attention_head_dim)
        layers = config.num_hidden_layers
        devices = [device] * layers if isinstance(device, torch.device) else list(device)
        if len(devices) != layers:
            raise ValueError(f"{len(devices)} devices for {layers} layers")
        return cls(*([torch.empty(shape, dtype=dtype, device=d) for d in devices] for _ in range(2)))

    @property
    def rows(self) -> int:
        return self.keys[0].shape[0]

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[1]

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's whole keys and values, each `[rows, capacity, kv_heads, head_dim]`."""
        return self.keys[layer], self.values[layer]

    def shares(self, other: KVCache) -> bool:
        """Whether both begin at the same place in memory."""
        return self.keys[0].data_ptr() == other.keys[0].data_ptr()

    def select(self, row: int) -> KVCache:
        """One row, sharing memory with the whole."""
        return self._rows(row, row + 1)

    def first(self, rows: int) -> KVCache:
        """The first rows, sharing memory with the whole."""
        return self if rows == self.rows else self._rows(0, rows)

    def _rows(self, start: int, stop: int) -> KVCache:
        return KVCache([k[start:stop] for k in self.keys], [v[start:stop] for v in self.values])

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


class KVPool:
    """Buffers for one request at a time, allocated once: their addresses never change.

    What a borrower finds in them is whatever the one before left.
    """

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._lent = False

    @contextmanager
    def lend(self) -> Iterator[KVCache]:
        """The buffers, until the end of the `with` block, however that ends.

        Raises:
            RuntimeError: they are lent already.
        """
        if self._lent:
            raise RuntimeError("the key-value buffers are lent to another request; one edit runs at a time")
        self._lent = True
        try:
            yield self.cache
        finally:
            self._lent = False


def bytes_per_token(config: ModelConfig, rows: int, dtype: torch.dtype) -> int:
    """What one more token of capacity costs in keys and values of all layers, in bytes."""
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.attention_head_dim
    return rows * values * dtype.itemsize


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
    for results that do not depend on the device, on the CPU. `text` samples tokens, on the same device.
    """

    def __init__(self, seed: int, device: torch.device, noise_on_cpu: bool) -> None:
        self.device = torch.device("cpu") if noise_on_cpu else device
        self.image = torch.Generator(self.device).manual_seed(seed)
        self.text = torch.Generator(self.device).manual_seed((seed ^ _TEXT_SALT) & _SEED_MASK)

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
