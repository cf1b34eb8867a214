"""What a tiny checkpoint's small files say: its sizes, `config.json`, `generation_config.json` and the system prompts.

Knows the official keys (docs/model.md, sections 2, 3 and 16) and which sizes fit together. Knows no weights and writes
no files.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from tokenizers import Tokenizer

from hunyuan.checkpoint.tiny_tokenizer import IMAGE_SIZES
from hunyuan.errors import CheckpointError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_GROUP_NORM_GROUPS = 32

SYSTEM_PROMPT = '''"""System prompts of a tiny checkpoint, in the layout of the official file."""

t2i_system_prompt_en_vanilla = """
Make the picture that is described.
"""

t2i_system_prompt_en_recaption = """
Describe the wanted picture in one sentence of your own, then make it.
"""

t2i_system_prompt_en_think_recaption = """
First think about what is wanted, then describe the picture in one sentence, then make it.
"""

t2i_system_prompts = {
    "en_vanilla": [t2i_system_prompt_en_vanilla],
    "en_recaption": [t2i_system_prompt_en_recaption],
    "en_think_recaption": [t2i_system_prompt_en_think_recaption],
}

unified_system_prompt_en = (
    "You look at pictures and make new ones.\\n"
    "Think about the request, describe the result, and make it."
)
'''


@dataclass(frozen=True)
class TinyShape:
    """The sizes one may choose; all others are fixed at small values.

    Attributes:
        expert_width: F, the inner width of one expert.
        base_size: side of a square output in pixels.
        distil: true makes the Distil variant (docs/model.md, section 18).
        torch_dtype: what config.json tells a loader to compute in.

    Raises:
        CheckpointError: the sizes do not fit together; the message names them.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    experts: int = 8
    topk: int = 2
    expert_width: int = 32
    base_size: int = 256
    max_positions: int = 16384
    distil: bool = False
    torch_dtype: str = "float32"

    def __post_init__(self) -> None:
        sizes = ["layers", "heads", "kv_heads", "topk", "expert_width", "max_positions"]
        rules = [(getattr(self, name) >= 1, f"{name} must be at least 1") for name in sizes]
        groups = _GROUP_NORM_GROUPS
        rules += [
            (self.hidden >= groups and self.hidden % groups == 0, f"hidden must be a multiple of {groups}"),
            (self.heads % max(self.kv_heads, 1) == 0, "heads must be a multiple of kv_heads"),
            (self.head_dim >= 4 and self.head_dim % 4 == 0, "head_dim must be a multiple of 4"),
            (self.experts >= 2, "experts must be at least 2"),
            (self.topk <= self.experts, "topk must be at most experts"),
            (self.base_size in IMAGE_SIZES, f"base_size must be one of {IMAGE_SIZES}"),
            (self.torch_dtype in DTYPES, f"torch_dtype must be one of {', '.join(DTYPES)}"),
        ]
        broken = [message for holds, message in rules if not holds]
        if broken:
            told = "; ".join(broken)
            got = [f"{name}={value!r}" for name, value in asdict(self).items() if name in told]
            raise CheckpointError(f"tiny checkpoint: {told}; got {', '.join(got)}")


DEFAULT_SHAPE = TinyShape()


def tokenizer_config() -> dict[str, Any]:
    return {
        "bos_token": "<|startoftext|>",
        "clean_up_tokenization_spaces": True,
        "eos_token": "<|endoftext|>",
        "model_max_length": 1048576,
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def generation_config(shape: TinyShape, tokenizer: Tokenizer) -> dict[str, Any]:
    """What an edit does when the request does not say (docs/model.md, section 3)."""
    return {
        "bot_task": "think_recaption",
        "use_system_prompt": "en_unified",
        "sequence_template": "instruct",
        "drop_think": False,
        "diff_infer_steps": 8 if shape.distil else 50,
        "diff_guidance_scale": 2.5,
        "flow_shift": 3.0,
        "max_length": shape.max_positions,
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 1024,
        "top_p": 0.95,
        "eos_token_id": [tokenizer.token_to_id("<|endoftext|>")],
        "pad_token_id": tokenizer.token_to_id("<pad>"),
        "disable_compile": True,
        "moe_impl": "eager",
    }


def model_config(shape: TinyShape, tokenizer: Tokenizer) -> dict[str, Any]:
    """`config.json` (docs/model.md, section 2): the official keys that say anything about this model."""
    config: dict[str, Any] = {
        "architectures": ["HunyuanImage3ForCausalMM"],
        "model_type": "hunyuan_image_3_moe",
        "model_version": "HunyuanImage-3.0-Instruct",
        "torch_dtype": shape.torch_dtype,
        # Some rows beyond the tokenizer's last id, as in the real model.
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "attention_head_dim": shape.head_dim,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.expert_width,
        "moe_intermediate_size": [shape.expert_width] * shape.layers,
        "moe_topk": [shape.topk] * shape.layers,
        "num_shared_expert": [1] * shape.layers,
        "num_experts": shape.experts,
        "max_position_embeddings": shape.max_positions,
        "image_base_size": shape.base_size,
        "vit_aligner": {"projector_type": "mlp_gelu", "input_dim": 32, "n_embed": shape.hidden, "depth": 2},
        **_token_ids(tokenizer),
        **_ARITHMETIC,
        **_IMAGE,
    }
    if shape.distil:
        config |= {"cfg_distilled": True, "use_meanflow": True}
    return config


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    names = {"bos_token_id": "<|startoftext|>", "eos_token_id": "<|endoftext|>", "pad_token_id": "<pad>"}
    names |= {"pad_id": "<pad>", "im_start_id": "<boi>", "im_end_id": "<eoi>", "image_token_id": "<img>"}
    return {key: tokenizer.token_to_id(token) for key, token in names.items()}


# Keys that have one value in every published checkpoint.
_ARITHMETIC: dict[str, Any] = {
    "moe_layer_num_skipped": 0,
    "use_mixed_mlp_moe": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": False,
    "group_limited_greedy": False,
    "moe_drop_tokens": False,
    "hidden_act": "silu",
    "mlp_bias": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_qk_norm": True,
    "norm_type": "rms",
    "rms_norm_eps": 1e-5,
    "use_cla": False,
    "use_mla": False,
    "rope_theta": 10000.0,
    "rope_type": "2d",
    "rope_scaling": {"type": "custom", "alpha": 1.0, "factor": 1.0},
    "tie_word_embeddings": False,
}

# The autoencoder and the vision tower: the real kinds of layer, a few small ones of each.
_IMAGE: dict[str, Any] = {
    "img_proj_type": "unet",
    "patch_size": 1,
    "patch_embed_hidden_dim": _GROUP_NORM_GROUPS,
    "cond_image_type": "vae_vit",
    "cond_token_attn_type": "joint_full",
    "vae_type": "hunyuan-image-vae-v1",
    "vae_dtype": "float32",
    "vae_autocast_dtype": "float16",
    "vae_downsample_factor": [16, 16],
    "vae": {
        "_class_name": "AutoencoderKLConv3D",
        "block_out_channels": [_GROUP_NORM_GROUPS] * 5,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8,
        "layers_per_block": 1,
        "ffactor_spatial": 16,
        "ffactor_temporal": 4,
        "sample_size": 384,
        "sample_tsize": 96,
        "downsample_match_channel": True,
        "upsample_match_channel": True,
        "scaling_factor": 0.5627,
    },
    "vit_type": "siglip2-so400m-patch16-naflex",
    "vit": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_channels": 3,
        "num_patches": 16,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "attention_dropout": 0.0,
    },
    "vit_processor": {
        "image_processor_type": "Siglip2ImageProcessorFast",
        "processor_class": "Siglip2Processor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_num_patches": 64,
        "patch_size": 16,
        "resample": 2,
        "rescale_factor": 1 / 255,
    },
}
