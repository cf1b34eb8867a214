"""The autoencoder between pixels and latents: 3D convolutions over a single frame (docs/model.md, section 9).

Knows pictures as `[n, 3, height, width]` in -1..1 and latents as `[n, channels, height / 16, width / 16]`. This
is the plain form, padding and all four frames included. Does not draw random numbers.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, scaled_dot_product_attention, silu

from hunyuan.model.config import VaeConfig


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class FrameConv3d(nn.Conv3d):
    """A 3D convolution, frame by frame: it does not multiply the zeros before the first frame and behind the last."""

    def forward(self, x: Tensor) -> Tensor:
        reach, count, frames = self.weight.shape[2] // 2, x.shape[2], []
        for frame in range(count):
            first, last = max(frame - reach, 0), min(frame + reach + 1, count)  # of the frames that it sees
            weight = self.weight[:, :, first - frame + reach : last - frame + reach]
            seen = x[:, :, first:last].flatten(1, 2)  # [n, channels * frames, height, width]
            frames.append(conv2d(seen, weight.flatten(1, 2), self.bias, padding=reach))
        return torch.stack(frames, dim=2)


def _conv(in_channels: int, out_channels: int, size: int = 3) -> nn.Conv3d:
    return FrameConv3d(in_channels, out_channels, size, padding=size // 2)


def space_to_depth(x: Tensor, t: int, s: int) -> Tensor:
    """`[n, c, T*t, H*s, W*s]` -> `[n, t*s*s*c, T, H, W]`, channels in the order (time, row, column, c)."""
    n, c, frames, height, width = x.shape
    x = x.view(n, c, frames // t, t, height // s, s, width // s, s)
    return x.permute(0, 3, 5, 7, 1, 2, 4, 6).reshape(n, t * s * s * c, frames // t, height // s, width // s)


def depth_to_space(x: Tensor, t: int, s: int) -> Tensor:
    """The inverse of `space_to_depth`."""
    n, c, frames, height, width = x.shape
    x = x.view(n, t, s, s, c // (t * s * s), frames, height, width)
    return x.permute(0, 4, 5, 1, 6, 2, 7, 3).reshape(n, -1, frames * t, height * s, width * s)


def group_mean(x: Tensor, channels: int) -> Tensor:
    """Averages consecutive groups of channels until `channels` are left."""
    return x.unflatten(1, (channels, x.shape[1] // channels)).mean(dim=2)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(in_channels), _conv(in_channels, out_channels)
        self.norm2, self.conv2 = _norm(out_channels), _conv(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = _conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head attention over all places of all frames."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v = (_conv(channels, channels, 1) for _ in range(3))
        self.proj_out = _conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2).unsqueeze(1) for f in (self.q, self.k, self.v))
        out = scaled_dot_product_attention(q, k, v)  # [n, 1, frames * height * width, channels]
        return x + self.proj_out(out.squeeze(1).transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halves height and width, and the frames where `temporal`."""

    def __init__(self, in_channels: int, out_channels: int, temporal: bool) -> None:
        super().__init__()
        self.t, self.out_channels = 1 + temporal, out_channels
        self.conv = _conv(in_channels, out_channels // (4 * self.t))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = group_mean(space_to_depth(x, self.t, 2), self.out_channels)
        return space_to_depth(self.conv(x), self.t, 2) + shortcut


class Upsample(nn.Module):
    """Doubles height and width, and the frames where `temporal`."""

    def __init__(self, in_channels: int, out_channels: int, temporal: bool) -> None:
        super().__init__()
        self.t = 1 + temporal
        self.repeats = out_channels * 4 * self.t // in_channels
        self.conv = _conv(in_channels, out_channels * 4 * self.t)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = depth_to_space(x.repeat_interleave(self.repeats, dim=1), self.t, 2)
        return depth_to_space(self.conv(x), self.t, 2) + shortcut


class Level(nn.Module):
    """Residual blocks at one resolution, then perhaps a change of resolution."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.moments = 2 * config.latent_channels
        self.conv_in = _conv(config.in_channels, widths[0])
        self.down = nn.ModuleList()
        current = widths[0]
        first_temporal = config.spatial_levels - config.temporal_levels
        for i, width in enumerate(widths):
            level, current = Level(current, width, config.layers_per_block), width
            if i < config.spatial_levels:
                level.downsample = Downsample(current, widths[i + 1], temporal=i >= first_temporal)
                current = widths[i + 1]
            self.down.append(level)
        self.mid = Middle(current)
        self.norm_out, self.conv_out = _norm(current), _conv(current, self.moments)

    def forward(self, x: Tensor) -> Tensor:  # [n, 3, 4, H, W] -> [n, 2 * latent, 1, H / 16, W / 16]
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        x = self.mid(x)
        return self.conv_out(silu(self.norm_out(x))) + group_mean(x, self.moments)


class Decoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.repeats = widths[0] // config.latent_channels
        self.conv_in = _conv(config.latent_channels, widths[0])
        self.mid = Middle(widths[0])
        self.up = nn.ModuleList()
        current = widths[0]
        for i, width in enumerate(widths):
            level, current = Level(current, width, config.layers_per_block + 1), width
            if i < config.spatial_levels:
                level.upsample = Upsample(current, widths[i + 1], temporal=i < config.temporal_levels)
                current = widths[i + 1]
            self.up.append(level)
        self.norm_out, self.conv_out = _norm(current), _conv(current, config.out_channels)

    def forward(self, z: Tensor) -> Tensor:  # [n, latent, 1, h, w] -> [n, 3, 4, 16 * h, 16 * w]
        x = self.mid(self.conv_in(z) + z.repeat_interleave(self.repeats, dim=1))
        for level in self.up:
            x = level(x)
        return self.conv_out(silu(self.norm_out(x)))


class Posterior(NamedTuple):
    """What the encoder says of a picture's latents, before scaling: `[n, channels, 1, h, w]` each."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """`noise` is standard normal, of mean's shape."""
        return self.mean + (0.5 * self.logvar).exp() * noise.to(self.mean)


class LatentScale(nn.Module):
    """An autoencoder's config, and the two scales of its latents."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config

    def scale(self, sample: Tensor) -> Tensor:
        """Encoder's scale to the backbone's."""
        if self.config.shift_factor:
            sample = sample - self.config.shift_factor
        return sample * self.config.scaling_factor if self.config.scaling_factor else sample

    def unscale(self, latents: Tensor) -> Tensor:
        """Backbone's scale to the decoder's."""
        z = latents / self.config.scaling_factor if self.config.scaling_factor else latents
        return z + self.config.shift_factor if self.config.shift_factor else z


class Vae(LatentScale):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    def encode(self, pixels: Tensor) -> Posterior:
        """`pixels` `[n, 3, H, W]` in -1..1; the one frame is repeated to fill the temporal factor."""
        frames = pixels.to(self.dtype)[:, :, None].expand(-1, -1, self.config.ffactor_temporal, -1, -1)
        mean, logvar = self.encoder(frames).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30, 20))

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latents `[n, channels, h, w]` to pixels `[n, 3, H, W]`, about -1..1: the last frame."""
        return self.decoder(z.to(self.dtype)[:, :, None])[:, :, -1]
