"""The decoder's training: it learns from answers, but from right latents where an answer is another picture."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from small_model import noise

from scripts.demo import autoencoder, decoder, sizes
from scripts.demo.drawing import Drawn
from scripts.demo.optimizer import Optimizer
from scripts.demo.transformer import Losses, Noisy


def test_answers_are_decoded_but_for_a_share_and_what_is_far_off(monkeypatch: pytest.MonkeyPatch) -> None:
    right = noise(400, 2, 3, 3)
    answered = right + 0.1
    answered[::2] += 1  # another picture
    taken, far = decoder.lesson(answered, right)
    assert far.tolist() == [True, False] * 200
    assert torch.equal(taken[::2], right[::2])
    kept = sum(torch.equal(one, other) for one, other in zip(taken[1::2], answered[1::2], strict=True))
    assert 120 < kept < 180
    monkeypatch.setattr(decoder, "RIGHT_SHARE", 0)
    assert torch.equal(decoder.lesson(answered, right)[0][1::2], answered[1::2])


class Knowing:
    """Answers with the velocity that is wanted, or with what leads somewhere else."""

    copies = 1

    def __init__(self, error: float) -> None:
        self.error = error

    def losses(self, batch: object, sources: object, conds: object, noisy: Noisy) -> Losses:
        assert noisy.sigma.tolist() == [1.0] * 3
        nothing = torch.zeros(())
        return Losses(nothing, nothing, nothing, nothing, noisy.wanted + self.error)


@pytest.mark.parametrize("error", [0.0, 0.5])
def test_an_answer_is_where_the_networks_velocity_leads(error: float) -> None:
    right = noise(3, 2, 4, 4)
    drawn = Drawn((), [], [], right)
    answered = decoder.answers(cast(Any, Knowing(error)), drawn, cast(Any, None))
    assert torch.allclose(answered, right - error, atol=1e-6)


@pytest.mark.slow
def test_steps_of_the_decoder_lower_its_loss_and_leave_the_encoder() -> None:
    config = sizes.vae_config(block_out_channels=[32] * 5, latent_channels=16)
    vae = autoencoder.build(config, seed=0)
    vae.encoder.requires_grad_(False)
    kept = {name: p.clone() for name, p in vae.encoder.named_parameters()}
    matrices, others = autoencoder.matrices_and_others(vae)
    assert len(matrices) + len(others) == len(list(vae.decoder.parameters()))
    optimizer = Optimizer(matrices, others, matrix_rate=2e-3, other_rate=1e-3)
    small = torch.nn.functional.interpolate(noise(2, 3, 8, 8).sigmoid(), size=(64, 64), mode="bilinear")
    exact, latents = (small * 255).byte(), noise(2, 16, 4, 4)
    found = []
    for _ in range(12):
        total, error = decoder.loss(vae, latents, exact)
        total.backward()
        optimizer.step(1.0)
        found.append((total.item(), error.item()))
    assert found[-1][0] < 0.75 * found[0][0], found
    assert found[-1][1] < found[0][1], found
    assert all(torch.equal(kept[name], p) for name, p in vae.encoder.named_parameters())


def test_the_error_told_is_that_of_pixels_in_0_to_1() -> None:
    config = sizes.vae_config(block_out_channels=[32] * 5, latent_channels=16, scaling_factor=2.0, shift_factor=0.3)
    vae = autoencoder.build(config, seed=0)
    latents = noise(1, 16, 2, 2)
    with torch.no_grad():
        made = vae.decode(latents / 2.0 + 0.3) / 2 + 0.5
        exact = torch.full((1, 3, 32, 32), 51, dtype=torch.uint8)
        _, error = decoder.loss(vae, latents, exact)
    assert error.item() == pytest.approx((made - 0.2).square().mean().item(), rel=1e-4)
