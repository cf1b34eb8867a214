"""How a token's stream gets from one device to the next where a model's layers lie on several.

One process, one device at work at a time: this is for weights that fit no single GPU, not for speed. Knows devices and
the layers' order; does not know what the layers compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from hunyuan.model.transformer import NextNorm, Transformer
from hunyuan.placement import Placement, transfer


def connect(transformer: Transformer, placement: Placement) -> None:
    """Makes a backbone whose layers are on several devices take its input on the first and answer there.

    Tensors among a layer's arguments follow it to its device; caches and other objects are handed on as they are.
    Does nothing for a placement on one device. Call it once, before or after the weights are filled in.

    Raises:
        ValueError: the placement is for another number of layers.
    """
    layers = list(transformer.layers)
    if len(layers) != len(placement.layers):
        raise ValueError(f"a placement of {len(placement.layers)} layers for a model of {len(layers)}")
    if not placement.is_split:
        return
    start = 0
    for device, group in groupby(placement.layers):
        stop = start + len(list(group))
        if start > 0:
            _DeviceLayers(device, placement.first).attach(layers[start:stop])
        if stop < len(layers):
            layers[stop - 1].register_forward_pre_hook(_leave_norm_to_next)
        start = stop
    # With the hooks of its own device before this one: the answer is the last thing to move.
    layers[-1].register_forward_hook(lambda _module, _args, output: transfer(output, placement.first))


class _DeviceLayers:
    """Hooks around consecutive layers on another device than those before them.

    The tables that every layer gets (rotary cosines and sines) are brought over once per pass, not per layer.
    """

    def __init__(self, device: torch.device, first: torch.device) -> None:
        self.device, self.first = device, first
        self.brought: list[tuple[Tensor, Tensor]] = []

    def attach(self, layers: Sequence[nn.Module]) -> None:
        layers[0].register_forward_pre_hook(self.arrive)
        for layer in layers:
            layer.register_forward_pre_hook(self.enter, with_kwargs=True)
            # Also after an error: the next request must not start on another device.
            layer.register_forward_hook(self.leave, always_call=True)
        layers[-1].register_forward_hook(self.forget, always_call=True)

    def arrive(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """The layer before has left the norm to this one, whose weights it needs."""
        self.brought.clear()
        for following in _next_norms(args):
            following.normed = None

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        _make_current(self.device)
        return tuple(self._bring(value) for value in args), {name: self._bring(v) for name, v in kwargs.items()}

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        _make_current(self.first)

    def forget(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.brought.clear()

    def _bring(self, value: Any) -> Any:
        if isinstance(value, Tensor):  # the stream: new at every layer
            return transfer(value, self.device)
        if type(value) is tuple:
            return tuple(self._bring_table(item) if isinstance(item, Tensor) else item for item in value)
        return value

    def _bring_table(self, table: Tensor) -> Tensor:
        for source, here in self.brought:
            if source is table:
                return here
        here = transfer(table, self.device)
        self.brought.append((table, here))
        return here


def _leave_norm_to_next(module: nn.Module, args: tuple[Any, ...]) -> None:
    """Before the last layer of a device: the next layer's norm, which a layer computes ahead, is on another device."""
    for following in _next_norms(args):
        following.norm = None


def _next_norms(args: tuple[Any, ...]) -> list[NextNorm]:
    return [value for value in args if isinstance(value, NextNorm)]


def _make_current(device: torch.device) -> None:
    """Operations that are not PyTorch's own are launched on the current device, wherever their tensors are."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
