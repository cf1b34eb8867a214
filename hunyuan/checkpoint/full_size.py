"""The published model's sizes as a `config.json`, for those who have no checkpoint folder at hand.

Knows the published numbers (docs/model.md). Vocabulary and texts are the tiny checkpoint's, but for their count. Reads
no files and makes no weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hunyuan.checkpoint import tiny_config, tiny_tokenizer
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.formats.config import QUANT_METHOD, QUANT_VERSION

FULL_SHAPE = TinyShape(
    hidden=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    experts=64,
    topk=8,
    expert_width=3072,
    base_size=1024,
    max_positions=22800,
    torch_dtype="bfloat16",
)
VOCABULARY = 133_120
_VAE = {
    "block_out_channels": [128, 256, 512, 1024, 1024],
    "latent_channels": 32,
    "layers_per_block": 2,
    "scaling_factor": 0.562679178327931,
}
_VIT = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "num_patches": 256,
}


def full_size_config(
    layers: int = 32, experts: str | list[str] = "mxfp4", dense: str = "bf16", distil: bool = False
) -> dict[str, Any]:
    """`config.json` of the real model with that many layers.

    Args:
        experts: how the experts are stored, bf16, fp8 or mxfp4, or a list of one word per layer.
        dense: bf16 or fp8: attention, shared MLP and lm_head.
    """
    shape = replace(FULL_SHAPE, layers=layers, distil=distil)
    raw = tiny_config.model_config(shape, tiny_tokenizer.build_tokenizer())
    raw |= {"vocab_size": VOCABULARY, "patch_embed_hidden_dim": 1024, "vae": {**raw["vae"], **_VAE}}
    raw |= {"vit": {**raw["vit"], **_VIT}, "vit_aligner": {**raw["vit_aligner"], "input_dim": _VIT["hidden_size"]}}
    raw["vit_processor"] = {**raw["vit_processor"], "max_num_patches": 1024}
    if experts != "bf16" or dense != "bf16":
        quantization = {"quant_method": QUANT_METHOD, "version": QUANT_VERSION, "experts": experts, "dense": dense}
        raw["quantization_config"] = quantization
    return raw
