"""One token through the decoder stack in eleven or twelve launches per layer: `Transformer.decode` for fast operations.

The same weights, buffers and roundings. Norms are computed by the products behind them, SwiGLU and the residual sums by
those before. The shared MLP's products stand between the experts', so that none of the four reads what the launch
before it writes, and its weights are on their way when its turn comes (`kernels/overlap.py`). Needs MXFP4 experts and
a GPU that `hopper.py` is for; holds weights and no request's state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from hunyuan.accel.experts.streamed import DEFAULT, Streamed, Units
from hunyuan.accel.hopper import HopperOperations
from hunyuan.accel.kernels import qkv as qkv_kernel
from hunyuan.accel.kernels import routing
from hunyuan.accel.kernels.choosing import FusedStep
from hunyuan.accel.kernels.decode_attention import decode_attention
from hunyuan.accel.kernels.projection import Norm, Rows, project
from hunyuan.formats.modules import Fp8Linear
from hunyuan.formats.numbers import FP8
from hunyuan.generation.decoding import DecodeStep
from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.workspace import StepMaker, text_forward
from hunyuan.model.moe import MoE
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.operations import KeyValueBuffers
from hunyuan.model.transformer import DecoderLayer, RMSNorm, Transformer


@dataclass(frozen=True)
class Cuts:
    """How the products of a layer are shared out; None: as `project` does by itself.

    Attributes:
        rows: by name, "qkv", "o", "router", "gate_and_up", "down", "lm_head".
        experts: of both products of the experts.
    """

    rows: dict[str, Rows]
    experts: tuple[Units, Units] = DEFAULT


# The fastest on an H100 at the real sizes with dense layers in fp8 (docs/kernels.md, bench_token.py).
FP8_CUTS = Cuts(
    rows={
        "qkv": Rows(8, 8),
        "o": Rows(2, 2),
        "router": Rows(2, 4),
        "gate_and_up": Rows(2, 4),
        "down": Rows(8, 8),
        "lm_head": Rows(4, 4),
    },
    experts=(Units(2, 2), Units(8, 4, 4)),
)


class FusedDecoding:
    """Call it as `Transformer.decode`, with one row.

    Args:
        pdl: each launch may begin while the one before it ends.

    Raises:
        TypeError: a layer that is not attention and a mixture of MXFP4 experts with a shared MLP, all without a bias.
    """

    def __init__(
        self, model: Transformer, operations: HopperOperations, cuts: Cuts | None = None, pdl: bool = False
    ) -> None:
        self.operations, self.cuts, self.pdl = operations, cuts or Cuts({}), pdl
        self.layers = [cast(DecoderLayer, layer) for layer in model.layers]
        for each in (matrix for layer in self.layers for matrix in _dense(layer)):
            _matrix(each)  # raises here, not in the first token
        self.experts = [Streamed(_stacks(layer), self.cuts.experts, pdl) for layer in self.layers]

    def __call__(self, x: Tensor, rope: tuple[Tensor, Tensor], kv: KeyValueBuffers, position: Tensor) -> Tensor:
        """`x` `[1, 1, hidden]` and its `rope` `[1, head_dim]` at `position` int32 `[1]`: `[1, 1, hidden]`.

        Raises:
            ValueError: more than one row.
        """
        if x.shape[:2] != (1, 1):
            raise ValueError(f"one token of one row at a time, not {tuple(x.shape[:2])}")
        x = x.reshape(1, -1)  # [1, hidden]
        for layer, experts in zip(self.layers, self.experts, strict=True):
            x = self._attention(layer, x, rope, kv, position)
            x = self._feed_forward(layer, x, experts)
        return x[None]

    def _attention(
        self, layer: DecoderLayer, x: Tensor, rope: tuple[Tensor, Tensor], kv: KeyValueBuffers, position: Tensor
    ) -> Tensor:
        part, (keys, values) = layer.self_attn, kv.buffers(layer.layer)
        qkv = self._project("qkv", x, part.qkv_proj, norm=_norm(layer.input_layernorm))  # [1, qkv]
        q = qkv_kernel.rope_norm_store(
            qkv[None], part.shape, rope, part.norms(), keys, values, position, self.pdl
        )  # [1, 1, heads, head_dim]
        out = decode_attention(q, keys, values, position, self.operations.cut, self.pdl)
        return self._project("o", out.view(1, -1), part.o_proj, residual=x)

    def _feed_forward(self, layer: DecoderLayer, x: Tensor, experts: Streamed) -> Tensor:
        block, normed = cast(MoE, layer.mlp), torch.empty_like(x)
        assert block.shared_mlp is not None
        norm = layer.post_attention_layernorm
        router = self.operations.router_weight(block.gate.wg.weight)
        logits = project(
            x,
            router,
            norm=_norm(norm, normed),
            out_dtype=torch.float32,
            rows=self.cuts.rows.get("router"),
            pdl=self.pdl,
        )  # [1, experts]
        weights, index = routing.choose(logits, block.topk, self.operations.router_dtype, self.pdl)
        inner = self._project("gate_and_up", x, block.shared_mlp.gate_and_up_proj, norm=_norm(norm), gated=True)
        h = experts.first_product(normed, index, early=True)
        shared = self._project("down", inner, block.shared_mlp.down_proj)
        return experts.second_product(h, weights, index, early=True, added=(x, shared))

    def _project(self, name: str, x: Tensor, layer: nn.Module, **around: Any) -> Tensor:
        weight, scale = _matrix(layer)
        return project(x, weight, scale, rows=self.cuts.rows.get(name), pdl=self.pdl, **around)


def fused_decode(model: HunyuanImage3) -> FusedDecoding:
    """The decoder stack as the engine decodes by it. Raises as `FusedDecoding` and `fused_steps` do."""
    cuts = FP8_CUTS if _matrix(model.lm_head)[0].dtype == FP8 else Cuts({}, FP8_CUTS.experts)
    return FusedDecoding(model.model, cast(HopperOperations, model.operations), cuts, pdl=True)


def fused_steps(model: HunyuanImage3) -> StepMaker:
    """Makes what `workspace.plain_step` makes, in fused launches that overlap, the choice of the token in one.

    Raises:
        TypeError: see `FusedDecoding`; or the head is of no kind that `project` takes.
        ValueError: sizes that the experts' kernels do not divide.
    """
    head, norm, decode = _matrix(model.lm_head), _norm(model.model.ln_f), fused_decode(model)
    rows = decode.cuts.rows

    def logits(hidden: Tensor) -> Tensor:  # [hidden] -> [vocab]
        return project(hidden, *head, norm=norm, out_dtype=torch.float32, rows=rows.get("lm_head"), pdl=True)

    def step(kv: KVCache) -> DecodeStep:
        forward = text_forward(model, kv, decode, logits)
        return FusedStep(forward, model.config.vocab_size, kv.capacity, model.device)

    return step


def _norm(norm: RMSNorm, out: Tensor | None = None) -> Norm:
    return Norm(norm.weight, norm.eps, out)


def _dense(layer: DecoderLayer) -> list[nn.Module]:
    shared = layer.mlp.shared_mlp if isinstance(layer.mlp, MoE) else None
    mlp = [] if shared is None else [shared.gate_and_up_proj, shared.down_proj]
    return [layer.self_attn.qkv_proj, layer.self_attn.o_proj, *mlp]


def _matrix(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    if isinstance(layer, Fp8Linear):
        return layer.weight, layer.weight_scale
    if not isinstance(layer, nn.Linear) or layer.bias is not None:
        raise TypeError(f"no fast form of {layer}")
    return layer.weight, None


def _stacks(layer: DecoderLayer) -> Any:
    """The experts' weights as FlashInfer's backend holds them."""
    if not isinstance(layer.mlp, MoE) or layer.mlp.shared_mlp is None:
        raise TypeError(f"layer {layer.layer} is no mixture of experts with a shared MLP")
    stacks = getattr(layer.mlp.experts, "stacks", None)
    if stacks is None or not stacks.packed:
        raise TypeError(f"layer {layer.layer} has no MXFP4 experts in the humming layout")
    return stacks
