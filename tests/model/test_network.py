"""The whole network: which parts it has, and that each computation uses its own part and the right precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_model import Buffers, model_config, noise, randomized

from hunyuan.checkpoint.load import empty_model
from hunyuan.model.attention import split_segments
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.rope import positions_2d, rope_table

CPU = torch.device("cpu")


def network(dtype: torch.dtype = torch.float32, **changes: Any) -> HunyuanImage3:
    return randomized(empty_model(model_config(**changes), CPU, dtype))


@pytest.fixture(scope="module")
def model() -> HunyuanImage3:
    """Shared: tests that change a weight build their own."""
    return network()


@pytest.fixture(scope="module")
def bf16() -> HunyuanImage3:
    return network(torch.bfloat16)


# --- parts


@pytest.mark.parametrize(("distilled", "meanflow"), [(False, False), (True, False), (False, True), (True, True)])
def test_distil_embedders_exist_only_where_configured(distilled, meanflow):
    with torch.device("meta"):
        built = HunyuanImage3(model_config(cfg_distilled=distilled, use_meanflow=meanflow))
    assert (built.guidance_emb is not None) == distilled
    assert (built.timestep_r_emb is not None) == meanflow
    names = {name.split(".")[0] for name, _ in built.named_parameters()}
    assert ("guidance_emb" in names, "timestep_r_emb" in names) == (distilled, meanflow)


def test_tied_embeddings_are_one_parameter():
    tied = network(tie_word_embeddings=True)
    assert tied.lm_head.weight is tied.model.wte.weight
    assert "lm_head.weight" not in dict(tied.named_parameters())
    hidden = noise(3, 64)
    torch.testing.assert_close(tied.logits(hidden), tied.model.ln_f(hidden) @ tied.model.wte.weight.T)


def test_embeddings_are_apart_otherwise(model):
    assert model.lm_head.weight.data_ptr() != model.model.wte.weight.data_ptr()
    assert not torch.equal(model.lm_head.weight, model.model.wte.weight)


def test_tied_embeddings_of_a_new_network():
    with torch.device("meta"):
        built = HunyuanImage3(model_config(tie_word_embeddings=True))
    assert built.lm_head.weight is built.model.wte.weight


def test_device_and_dtype_are_those_of_the_weights(model, bf16):
    assert (model.device, model.dtype) == (CPU, torch.float32)
    assert bf16.dtype == torch.bfloat16


def test_there_are_no_buffers(model):
    assert list(model.named_buffers()) == []


# --- computations


def test_logits_pass_the_final_norm(model):
    hidden = noise(2, 3, 64)
    normed = hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * model.model.ln_f.weight
    torch.testing.assert_close(model.logits(hidden), normed @ model.lm_head.weight.T)


def test_tokens_are_looked_up(model):
    assert torch.equal(model.embed_tokens(torch.tensor([5, 0, 5])), model.model.wte.weight[[5, 0, 5]])


def test_velocity_has_no_final_norm_and_its_own_time(model):
    hidden, t = noise(2, 6, 64), torch.tensor([10.0, 900.0])
    expected = model.final_layer(hidden, model.time_embed_2(t), 2, 3)
    assert torch.equal(model.velocity(hidden, t, 2, 3), expected)
    assert not torch.allclose(model.velocity(hidden, t.flip(0), 2, 3), expected)


def test_latents_are_embedded_with_the_other_time(model):
    latents, t = noise(2, 8, 2, 3), torch.tensor([10.0, 900.0])
    expected = model.patch_embed(latents, model.time_embed(t))
    assert torch.equal(model.embed_latents(latents, t), expected)
    assert not torch.allclose(model.embed_latents(latents, t.flip(0)), expected)


def test_vision_passes_the_tower_and_the_aligner(model):
    patches, shapes = noise(1, 8, 768), torch.tensor([[2, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]])
    tokens = model.embed_vision(patches, shapes, mask)
    features = model.vision_model(patches, mask, shapes).last_hidden_state
    assert tokens.shape == (1, 8, 64)
    assert torch.equal(tokens, model.vision_aligner(features))


def test_vision_reads_nothing_back_from_its_device():
    """Reading waits for all that a GPU was given before. The meta device has no values, so reading one is an error."""
    with torch.device("meta"):
        built = HunyuanImage3(model_config())
        patches, mask = torch.empty(2, 8, 768), torch.ones(2, 8, dtype=torch.int32)
    tokens = built.embed_vision(patches, torch.tensor([[2, 3], [2, 4]]), mask)
    assert (tokens.device.type, tokens.shape) == ("meta", (2, 8, 64))


def test_pictures_are_decoded_from_unscaled_latents(model):
    latents = noise(1, 8, 2, 3)
    torch.testing.assert_close(model.decode_image(latents), model.vae.decode(latents / 0.5627))
    assert model.decode_image(latents).shape == (1, 3, 32, 48)


def test_pictures_are_encoded_as_the_autoencoder_says(model):
    pixels = noise(1, 3, 32, 48)
    for ours, theirs in zip(model.encode_image(pixels), model.vae.encode(pixels), strict=True):
        assert torch.equal(ours, theirs)


# --- bf16


@torch.no_grad()
def test_bf16_backbone_runs_on_the_cpu_close_to_fp32(model, bf16):
    ids = torch.arange(12)
    streams = []
    for m in (model, bf16):
        kv, config = Buffers(), m.config
        rope = rope_table(positions_2d(0, 12, []), config.attention_head_dim, config.rope_theta)
        streams.append(m.model(m.embed_tokens(ids)[None], rope, kv, split_segments(0, 12, [(2, 7)])))
        assert kv.keys[0].dtype == kv.values[1].dtype == m.dtype
    exact, rough = streams
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).norm() < 0.15 * exact.norm()
    logits = bf16.logits(rough)
    assert logits.dtype == torch.float32
    assert logits.shape == (1, 12, 2624)


@torch.no_grad()
def test_bf16_images_run_on_the_cpu_and_come_out_in_fp32(bf16):
    t = torch.tensor([500.0])
    assert bf16.embed_latents(noise(1, 8, 2, 3), t).dtype == torch.bfloat16
    velocity = bf16.velocity(noise(1, 6, 64).bfloat16(), t, 2, 3)
    assert velocity.dtype == torch.float32
    pixels = bf16.decode_image(noise(1, 8, 2, 2))
    assert (pixels.dtype, pixels.shape) == (torch.float32, (1, 3, 32, 32))
    assert bf16.encode_image(noise(1, 3, 32, 32)).mean.dtype == torch.float32
    assert pixels.isfinite().all()
    assert velocity.isfinite().all()


@torch.no_grad()
def test_bf16_vision_runs_on_the_cpu(bf16):
    mask = torch.tensor([[1, 1, 1, 1, 0]], dtype=torch.int32)
    tokens = bf16.embed_vision(noise(1, 5, 768), torch.tensor([[2, 2]]), mask)
    assert tokens.dtype == torch.bfloat16
    assert tokens.isfinite().all()


@pytest.mark.parametrize("kind", ["model", "bf16"])
def test_autoencoder_is_not_computed_in_fp16_on_the_cpu(kind, request):
    chosen: HunyuanImage3 = request.getfixturevalue(kind)
    with chosen._vae_precision():
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.trap(16)
@torch.no_grad()
def test_computations_leave_nothing_on_the_network(model):
    def attributes() -> dict[str, set[str]]:
        return {name: set(vars(module)) | set(module._buffers) for name, module in model.named_modules()}

    before, weights = attributes(), {name: p._version for name, p in model.named_parameters()}
    t = torch.tensor([500.0])
    model.embed_latents(noise(1, 8, 2, 3), t)
    model.velocity(noise(1, 6, 64), t, 2, 3)
    model.embed_vision(noise(1, 5, 768), torch.tensor([[2, 2]]), torch.tensor([[1, 1, 1, 1, 0]]))
    model.decode_image(noise(1, 8, 2, 2))
    model.encode_image(noise(1, 3, 32, 32))
    model.logits(noise(1, 64))
    assert attributes() == before
    assert {name: p._version for name, p in model.named_parameters()} == weights
