"""How large the demo checkpoint is, and what its small files say.

Hidden and expert widths are multiples of 128 and heads have 128 values, so that one checkpoint serves a CPU and all of
the GPU's kernels. Knows the keys of `config.json` and `generation_config.json`; knows no weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hunyuan.checkpoint import tiny_config
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.config import VaeConfig

SHAPE = TinyShape(
    hidden=256,
    layers=6,
    heads=4,
    kv_heads=2,
    head_dim=128,
    experts=8,
    topk=2,
    expert_width=128,
    base_size=256,
    max_positions=4096,
)

SYSTEM = "You edit pictures."

VAE: dict[str, Any] = {
    "block_out_channels": [32, 64, 128, 128, 128],
    "latent_channels": 64,
    "layers_per_block": 1,
    # One frame in, one frame out: of a 3x3x3 kernel only the middle slice in time ever meets a picture.
    "ffactor_temporal": 1,
}

VIT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_patches": 16,
}
VIT_PATCHES = 16
"""Patches of a source picture that the vision tower sees: 4 by 4 of a square one."""

SYSTEM_PROMPT = f'''"""System prompts of the demo checkpoint, in the layout of the official file."""

unified_system_prompt_en = "{SYSTEM}"

t2i_system_prompts = {{
    "en_vanilla": [unified_system_prompt_en],
    "en_recaption": [unified_system_prompt_en],
    "en_think_recaption": [unified_system_prompt_en],
}}


def get_system_prompt(sys_type, bot_task, system_prompt=None):
    """What the authors' own code asks this file for: the same prompt for everything, or the caller's."""
    return {{"None": None, "custom": system_prompt}}.get(sys_type, unified_system_prompt_en)
'''


def model_config(tokenizer: Tokenizer, scaling: float = 1.0, shift: float = 0.0, **vae: Any) -> dict[str, Any]:
    """`config.json`.

    Args:
        scaling, shift: of the latents, measured after the autoencoder's training.
        vae: sizes of the autoencoder to change.
    """
    config = tiny_config.model_config(SHAPE, tokenizer)
    config |= {"rope_theta": 1000.0, "patch_embed_hidden_dim": 128}
    config["vae"] = config["vae"] | VAE | {"scaling_factor": scaling, "shift_factor": shift} | vae
    config["vit"] = config["vit"] | VIT
    config["vit_processor"] = config["vit_processor"] | {"max_num_patches": VIT_PATCHES}
    config["vit_aligner"] = config["vit_aligner"] | {"input_dim": VIT["hidden_size"]}
    return config


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """`generation_config.json`: the surest word each time, few steps and one row per step, which a CPU thanks.

    More steps than 8 do not bring an answer nearer to the exact edit.
    """
    return tiny_config.generation_config(SHAPE, tokenizer) | {
        "diff_guidance_scale": 1.0,
        "diff_infer_steps": 8,
        "do_sample": False,
    }


def vae_config(**changes: Any) -> VaeConfig:
    """The autoencoder's sizes alone, for its own training: latents are not scaled."""
    return VaeConfig(**{"ffactor_spatial": 16, **VAE, **changes})


def write_small_files(folder: Path, tokenizer: Tokenizer, config: dict[str, Any]) -> CheckpointConfig:
    """Everything of a checkpoint folder but the weights; returns the config that the folder now has."""
    from hunyuan.checkpoint.tiny import SmallFiles
    from hunyuan.checkpoint.tiny import write_small_files as write

    write(folder, SmallFiles(config, generation_config(tokenizer), tokenizer, SYSTEM_PROMPT))
    return CheckpointConfig.from_dict(config)
