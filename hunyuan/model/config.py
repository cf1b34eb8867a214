"""The model's shape, read from a checkpoint's `config.json` (spec section 2) and checked.

Knows names and numbers only: no tensors, no files. Fields carry the checkpoint's own names where it has one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

from hunyuan.errors import CheckpointError

BASE_MODEL = "HunyuanImage-3.0"
QUANT_METHOD, QUANT_VERSION = "hunyuan-bento", 1
EXPERT_FORMATS = ("bf16", "fp8", "mxfp4")
DENSE_FORMATS = ("bf16", "fp8")
COND_ATTENTION_TYPES = ("joint_full", "full", "full_causal", "causal")

# Values that change the arithmetic and that the published checkpoints never use: (key, the accepted one).
# A key that the file leaves out counts as accepted, but for model_type.
_FIXED: tuple[tuple[str, Any], ...] = (
    ("model_type", "hunyuan_image_3_moe"),
    ("vit_type", "siglip2-so400m-patch16-naflex"),
    ("hidden_act", "silu"),
    ("norm_type", "rms"),
    ("rope_type", "2d"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("use_cla", False),
    ("use_mla", False),
    ("group_limited_greedy", False),
    ("norm_topk_prob", True),
    ("img_proj_type", "unet"),
    ("patch_size", 1),
    ("cond_image_type", "vae_vit"),
)


@dataclass(frozen=True)
class VaeConfig:
    """The 3D convolutional autoencoder (spec section 9)."""

    block_out_channels: tuple[int, ...]
    in_channels: int
    out_channels: int
    latent_channels: int
    layers_per_block: int
    ffactor_spatial: int
    ffactor_temporal: int
    scaling_factor: float | None
    shift_factor: float | None

    @property
    def spatial_levels(self) -> int:
        """How many levels halve height and width."""
        return int(log2(self.ffactor_spatial))

    @property
    def temporal_levels(self) -> int:
        return int(log2(self.ffactor_temporal))


@dataclass(frozen=True)
class AlignerConfig:
    """The MLP from ViT width to the backbone's (spec section 10)."""

    input_dim: int
    n_embed: int
    depth: int


@dataclass(frozen=True)
class ModelConfig:
    """Shapes and switches of one checkpoint; per-layer values are tuples of `num_hidden_layers`."""

    model_version: str
    torch_dtype: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    attention_head_dim: int
    intermediate_size: int
    moe_intermediate_size: tuple[int, ...]
    moe_topk: tuple[int, ...]
    num_shared_expert: tuple[int, ...]
    num_experts: tuple[int, ...]
    moe_layer_num_skipped: int
    use_mixed_mlp_moe: bool
    use_qk_norm: bool
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    tie_word_embeddings: bool
    image_base_size: int
    patch_embed_hidden_dim: int
    cond_token_attn_type: str
    cfg_distilled: bool
    use_meanflow: bool
    vae_downsample_factor: tuple[int, int]
    vae: VaeConfig
    vit: Mapping[str, Any]
    vit_max_num_patches: int
    vit_image_mean: tuple[float, ...]
    vit_image_std: tuple[float, ...]
    vit_rescale_factor: float
    vit_aligner: AlignerConfig
    expert_formats: tuple[str, ...]
    """How each layer's experts are stored: bf16, fp8 or mxfp4; bf16 stands for the model's own dtype."""
    dense_format: str
    """How attention, shared MLP and lm_head are stored: bf16 or fp8."""

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Raises one `CheckpointError` naming every key that is missing, malformed or of an unsupported value."""
        reader = ConfigReader(raw)
        config = _parse(reader)
        reader.finish()
        _check_together(config)
        return config

    def is_moe(self, layer: int) -> bool:
        return self.num_experts[layer] > 1 and layer >= self.moe_layer_num_skipped

    @property
    def has_extra_ratios(self) -> bool:
        """The base model was trained without the four ratio tokens past the first 33 (spec section 11)."""
        return self.model_version != BASE_MODEL

    @property
    def vit_patch_size(self) -> int:
        return int(self.vit["patch_size"])

    @property
    def num_gen_special_tokens(self) -> int:
        """Tokens between the ratio token and the image: `<timestep>`, then Distil's two."""
        return 1 + self.cfg_distilled + self.use_meanflow


class ConfigReader:
    """Takes values out of a JSON object by type, and collects what is wrong instead of stopping at it.

    A value that is missing or malformed reads as a harmless stand-in; `finish` then raises.
    """

    def __init__(self, raw: Any, path: str = "", problems: list[str] | None = None) -> None:
        self.path = path
        self.problems = [] if problems is None else problems
        self.raw: Mapping[str, Any] = raw if isinstance(raw, Mapping) else {}

    def section(self, key: str) -> ConfigReader:
        value = self.raw.get(key)
        if not isinstance(value, Mapping):
            self._wrong(key, "an object")
        return ConfigReader(value, f"{self.path}{key}.", self.problems)

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self.raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            return int(self._wrong(key, f"a whole number of at least {least}", max(least, 1)))
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.raw.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return float(self._wrong(key, "a number", 1.0))
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key, default)
        return value if isinstance(value, bool) else bool(self._wrong(key, "true or false", default))

    def text(self, key: str, default: str | None = None) -> str:
        value = self.raw.get(key, default)
        return value if isinstance(value, str) else str(self._wrong(key, "text", ""))

    def wholes(self, key: str, default: Sequence[int] | None = None, length: int | None = None) -> tuple[int, ...]:
        """A list of whole numbers; one number stands for `length` equal ones, a longer list is cut."""
        value = self.raw.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and length is not None and value >= 0:
            return (value,) * length
        good = isinstance(value, list | tuple) and all(type(v) is int and v >= 0 for v in value)
        if not good or not value or len(value) < (length or 0):
            expected = f"a whole number or a list of {length}" if length else "a list of whole numbers"
            return tuple(self._wrong(key, expected, (1,) * (length or 5)))
        return tuple(value[:length])

    def numbers(self, key: str, default: Sequence[float]) -> tuple[float, ...]:
        value = self.raw.get(key, default)
        if not isinstance(value, list | tuple) or not all(isinstance(v, int | float) for v in value):
            return tuple(self._wrong(key, "a list of numbers", default))
        return tuple(value)

    def fixed(self, key: str, accepted: Any) -> None:
        if key in self.raw and self.raw[key] != accepted:
            self._wrong(key, repr(accepted))

    def equal(self, key: str, accepted: Any) -> None:
        """Like `fixed`, for a key that must be there."""
        if self.raw.get(key) != accepted:
            self._wrong(key, repr(accepted))

    def choices(self, key: str, known: Sequence[str], length: int) -> tuple[str, ...]:
        """One word of `known` for all, or a list of `length` of them."""
        value = self.raw.get(key)
        words = [value] * length if isinstance(value, str) else value
        if not isinstance(words, list) or len(words) != length or any(word not in known for word in words):
            return tuple(self._wrong(key, f"one of {', '.join(known)}, or a list of {length}", (known[0],) * length))
        return tuple(words)

    def _wrong(self, key: str, expected: str, stand_in: Any = None) -> Any:
        got = repr(self.raw[key])[:60] if key in self.raw else "missing"
        self.problems.append(f"{self.path}{key}: {got}, expected {expected}")
        return stand_in

    def finish(self) -> None:
        if self.problems:
            raise CheckpointError("config.json: " + "; ".join(self.problems))


def _parse(c: ConfigReader) -> ModelConfig:
    for key, accepted in _FIXED:
        c.fixed(key, accepted)
    c.text("model_type")
    if c.raw.get("rope_scaling") is not None:
        c.section("rope_scaling").fixed("type", "custom")
    if c.raw.get("cond_token_attn_type", "full") not in COND_ATTENTION_TYPES:
        c.fixed("cond_token_attn_type", " or ".join(COND_ATTENTION_TYPES))
    layers, hidden, heads = c.whole("num_hidden_layers"), c.whole("hidden_size"), c.whole("num_attention_heads")
    processor, aligner = c.section("vit_processor"), c.section("vit_aligner")
    return ModelConfig(
        model_version=c.text("model_version", "HunyuanImage-3.0-Instruct"),
        torch_dtype=str(c.raw.get("torch_dtype") or c.raw.get("dtype") or "bfloat16"),
        vocab_size=c.whole("vocab_size"),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=c.whole("num_key_value_heads"),
        attention_head_dim=c.whole("attention_head_dim", max(1, hidden // heads)),
        intermediate_size=c.wholes("intermediate_size", (0,) * layers, layers)[0],
        moe_intermediate_size=c.wholes("moe_intermediate_size", None, layers),
        moe_topk=c.wholes("moe_topk", None, layers),
        num_shared_expert=c.wholes("num_shared_expert", None, layers),
        num_experts=c.wholes("num_experts", None, layers),
        moe_layer_num_skipped=c.whole("moe_layer_num_skipped", 0, least=0),
        use_mixed_mlp_moe=c.flag("use_mixed_mlp_moe", True),
        use_qk_norm=c.flag("use_qk_norm", True),
        rms_norm_eps=c.number("rms_norm_eps", 1e-5),
        max_position_embeddings=c.whole("max_position_embeddings"),
        rope_theta=c.number("rope_theta", 10000.0),
        tie_word_embeddings=c.flag("tie_word_embeddings"),
        image_base_size=c.whole("image_base_size", 1024, least=16),
        patch_embed_hidden_dim=c.whole("patch_embed_hidden_dim", 1024),
        cond_token_attn_type=c.text("cond_token_attn_type", "full"),
        cfg_distilled=c.flag("cfg_distilled"),
        use_meanflow=c.flag("use_meanflow"),
        vae_downsample_factor=_pair(c.wholes("vae_downsample_factor", (16, 16))),
        vae=_parse_vae(c.section("vae")),
        vit=_parse_vit(c.section("vit")),
        vit_max_num_patches=processor.whole("max_num_patches"),
        vit_image_mean=processor.numbers("image_mean", (0.5, 0.5, 0.5)),
        vit_image_std=processor.numbers("image_std", (0.5, 0.5, 0.5)),
        vit_rescale_factor=processor.number("rescale_factor", 1 / 255),
        vit_aligner=AlignerConfig(aligner.whole("input_dim"), aligner.whole("n_embed"), aligner.whole("depth", 2)),
        **_parse_quantization(c, layers),
    )


def _parse_quantization(c: ConfigReader, layers: int) -> dict[str, Any]:
    """Our own section `quantization_config` (docs/weights.md); a folder without it holds the model's own dtype."""
    if c.raw.get("quantization_config") is None:
        return {"expert_formats": ("bf16",) * layers, "dense_format": "bf16"}
    q = c.section("quantization_config")
    q.equal("quant_method", QUANT_METHOD)
    q.equal("version", QUANT_VERSION)
    return {
        "expert_formats": q.choices("experts", EXPERT_FORMATS, layers),
        "dense_format": q.choices("dense", DENSE_FORMATS, 1)[0],
    }


def _parse_vae(c: ConfigReader) -> VaeConfig:
    c.fixed("downsample_match_channel", True)
    c.fixed("upsample_match_channel", True)
    return VaeConfig(
        block_out_channels=c.wholes("block_out_channels"),
        in_channels=c.whole("in_channels", 3),
        out_channels=c.whole("out_channels", 3),
        latent_channels=c.whole("latent_channels"),
        layers_per_block=c.whole("layers_per_block"),
        ffactor_spatial=c.whole("ffactor_spatial"),
        ffactor_temporal=c.whole("ffactor_temporal"),
        scaling_factor=_optional_number(c, "scaling_factor"),
        shift_factor=_optional_number(c, "shift_factor"),
    )


def _parse_vit(c: ConfigReader) -> Mapping[str, Any]:
    """transformers reads the rest of this section; these are the keys that decide shapes."""
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        c.whole(key)
    for key in ("num_patches", "patch_size"):
        c.whole(key)
    return dict(c.raw)


def _optional_number(c: ConfigReader, key: str) -> float | None:
    return None if c.raw.get(key) is None else c.number(key)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return (values[0], values[-1])


def _check_together(config: ModelConfig) -> None:
    """Values that are fine by themselves and do not fit each other. Raises `CheckpointError`."""
    problems = []
    if config.num_attention_heads % config.num_key_value_heads:
        problems.append("num_attention_heads is no multiple of num_key_value_heads")
    for layer in range(config.num_hidden_layers):
        if config.is_moe(layer) and not 1 <= config.moe_topk[layer] <= config.num_experts[layer]:
            problems.append(f"layer {layer}: moe_topk {config.moe_topk[layer]} of {config.num_experts[layer]} experts")
    if config.vit_aligner.n_embed != config.hidden_size:
        problems.append(f"vit_aligner.n_embed {config.vit_aligner.n_embed}, hidden_size {config.hidden_size}")
    if config.vit_aligner.input_dim != config.vit["hidden_size"]:
        problems.append(f"vit_aligner.input_dim {config.vit_aligner.input_dim}, vit.hidden_size differs")
    if problems:
        raise CheckpointError("config.json: " + "; ".join(problems))
