"""Which device is used, and which each layer lives on; the arithmetic that fills several devices with layers.

Layers are placed in order, a run of them on each device; all that is no layer (embeddings, head, autoencoder, vision
tower, image layers) lives on the first, so that only the backbone's two ends and the boundaries see other devices.
Knows bytes, devices and parameters by name; does not know the network's modules or how much memory a request takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from hunyuan.errors import SettingsError

_LAYER = "model.layers."


def layer_counts(layer_bytes: Sequence[int], room: Sequence[int]) -> tuple[int, ...] | None:
    """How many layers go on each device, in order; None when they do not fit.

    The same number of bytes is left free on each device, as far as whole layers allow: the device that is fullest
    decides whether a long request runs out of memory.

    Args:
        layer_bytes: what each layer needs.
        room: what each device has for layers; negative where other things already overfill it.
    """
    best = _fill(layer_bytes, room)
    if best is None:
        return None
    low, high = 0, max(room) + 1  # bytes kept free: what is feasible, what is not
    while high - low > 1:
        middle = (low + high) // 2
        counts = _fill(layer_bytes, [each - middle for each in room])
        if counts is None:
            high = middle
        else:
            low, best = middle, counts
    return best


def _fill(layer_bytes: Sequence[int], room: Sequence[int]) -> tuple[int, ...] | None:
    """Fills one device after the other; one without room for a layer is passed over."""
    if room[0] < 0:
        return None  # all that is no layer is on the first device
    counts, layer = [], 0
    for free in room:
        first, left = layer, free
        while layer < len(layer_bytes) and layer_bytes[layer] <= left:
            left -= layer_bytes[layer]
            layer += 1
        counts.append(layer - first)
    return tuple(counts) if layer == len(layer_bytes) else None


def choose_device(name: str, setting: str = "HUNYUAN_DEVICE") -> torch.device:
    """The device that `auto`, `cuda` or `cpu` means here.

    Args:
        setting: whoever asked for it, for the error.

    Raises:
        SettingsError: cuda, and there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise SettingsError(f"{setting}=cuda, but torch finds no CUDA device; use auto or cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


def transfer(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; itself where it is there already. Between GPUs the streams wait for each other."""
    return tensor.to(device)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one: what is not PyTorch's own is launched there, wherever its tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass(frozen=True)
class Placement:
    """A device for each layer, and `first` for all the rest."""

    first: torch.device
    layers: tuple[torch.device, ...]

    @classmethod
    def single(cls, device: torch.device, layers: int) -> Placement:
        return cls(device, (device,) * layers)

    @classmethod
    def in_order(cls, devices: Sequence[torch.device], counts: Sequence[int]) -> Placement:
        """`counts[i]` layers, in order, on `devices[i]`; what is no layer on `devices[0]`."""
        layers = [device for device, count in zip(devices, counts, strict=True) for _ in range(count)]
        return cls(devices[0], tuple(layers))

    @property
    def is_split(self) -> bool:
        return any(device != self.first for device in self.layers)

    def device_of(self, name: str) -> torch.device:
        """The device of a parameter or module of `HunyuanImage3`, by its dotted name."""
        if not name.startswith(_LAYER):
            return self.first
        return self.layers[int(name.removeprefix(_LAYER).split(".", maxsplit=1)[0])]
