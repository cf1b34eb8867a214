"""Source pictures through the autoencoder and the vision tower: what comes out, in which order, and when it waits."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor

from hunyuan import Editor
from hunyuan.generation.prefill import CondTokens, encode_conditions
from hunyuan.generation.random_numbers import RequestRandom
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.vae import Posterior
from hunyuan.prompt.images import CondImage, prepare_cond_image

CPU = torch.device("cpu")


@pytest.fixture
def model(golden_editor: Editor, monkeypatch: pytest.MonkeyPatch) -> HunyuanImage3:
    """The golden network with something quick in the place of the autoencoder's encoder."""
    built = golden_editor.engine.checkpoint.model

    def encode(pixels: Tensor) -> Posterior:
        blurred = torch.nn.functional.avg_pool2d(pixels, 16)  # [n, 3, h, w]
        mean, logvar = (blurred[:, i : i + 1, None].expand(-1, 8, -1, -1, -1) for i in (0, 1))
        return Posterior(mean, logvar - 1)

    monkeypatch.setattr(built, "encode_image", encode)
    return built


@pytest.fixture
def images(model: HunyuanImage3) -> list[CondImage]:
    """Three of different shapes."""
    generator = torch.Generator().manual_seed(0)
    pictures = [
        Image.fromarray(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator).numpy())
        for width, height in ((64, 64), (90, 60), (40, 80))
    ]
    return [prepare_cond_image(picture, model.config, True) for picture in pictures]


def one_after_the_other(
    model: HunyuanImage3, images: list[CondImage], seed: int
) -> tuple[list[CondTokens], list[Tensor]]:
    """Each picture by itself, from its pixels to its tokens, before the next one is looked at."""
    random, zero = RequestRandom(seed, CPU, True), torch.zeros(1)
    tokens, latents = [], []
    for image in images:
        mean, logvar = model.encode_image(image.pixels[None])
        noise = random.normal(mean.shape, model.vae.dtype, CPU)
        latents.append(model.vae.scale(mean + (0.5 * logvar).exp() * noise)[:, :, 0])
        grid, mask = torch.tensor([image.vision.grid]), image.vision.mask[None]
        vit = model.embed_vision(image.vision.patches[None], grid, mask)[0]
        tokens.append(CondTokens(model.embed_latents(latents[-1], zero)[0], vit))
    return tokens, latents


@pytest.mark.parametrize("count", [1, 2, 3])
@torch.inference_mode()
def test_conditions_are_to_the_last_bit_those_of_one_picture_after_the_other(
    model: HunyuanImage3, images: list[CondImage], count: int
) -> None:
    made = encode_conditions(model, images[:count], RequestRandom(5, CPU, True))
    tokens, latents = one_after_the_other(model, images[:count], 5)
    assert len(made.images) == len(made.latents) == count
    for ours, theirs in zip(made.images, tokens, strict=True):
        assert torch.equal(ours.vae, theirs.vae)
        assert torch.equal(ours.vit, theirs.vit)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(made.latents, latents, strict=True))
    assert torch.equal(made.timestep, model.timestep_emb(torch.zeros(1)))


@torch.inference_mode()
def test_the_next_number_drawn_is_the_one_behind_the_pictures(model: HunyuanImage3, images: list[CondImage]) -> None:
    ours, theirs = RequestRandom(5, CPU, True), RequestRandom(5, CPU, True)
    encode_conditions(model, images, ours)
    for image in images:
        theirs.normal(model.encode_image(image.pixels[None]).mean.shape, model.vae.dtype, CPU)
    shape, dtype = (4, 16), torch.float32
    assert torch.equal(ours.normal(shape, dtype, CPU), theirs.normal(shape, dtype, CPU))


@torch.inference_mode()
def test_towers_are_launched_before_anything_waits_for_the_autoencoder(
    model: HunyuanImage3, images: list[CondImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sampling waits: noise may be drawn on the CPU, and the fast autoencoder looks at its result there."""
    done: list[str] = []
    for owner, name in (
        (model, "encode_image"),
        (model, "embed_vision"),
        (RequestRandom, "normal"),
        (Posterior, "sample"),
    ):
        noted(owner, name, done, monkeypatch)
    encode_conditions(model, images[:2], RequestRandom(5, CPU, True))
    assert done == ["encode_image", "embed_vision"] * 2 + ["normal", "sample"] * 2


def noted(owner: object, name: str, done: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call adds its name to `done`."""
    function = getattr(owner, name)

    def call(*arguments: object) -> object:
        done.append(name)
        return function(*arguments)

    monkeypatch.setattr(owner, name, call)


@torch.inference_mode()
def test_nothing_is_drawn_without_pictures(model: HunyuanImage3) -> None:
    random, untouched = RequestRandom(5, CPU, True), RequestRandom(5, CPU, True)
    assert encode_conditions(model, [], random).images == ()
    assert torch.equal(random.normal((4,), torch.float32, CPU), untouched.normal((4,), torch.float32, CPU))
