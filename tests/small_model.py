"""Small configs, random weights and plain stand-ins that the tests of single modules share."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hunyuan.formats.config import CheckpointConfig

_GOLDEN_CONFIG = json.loads((Path(__file__).parent / "data" / "golden_a" / "checkpoint" / "config.json").read_text())

Module = TypeVar("Module", bound=nn.Module)


def raw_config(**changes: Any) -> dict[str, Any]:
    """The golden checkpoint's `config.json` with some keys replaced."""
    return {**copy.deepcopy(_GOLDEN_CONFIG), **changes}


def model_config(**changes: Any) -> CheckpointConfig:
    return CheckpointConfig.from_dict(raw_config(**changes))


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomized(module: Module, seed: int = 0) -> Module:
    """Fills all weights; those of norms scatter around 1, biases around 0. Ready for inference."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            values = 0.3 * values + (not name.endswith("bias"))
        else:
            values = values / parameter[0].numel() ** 0.5 if "experts" not in name else values / 4
        parameter.data.copy_(values)
    return module.eval().requires_grad_(False)


class Buffers:
    """Keys and values in plain lists, one growing tensor a layer."""

    lanes: Tensor | None = None

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for stored, new in ((self.keys, k), (self.values, v)):
            earlier = stored[layer][:, :start] if start else new[:, :0]
            stored[layer] = torch.cat([earlier, new], dim=1)
        return self.keys[layer], self.values[layer]
