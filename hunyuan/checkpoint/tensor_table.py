"""The one table of weight names: what every tensor of a checkpoint is called, its shape, and where it goes.

Knows the official layout (spec sections 4 and 9) for any shape a `ModelConfig` can describe. Knows no files and no
tensors: the loader, the tiny checkpoint's writer and the model all compare themselves with this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from hunyuan.errors import CheckpointError
from hunyuan.formats.numbers import MXFP4_BLOCK
from hunyuan.model.config import ModelConfig, VaeConfig

ROUTER_SUFFIX = ".mlp.gate.wg.weight"
SINUSOID_DIM = 256
"""Width of the sinusoid that every timestep embedder starts from (spec section 13)."""

STORED_TYPES = {
    "plain": ("BF16", "F16", "F32"),
    "router": ("BF16", "F16", "F32"),
    "scale": ("F32",),
    "fp8": ("F8_E4M3",),
    "mxfp4": ("U8",),
    "mxfp4_scale": ("U8",),
}
"""By the kind of a tensor: how safetensors may name its type."""
_VALUE_BYTES = {"plain": 2, "router": 4, "scale": 4, "fp8": 1, "mxfp4": 1, "mxfp4_scale": 1}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint.

    Attributes:
        key: its name in the checkpoint's files.
        shape: its shape there.
        kind: what its values are, a key of `STORED_TYPES`. "plain" takes the model's dtype; the others keep their own.
        param: the name of the parameter it fills in our module tree: the key itself, but for the official
            checkpoint's experts, which are stacked into `[experts, 2F, H]` and `[experts, H, F]`.
        slot: its index in that stack, None for a tensor that is a parameter of its own.
    """

    key: str
    shape: tuple[int, ...]
    kind: str
    param: str
    slot: int | None = None

    @property
    def float32(self) -> bool:
        """The router's weights and fp8's scales stay float32 whatever the model's dtype (spec section 1)."""
        return self.kind in ("router", "scale")

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size where it is used, with 16 bits a value for what takes the model's dtype."""
        return self.numel * _VALUE_BYTES[self.kind]


def expected_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Every tensor that a checkpoint with this config holds, by its key; quantised ones as docs/weights.md has them.

    Raises:
        CheckpointError: the autoencoder's channels do not divide as its up- and downsampling needs, or the columns of
            an expert's matrix do not divide into MXFP4's blocks.
    """
    table = _Table()
    _add_backbone(table, config)
    _add_embedders(table, config)
    _add_image_head(table, config)
    _add_vision(table, config)
    _add_encoder(table, config.vae)
    _add_decoder(table, config.vae)
    return table.specs


class _Table:
    """Collects specs; its methods are the kinds of layer that the checkpoint is made of."""

    def __init__(self) -> None:
        self.specs: dict[str, TensorSpec] = {}

    def add(self, key: str, *shape: int, kind: str = "plain") -> None:
        self.specs[key] = TensorSpec(key, shape, "router" if key.endswith(ROUTER_SUFFIX) else kind, key)

    def dense(self, name: str, outputs: int, inputs: int, stored: str) -> None:
        """A matrix of the backbone: of the model's dtype, or fp8 with a scale a row."""
        self.add(f"{name}.weight", outputs, inputs, kind="fp8" if stored == "fp8" else "plain")
        if stored == "fp8":
            self.add(f"{name}.weight_scale", outputs, kind="scale")

    def experts(self, mlp: str, count: int, name: str, rows: int, columns: int, stored: str) -> None:
        """One matrix of each expert of a layer: `count` tensors as in the official layout, or one quantised stack."""
        stack = f"{mlp}.experts.{name}_proj"
        if stored == "mxfp4":
            if columns % MXFP4_BLOCK:
                raise CheckpointError(f"{stack}: {columns} columns; MXFP4 needs a multiple of {MXFP4_BLOCK}")
            self.add(stack, count, rows, columns // 2, kind="mxfp4")
            self.add(f"{mlp}.experts.{name}_scale", count, rows, columns // MXFP4_BLOCK, kind="mxfp4_scale")
        elif stored == "fp8":
            self.add(stack, count, rows, columns, kind="fp8")
            self.add(f"{mlp}.experts.{name}_scale", count, kind="scale")
        else:
            for expert in range(count):
                key = f"{mlp}.experts.{expert}.{name}_proj.weight"
                self.specs[key] = TensorSpec(key, (rows, columns), "plain", stack, expert)

    def linear(self, name: str, outputs: int, inputs: int) -> None:
        self.add(f"{name}.weight", outputs, inputs)
        self.add(f"{name}.bias", outputs)

    def norm(self, name: str, channels: int) -> None:
        """A LayerNorm or GroupNorm; an RMSNorm has no bias and is added by `add`."""
        self.add(f"{name}.weight", channels)
        self.add(f"{name}.bias", channels)

    def conv2d(self, name: str, outputs: int, inputs: int, kernel: int = 3) -> None:
        self.add(f"{name}.weight", outputs, inputs, kernel, kernel)
        self.add(f"{name}.bias", outputs)

    def conv3d(self, name: str, outputs: int, inputs: int, kernel: int = 3) -> None:
        self.add(f"{name}.weight", outputs, inputs, kernel, kernel, kernel)
        self.add(f"{name}.bias", outputs)


def _add_backbone(table: _Table, config: ModelConfig) -> None:
    hidden, dim = config.hidden_size, config.attention_head_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    table.add("model.wte.weight", config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        table.add(f"{name}.input_layernorm.weight", hidden)
        table.dense(f"{name}.self_attn.qkv_proj", (heads + 2 * kv_heads) * dim, hidden, config.dense_format)
        table.dense(f"{name}.self_attn.o_proj", hidden, heads * dim, config.dense_format)
        if config.use_qk_norm:
            table.add(f"{name}.self_attn.query_layernorm.weight", dim)
            table.add(f"{name}.self_attn.key_layernorm.weight", dim)
        table.add(f"{name}.post_attention_layernorm.weight", hidden)
        _add_mlp(table, config, layer)
    table.add("model.ln_f.weight", hidden)
    if not config.tie_word_embeddings:
        table.dense("lm_head", config.vocab_size, hidden, config.dense_format)


def _add_mlp(table: _Table, config: ModelConfig, layer: int) -> None:
    name, hidden = f"model.layers.{layer}.mlp", config.hidden_size
    if not config.is_moe(layer):
        _add_gated_mlp(table, name, hidden, config.intermediate_size, config.dense_format)
        return
    experts, width, stored = (
        config.num_experts[layer],
        config.moe_intermediate_size[layer],
        config.expert_formats[layer],
    )
    table.add(f"{name}.gate.wg.weight", experts, hidden)
    if config.use_mixed_mlp_moe:
        shared = width * config.num_shared_expert[layer]
        _add_gated_mlp(table, f"{name}.shared_mlp", hidden, shared, config.dense_format)
    table.experts(name, experts, "gate_and_up", 2 * width, hidden, stored)
    table.experts(name, experts, "down", hidden, width, stored)


def _add_gated_mlp(table: _Table, name: str, hidden: int, width: int, stored: str) -> None:
    table.dense(f"{name}.gate_and_up_proj", 2 * width, hidden, stored)
    table.dense(f"{name}.down_proj", hidden, width, stored)


def _add_embedders(table: _Table, config: ModelConfig) -> None:
    """The timestep embedders; the last two belong to Distil (spec section 18)."""
    names = ["timestep_emb", "time_embed", "time_embed_2"]
    names += ["guidance_emb"] * config.cfg_distilled + ["timestep_r_emb"] * config.use_meanflow
    for name in names:
        table.linear(f"{name}.mlp.0", config.hidden_size, SINUSOID_DIM)
        table.linear(f"{name}.mlp.2", config.hidden_size, config.hidden_size)


def _add_image_head(table: _Table, config: ModelConfig) -> None:
    """Latents to tokens (`patch_embed`) and tokens to velocity (`final_layer`), spec section 13."""
    hidden, middle, latent = config.hidden_size, config.patch_embed_hidden_dim, config.vae.latent_channels
    table.conv2d("patch_embed.model.0", middle, latent)
    _add_timed_block(table, "patch_embed.model.1", middle, hidden, hidden)
    _add_timed_block(table, "final_layer.model.0", hidden, middle, hidden)
    table.norm("final_layer.model.1.0", middle)
    table.conv2d("final_layer.model.1.2", latent, middle)


def _add_timed_block(table: _Table, name: str, inputs: int, outputs: int, time_dim: int) -> None:
    """A residual block whose second norm is scaled and shifted by the time embedding."""
    table.norm(f"{name}.in_layers.0", inputs)
    table.conv2d(f"{name}.in_layers.2", outputs, inputs)
    table.linear(f"{name}.emb_layers.1", 2 * outputs, time_dim)
    table.norm(f"{name}.out_layers.0", outputs)
    table.conv2d(f"{name}.out_layers.3", outputs, outputs)
    if inputs != outputs:
        table.conv2d(f"{name}.skip_connection", outputs, inputs, kernel=1)


def _add_vision(table: _Table, config: ModelConfig) -> None:
    """The ViT and the aligner from its width to the backbone's (spec section 10)."""
    width, inner = config.vit["hidden_size"], config.vit["intermediate_size"]
    pixels = config.vit.get("num_channels", 3) * config.vit_patch_size**2
    table.linear("vision_model.embeddings.patch_embedding", width, pixels)
    table.add("vision_model.embeddings.position_embedding.weight", config.vit.get("num_patches", 256), width)
    for layer in range(config.vit["num_hidden_layers"]):
        name = f"vision_model.encoder.layers.{layer}"
        for norm in ("layer_norm1", "layer_norm2"):
            table.norm(f"{name}.{norm}", width)
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            table.linear(f"{name}.self_attn.{projection}", width, width)
        _add_vision_mlp(table, name, width, inner)
    table.norm("vision_model.post_layernorm", width)
    if config.vit.get("vision_use_head", True):
        _add_pooling_head(table, width, inner)

    aligner = config.vit_aligner
    table.linear("vision_aligner.layers.0", aligner.n_embed, aligner.input_dim)
    for depth in range(1, aligner.depth):
        # The odd places in the checkpoint's list of modules are activations, which have no weights.
        table.linear(f"vision_aligner.layers.{2 * depth}", aligner.n_embed, aligner.n_embed)


def _add_vision_mlp(table: _Table, name: str, width: int, inner: int) -> None:
    table.linear(f"{name}.mlp.fc1", inner, width)
    table.linear(f"{name}.mlp.fc2", width, inner)


def _add_pooling_head(table: _Table, width: int, inner: int) -> None:
    """The ViT's pooling head: every published checkpoint stores it, nothing uses its output."""
    name = "vision_model.head"
    table.add(f"{name}.probe", 1, 1, width)
    table.add(f"{name}.attention.in_proj_weight", 3 * width, width)
    table.add(f"{name}.attention.in_proj_bias", 3 * width)
    table.linear(f"{name}.attention.out_proj", width, width)
    table.norm(f"{name}.layernorm", width)
    _add_vision_mlp(table, name, width, inner)


def _add_encoder(table: _Table, vae: VaeConfig) -> None:
    channels, name = vae.block_out_channels, "vae.encoder"
    table.conv3d(f"{name}.conv_in", channels[0], vae.in_channels)
    current = channels[0]
    # Time is halved by the last of the levels that halve space.
    first_temporal = vae.spatial_levels - vae.temporal_levels
    for level, width in enumerate(channels):
        _add_vae_level(table, f"{name}.down.{level}", current, width, vae.layers_per_block)
        current = width
        if level < vae.spatial_levels:
            current = _next_channels(channels, level)
            factor = 8 if level >= first_temporal else 4
            if current % factor:
                raise CheckpointError(
                    f"config.json: vae.block_out_channels: {current} is no multiple of {factor}, "
                    f"which downsampling at level {level} needs"
                )
            table.conv3d(f"{name}.down.{level}.downsample.conv", current // factor, width)
    _add_vae_middle(table, name, current)
    table.norm(f"{name}.norm_out", current)
    table.conv3d(f"{name}.conv_out", 2 * vae.latent_channels, current)


def _add_decoder(table: _Table, vae: VaeConfig) -> None:
    channels, name = vae.block_out_channels[::-1], "vae.decoder"
    table.conv3d(f"{name}.conv_in", channels[0], vae.latent_channels)
    _add_vae_middle(table, name, channels[0])
    current = channels[0]
    for level, width in enumerate(channels):
        _add_vae_level(table, f"{name}.up.{level}", current, width, vae.layers_per_block + 1)
        current = width
        if level < vae.spatial_levels:
            current = _next_channels(channels, level)
            factor = 8 if level < vae.temporal_levels else 4
            table.conv3d(f"{name}.up.{level}.upsample.conv", current * factor, width)
    table.norm(f"{name}.norm_out", current)
    table.conv3d(f"{name}.conv_out", vae.out_channels, current)


def _next_channels(channels: tuple[int, ...], level: int) -> int:
    if level + 1 >= len(channels):
        raise CheckpointError(
            f"config.json: vae.block_out_channels has {len(channels)} levels, too few for its ffactor_spatial"
        )
    return channels[level + 1]


def _add_vae_level(table: _Table, name: str, inputs: int, outputs: int, blocks: int) -> None:
    for block in range(blocks):
        _add_vae_block(table, f"{name}.block.{block}", inputs if block == 0 else outputs, outputs)


def _add_vae_block(table: _Table, name: str, inputs: int, outputs: int) -> None:
    table.norm(f"{name}.norm1", inputs)
    table.conv3d(f"{name}.conv1", outputs, inputs)
    table.norm(f"{name}.norm2", outputs)
    table.conv3d(f"{name}.conv2", outputs, outputs)
    if inputs != outputs:
        table.conv3d(f"{name}.nin_shortcut", outputs, inputs, kernel=1)


def _add_vae_middle(table: _Table, name: str, channels: int) -> None:
    _add_vae_block(table, f"{name}.mid.block_1", channels, channels)
    attention = f"{name}.mid.attn_1"
    table.norm(f"{attention}.norm", channels)
    for projection in ("q", "k", "v", "proj_out"):
        table.conv3d(f"{attention}.{projection}", channels, channels, kernel=1)
    _add_vae_block(table, f"{name}.mid.block_2", channels, channels)
