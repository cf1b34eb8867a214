"""A bf16 transformer with MXFP4 experts in the layout of the fast path, which a plain loop computes."""

from __future__ import annotations

import torch
from small_model import model_config, noise, randomized, raw_config
from torch import Tensor, nn

from hunyuan.accel.experts.flashinfer import take_stacks
from hunyuan.accel.experts.small_batch import Stacks
from hunyuan.formats.modules import Fp8Linear, Mxfp4Experts
from hunyuan.formats.numbers import quantize_fp8_rows, quantize_mxfp4
from hunyuan.generation.kv_cache import KVCache
from hunyuan.model.config import ModelConfig
from hunyuan.model.moe import experts_loop
from hunyuan.model.transformer import Transformer

SMALL = model_config(
    hidden_size=128, num_attention_heads=4, num_key_value_heads=2, attention_head_dim=32, num_hidden_layers=2,
    num_experts=4, moe_topk=[2, 2], moe_intermediate_size=[128, 128], num_shared_expert=[1, 1],
    vit_aligner={**raw_config()["vit_aligner"], "n_embed": 128},
)  # fmt: skip


class PlainExperts(nn.Module):
    """Has the stacks as FlashInfer's backend has them."""

    def __init__(self, stacks: Stacks) -> None:
        super().__init__()
        self.stacks = stacks

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        return experts_loop(x.float(), weights, index.long(), self.stacks.dequantized).to(x.dtype)


def humming_transformer(config: ModelConfig, dense: str, device: str = "cpu") -> Transformer:
    """`dense` layers in "bf16" or "fp8"."""
    model = randomized(Transformer(config), seed=3).bfloat16()
    for layer in model.layers:
        mlp, attention, plain = layer.mlp, layer.self_attn, layer.mlp.experts
        mlp.gate.wg.float()
        made = Mxfp4Experts(plain.count, plain.hidden, plain.width)
        for name in ("gate_and_up", "down"):
            values, scale = quantize_mxfp4(getattr(plain, f"{name}_proj").float() * 4 * plain.hidden**-0.5)
            made.get_parameter(f"{name}_proj").data, made.get_parameter(f"{name}_scale").data = values, scale
        mlp.experts = PlainExperts(take_stacks(made.to(device), "humming"))
        if dense == "fp8":
            attention.qkv_proj, attention.o_proj = in_fp8(attention.qkv_proj), in_fp8(attention.o_proj)
            shared = mlp.shared_mlp
            shared.gate_and_up_proj, shared.down_proj = in_fp8(shared.gate_and_up_proj), in_fp8(shared.down_proj)
    return model.to(device)


def in_fp8(plain: nn.Linear) -> Fp8Linear:
    layer = Fp8Linear(plain.in_features, plain.out_features)
    layer.weight.data, layer.weight_scale.data = quantize_fp8_rows(plain.weight.float())
    return layer


def filled_cache(config: ModelConfig, capacity: int, device: str = "cpu") -> KVCache:
    """One row of random keys and values."""
    kv = KVCache.allocate(config, 1, capacity, torch.bfloat16, torch.device(device))
    for number, buffer in enumerate((*kv.keys, *kv.values)):
        buffer.copy_(noise(*buffer.shape, seed=number))
    return kv
