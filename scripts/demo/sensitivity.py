"""What an error of the latents does to the picture, measured on the autoencoder's decoder.

The directions of a latent are far from equal: along one of them an error costs 7 to 10 times what it costs on average,
along about half of them less than half as much (docs/demo.md, "Channels"). A loss that counts all channels alike does
not see that. Knows a finished autoencoder; knows no network.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from hunyuan.model.config import ModelConfig
from hunyuan.model.vae import Vae
from scripts.demo import state
from scripts.demo.drawing import autoencoder_of
from scripts.demo.pictures import Pictures
from scripts.demo.ranks import Ranks
from scripts.demo.transformer import latents as latents_of

APART = 4
"""Tokens between two that are changed at once, so that what they change hardly overlaps."""
STEP = 0.1  # of a latent, whose standard deviation is 1
EVEN = 0.1
PICTURES = 8


@torch.no_grad()
def sensitivity(vae: Vae, latents: Tensor) -> Tensor:
    """The matrix M for which an error e of one token, `[channels]`, costs e M e in squared error of the picture.

    By finite differences around some pictures, averaged over them and over tokens (Gauss and Newton's
    approximation: J'J of the decoder). Couplings between tokens are left out.

    Args:
        latents: scaled, fp32 `[n, channels, h, w]`; h and w at least 4.

    Returns:
        fp32 `[channels, channels]`, its trace the number of channels, so that on average errors count as in a plain
        mean square.
    """

    def decoded(scaled: Tensor) -> Tensor:
        return vae.decode(vae.unscale(scaled)).float()

    channels, base = latents.shape[1], decoded(latents)
    changes = []
    for channel in range(channels):
        moved = latents.clone()
        moved[:, channel, APART // 2 :: APART, APART // 2 :: APART] += STEP
        changes.append((decoded(moved) - base).flatten())
    rows = torch.stack(changes)  # [channels, values of all pictures]
    products = rows @ rows.T
    return products * channels / products.trace()


def root(matrix: Tensor) -> Tensor:
    """R with R'R = the matrix, an even share mixed in: what costs nothing by measure must not drift freely.

    Args:
        matrix: symmetric, fp32 `[channels, channels]`, as `sensitivity` gives it.
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    mixed = (1 - EVEN) * values.clamp(min=0) + EVEN
    return (vectors * mixed.sqrt() @ vectors.T).to(matrix.dtype)


def weighing(folder: Path, archive: Path, config: ModelConfig, device: torch.device, ranks: Ranks) -> Tensor:
    """What a training's errors are multiplied by, fp32 `[channels, channels]`, for the autoencoder in a state folder.

    Measured once per autoencoder, by the leading rank, on pictures of the archive; kept in the folder. The decoder's
    own training, which comes after the transformer's, does not make it be measured again.

    Raises:
        FileNotFoundError: the folder holds no finished autoencoder.
    """
    scale = [config.vae.scaling_factor, config.vae.shift_factor]  # no two trained autoencoders have the same
    kept = state.load(folder, "sensitivity")
    if ranks.leads and (kept is None or kept.get("scale") != scale):
        vae = autoencoder_of(config, folder, device).float()
        pictures = Pictures(archive, device, seed=0).autoencoder(PICTURES, 256, 256)
        matrix = sensitivity(vae, latents_of(vae, pictures, draw=False))
        state.save(folder, "sensitivity", {"scale": scale, "matrix": matrix})
    ranks.agreed(0.0)  # the others wait here until it is there
    kept = state.load(folder, "sensitivity")
    assert kept is not None
    return root(kept["matrix"].float().to(device))
