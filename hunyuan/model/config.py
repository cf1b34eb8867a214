"""The network's shape, read from a checkpoint's `config.json` (docs/model.md, section 2) and checked.

Knows names and numbers only: no tensors, no files, no number formats. Fields carry the checkpoint's own names; one that
is not listed is ignored. A `Literal` of one value changes the arithmetic, and no published checkpoint has another.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.dataclasses import dataclass

from hunyuan.errors import CheckpointError

BASE_MODEL = "HunyuanImage-3.0"
_STRICT = ConfigDict(extra="ignore", protected_namespaces=())

# Whole numbers, bounded far above those of every published model: a billion layers would be a list of a billion
# entries before the weight files, which do not have them, are opened.
Width = Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
WidthOrNone = Annotated[int, Field(strict=True, ge=0, le=1 << 16)]
Heads = Annotated[int, Field(strict=True, ge=1, le=4096)]
Layers = Annotated[int, Field(strict=True, ge=1, le=512)]
Depth = Annotated[int, Field(strict=True, ge=1, le=64)]
Factor = Annotated[int, Field(strict=True, ge=1, le=256)]
ExpertCount = Annotated[int, Field(strict=True, ge=0, le=4096)]
MOST_EXPERTS = 1 << 14  # of all layers together
MOST_PROBLEMS = 20  # that an error tells of
Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Positive = Annotated[float, Field(strict=True, gt=0, le=1e9)]
Epsilon = Annotated[float, Field(strict=True, gt=0, le=0.1)]  # beyond, a norm is none, or no number


@dataclass(frozen=True, config=_STRICT)
class VaeConfig:
    """The 3D convolutional autoencoder (docs/model.md, section 9)."""

    block_out_channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=512)]
    latent_channels: Width
    layers_per_block: Annotated[int, Field(strict=True, ge=1, le=16)]
    ffactor_spatial: Factor
    ffactor_temporal: Factor
    in_channels: Depth = 3
    out_channels: Depth = 3
    scaling_factor: Annotated[float, Field(strict=True, ge=0, le=1e9)] | None = None  # None and 0: none
    shift_factor: Number | None = None
    downsample_match_channel: Literal[True] = True
    upsample_match_channel: Literal[True] = True

    @property
    def spatial_levels(self) -> int:
        """How many levels halve height and width."""
        return int(log2(self.ffactor_spatial))

    @property
    def temporal_levels(self) -> int:
        return int(log2(self.ffactor_temporal))

    def problems(self) -> list[str]:
        """Channels that do not divide as changing the resolution needs."""
        widths, levels = self.block_out_channels, self.spatial_levels
        if levels >= len(widths):
            return [f"vae.block_out_channels has {len(widths)} levels, too few for its ffactor_spatial"]
        factors = [8 if level >= levels - self.temporal_levels else 4 for level in range(levels)]
        return [
            f"vae.block_out_channels: {width} is no multiple of {factor}, which downsampling at level {level} needs"
            for level, (factor, width) in enumerate(zip(factors, widths[1:], strict=False))
            if width % factor
        ]


@dataclass(frozen=True, config=_STRICT)
class VitConfig:
    """The vision tower, in the names that transformers' SigLIP 2 takes."""

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_patches: Width
    patch_size: Factor
    num_channels: Depth = 3
    hidden_act: Literal["gelu_pytorch_tanh", "gelu", "gelu_new", "quick_gelu", "relu", "silu"] = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6
    attention_dropout: Number = 0.0
    vision_use_head: Flag = True


@dataclass(frozen=True, config=_STRICT)
class VitProcessorConfig:
    """How pixels become the vision tower's input."""

    max_num_patches: Annotated[int, Field(strict=True, ge=1, le=1 << 14)]
    image_mean: tuple[Number, Number, Number] = (0.5, 0.5, 0.5)
    image_std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    rescale_factor: Positive = 1 / 255


@dataclass(frozen=True, config=_STRICT)
class AlignerConfig:
    """The MLP from ViT width to the backbone's (docs/model.md, section 10)."""

    input_dim: Width
    n_embed: Width
    depth: Depth = 2


@dataclass(frozen=True, config=_STRICT)
class RopeScaling:
    type: Literal["custom"] = "custom"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelConfig:
    """Shapes and switches of one checkpoint; per-layer values are tuples of `num_hidden_layers`.

    In the file they may be one number for all layers, or a list that is longer than there are layers.
    """

    num_hidden_layers: Layers
    vocab_size: Annotated[int, Field(strict=True, ge=1, le=1 << 22)]
    hidden_size: Width
    num_attention_heads: Heads
    num_key_value_heads: Heads
    attention_head_dim: Width
    intermediate_size: WidthOrNone = 0
    moe_intermediate_size: tuple[WidthOrNone, ...]
    moe_topk: tuple[ExpertCount, ...]
    num_shared_expert: tuple[ExpertCount, ...]
    num_experts: tuple[ExpertCount, ...]
    max_position_embeddings: Annotated[int, Field(strict=True, ge=1, le=1 << 20)]
    vae: VaeConfig
    vit: VitConfig
    vit_processor: VitProcessorConfig
    vit_aligner: AlignerConfig
    model_type: Literal["hunyuan_image_3_moe"]
    model_version: str = "HunyuanImage-3.0-Instruct"
    torch_dtype: str = "bfloat16"
    moe_layer_num_skipped: Annotated[int, Field(strict=True, ge=0, le=512)] = 0
    use_mixed_mlp_moe: Flag = True
    use_qk_norm: Flag = True
    rms_norm_eps: Epsilon = 1e-5
    rope_theta: Positive = 10000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: Flag = False
    image_base_size: Annotated[int, Field(strict=True, ge=16, le=4096)] = 1024
    image_fixed_shapes: Flag = True
    patch_embed_hidden_dim: Width = 1024
    cond_token_attn_type: Literal["joint_full", "full", "full_causal", "causal"] = "full"
    cfg_distilled: Flag = False
    use_meanflow: Flag = False
    vae_downsample_factor: tuple[Factor, Factor] = (16, 16)
    vit_type: Literal["siglip2-so400m-patch16-naflex"] = "siglip2-so400m-patch16-naflex"
    hidden_act: Literal["silu"] = "silu"
    norm_type: Literal["rms"] = "rms"
    rope_type: Literal["2d"] = "2d"
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    use_cla: Literal[False] = False
    use_mla: Literal[False] = False
    group_limited_greedy: Literal[False] = False
    norm_topk_prob: Literal[True] = True
    img_proj_type: Literal["unet"] = "unet"
    patch_size: Literal[1] = 1
    cond_image_type: Literal["vae_vit"] = "vae_vit"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """Raises one `CheckpointError` naming every key that is missing, malformed or of an unsupported value."""
        dtype = str(raw.get("torch_dtype") or raw.get("dtype") or "bfloat16")  # newer folders use the second name
        try:
            return TypeAdapter(cls).validate_python({"attention_head_dim": _head_dim(raw), **raw, "torch_dtype": dtype})
        except ValidationError as error:
            raise CheckpointError(f"config.json: {problems(error)}") from error

    @field_validator("moe_intermediate_size", "moe_topk", "num_shared_expert", "num_experts", mode="before")
    @classmethod
    def _per_layer(cls, value: Any, info: ValidationInfo) -> Any:
        layers = info.data.get("num_hidden_layers")
        if layers is None:
            return ()  # that it is wrong is told by itself
        if type(value) is int:
            return (value,) * layers
        if not isinstance(value, list | tuple) or len(value) < layers:
            raise ValueError(f"expected a whole number or a list of {layers}")
        return tuple(value[:layers])

    @field_validator("intermediate_size", mode="before")
    @classmethod
    def _of_all_layers(cls, value: Any, info: ValidationInfo) -> Any:
        return value[0] if isinstance(value, list) and value else value

    @field_validator("vae_downsample_factor", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        return (value[0], value[-1]) if isinstance(value, list) and value else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        wrong = self.vae.problems()
        if sum(self.num_experts) > MOST_EXPERTS:
            wrong.append(f"num_experts: {sum(self.num_experts)} in all; at most {MOST_EXPERTS} are allowed")
        if self.num_attention_heads % self.num_key_value_heads:
            wrong.append("num_attention_heads is no multiple of num_key_value_heads")
        for layer in range(self.num_hidden_layers):
            if self.is_moe(layer) and not 1 <= self.moe_topk[layer] <= self.num_experts[layer]:
                wrong.append(f"layer {layer}: moe_topk {self.moe_topk[layer]} of {self.num_experts[layer]} experts")
        if self.vit_aligner.n_embed != self.hidden_size:
            wrong.append(f"vit_aligner.n_embed {self.vit_aligner.n_embed}, hidden_size {self.hidden_size}")
        if self.vit_aligner.input_dim != self.vit.hidden_size:
            wrong.append(f"vit_aligner.input_dim {self.vit_aligner.input_dim}, vit.hidden_size differs")
        if wrong:
            raise ValueError("; ".join(wrong[:MOST_PROBLEMS]))
        return self

    def is_moe(self, layer: int) -> bool:
        return self.num_experts[layer] > 1 and layer >= self.moe_layer_num_skipped

    @property
    def has_extra_ratios(self) -> bool:
        """Whether four 1024-pixel shapes stand beside the 33 of the base size (docs/model.md, sections 10 and 11).

        The base model was trained without them. A small checkpoint may do without as well (`image_fixed_shapes`), so
        that a 4:3 picture is as small as its others.
        """
        return self.image_fixed_shapes and self.model_version != BASE_MODEL

    @property
    def num_gen_special_tokens(self) -> int:
        """Tokens between the ratio token and the image: `<timestep>`, then Distil's two."""
        return 1 + self.cfg_distilled + self.use_meanflow


def _head_dim(raw: Mapping[str, Any]) -> int:
    """For a file that leaves it out; what is wrong with the two values is told where they are checked."""
    hidden, heads = raw.get("hidden_size"), raw.get("num_attention_heads")
    return max(1, hidden // heads) if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else 1


def problems(error: ValidationError) -> str:
    """What pydantic found, each as `key: what is there, expected what`."""
    return "; ".join(_told(problem) for problem in error.errors()[:MOST_PROBLEMS])


def _told(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{key}: missing"
    if problem["type"] == "value_error":
        text = str(problem["ctx"]["error"])
    elif problem["type"] == "less_than_equal":
        text = f"at most {problem['ctx']['le']} is allowed"
    else:
        text = problem["msg"].replace("Input should be", "expected")
    return f"{key}: {repr(problem['input'])[:60]}, {text}" if key else text
