"""What an error of latents costs, against the picture's own squared error."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import noise
from torch import Tensor

from hunyuan.formats.config import CheckpointConfig
from hunyuan.model.vae import Vae
from scripts.demo import autoencoder, sizes, state
from scripts.demo import sensitivity as module
from scripts.demo.ranks import ALONE
from scripts.demo.sensitivity import EVEN, root, sensitivity, weighing


@pytest.fixture(scope="module")
def vae() -> Vae:
    made = autoencoder.build(sizes.vae_config(block_out_channels=[32] * 5, latent_channels=16), seed=0)
    made.requires_grad_(False)
    made.decoder.conv_in.weight[:, 3] *= 12  # channel 3 does much to the picture
    return made


def cost(vae: Vae, latents: Tensor, error: Tensor) -> float:
    pictures = [vae.decoder(vae.unscale(z)[:, :, None])[:, :, 0] for z in (latents, latents + error)]
    return float((pictures[1] - pictures[0]).square().sum())


def test_an_error_costs_what_the_matrix_says(vae: Vae) -> None:
    """As shares: along the direction that costs most and the one that costs least, one token at a time."""
    latents = noise(2, 16, 8, 8)
    matrix = sensitivity(vae, latents)
    assert matrix.trace().item() == pytest.approx(16, rel=1e-4)
    assert torch.allclose(matrix, matrix.T, atol=1e-5)
    values, vectors = torch.linalg.eigh(matrix)
    assert values[-1] > 2 * values.mean()
    assert vectors[3, -1].abs() > 0.7
    measured = []
    for direction in (vectors[:, 0], vectors[:, -1]):
        error = torch.zeros_like(latents)
        error[:, :, 2::4, 2::4] = 0.05 * direction[:, None, None]
        measured.append(cost(vae, latents, error))
    assert measured[1] / measured[0] == pytest.approx(float(values[-1] / values[0]), rel=0.3)


def test_the_root_weighs_by_the_matrix_and_leaves_nothing_free() -> None:
    matrix = torch.diag(torch.tensor([3.9, 0.1, 0.0, 0.0]))
    square = root(matrix).T @ root(matrix)
    wanted = (1 - EVEN) * matrix + EVEN * torch.eye(4)
    assert torch.allclose(square, wanted, atol=1e-5)
    turned = torch.linalg.qr(noise(4, 4))[0]
    square = root(turned @ matrix @ turned.T).T @ root(turned @ matrix @ turned.T)
    assert torch.allclose(square, turned @ wanted @ turned.T, atol=1e-5)


def test_it_is_measured_once_per_autoencoder(
    config: CheckpointConfig, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = autoencoder.build(config.vae, seed=0).state_dict()
    state.save(tmp_path, "autoencoder_average", {"weights": weights, "scaling": 0.7, "shift": 0.1})
    monkeypatch.setattr(module, "PICTURES", 1)
    measured: list[Tensor] = []

    def noted(vae: Vae, latents: Tensor) -> Tensor:
        measured.append(sensitivity(vae, latents))
        return measured[-1]

    monkeypatch.setattr(module, "sensitivity", noted)
    first, second = (weighing(tmp_path, archive, config, torch.device("cpu"), ALONE) for _ in range(2))
    assert len(measured) == 1
    assert torch.equal(first, second)
    assert torch.allclose(first.T @ first, root(measured[0]).T @ root(measured[0]), atol=1e-2)  # kept as fp16
    other = replace(config, vae=replace(config.vae, scaling_factor=0.5))  # an autoencoder trained again
    weighing(tmp_path, archive, other, torch.device("cpu"), ALONE)
    assert len(measured) == 2
