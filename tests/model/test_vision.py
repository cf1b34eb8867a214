"""The vision tower: every patch row is kept, masked rows do not reach the real ones, the aligner's depth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from small_model import noise, randomized, raw_config
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, linear

from hunyuan.model.config import AlignerConfig, VitConfig
from hunyuan.model.vision import VisionAligner, build_vision_model

ROWS, COLUMNS, MOST = 3, 5, 24
REAL = ROWS * COLUMNS
MASK = (torch.arange(MOST) < REAL).int()[None]
SHAPES = torch.tensor([[ROWS, COLUMNS]])


def built(vit: dict[str, Any]) -> nn.Module:
    return build_vision_model(TypeAdapter(VitConfig).validate_python(vit))


def tower(**changes: Any) -> nn.Module:
    return randomized(built({**raw_config()["vit"], **changes}))


@pytest.fixture(scope="module")
def vision() -> nn.Module:
    return tower()


def patches(seed: int = 0) -> Tensor:
    values = noise(1, MOST, 3 * 16 * 16, seed=seed)
    values[:, REAL:] = 0
    return values


def features(vision: nn.Module, values: Tensor, mask: Tensor = MASK, shapes: Tensor = SHAPES) -> Tensor:
    return vision(values, mask, shapes).last_hidden_state  # by place: names differ between versions


# --- the tower


def test_padding_rows_are_kept_and_finite(vision):
    out = features(vision, patches())
    assert out.shape == (1, MOST, 32)
    assert out.isfinite().all()
    # They went through the layers like the others: post_layernorm leaves none of them empty.
    assert (out[0, REAL:].abs().sum(-1) > 1).all()


def test_masked_patches_do_not_reach_the_real_rows(vision):
    changed = patches()
    changed[:, REAL:] = 100 * noise(1, MOST - REAL, 768, seed=5)
    before, after = features(vision, patches()), features(vision, changed)
    torch.testing.assert_close(after[:, :REAL], before[:, :REAL])
    assert ((after - before)[0, REAL:].abs().amax(-1) > 1e-3).all()


def test_real_patches_reach_all_rows(vision):
    changed = patches()
    changed[:, 7] = 5 * noise(768, seed=6)
    difference = (features(vision, changed) - features(vision, patches()))[0].abs().amax(-1)
    assert (difference > 1e-5).all()


def test_without_padding_the_real_rows_are_the_same(vision):
    alone = features(vision, patches()[:, :REAL], MASK[:, :REAL])
    torch.testing.assert_close(alone, features(vision, patches())[:, :REAL], rtol=1e-4, atol=1e-5)


def test_positions_are_resized_to_the_grid_and_padding_gets_the_first(vision):
    embeddings = vision.embeddings(torch.zeros(1, MOST, 768), SHAPES)[0] - vision.embeddings.patch_embedding.bias
    table = vision.embeddings.position_embedding.weight.view(4, 4, 32).permute(2, 0, 1)[None]
    resized = interpolate(table, (ROWS, COLUMNS), mode="bilinear", align_corners=False, antialias=True)
    expected = resized[0].permute(1, 2, 0).reshape(REAL, 32)
    torch.testing.assert_close(embeddings[:REAL], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(embeddings[REAL:], expected[:1].expand(MOST - REAL, -1), rtol=1e-4, atol=1e-5)


def test_grid_decides_the_positions(vision):
    turned = features(vision, patches(), shapes=torch.tensor([[COLUMNS, ROWS]]))
    assert (turned - features(vision, patches())).abs().max() > 0.01


def test_two_pictures_of_different_grids_do_not_mix(vision):
    values = torch.cat([patches(1), patches(2)])
    masks = torch.cat([MASK, (torch.arange(MOST) < 8).int()[None]])
    shapes = torch.tensor([[ROWS, COLUMNS], [2, 4]])
    both = features(vision, values, masks, shapes)
    torch.testing.assert_close(both[:1], features(vision, patches(1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1:], features(vision, patches(2), masks[1:], shapes[1:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "value", "parameter", "shape"),
    [
        ("hidden_size", 64, "post_layernorm.weight", (64,)),
        ("intermediate_size", 96, "encoder.layers.0.mlp.fc1.weight", (96, 32)),
        ("num_hidden_layers", 3, "encoder.layers.2.layer_norm1.weight", (32,)),
        ("num_channels", 1, "embeddings.patch_embedding.weight", (32, 256)),
        ("num_patches", 36, "embeddings.position_embedding.weight", (36, 32)),
        ("patch_size", 8, "embeddings.patch_embedding.weight", (32, 192)),
    ],
)
def test_sizes_come_from_the_checkpoint(key, value, parameter, shape):
    assert dict(tower(**{key: value}).named_parameters())[parameter].shape == shape


def test_heads_epsilon_and_activation_come_from_the_checkpoint(vision):
    plain = features(vision, patches())
    for changes in ({"num_attention_heads": 4}, {"layer_norm_eps": 0.1}, {"hidden_act": "relu"}):
        assert (features(tower(**changes), patches()) - plain).abs().max() > 0.01, changes


def test_keys_that_are_no_sizes_are_ignored():
    assert tower(torch_dtype="float16", output_hidden_states=True, model_type="other") is not None


def test_tower_does_not_drop_anything_at_random():
    vision = tower(attention_dropout=0.5)
    assert not vision.training
    assert torch.equal(features(vision, patches()), features(vision, patches()))


def test_new_tower_is_ready_for_inference():
    assert not built(raw_config()["vit"]).training


def test_pooling_head_is_there_unless_switched_off(vision):
    assert any(name.startswith("head.") for name, _ in vision.named_parameters())
    assert not any(name.startswith("head.") for name, _ in tower(vision_use_head=False).named_parameters())


# --- the aligner


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_aligner_depth(depth):
    aligner, x = randomized(VisionAligner(AlignerConfig(24, 40, depth))), noise(2, 5, 24)
    w = dict(aligner.named_parameters())
    assert list(w) == [f"layers.{2 * i}.{kind}" for i in range(depth) for kind in ("weight", "bias")]
    expected = linear(x, w["layers.0.weight"], w["layers.0.bias"])
    for i in range(1, depth):
        expected = linear(gelu(expected, approximate="none"), w[f"layers.{2 * i}.weight"], w[f"layers.{2 * i}.bias"])
    torch.testing.assert_close(aligner(x), expected)
