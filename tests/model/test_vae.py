"""The autoencoder: its rearrangements against plain loops, its shapes, and the scale of its latents."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_model import model_config, noise, randomized, raw_config
from torch import Tensor, nn
from torch.nn.functional import conv3d, group_norm, silu

from hunyuan.model.config import VaeConfig
from hunyuan.model.vae import (
    AttnBlock,
    Downsample,
    FrameConv3d,
    Posterior,
    ResnetBlock,
    Upsample,
    Vae,
    depth_to_space,
    group_mean,
    space_to_depth,
)


def vae_config(**changes: Any) -> VaeConfig:
    return model_config(vae={**raw_config()["vae"], **changes}).vae


SMALL = {"block_out_channels": [32, 64, 64], "ffactor_spatial": 4, "ffactor_temporal": 2, "latent_channels": 4}


@pytest.fixture(scope="module")
def small() -> Vae:
    """Two levels that halve the picture: quick, and with more channels inside than at the ends."""
    return randomized(Vae(vae_config(**SMALL)))


# --- convolutions


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5])
def test_a_convolution_frame_by_frame_is_the_3d_one(size, frames):
    conv = randomized(FrameConv3d(5, 4, size, padding=size // 2))
    x = noise(2, 5, frames, 6, 7)
    expected = conv3d(x, conv.weight, conv.bias, padding=size // 2)
    assert torch.allclose(conv(x), expected, atol=1e-5)


def test_zeros_before_and_behind_the_frames_are_not_multiplied():
    conv = randomized(FrameConv3d(5, 4, 3, padding=1))
    x = noise(2, 5, 1, 6, 7)
    expected = conv(x)
    with torch.no_grad():
        conv.weight[:, :, ::2] = torch.nan
    assert torch.equal(conv(x), expected)


# --- rearrangements


@pytest.mark.parametrize(("t", "s"), [(1, 2), (2, 2), (2, 3)])
def test_space_to_depth_order_is_time_row_column_channel(t, s):
    frames, height, width, channels = 2, 2, 3, 5
    x = noise(2, channels, frames * t, height * s, width * s)
    out = space_to_depth(x, t, s)
    assert out.shape == (2, t * s * s * channels, frames, height, width)
    for dt in range(t):
        for row in range(s):
            for column in range(s):
                for c in range(channels):
                    depth = ((dt * s + row) * s + column) * channels + c
                    assert torch.equal(out[:, depth], x[:, c, dt::t, row::s, column::s])


@pytest.mark.parametrize(("t", "s"), [(1, 2), (2, 2), (2, 3)])
def test_depth_to_space_undoes_it(t, s):
    x = noise(2, 5, 2 * t, 2 * s, 3 * s)
    assert torch.equal(depth_to_space(space_to_depth(x, t, s), t, s), x)
    deep = noise(2, 3 * t * s * s, 2, 3, 4)
    assert torch.equal(space_to_depth(depth_to_space(deep, t, s), t, s), deep)


def test_group_mean_averages_neighbouring_channels():
    x = noise(2, 6, 1, 2, 2)
    expected = torch.stack([(x[:, 0] + x[:, 1] + x[:, 2]) / 3, (x[:, 3] + x[:, 4] + x[:, 5]) / 3], dim=1)
    torch.testing.assert_close(group_mean(x, 2), expected)
    assert torch.equal(group_mean(x, 6), x)


# --- blocks


def norm(x: Tensor, layer: nn.GroupNorm) -> Tensor:
    return group_norm(x, 32, layer.weight, layer.bias, eps=1e-6)


@pytest.mark.parametrize("outputs", [32, 64])
def test_residual_block(outputs):
    block, x = randomized(ResnetBlock(32, outputs)), 0.01 * noise(1, 32, 2, 3, 4)
    assert hasattr(block, "nin_shortcut") == (outputs != 32)
    h = conv3d(silu(norm(x, block.norm1)), block.conv1.weight, block.conv1.bias, padding=1)
    h = conv3d(silu(norm(h, block.norm2)), block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = x if outputs == 32 else conv3d(x, block.nin_shortcut.weight, block.nin_shortcut.bias)
    torch.testing.assert_close(block(x), h + shortcut)


def test_attention_block_looks_at_all_places_of_all_frames():
    block, x = randomized(AttnBlock(32)), noise(2, 32, 2, 3, 4)
    h = norm(x, block.norm)
    q, k, v = (
        torch.einsum("oc,ncp->npo", f.weight[:, :, 0, 0, 0], h.flatten(2)) + f.bias for f in (block.q, block.k, block.v)
    )
    out = (q @ k.mT / 32**0.5).softmax(-1) @ v
    out = out @ block.proj_out.weight[:, :, 0, 0, 0].T + block.proj_out.bias
    torch.testing.assert_close(block(x), x + out.mT.reshape(x.shape))


@pytest.mark.parametrize(("temporal", "frames"), [(False, 2), (True, 1)])
def test_downsample(temporal, frames):
    block, x = randomized(Downsample(32, 64, temporal)), noise(1, 32, 2, 4, 6)
    factor = 8 if temporal else 4
    out = block(x)
    assert out.shape == (1, 64, frames, 2, 3)
    h = conv3d(x, block.conv.weight, block.conv.bias, padding=1)
    assert h.shape[1] == 64 // factor
    group = factor * 32 // 64
    deep = space_to_depth(x, 1 + temporal, 2)
    shortcut = torch.stack([deep[:, i * group : (i + 1) * group].mean(1) for i in range(64)], dim=1)
    torch.testing.assert_close(out, space_to_depth(h, 1 + temporal, 2) + shortcut)


@pytest.mark.parametrize(("temporal", "frames"), [(False, 2), (True, 4)])
def test_upsample(temporal, frames):
    block, x = randomized(Upsample(64, 32, temporal)), noise(1, 64, 2, 2, 3)
    factor = 8 if temporal else 4
    out = block(x)
    assert out.shape == (1, 32, frames, 4, 6)
    h = conv3d(x, block.conv.weight, block.conv.bias, padding=1)
    assert h.shape[1] == 32 * factor
    repeated = torch.stack([x[:, i // (factor * 32 // 64)] for i in range(32 * factor)], dim=1)
    torch.testing.assert_close(out, depth_to_space(h + repeated, 1 + temporal, 2))


# --- shapes


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        (SMALL, 4),
        ({**SMALL, "block_out_channels": [32, 64, 128], "layers_per_block": 2}, 4),
        ({**SMALL, "ffactor_spatial": 2, "ffactor_temporal": 1}, 2),
        ({**SMALL, "ffactor_temporal": 4}, 4),
        ({}, 16),
    ],
)
def test_shapes_and_that_time_disappears(changes, factor):
    model = randomized(Vae(vae_config(**changes)))
    channels = model.config.latent_channels
    posterior = model.encode(noise(2, 3, 2 * factor, 3 * factor))
    assert posterior.mean.shape == posterior.logvar.shape == (2, channels, 1, 2, 3)
    assert model.decode(noise(1, channels, 2, 3)).shape == (1, 3, 2 * factor, 3 * factor)


def test_only_the_deeper_levels_halve_time():
    with torch.device("meta"):
        model = Vae(vae_config())
    assert [level.downsample.t for level in model.encoder.down if hasattr(level, "downsample")] == [1, 1, 2, 2]
    assert [level.upsample.t for level in model.decoder.up if hasattr(level, "upsample")] == [2, 2, 1, 1]


def test_decoder_has_one_block_more_than_the_encoder():
    with torch.device("meta"):
        model = Vae(vae_config(layers_per_block=2))
    assert {len(level.block) for level in model.encoder.down} == {2}
    assert {len(level.block) for level in model.decoder.up} == {3}


# --- encoding and decoding


def test_encoder_sees_one_picture_repeated_over_time(small):
    given = []
    handle = small.encoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    pixels = noise(2, 3, 8, 12)
    small.encode(pixels)
    handle.remove()
    assert given[0].shape == (2, 3, 2, 8, 12)
    assert torch.equal(given[0], torch.stack([pixels, pixels], dim=2))


def test_encoder_output_has_a_shortcut_of_averaged_channels(small):
    given = []
    handle = small.encoder.norm_out.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    moments = small.encoder(noise(1, 3, 2, 8, 8))
    handle.remove()
    x, out = given[0], small.encoder.conv_out
    h = conv3d(silu(norm(x, small.encoder.norm_out)), out.weight, out.bias, padding=1)
    averaged = torch.stack([x[:, 8 * i : 8 * i + 8].mean(1) for i in range(8)], dim=1)
    torch.testing.assert_close(moments, h + averaged)


def test_decoder_input_has_a_shortcut_of_repeated_channels(small):
    given = []
    handle = small.decoder.mid.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    z = noise(1, 4, 1, 2, 2)
    small.decoder(z)
    handle.remove()
    repeated = torch.stack([z[:, i // 16] for i in range(64)], dim=1)
    torch.testing.assert_close(given[0], small.decoder.conv_in(z) + repeated)


def test_first_half_of_the_moments_is_the_mean(small):
    pixels = noise(1, 3, 8, 8)
    moments = small.encoder(torch.stack([pixels, pixels], dim=2))
    posterior = small.encode(pixels)
    torch.testing.assert_close(posterior.mean, moments[:, :4])
    torch.testing.assert_close(posterior.logvar, moments[:, 4:])


def test_log_variance_is_clamped_and_the_mean_is_not():
    model = randomized(Vae(vae_config(**SMALL)))
    model.encoder.conv_out.bias[:] = torch.tensor([500.0, -500, 0, 0, 500, -500, 0, 0])
    posterior = model.encode(noise(1, 3, 8, 8))
    assert (posterior.logvar[:, 0] == 20).all()
    assert (posterior.logvar[:, 1] == -30).all()
    assert (posterior.logvar[:, 2:].abs() < 20).all()
    assert (posterior.mean[:, 0] > 400).all()
    assert (posterior.mean[:, 1] < -400).all()


def test_sample_is_mean_plus_deviation_times_noise():
    mean, logvar, draw = (noise(1, 4, 1, 2, 2, seed=i) for i in range(3))
    sample = Posterior(mean, logvar).sample(draw)
    torch.testing.assert_close(sample, mean + logvar.exp().sqrt() * draw)
    assert torch.equal(Posterior(mean, logvar).sample(torch.zeros_like(draw)), mean)


def test_decoded_picture_is_the_last_frame(small):
    z = noise(1, 4, 2, 3)
    frames = small.decoder(z[:, :, None])
    assert frames.shape[2] == 2
    assert not torch.allclose(frames[:, :, 0], frames[:, :, 1])
    assert torch.equal(small.decode(z), frames[:, :, -1])


@pytest.mark.parametrize(
    ("scaling", "shift", "expected"),
    [
        (0.5, None, lambda x: x * 0.5),
        (0.5, 0.0, lambda x: x * 0.5),
        (0.5, 3.0, lambda x: (x - 3) * 0.5),
        (None, 3.0, lambda x: x - 3),
        (0.0, -1.5, lambda x: x + 1.5),
        (None, None, lambda x: x),
    ],
)
def test_scale_and_shift_are_used_where_present_and_not_zero(small, scaling, shift, expected):
    with torch.device("meta"):
        model = Vae(replace(small.config, scaling_factor=scaling, shift_factor=shift))
    x = noise(1, 4, 2, 2)
    torch.testing.assert_close(model.scale(x), expected(x))
    torch.testing.assert_close(model.unscale(expected(x)), x)


def test_computes_in_the_dtype_of_its_weights():
    model = randomized(Vae(vae_config(**SMALL))).bfloat16()
    assert model.dtype == torch.bfloat16
    assert model.encode(noise(1, 3, 8, 8)).mean.dtype == torch.bfloat16
    assert model.decode(noise(1, 4, 2, 2)).dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.slow
def test_recorded_picture(golden, golden_editor):
    recorded = load_file(golden / "vae.safetensors")
    decoded = golden_editor.engine.checkpoint.model.vae.decode(recorded["decode_in"][:, :, 0])
    torch.testing.assert_close(decoded[:, :, None], recorded["decode_out"], rtol=1e-3, atol=2e-4)


def test_recorded_sample_and_its_scale(golden):
    recorded = load_file(golden / "vae.safetensors")
    posterior = Posterior(recorded["mean"], recorded["logvar"])
    draw = noise(*recorded["mean"].shape, seed=7)
    torch.testing.assert_close(posterior.sample(draw), recorded["sample_seed7"], rtol=1e-3, atol=2e-4)
    with torch.device("meta"):
        scaled = Vae(vae_config()).scale(recorded["sample_seed7"])
    torch.testing.assert_close(scaled[:, :, 0], recorded["cond_latents_seed7"], rtol=1e-3, atol=2e-4)
