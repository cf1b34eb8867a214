"""Timesteps, latents and velocities: the small networks around the backbone, against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from small_model import noise, randomized
from torch import Tensor
from torch.nn.functional import conv2d, gelu, group_norm, linear, silu

from hunyuan.model.embeddings import FinalLayer, PatchEmbed, ResBlock, TimestepEmbedder, sinusoid


def res_block(block: ResBlock, x: Tensor, emb: Tensor) -> Tensor:
    w = dict(block.named_parameters())
    h = silu(group_norm(x, 32, w["in_layers.0.weight"], w["in_layers.0.bias"]))
    h = conv2d(h, w["in_layers.2.weight"], w["in_layers.2.bias"], padding=1)
    modulation = linear(silu(emb), w["emb_layers.1.weight"], w["emb_layers.1.bias"])[:, :, None, None]
    channels = h.shape[1]
    scale, shift = modulation[:, :channels], modulation[:, channels:]
    h = group_norm(h, 32, w["out_layers.0.weight"], w["out_layers.0.bias"]) * (1 + scale) + shift
    h = conv2d(silu(h), w["out_layers.3.weight"], w["out_layers.3.bias"], padding=1)
    skip = x
    if "skip_connection.weight" in w:
        skip = conv2d(x, w["skip_connection.weight"], w["skip_connection.bias"])
    return skip + h


# --- timesteps


def test_sinusoid_has_cosines_first():
    times = [0.0, 1.0, 400.5, 1000.0]
    out = sinusoid(torch.tensor(times), 8)
    assert out.dtype == torch.float32
    for row, t in zip(out.tolist(), times, strict=True):
        angles = [t * math.exp(-math.log(10000) * i / 4) for i in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert row == pytest.approx(expected, abs=1e-4)


def test_sinusoid_is_256_wide_and_fp32_for_any_time():
    out = sinusoid(torch.tensor([3, 7]).bfloat16())
    assert out.shape == (2, 256)
    assert out.dtype == torch.float32


def test_recorded_sinusoid(golden):
    recorded = load_file(golden / "embed.safetensors")
    torch.testing.assert_close(sinusoid(recorded["t"]), recorded["sinusoid"], rtol=1e-3, atol=1e-4)


def test_timestep_embedder_is_linear_gelu_linear():
    embedder, t = randomized(TimestepEmbedder(48)), torch.tensor([0.0, 250.0, 999.0])
    w = dict(embedder.named_parameters())
    assert list(w) == ["mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"]
    h = gelu(linear(sinusoid(t), w["mlp.0.weight"], w["mlp.0.bias"]), approximate="none")
    torch.testing.assert_close(embedder(t), linear(h, w["mlp.2.weight"], w["mlp.2.bias"]))


def test_bf16_embedder_rounds_the_sinusoid_and_not_the_time():
    embedder = randomized(TimestepEmbedder(48)).bfloat16()
    t = torch.tensor([997.0])  # 996 in bf16
    assert embedder(t).dtype == torch.bfloat16
    assert torch.equal(embedder(t), embedder.mlp(sinusoid(t).bfloat16()))
    assert not torch.equal(embedder(t), embedder(t.bfloat16()))


# --- residual block


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 64), (64, 32), (32, 32)])
def test_residual_block_is_scaled_and_shifted_by_the_time(inputs, outputs):
    block = randomized(ResBlock(inputs, outputs, 40))
    x, emb = noise(2, inputs, 3, 5), noise(2, 40, seed=1)
    torch.testing.assert_close(block(x, emb), res_block(block, x, emb), rtol=1e-4, atol=1e-5)
    has_skip = any(name.startswith("skip_connection") for name, _ in block.named_parameters())
    assert has_skip == (inputs != outputs)


def test_each_row_has_its_own_time():
    block = randomized(ResBlock(32, 64, 40))
    x, emb = noise(1, 32, 3, 5).expand(2, -1, -1, -1), noise(2, 40, seed=1)
    out = block(x, emb)
    assert not torch.allclose(out[0], out[1])
    torch.testing.assert_close(block(x[:1], emb[1:])[0], out[1])


# --- latents to tokens to velocity


def test_patch_embed_lays_rows_one_after_the_other():
    module = randomized(PatchEmbed(4, 32, 64))
    latents, emb = noise(2, 4, 3, 5), noise(2, 64, seed=1)
    tokens = module(latents, emb)
    first = module.model[0]
    picture = res_block(module.model[1], conv2d(latents, first.weight, first.bias, padding=1), emb)
    assert tokens.shape == (2, 15, 64)
    for row in range(3):
        for column in range(5):
            torch.testing.assert_close(tokens[:, 5 * row + column], picture[:, :, row, column], rtol=1e-4, atol=1e-5)


def test_patch_embed_takes_latents_of_any_dtype():
    module = randomized(PatchEmbed(4, 32, 64)).bfloat16()
    latents, emb = noise(1, 4, 2, 2), noise(1, 64).bfloat16()
    assert module(latents, emb).dtype == torch.bfloat16
    assert torch.equal(module(latents, emb), module(latents.bfloat16(), emb))


def test_final_layer_reads_rows_one_after_the_other():
    module = randomized(FinalLayer(64, 32, 4))
    tokens, emb = noise(2, 15, 64), noise(2, 64, seed=1)
    picture = torch.zeros(2, 64, 3, 5)
    for row in range(3):
        for column in range(5):
            picture[:, :, row, column] = tokens[:, 5 * row + column]
    out = module.model[1]
    h = group_norm(res_block(module.model[0], picture, emb), 32, out[0].weight, out[0].bias)
    expected = conv2d(silu(h), out[2].weight, out[2].bias, padding=1)
    velocity = module(tokens, emb, 3, 5)
    assert velocity.shape == (2, 4, 3, 5)
    torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(module(tokens, emb, 5, 3).flatten(2), velocity.flatten(2))


@torch.no_grad()
def test_recorded_tokens_and_velocity(golden, golden_editor):
    recorded, model = load_file(golden / "embed.safetensors"), golden_editor.engine.checkpoint.model
    tokens = model.embed_latents(recorded["patch_in"], recorded["patch_t"])
    torch.testing.assert_close(tokens, recorded["patch_out"], rtol=1e-3, atol=1e-4)
    velocity = model.velocity(recorded["final_in"], recorded["patch_t"], 5, 7)
    torch.testing.assert_close(velocity, recorded["final_out"], rtol=1e-3, atol=1e-4)
