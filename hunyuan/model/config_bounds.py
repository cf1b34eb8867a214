"""The largest numbers that a checkpoint's `config.json` may hold, far above those of every published model.

Looked at before anything is made of them: a billion layers would be a list of a billion entries before the weight
files, which do not have them, are opened. Knows names and numbers; what they mean is in `config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hunyuan.errors import CheckpointError

_WIDTH = 1 << 16
MOST = {
    "hidden_size": _WIDTH,
    "attention_head_dim": _WIDTH,
    "intermediate_size": _WIDTH,
    "moe_intermediate_size": _WIDTH,
    "patch_embed_hidden_dim": _WIDTH,
    "vae_downsample_factor": 256,
    "num_hidden_layers": 512,
    "num_experts": 4096,
    "moe_topk": 4096,
    "num_shared_expert": 4096,
    "moe_layer_num_skipped": 512,
    "num_attention_heads": 4096,
    "num_key_value_heads": 4096,
    "max_position_embeddings": 1 << 20,
    "image_base_size": 4096,
    "vocab_size": 1 << 22,
    "vae.block_out_channels": _WIDTH,
    "vae.in_channels": 64,
    "vae.out_channels": 64,
    "vae.latent_channels": _WIDTH,
    "vae.layers_per_block": 16,
    "vae.ffactor_spatial": 256,
    "vae.ffactor_temporal": 256,
    "vit.hidden_size": _WIDTH,
    "vit.intermediate_size": _WIDTH,
    "vit.num_channels": 64,
    "vit.num_patches": _WIDTH,
    "vit.num_hidden_layers": 512,
    "vit.num_attention_heads": 4096,
    "vit.patch_size": 256,
    "vit_processor.max_num_patches": 1 << 14,
    "vit_aligner.input_dim": _WIDTH,
    "vit_aligner.n_embed": _WIDTH,
    "vit_aligner.depth": 64,
}
"""By path in the file: of the number, or of each in a list."""
MOST_EXPERTS = 1 << 14  # of all layers together
MOST_ENTRIES = 512  # of a list


def check_bounds(raw: Mapping[str, Any]) -> None:
    """Raises one `CheckpointError` naming every number and list that is beyond its bound."""
    problems = []
    for path, most in MOST.items():
        value = _value(raw, path)
        if isinstance(value, list) and len(value) > MOST_ENTRIES:
            problems.append(f"{path}: a list of {len(value)}; at most {MOST_ENTRIES} are allowed")
            continue
        large = [n for n in (value if isinstance(value, list) else [value]) if type(n) is int and abs(n) > most]
        if large:
            problems.append(f"{path}: {str(large[0])[:40]}; at most {most} is allowed")
    experts = raw.get("num_experts")
    layers = raw.get("num_hidden_layers")
    if not problems and type(layers) is int:
        every = experts[:layers] if isinstance(experts, list) else [experts] * layers
        total = sum(n for n in every if type(n) is int)
        if total > MOST_EXPERTS:
            problems.append(f"num_experts: {total} in {layers} layers together; at most {MOST_EXPERTS} are allowed")
    if problems:
        raise CheckpointError("config.json: " + "; ".join(problems[:20]))


def _value(raw: Mapping[str, Any], path: str) -> Any:
    value: Any = raw
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
