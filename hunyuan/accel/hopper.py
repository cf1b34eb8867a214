"""The operations on kernels for Hopper GPUs: Triton's of this package, FlashAttention 3, fp8 on tensor cores.

For a bf16 model. Importing this file needs Triton; whoever chooses the set does so, nobody else. Holds tables made
from weights, and nothing of a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hunyuan.accel.kernels import qkv as qkv_kernel
from hunyuan.accel.kernels import routing, rows
from hunyuan.accel.kernels.decode_attention import CUT, Cut, decode_attention
from hunyuan.accel.kernels.fp8_attention import flashinfer_block
from hunyuan.accel.kernels.gemv import gemv
from hunyuan.accel.kernels.segment_attention import flashinfer_attend, sdpa_attend
from hunyuan.formats.fp8_attention import BlockAttention, attend_block, attend_last_block
from hunyuan.formats.modules import Fp8Linear
from hunyuan.model.attention import Segment
from hunyuan.model.embeddings import FinalLayer, PatchEmbed, channels_last
from hunyuan.model.moe import Router
from hunyuan.model.operations import HeadNorms, HeadShape, KeyValueBuffers, Operations


class HopperOperations(Operations):
    """The fast set.

    Args:
        attention: "fa3" (FlashInfer must be installed and hold the compiled module) or "sdpa".
        fp8_attention: denoising's attention in fp8; without "fa3" in its plain, slow form.
        cut: how decode attention is shared out among programs.
        router_dtype: as in `Operations`.

    Raises:
        ImportError: "fa3" without FlashInfer.
    """

    name = "hopper"

    def __init__(
        self,
        attention: str = "fa3",
        cut: Cut = CUT,
        router_dtype: torch.dtype = torch.float32,
        fp8_attention: bool = False,
    ) -> None:
        super().__init__(router_dtype)
        self.attention, self.cut = f"{attention}, fp8" if fp8_attention else attention, cut
        self.few = 1
        self._attend = flashinfer_attend() if attention == "fa3" else sdpa_attend
        self.fp8_block: BlockAttention | None = None
        if fp8_attention:
            self.fp8_block = flashinfer_block() if attention == "fa3" else attend_block
        self._router_parts: dict[int, tuple[Tensor, Tensor]] = {}  # by id, which holds while the weight is kept

    @contextmanager
    def for_a_few(self, tokens: int) -> Iterator[None]:
        """Inside, up to `tokens` tokens are multiplied one by one: none's result depends on those beside it."""
        before, self.few = self.few, tokens
        try:
            yield
        finally:
            self.few = before

    def prepare(self, model: nn.Module) -> None:
        """Splits the routers' weights; lays the patch layers' convolutions out with channels last."""
        for module in model.modules():
            if isinstance(module, Router):
                self._parts(module.wg.weight)
            elif isinstance(module, PatchEmbed | FinalLayer):
                channels_last(module)

    def _parts(self, router: Tensor) -> Tensor:
        known = self._router_parts.get(id(router))
        if known is None or known[1].device != router.device:  # layers may move to another GPU
            known = self._router_parts[id(router)] = router, routing.split_weight(router.detach())
        return known[1]

    def router_weight(self, router: Tensor) -> Tensor:
        """The router's weight in the dtype in which one token is multiplied by it: fp32, or bf16 of the same values."""
        return router if self.router_dtype == torch.float32 else self._parts(router)[0]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _norm_of(rows.add_norm(x, [], weight, eps))

    def add(self, x: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        return rows.add_norm(x, deltas, None)[0]

    def add_rms_norm(self, x: Tensor, deltas: Sequence[Tensor], weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        both = rows.add_norm(x, deltas, weight, eps)
        return both[0], _norm_of(both)

    def linear(self, x: Tensor, layer: nn.Module) -> Tensor:
        return self._linear(x, layer, x.dtype)

    def _linear(self, x: Tensor, layer: nn.Module, out_dtype: torch.dtype) -> Tensor:
        few = x.numel() <= self.few * x.shape[-1]
        if isinstance(layer, Fp8Linear):
            if few:
                return gemv(x, layer.weight, layer.weight_scale, out_dtype)
            return fp8_linear(x, layer.weight, layer.weight_scale).to(out_dtype)
        if not isinstance(layer, nn.Linear) or layer.bias is not None:
            raise TypeError(f"no fast form of {layer}")
        if few:
            return gemv(x, layer.weight, None, out_dtype)
        return linear(x, layer.weight).to(out_dtype)

    def logits(self, x: Tensor, weight: Tensor, eps: float, head: nn.Module) -> Tensor:
        return self._linear(self.rms_norm(x, weight, eps), head, torch.float32)

    def swiglu(self, x: Tensor) -> Tensor:
        return rows.swiglu(x)

    def route(self, x: Tensor, router: Tensor, topk: int) -> tuple[Tensor, Tensor]:
        return routing.route(x, router, self._parts(router), topk, self.router_dtype, self.few)

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
        keys, values = kv.buffers(layer)
        return qkv_kernel.rope_norm_store(qkv, shape, rope, norms, keys, values, start, lanes=kv.lanes), keys, values

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, segments: Sequence[Segment]) -> Tensor:
        if self.fp8_block is None:
            return self._attend(q, keys, values, segments)
        return attend_last_block(self._attend, self.fp8_block, q, keys, values, segments)

    def decode_attention(
        self, q: Tensor, keys: Tensor, values: Tensor, position: Tensor, lanes: Tensor | None = None
    ) -> Tensor:
        return decode_attention(q, keys, values, position, self.cut, lanes=lanes)


def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`x @ weight.T` in fp8 on tensor cores, x quantized with one scale per token.

    Args:
        x: bf16 `[..., inputs]`.
        weight: float8_e4m3fn `[outputs, inputs]`, with fp32 `scale` `[outputs]`. Both sizes divisible by 16.

    Returns:
        bf16 `[..., outputs]`.
    """
    tokens, scales = rows.quantize(x.reshape(-1, x.shape[-1]))  # [tokens, inputs], [tokens, 1]
    out = torch._scaled_mm(
        tokens, weight.t(), scale_a=scales, scale_b=scale[None], out_dtype=torch.bfloat16, use_fast_accum=True
    )
    return out.view(*x.shape[:-1], len(weight))


def _norm_of(both: tuple[Tensor, Tensor | None]) -> Tensor:
    if both[1] is None:
        raise ValueError("no norm was asked for")
    return both[1]
