"""From numbers and latents to token embeddings and back (docs/model.md, section 13).

Knows the timestep embedder and the two small UNet halves around the backbone: `PatchEmbed` turns latents into
image tokens, `FinalLayer` turns image tokens into a velocity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SINUSOID_SIZE = 256
GROUPS = 32


def sinusoid(t: Tensor, size: int = SINUSOID_SIZE) -> Tensor:
    """fp32 `[n]` (0 to 1000) -> fp32 `[n, size]`, cosines first."""
    half = size // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequency
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedder(nn.Module):
    """A scalar to a vector: sinusoid, Linear, GELU, Linear."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID_SIZE, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    def forward(self, t: Tensor) -> Tensor:  # [n] -> [n, hidden]
        return self.mlp(sinusoid(t).to(next(self.parameters()).dtype))


class ResBlock(nn.Module):
    """Convolutional residual block, scaled and shifted by a timestep embedding after its second norm."""

    def __init__(self, in_channels: int, out_channels: int, emb_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, in_channels), nn.SiLU(), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_channels),
            nn.SiLU(),
            nn.Identity(),  # the checkpoint's names leave a place for dropout
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip_connection = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # [n, in, h, w], [n, emb] -> [n, out, h, w]
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](self.in_layers(x)) * (1 + scale) + shift
        return self.skip_connection(x) + self.out_layers[1:](h)


class PatchEmbed(nn.Module):
    """Latents `[n, channels, h, w]` and a time embedding `[n, hidden]` to tokens `[n, h * w, hidden]`."""

    def __init__(self, channels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.model = nn.ModuleList([nn.Conv2d(channels, width, 3, padding=1), ResBlock(width, hidden, hidden)])

    def forward(self, latents: Tensor, emb: Tensor) -> Tensor:
        x = self.model[0](latents.to(next(self.parameters()).dtype))
        return self.model[1](x, emb).flatten(2).transpose(1, 2)


class FinalLayer(nn.Module):
    """Tokens `[n, h * w, hidden]` and a time embedding `[n, hidden]` to a velocity `[n, channels, h, w]`."""

    def __init__(self, hidden: int, width: int, channels: int) -> None:
        super().__init__()
        out = nn.Sequential(nn.GroupNorm(GROUPS, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))
        self.model = nn.ModuleList([ResBlock(hidden, width, hidden), out])

    def forward(self, tokens: Tensor, emb: Tensor, height: int, width: int) -> Tensor:
        x = tokens.transpose(1, 2).unflatten(2, (height, width))
        return self.model[1](self.model[0](x, emb))


def channels_last(module: nn.Module) -> None:
    """Makes the weights of all 2D convolutions channels-last, in place; values and results stay.

    Tensor cores want it so on a GPU, and tokens are images with channels last already: without it, every call
    would rearrange weights of hundreds of megabytes.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
