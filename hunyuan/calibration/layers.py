"""Hidden states through one layer after the other, with only that layer's weights in memory.

Everything but the experts runs as it is. Knows how a layer is put together and where its weights lie; what is done with
its experts is `experts.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from hunyuan.calibration.experts import Matrices, Routed
from hunyuan.calibration.sequences import RequestSpan
from hunyuan.checkpoint.adapters.merge import Adapters
from hunyuan.checkpoint.folder import OpenWeights
from hunyuan.checkpoint.load import drop_part, load_part
from hunyuan.model.moe import MoE
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.transformer import DecoderLayer


class LayerKeys:
    """The keys and values of one layer and one request; a later span writes over an earlier one's."""

    lanes: Tensor | None = None

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.keys, self.values

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        stop = start + k.shape[1]
        self.keys[:, start:stop], self.values[:, start:stop] = k, v
        return self.keys[:, :stop], self.values[:, :stop]


class LayerRunner:
    """Runs the layers of a folder's network.

    Args:
        model: without memory for its layers' weights.
        held: the numbers of the requests that only measure.
    """

    def __init__(
        self,
        model: HunyuanImage3,
        weights: OpenWeights,
        adapters: Adapters,
        spans: Sequence[RequestSpan],
        held: frozenset[int],
    ) -> None:
        self.model, self.weights, self.adapters, self.spans = model, weights, adapters, spans
        self.shards = weights.where()
        self.dtype, self.device = model.dtype, model.device
        tokens = spans[-1].rows.stop
        self.requests = torch.empty(tokens, dtype=torch.int64, device=self.device)
        for span in spans:
            self.requests[span.rows] = span.request
        self.held = torch.isin(self.requests, torch.tensor(sorted(held), device=self.device))

    def is_moe(self, layer: int) -> bool:
        return self.model.config.is_moe(layer)

    @torch.inference_mode()
    def before_experts(self, layer: int, hidden: Tensor) -> Routed | None:
        """Attention and shared MLP of a layer, added to `hidden` `[tokens, hidden]`; what its experts get, if any."""
        prefix = f"model.layers.{layer}."

        def wanted(name: str) -> bool:
            return name.startswith(prefix) and ".experts." not in name

        load_part(self.model, self.weights, self.adapters, wanted, self.device, self.dtype)
        try:
            return self._run(cast(DecoderLayer, self.model.model.layers[layer]), hidden)
        finally:
            drop_part(self.model, wanted)

    def _run(self, block: DecoderLayer, hidden: Tensor) -> Routed | None:
        self._attend(block, hidden)
        normed = torch.empty_like(hidden)
        feed_forward = block.mlp
        chosen = []
        for span in self.spans:
            x = block.post_attention_layernorm(hidden[span.rows])
            if not isinstance(feed_forward, MoE):
                hidden[span.rows] += feed_forward(x)
                continue
            normed[span.rows] = x
            chosen.append(feed_forward.operations.route(x, feed_forward.gate.wg.weight, feed_forward.topk))
            if feed_forward.shared_mlp is not None:
                hidden[span.rows] += feed_forward.shared_mlp(x)
        if not chosen:
            return None
        weights, index = (torch.cat(part) for part in zip(*chosen, strict=True))
        return Routed(normed, weights, index, self.held, self.requests)

    def _attend(self, block: DecoderLayer, hidden: Tensor) -> None:
        shape = block.self_attn.shape
        capacity = max(span.stop for span in self.spans)
        kv = LayerKeys((1, capacity, shape.kv_heads, shape.head_dim), self.dtype, self.device)
        for span in self.spans:
            x = block.input_layernorm(hidden[span.rows])[None]
            out = block.self_attn(x, span.tokens.rope, kv, block.layer, span.tokens.segments)
            hidden[span.rows] += out[0]

    def expert(self, layer: int, number: int) -> Matrices:
        """An expert's two matrices in 16 or 32 bits, on the device; adapters are in them."""
        first, second = (
            self._read(f"model.layers.{layer}.mlp.experts.{number}.{name}_proj.weight")
            for name in ("gate_and_up", "down")
        )
        return first, second

    def _read(self, key: str) -> Tensor:
        return self.adapters.merged(key, self.shards[key].tensor(key).to(self.device))
