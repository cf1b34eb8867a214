"""The table of weight names against the published model's names and a checkpoint written by the official code."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from hunyuan.checkpoint.tensor_table import TensorSpec, expected_tensors
from hunyuan.errors import CheckpointError
from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.modules import use_weight_formats
from hunyuan.model.network import HunyuanImage3

DATA = Path(__file__).parents[1] / "data"
GOLDEN = DATA / "golden_a" / "checkpoint"

REAL: dict[str, Any] = {
    "model_type": "hunyuan_image_3_moe",
    "hidden_act": "silu",
    "vit_type": "siglip2-so400m-patch16-naflex",
    "vocab_size": 133120,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "attention_head_dim": 128,
    "intermediate_size": 3072,
    "moe_intermediate_size": [3072] * 32,
    "moe_topk": [8] * 32,
    "num_shared_expert": [1] * 32,
    "num_experts": 64,
    "max_position_embeddings": 22800,
    "cond_token_attn_type": "joint_full",
    "vae": {
        "block_out_channels": [128, 256, 512, 1024, 1024],
        "latent_channels": 32,
        "layers_per_block": 2,
        "ffactor_spatial": 16,
        "ffactor_temporal": 4,
    },
    "vit": {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 16,
        "num_patches": 256,
        "num_channels": 3,
    },
    "vit_processor": {"max_num_patches": 1024},
    "vit_aligner": {"input_dim": 1152, "n_embed": 4096, "depth": 2},
}


def table(raw: dict[str, Any], **changes: Any) -> dict[str, TensorSpec]:
    return expected_tensors(CheckpointConfig.from_dict({**raw, **changes}))


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    """The golden checkpoint's config: small, so that each test may build its own table."""
    return json.loads((GOLDEN / "config.json").read_text())


def pattern(key: str) -> str:
    """A key as `real_state_dict_keys.json` writes it: layer and expert numbers replaced."""
    return re.sub(r"(layers)\.\d+", r"\1.{L}", re.sub(r"(experts)\.\d+", r"\1.{E}", key))


def test_real_model_matches_the_published_names():
    specs = table(REAL, cfg_distilled=True, use_meanflow=True)
    published: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for name, shape, count in json.loads((DATA / "real_state_dict_keys.json").read_text())["tensors"]:
        published[name, tuple(shape)] += count
    assert Counter((pattern(spec.key), spec.shape) for spec in specs.values()) == published
    assert len(specs) == 5169
    assert sum(spec.numel for spec in specs.values()) == pytest.approx(83.04e9, rel=1e-4)


def test_instruct_lacks_the_distil_embedders():
    instruct, distil = table(REAL), table(REAL, cfg_distilled=True, use_meanflow=True)
    assert len(instruct) == 5161
    assert {key.split(".")[0] for key in distil.keys() - instruct.keys()} == {"guidance_emb", "timestep_r_emb"}
    assert instruct.keys() < distil.keys()


def test_golden_checkpoint_matches_name_by_name(tiny):
    with safe_open(GOLDEN / "model.safetensors", "pt") as file:
        slices = {key: file.get_slice(key) for key in file.offset_keys()}
        stored = {key: (tuple(piece.get_shape()), piece.get_dtype()) for key, piece in slices.items()}
    expected = {key: (spec.shape, "F32" if spec.float32 else "BF16") for key, spec in table(tiny).items()}
    assert stored == expected


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moe_layer_num_skipped": 1, "use_mixed_mlp_moe": False, "use_qk_norm": False},
        {"cfg_distilled": True, "use_meanflow": True, "patch_embed_hidden_dim": 64, "num_shared_expert": [1, 2]},
        {"vit_aligner": {"input_dim": 32, "n_embed": 64, "depth": 3}},
    ],
)
def test_parameters_are_those_of_the_network(tiny, changes):
    shapes: dict[str, tuple[int, ...]] = {}
    stacks: Counter[str] = Counter()
    for spec in table(tiny, **changes).values():
        stacks[spec.param] += spec.slot is not None
        shapes[spec.param] = (stacks[spec.param], *spec.shape) if spec.slot is not None else spec.shape
    with torch.device("meta"):
        network = HunyuanImage3(CheckpointConfig.from_dict({**tiny, **changes}))
    assert {name: tuple(parameter.shape) for name, parameter in network.named_parameters()} == shapes


def test_experts_say_where_they_are_stacked(tiny):
    specs = table(tiny)
    expert = specs["model.layers.1.mlp.experts.5.down_proj.weight"]
    assert (expert.param, expert.slot, expert.shape) == ("model.layers.1.mlp.experts.down_proj", 5, (64, 32))
    stacked = [spec.slot for spec in specs.values() if spec.param == "model.layers.0.mlp.experts.gate_and_up_proj"]
    assert stacked == list(range(8))
    assert all(spec.param == key for key, spec in specs.items() if spec.slot is None)
    assert all("experts" in key for key, spec in specs.items() if spec.slot is not None)


def test_dense_layers_come_first(tiny):
    specs = table(tiny, moe_layer_num_skipped=1, intermediate_size=48)
    assert specs["model.layers.0.mlp.gate_and_up_proj.weight"].shape == (96, 64)
    assert specs["model.layers.0.mlp.down_proj.weight"].shape == (64, 48)
    assert {key for key in specs if key.startswith("model.layers.0.mlp")} == {
        "model.layers.0.mlp.gate_and_up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    }
    assert "model.layers.1.mlp.gate.wg.weight" in specs


def test_one_expert_is_a_dense_layer(tiny):
    specs = table(tiny, num_experts=[1, 8])
    assert "model.layers.0.mlp.down_proj.weight" in specs
    assert "model.layers.1.mlp.experts.7.down_proj.weight" in specs


def test_layers_may_differ_in_size(tiny):
    specs = table(tiny, moe_intermediate_size=[32, 16], num_experts=[4, 8], num_shared_expert=[1, 3])
    assert specs["model.layers.0.mlp.gate.wg.weight"].shape == (4, 64)
    assert "model.layers.0.mlp.experts.4.down_proj.weight" not in specs
    assert specs["model.layers.1.mlp.experts.7.gate_and_up_proj.weight"].shape == (32, 64)
    assert specs["model.layers.1.mlp.shared_mlp.gate_and_up_proj.weight"].shape == (96, 64)
    assert specs["model.layers.1.mlp.shared_mlp.down_proj.weight"].shape == (64, 48)


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"use_mixed_mlp_moe": False}, "shared_mlp"),
        ({"use_qk_norm": False}, "_layernorm.weight"),
        ({"tie_word_embeddings": True}, "lm_head.weight"),
        ({"patch_embed_hidden_dim": 64}, "skip_connection"),
    ],
)
def test_switches_remove_their_weights(tiny, changes, absent):
    before, after = table(tiny), table(tiny, **changes)
    gone = before.keys() - after.keys()
    assert gone
    assert all(absent in key for key in gone)
    assert after.keys() < before.keys()
    if absent != "_layernorm.weight":
        assert not any(absent in key for key in after)


def test_qk_norm_switch_keeps_the_other_norms(tiny):
    gone = table(tiny).keys() - table(tiny, use_qk_norm=False).keys()
    assert {key.split(".")[-2] for key in gone} == {"query_layernorm", "key_layernorm"}


def test_vision_head_switch(tiny):
    gone = table(tiny).keys() - table(tiny, vit={**tiny["vit"], "vision_use_head": False}).keys()
    assert len(gone) == 11
    assert all(key.startswith("vision_model.head.") for key in gone)


@pytest.mark.parametrize(("depth", "places"), [(1, {0}), (2, {0, 2}), (3, {0, 2, 4})])
def test_aligner_depth(tiny, depth, places):
    specs = table(tiny, vit_aligner={**tiny["vit_aligner"], "depth": depth})
    weights = {key: spec.shape for key, spec in specs.items() if re.fullmatch(r"vision_aligner.*weight", key)}
    assert weights == {f"vision_aligner.layers.{i}.weight": (64, 32 if i == 0 else 64) for i in places}


def test_vae_converts_channels_while_resampling(tiny):
    vae = {**tiny["vae"], "block_out_channels": [32, 64, 128], "ffactor_spatial": 4, "ffactor_temporal": 2}
    specs = table(tiny, vae=vae)
    assert specs["vae.encoder.down.0.downsample.conv.weight"].shape == (16, 32, 3, 3, 3)
    assert specs["vae.encoder.down.1.downsample.conv.weight"].shape == (16, 64, 3, 3, 3)
    assert specs["vae.decoder.up.0.upsample.conv.weight"].shape == (512, 128, 3, 3, 3)
    assert specs["vae.decoder.up.1.upsample.conv.weight"].shape == (128, 64, 3, 3, 3)
    assert not any("nin_shortcut" in key or ".2.downsample" in key or ".2.upsample" in key for key in specs)


def test_vae_levels_that_keep_the_size_need_a_shortcut(tiny):
    vae = {**tiny["vae"], "block_out_channels": [32, 64, 128], "ffactor_spatial": 2, "ffactor_temporal": 1}
    specs = table(tiny, vae={**vae, "layers_per_block": 2})
    shortcuts = {key: spec.shape for key, spec in specs.items() if key.endswith("nin_shortcut.weight")}
    assert shortcuts == {
        "vae.encoder.down.2.block.0.nin_shortcut.weight": (128, 64, 1, 1, 1),
        "vae.decoder.up.2.block.0.nin_shortcut.weight": (32, 64, 1, 1, 1),
    }
    assert "vae.encoder.down.0.block.1.conv1.weight" in specs
    assert "vae.encoder.down.0.block.2.conv1.weight" not in specs
    assert "vae.decoder.up.0.block.2.conv1.weight" in specs


@pytest.mark.parametrize(
    ("channels", "message"), [([32] * 4, "too few"), ([32, 32, 32, 36, 32], "36 is no multiple of 8")]
)
def test_impossible_vae_is_refused(tiny, channels, message):
    with pytest.raises(CheckpointError, match=message):
        table(tiny, vae={**tiny["vae"], "block_out_channels": channels})


# --- quantized


@pytest.mark.parametrize("tied", [False, True])
def test_quantized_tensors_are_the_models_parameters(tiny, tied):
    """Stacks are stored as they are used: each key is a parameter's name, with its shape and type."""
    section = {"quant_method": "hunyuan-bento", "version": 1, "experts": ["mxfp4", "fp8"], "dense": "fp8"}
    raw = {**tiny, "quantization_config": section, "tie_word_embeddings": tied}
    config = CheckpointConfig.from_dict(raw)
    with torch.device("meta"):
        model = HunyuanImage3(config)
        use_weight_formats(model, config)
        parameters = dict(model.named_parameters())
    specs = expected_tensors(config)
    assert {key: spec.shape for key, spec in specs.items()} == {k: tuple(p.shape) for k, p in parameters.items()}
    own = {"mxfp4": torch.uint8, "mxfp4_scale": torch.uint8, "fp8": torch.float8_e4m3fn}
    for key, spec in specs.items():
        assert spec.param == key
        assert spec.slot is None
        assert parameters[key].dtype == own.get(spec.kind, torch.float32), key
    assert specs["model.layers.0.mlp.experts.down_proj"].kind == "mxfp4"
    assert specs["model.layers.1.mlp.experts.down_scale"].kind == "scale"
    assert ("lm_head.weight_scale" in specs) is not tied


def test_real_size_of_each_format():
    """GiB, against what is published for 16 bits and what the formats' definitions give."""

    def size(**section: str) -> float:
        quantized = (
            {"quantization_config": {"quant_method": "hunyuan-bento", "version": 1, **section}} if section else {}
        )
        return sum(spec.nbytes for spec in table({**REAL, **quantized}).values()) / 2**30

    assert size() == pytest.approx(154.6, abs=0.2)
    assert size() - size(experts="mxfp4", dense="bf16") == pytest.approx(144 * (1 - 4.25 / 16), rel=1e-3)
    assert size() - size(experts="fp8", dense="bf16") == pytest.approx(72, rel=1e-3)


def test_columns_that_do_not_divide_into_blocks_are_named(tiny):
    section = {"quant_method": "hunyuan-bento", "version": 1, "experts": "mxfp4", "dense": "bf16"}
    raw = {**tiny, "quantization_config": section, "moe_intermediate_size": 24}
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.experts\.down_proj: 24 columns; MXFP4 needs"):
        expected_tensors(CheckpointConfig.from_dict(raw))
