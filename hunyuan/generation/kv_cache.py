"""The KV cache: keys and values of every layer, while a request runs.

The buffers may be the request's own or lent by a `KVPool` that outlives it. Knows nothing of the network but the shape
of its heads and where its layers lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hunyuan.model.config import ModelConfig
from hunyuan.model.network import HunyuanImage3


class KVCache:
    """Keys and values of every layer for `rows` sequences of up to `capacity` tokens.

    Per layer one tensor for keys and one for values, `[rows, capacity, kv_heads, head_dim]`. Writing a position
    again replaces it in place, as the denoising steps do with the image's tokens.

    Attributes:
        lanes: which rows a call means, see `hunyuan.model.operations.KeyValueBuffers`; None: all, in order.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], lanes: Tensor | None = None) -> None:
        self.keys, self.values, self.lanes = keys, values, lanes

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
        keys, values = ([torch.empty(shape, dtype=dtype, device=d) for d in devices] for _ in range(2))
        return cls(keys, values)

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

    def laned(self, lanes: Tensor | None) -> KVCache:
        """The same memory for a call whose rows are the rows `lanes` here."""
        return KVCache(self.keys, self.values, lanes)

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


def layer_devices(model: HunyuanImage3) -> Sequence[torch.device]:
    """Where each layer lies, and with it its keys and values."""
    return [next(layer.parameters()).device for layer in model.model.layers]


def buffers(model: HunyuanImage3, rows: int, capacity: int, lent: KVCache | None) -> KVCache:
    """The lent buffers where they are large enough, else new ones where the model's layers lie."""
    if lent is not None and rows <= lent.rows and capacity <= lent.capacity:
        return lent.first(rows)
    return KVCache.allocate(model.config, rows, capacity, model.dtype, layer_devices(model))


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
