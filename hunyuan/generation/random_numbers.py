"""The random numbers of one request, all from its one seed. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

_TEXT_SALT = 0x5DEECE66D  # any constant: text draws must not repeat the image's draws
_SEED_MASK = (1 << 63) - 1
_BLOCK = 16


class RequestRandom:
    """The random numbers of one request, all from its one seed (docs/model.md, section 17).

    `image` draws the condition images' posteriors in order and then the initial noise, on the model's device or,
    for results that do not depend on the device, on the CPU. `text` samples tokens, on the same device.
    """

    def __init__(self, seed: int, device: torch.device, noise_on_cpu: bool) -> None:
        self.device = torch.device("cpu") if noise_on_cpu else device
        self.image = torch.Generator(self.device).manual_seed(seed)
        self.text = torch.Generator(self.device).manual_seed((seed ^ _TEXT_SALT) & _SEED_MASK)

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal values of `shape` in `dtype`, drawn on this request's noise device."""
        shape = tuple(shape)
        if self.device.type == "cpu" and dtype != torch.float32:
            return half_normal_on_cpu(shape, dtype, self.image).to(device)
        # A GPU draws 16-bit values as fp32 and rounds them.
        return torch.randn(shape, generator=self.image, device=self.device).to(dtype).to(device)


def half_normal_on_cpu(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """What recent versions of `torch.randn` draw in a 16-bit dtype on the CPU; torch 2.10 draws other values.

    It works in fp32 blocks of 16. When the last block is short, a whole new one is drawn and laid over the
    last 16 places.
    """
    size = prod(shape)
    if size < _BLOCK:
        return torch.randn(shape, generator=generator).to(dtype)
    whole = -(-size // _BLOCK) * _BLOCK
    values = torch.randn(whole, generator=generator)
    return torch.cat([values[: size - _BLOCK], values[whole - _BLOCK :]]).to(dtype).view(shape)
