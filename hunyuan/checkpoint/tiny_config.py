"""What a tiny checkpoint's small files say: its sizes, `config.json`, `generation_config.json` and the system prompts.

Knows which of the real model's values (`full_size.py`) become small, and which sizes fit together. Knows no weights and
writes no files.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tokenizers import Tokenizer

from hunyuan.checkpoint.full_size import full_size_config
from hunyuan.checkpoint.tiny_tokenizer import ImageSize
from hunyuan.errors import CheckpointError
from hunyuan.model.config import problems
from hunyuan.model.embeddings import GROUPS

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_VAE = {"block_out_channels": [GROUPS] * 5, "latent_channels": 8, "layers_per_block": 1, "scaling_factor": 0.5627}
_VIT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_patches": 16,
}

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


class TinyShape(BaseModel):
    """The sizes one may choose; all others are fixed at small values. `hunyuan tiny` has an option for each.

    Raises:
        CheckpointError: a size is out of bounds, or two do not fit together; the message names them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    hidden: int = Field(64, ge=GROUPS, multiple_of=GROUPS, description=f"backbone width, a multiple of {GROUPS}")
    layers: int = Field(2, ge=1, description="transformer layers")
    heads: int = Field(4, ge=1, description="query heads, a multiple of the key-value heads")
    kv_heads: int = Field(2, ge=1, description="key-value heads")
    head_dim: int = Field(16, ge=4, multiple_of=4, description="a multiple of 4; GPU kernels want 128")
    experts: int = Field(8, ge=2, description="experts per layer, 2 or more")
    topk: int = Field(2, ge=1, description="experts per token")
    expert_width: int = Field(32, ge=1, description="inner width of an expert; GPU kernels want a multiple of 128")
    base_size: ImageSize = Field(256, description="side of a square output, pixels")
    extra_ratios: bool = Field(False, description="the four 1024-pixel shapes too, as the real model has them")
    max_positions: int = Field(16384, ge=1, description="longest token sequence")
    distil: bool = Field(False, description="the Distil variant: no CFG row, 8 steps")
    torch_dtype: Literal["bfloat16", "float32"] = Field("float32", description="what config.json says to compute in")

    def __init__(self, **sizes: Any) -> None:
        try:
            super().__init__(**sizes)
        except ValidationError as error:
            raise CheckpointError(f"tiny checkpoint: {problems(error)}") from error

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads must be a multiple of kv_heads; got heads={self.heads}, kv_heads={self.kv_heads}")
        if self.topk > self.experts:
            raise ValueError(f"topk must be at most experts; got topk={self.topk}, experts={self.experts}")
        return self


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
    """`config.json`: the real model's (docs/model.md, section 2) with fewer and smaller layers of each kind."""
    config = full_size_config(shape.layers, experts="bf16", distil=shape.distil)
    return {
        **config,
        "torch_dtype": shape.torch_dtype,
        # Some rows beyond the tokenizer's last id, as in the real model.
        "vocab_size": -(-tokenizer.get_vocab_size() // 64) * 64,
        "hidden_size": shape.hidden,
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
        "image_fixed_shapes": shape.extra_ratios,  # a key of ours (docs/model.md, section 10)
        "patch_embed_hidden_dim": GROUPS,
        "vae": config["vae"] | _VAE,
        "vit": config["vit"] | _VIT,
        "vit_processor": config["vit_processor"] | {"max_num_patches": 64},
        "vit_aligner": config["vit_aligner"] | {"input_dim": _VIT["hidden_size"], "n_embed": shape.hidden},
        **_token_ids(tokenizer),
    }


def _token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    names = {"bos_token_id": "<|startoftext|>", "eos_token_id": "<|endoftext|>", "pad_token_id": "<pad>"}
    names |= {"pad_id": "<pad>", "im_start_id": "<boi>", "im_end_id": "<eoi>", "image_token_id": "<img>"}
    return {key: tokenizer.token_to_id(token) for key, token in names.items()}
