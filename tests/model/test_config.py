"""The model's shape from `config.json`: what is read, what has a default and what is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest
from small_model import model_config, raw_config

from hunyuan.errors import CheckpointError
from hunyuan.model.config import ModelConfig

REQUIRED = [
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "moe_intermediate_size",
    "moe_topk",
    "num_shared_expert",
    "num_experts",
    "max_position_embeddings",
    "vae",
    "vit",
    "vit_processor",
    "vit_aligner",
]

DEFAULTS = {
    "model_version": "HunyuanImage-3.0-Instruct",
    "moe_layer_num_skipped": 0,
    "use_mixed_mlp_moe": True,
    "use_qk_norm": True,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "image_base_size": 1024,
    "image_fixed_shapes": True,
    "patch_embed_hidden_dim": 1024,
    "cond_token_attn_type": "full",
    "cfg_distilled": False,
    "use_meanflow": False,
    "vae_downsample_factor": (16, 16),
}


def without(*keys: str, **changes: Any) -> ModelConfig:
    raw = raw_config(**changes)
    for key in keys:
        raw.pop(key, None)
    return ModelConfig.from_dict(raw)


# --- values


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_version", "HunyuanImage-3.0"),
        ("torch_dtype", "bfloat16"),
        ("vocab_size", 77),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("attention_head_dim", 24),
        ("intermediate_size", 40),
        ("moe_intermediate_size", (16, 48)),
        ("moe_topk", (1, 3)),
        ("num_shared_expert", (2, 3)),
        ("num_experts", (4, 16)),
        ("moe_layer_num_skipped", 1),
        ("use_mixed_mlp_moe", False),
        ("use_qk_norm", False),
        ("rms_norm_eps", 1e-6),
        ("max_position_embeddings", 99),
        ("rope_theta", 500.0),
        ("tie_word_embeddings", True),
        ("image_base_size", 512),
        ("image_fixed_shapes", False),
        ("patch_embed_hidden_dim", 64),
        ("cond_token_attn_type", "causal"),
        ("cfg_distilled", True),
        ("use_meanflow", True),
        ("vae_downsample_factor", (8, 8)),
    ],
)
def test_key_sets_its_own_field_and_no_other(key, value):
    stored = list(value) if isinstance(value, tuple) else value
    before, after = asdict(model_config()), asdict(model_config(**{key: stored}))
    assert {name for name in before if before[name] != after[name]} == {key}
    assert after[key] == value


@pytest.mark.parametrize(
    ("section", "key", "value", "field"),
    [
        ("vit_processor", "max_num_patches", 100, "vit_processor"),
        ("vit_processor", "image_mean", [0.1, 0.2, 0.3], "vit_processor"),
        ("vit_processor", "image_std", [0.6, 0.7, 0.8], "vit_processor"),
        ("vit_processor", "rescale_factor", 0.25, "vit_processor"),
        ("vit_aligner", "depth", 3, "vit_aligner"),
        ("vae", "block_out_channels", [32, 64, 64, 64, 64], "vae"),
        ("vae", "in_channels", 1, "vae"),
        ("vae", "out_channels", 4, "vae"),
        ("vae", "latent_channels", 16, "vae"),
        ("vae", "layers_per_block", 2, "vae"),
        ("vae", "ffactor_spatial", 8, "vae"),
        ("vae", "ffactor_temporal", 2, "vae"),
        ("vae", "scaling_factor", 0.25, "vae"),
        ("vae", "shift_factor", 0.5, "vae"),
    ],
)
def test_nested_key_sets_its_own_field_and_no_other(section, key, value, field):
    before = asdict(model_config())
    after = asdict(model_config(**{section: {**raw_config()[section], key: value}}))
    assert {name for name in before if before[name] != after[name]} == {field}
    if isinstance(after[field], dict):
        changed = {name for name in after[field] if after[field][name] != before[field][name]}
        assert changed == {key}
    read = after[field][key] if isinstance(after[field], dict) else after[field]
    assert read == (tuple(value) if isinstance(value, list) else value)


def test_vit_entry_is_read_and_is_our_own_copy():
    raw = raw_config()
    config = ModelConfig.from_dict(raw)
    assert asdict(config.vit).items() <= {"num_channels": 3, "vision_use_head": True, **raw["vit"]}.items()
    raw["vit"]["patch_size"] = 14
    assert config.vit.patch_size == 16


def test_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        model_config().hidden_size = 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"torch_dtype": None, "dtype": "float16"}, "float16"), ({"torch_dtype": None}, "bfloat16")],
)
def test_dtype_may_have_the_newer_name_or_none(changes, expected):
    assert model_config(**changes).torch_dtype == expected


# --- defaults


def test_keys_that_may_be_absent_have_these_defaults():
    config = asdict(without(*DEFAULTS))
    assert {key: config[key] for key in DEFAULTS} == DEFAULTS


def test_absent_keys_that_have_one_accepted_value_are_accepted():
    absent = ("img_proj_type", "patch_size", "cond_image_type", "norm_type", "rope_type")
    absent += ("attention_bias", "mlp_bias", "use_cla", "use_mla", "group_limited_greedy")
    assert without(*absent) == ModelConfig.from_dict(raw_config())


def test_nested_defaults():
    aligner = {"input_dim": 32, "n_embed": 64}
    vae = {k: v for k, v in raw_config()["vae"].items() if k not in ("in_channels", "out_channels", "scaling_factor")}
    config = model_config(vit_aligner=aligner, vit_processor={"max_num_patches": 64}, vae=vae)
    assert config.vit_aligner.depth == 2
    assert config.vit_processor.image_mean == config.vit_processor.image_std == (0.5, 0.5, 0.5)
    assert config.vit_processor.rescale_factor == 1 / 255
    assert (config.vae.in_channels, config.vae.out_channels) == (3, 3)
    assert config.vae.scaling_factor is None
    assert config.vae.shift_factor is None


def test_head_dim_is_not_hidden_size_over_heads_where_the_file_says_so():
    assert model_config(hidden_size=64, num_attention_heads=4, attention_head_dim=40).attention_head_dim == 40
    assert without("attention_head_dim", num_attention_heads=8).attention_head_dim == 8


# --- per-layer values

PER_LAYER = ["moe_intermediate_size", "moe_topk", "num_shared_expert", "num_experts"]


@pytest.mark.parametrize("key", PER_LAYER)
def test_one_number_serves_all_layers(key):
    assert getattr(model_config(**{key: 3, "num_hidden_layers": 4, **_lists(4, key)}), key) == (3, 3, 3, 3)


@pytest.mark.parametrize("key", PER_LAYER)
def test_list_gives_each_layer_its_own(key):
    config = model_config(num_hidden_layers=3, **_lists(3, key), **{key: [5, 6, 7, 8]})
    assert getattr(config, key) == (5, 6, 7)


@pytest.mark.parametrize("key", PER_LAYER)
def test_short_list_is_refused(key):
    with pytest.raises(CheckpointError, match=rf"{key}: \[5, 6\], expected a whole number or a list of 3"):
        model_config(num_hidden_layers=3, **_lists(3, key), **{key: [5, 6]})


def _lists(layers: int, but: str) -> dict[str, list[int]]:
    return {key: [1] * layers for key in PER_LAYER if key != but}


def test_dense_width_may_be_a_list():
    assert model_config(intermediate_size=[48, 48]).intermediate_size == 48


# --- refusals


@pytest.mark.parametrize("key", REQUIRED)
def test_missing_key_is_named(key):
    with pytest.raises(CheckpointError, match=f"config.json: .*{key}.* missing"):
        without(key)


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("vae", "block_out_channels"),
        ("vae", "latent_channels"),
        ("vae", "layers_per_block"),
        ("vae", "ffactor_spatial"),
        ("vae", "ffactor_temporal"),
        ("vit_processor", "max_num_patches"),
        ("vit_aligner", "input_dim"),
        ("vit_aligner", "n_embed"),
    ],
)
def test_missing_nested_key_is_named(section, key):
    kept = {name: value for name, value in raw_config()[section].items() if name != key}
    with pytest.raises(CheckpointError, match=f"config.json: .*{key}.* missing"):
        model_config(**{section: kept})


UNSUPPORTED = {
    "model_type": "llama",
    "hidden_act": "gelu",
    "norm_type": "layer",
    "rope_type": "1d",
    "attention_bias": True,
    "mlp_bias": True,
    "use_cla": True,
    "use_mla": True,
    "group_limited_greedy": True,
    "img_proj_type": "linear",
    "patch_size": 2,
    "cond_image_type": "vae",
    "vit_type": "siglip2-base",
    "cond_token_attn_type": "dense",
    "norm_topk_prob": False,
}


@pytest.mark.parametrize("key", UNSUPPORTED)
def test_unsupported_value_is_named(key):
    with pytest.raises(CheckpointError) as caught:
        model_config(**{key: UNSUPPORTED[key]})
    assert f"{key}: {UNSUPPORTED[key]!r}, expected " in str(caught.value)
    assert str(caught.value).count("expected") == 1


def test_all_unsupported_values_are_named_at_once():
    with pytest.raises(CheckpointError) as caught:
        model_config(**UNSUPPORTED)
    message = str(caught.value)
    assert [key for key in UNSUPPORTED if f"{key}: {UNSUPPORTED[key]!r}" not in message] == []


def test_all_missing_keys_are_named_at_once():
    with pytest.raises(CheckpointError) as caught:
        without(*REQUIRED, "model_type")
    assert [key for key in (*REQUIRED, "model_type") if f"{key}: missing" not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads is no multiple of num_key_value_heads"),
        ({"moe_topk": 9}, "layer 0: moe_topk 9 of 8 experts"),
        ({"moe_topk": 0}, "layer 1: moe_topk 0 of 8 experts"),
        ({"hidden_size": 96}, "vit_aligner.n_embed 64, hidden_size 96"),
        ({"vit_aligner": {"input_dim": 48, "n_embed": 64}}, "vit_aligner.input_dim 48"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling.type: 'linear', expected 'custom'"),
    ],
)
def test_values_that_do_not_fit_are_refused(changes, named):
    with pytest.raises(CheckpointError) as caught:
        model_config(**changes)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_experts", None),
        ("num_experts", "8"),
        ("num_experts", [8, 1.5]),
        ("vit_processor", []),
        ("vae", None),
        ("vit", {}),
        ("num_key_value_heads", 0),
        ("num_hidden_layers", "x"),
        ("num_hidden_layers", True),
        ("hidden_size", "64"),
        ("image_base_size", None),
        ("intermediate_size", []),
        ("use_qk_norm", "yes"),
        ("rope_theta", "10000"),
    ],
)
def test_malformed_value_is_named(key, value):
    with pytest.raises(CheckpointError, match=f"config.json: .*{key}"):
        model_config(**{key: value})


@pytest.mark.parametrize("key", ["downsample_match_channel", "upsample_match_channel"])
def test_autoencoder_without_matching_channels_is_refused(key):
    with pytest.raises(CheckpointError, match=f"vae.{key}: False, expected True"):
        model_config(vae={**raw_config()["vae"], key: False})


@pytest.mark.parametrize("kind", ["joint_full", "full", "full_causal", "causal"])
def test_all_four_attention_types_of_condition_images_are_known(kind):
    assert model_config(cond_token_attn_type=kind).cond_token_attn_type == kind


# --- derived values


def test_skipped_layers_and_single_experts_are_dense():
    config = model_config(
        num_hidden_layers=4, num_experts=[8, 8, 1, 8], moe_layer_num_skipped=1, **_lists(4, "num_experts")
    )
    assert [config.is_moe(layer) for layer in range(4)] == [False, True, False, True]


@pytest.mark.parametrize(("distilled", "meanflow", "tokens"), [(0, 0, 1), (1, 0, 2), (0, 1, 2), (1, 1, 3)])
def test_special_tokens_before_the_image(distilled, meanflow, tokens):
    config = model_config(cfg_distilled=bool(distilled), use_meanflow=bool(meanflow))
    assert config.num_gen_special_tokens == tokens


@pytest.mark.parametrize(("spatial", "temporal", "levels"), [(16, 4, (4, 2)), (8, 1, (3, 0)), (4, 2, (2, 1))])
def test_autoencoder_levels(spatial, temporal, levels):
    vae = model_config(vae={**raw_config()["vae"], "ffactor_spatial": spatial, "ffactor_temporal": temporal}).vae
    assert (vae.spatial_levels, vae.temporal_levels) == levels
