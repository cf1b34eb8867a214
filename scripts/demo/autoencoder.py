"""Trains the demo's autoencoder: the product's own modules, each 3D convolution reduced to its middle slice in time.

A single picture meets zeros before and behind it in time, so the outer slices multiply nothing: they are not trained
and are exported as zeros. Knows pictures as float32 in -1..1; does not know where they come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hunyuan.model.config import VaeConfig
from hunyuan.model.vae import AttnBlock, ResnetBlock, Vae

KL_WEIGHT = 5e-4


class PlaneConv(nn.Conv2d):
    """The middle slice of a 3D convolution, over pictures with one frame `[n, channels, 1, h, w]`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.squeeze(2)).unsqueeze(2)


class OwnDtypeNorm(nn.GroupNorm):
    """The same norm in its input's dtype, statistics in fp32 all the same: autocast would store fp32 results."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def planar(vae: Vae) -> Vae:
    """Replaces every 3D convolution in place by its middle slice, weights included; returns `vae`."""
    for module in list(vae.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                norm = OwnDtypeNorm(child.num_groups, child.num_channels, child.eps)
                norm.load_state_dict(child.state_dict())
                setattr(module, name, norm)
            if isinstance(child, nn.Conv3d):
                size = child.kernel_size[1]
                conv = PlaneConv(child.in_channels, child.out_channels, size, padding=size // 2)
                conv.weight.data = child.weight.data[:, :, child.kernel_size[0] // 2].clone()
                if child.bias is not None and conv.bias is not None:
                    conv.bias.data = child.bias.data
                setattr(module, name, conv)
    return vae


def build(config: VaeConfig, seed: int) -> Vae:
    """A planar autoencoder at its start: residual branches small, latents of about unit variance and little noise."""
    torch.manual_seed(seed)
    vae = planar(Vae(config))
    for module in vae.modules():
        if isinstance(module, PlaneConv):
            nn.init.normal_(module.weight, std=0.8 / math.sqrt(module.weight[0].numel()))
            cast(Tensor, module.bias).data.zero_()
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, ResnetBlock):
                module.conv2.weight.mul_(0.3)
            elif isinstance(module, AttnBlock):
                module.proj_out.weight.mul_(0.3)
        for conv in (vae.decoder.conv_out, vae.encoder.conv_out):
            conv.weight.mul_(0.3)
        cast(Tensor, vae.encoder.conv_out.bias)[config.latent_channels :] -= 5.0
    return vae


def matrices_and_others(vae: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Of what is trained: kernels for Muon; norms, biases and kernels that meet pixels or make latents for AdamW."""
    outer = ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_out.weight")
    trained = {name: p for name, p in vae.named_parameters() if p.requires_grad}
    inner = {name: p for name, p in trained.items() if p.dim() == 4 and name not in outer}
    return list(inner.values()), [p for name, p in trained.items() if name not in inner]


def reconstruct(vae: Vae, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels `[n, 3, h, w]` to the picture made of a drawn latent, and the latent's mean and log variance, fp32."""
    mean, logvar = vae.encoder(pixels[:, :, None]).float().chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    picture = vae.decoder(mean + (0.5 * logvar).exp() * noise)[:, :, 0]
    return picture.float(), mean, logvar


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """The mean SSIM of two stacks of pictures in 0..1, over 7x7 windows."""
    ma, mb = (F.avg_pool2d(x, 7, 3) for x in (a, b))
    va, vb, both = (
        F.avg_pool2d(x * y, 7, 3) - m * n for x, y, m, n in ((a, a, ma, ma), (b, b, mb, mb), (a, b, ma, mb))
    )
    level = (2 * ma * mb + 4e-4) / (ma.square() + mb.square() + 4e-4)
    return (level * (2 * both + 3.6e-3) / (va + vb + 3.6e-3)).mean()


def picture_loss(made: Tensor, wanted: Tensor) -> Tensor:
    """Absolute and squared error, the error's gradients at three scales, and structure."""
    error = made - wanted
    loss = error.abs().mean() + 2 * error.square().mean() + 0.05 * (1 - similarity(made / 2 + 0.5, wanted / 2 + 0.5))
    for _ in range(3):
        down = (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
        right = (error[..., 1:] - error[..., :-1]).abs().mean()
        loss = loss + 0.2 * (down + right)
        error = F.avg_pool2d(error, 2)
    return loss


def pixel_error(made: Tensor, wanted: Tensor) -> Tensor:
    """The mean squared error of pictures in -1..1, as if their pixels were in 0..1; a scalar without a gradient."""
    return (made - wanted).detach().square().mean() / 4


def loss(vae: Vae, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The training loss, and the mean squared error of pixels in 0..1 for the log."""
    made, mean, logvar = reconstruct(vae, pixels, noise)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    total = picture_loss(made, pixels) + KL_WEIGHT * kl
    return total, pixel_error(made, pixels)


def latent_shape(config: VaeConfig, pixels: Tensor) -> tuple[int, ...]:
    n, _, h, w = pixels.shape
    return (n, config.latent_channels, 1, h // config.ffactor_spatial, w // config.ffactor_spatial)


def psnr(a: Tensor, b: Tensor) -> float:
    """Of two pictures in 0..1, in dB."""
    return float(-10 * torch.log10((a.float() - b.float()).square().mean().clamp(min=1e-10)))


@torch.no_grad()
def held_out(vae: Vae, pictures: Iterable[Tensor]) -> list[float]:
    """PSNR of each picture `[3, h, w]` in 0..1 through the autoencoder without its noise."""
    found = []
    for picture in pictures:
        mean = vae.encoder(picture[None, :, None] * 2 - 1).chunk(2, dim=1)[0]
        made = (vae.decoder(mean)[0, :, 0].float() / 2 + 0.5).clamp(0, 1)
        found.append(psnr(made, picture))
    return found


@torch.no_grad()
def latent_statistics(vae: Vae, draw: Callable[[], Tensor], rounds: int = 8) -> dict[str, Any]:
    """Mean and standard deviation over all latents, and how unlike the channels are."""
    means, noises = [], []
    for _ in range(rounds):
        mean, logvar = vae.encoder(draw()[:, :, None]).float().chunk(2, dim=1)
        means.append(mean.flatten(2).transpose(0, 1).flatten(1))
        noises.append((0.5 * logvar).exp().mean())
    every = torch.cat(means, dim=1)  # [channels, values]
    each = every.std(dim=1)
    return {
        "mean": float(every.mean()),
        "std": float(every.std()),
        "channels": [float(each.min()), float(each.max())],
        "noise": float(torch.stack(noises).mean()),
    }


def product_weights(vae: nn.Module) -> dict[str, Tensor]:
    """The weights under the product's names and shapes: kernels with their outer slices zero."""
    out = {}
    for name, value in vae.state_dict().items():
        out[name] = _whole(value) if value.dim() == 4 else value
    return out


def _whole(kernel: Tensor) -> Tensor:
    """`[o, i, k, k]` as the middle slice of `[o, i, k, k, k]`."""
    taps = kernel.shape[2]
    whole = kernel.new_zeros(*kernel.shape[:2], taps, taps, taps)
    whole[:, :, taps // 2] = kernel
    return whole
