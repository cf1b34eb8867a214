"""A loaded model taken apart over several devices, which the product never does: it loads each layer where it stays."""

from __future__ import annotations

from hunyuan.accel.split_layers import connect
from hunyuan.model.transformer import Transformer
from hunyuan.placement import Placement


def move_layers(transformer: Transformer, placement: Placement) -> None:
    """Brings the layers of a loaded backbone to their devices and connects them."""
    for layer, device in zip(transformer.layers, placement.layers, strict=True):
        layer.to(device)
    connect(transformer, placement)
