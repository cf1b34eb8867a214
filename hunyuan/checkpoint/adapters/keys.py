"""What a key of a LoRA file names: a linear layer of the network, and one of the tensors that change it.

Knows the two ways of writing it: PEFT's `base_model.model.<layer>.lora_A.weight`, and kohya-ss's
`lora_unet_<layer with underscores>.lora_down.weight`; a layer's own name without either prefix is taken, too. Sources:
https://huggingface.co/docs/peft/developer_guides/checkpoint and https://github.com/kohya-ss/sd-scripts
(`networks/lora.py`). Knows no file.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn

from hunyuan.checkpoint.tensor_table import TensorSpec, expected_tensors, meta_model
from hunyuan.formats.config import CheckpointConfig

Part = Literal["down", "up", "alpha"]
_PEFT, _KOHYA = "base_model.model.", "lora_unet_"
_PARTS: dict[str, Part] = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",  # "default" is PEFT's name of an adapter that was given none
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
}


class Named(NamedTuple):
    """`layer` is a linear layer's name in the network; its weight is `layer` + ".weight"."""

    layer: str
    part: Part


class LinearLayers:
    """The linear layers of a network in the official layout, each with the tensor that is its weight."""

    def __init__(self, config: CheckpointConfig) -> None:
        """`config`: of an official folder."""
        linear = {name for name, module in meta_model(config).named_modules() if isinstance(module, nn.Linear)}
        weights = {key.removesuffix(".weight"): spec for key, spec in expected_tensors(config).items()}
        self.specs: dict[str, TensorSpec] = {
            name: spec for name, spec in weights.items() if spec.slot is not None or name in linear
        }
        self._flat = {name.replace(".", "_"): name for name in self.specs}

    def named_by(self, key: str) -> Named | None:
        """None for a key that says nothing about any of them."""
        for suffix, part in _PARTS.items():
            if key.endswith(suffix):
                name = key.removesuffix(suffix)
                flat = name.startswith(_KOHYA)
                layer = self._flat.get(name.removeprefix(_KOHYA)) if flat else name.removeprefix(_PEFT)
                return Named(layer, part) if layer in self.specs else None
        return None
