"""LoRA files for the tests, in both ways of writing them, and what they add."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from hunyuan.checkpoint.adapters.keys import LinearLayers

Pairs = dict[str, tuple[Tensor, Tensor]]
"""`down` `[rank, inputs]` and `up` `[outputs, rank]` by the layer's name."""


def random_pairs(layers: LinearLayers, names: Iterable[str], rank: int = 3, seed: int = 0, size: float = 0.2) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for name in names:
        outputs, inputs = layers.specs[name].shape
        down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        pairs[name] = (down, size * torch.randn(outputs, rank, generator=generator))
    return pairs


def added(pairs: Pairs, strength: float) -> dict[str, Tensor]:
    """By the weight's key, float64."""
    return {f"{name}.weight": strength * (up.double() @ down.double()) for name, (down, up) in pairs.items()}


def write_kohya(path: Path, pairs: Pairs, alpha: float | None, dtype: torch.dtype = torch.float32) -> Path:
    tensors = {}
    for name, (down, up) in pairs.items():
        key = "lora_unet_" + name.replace(".", "_")
        tensors |= {f"{key}.lora_down.weight": down.to(dtype), f"{key}.lora_up.weight": up.to(dtype)}
        tensors |= {} if alpha is None else {f"{key}.alpha": torch.tensor(alpha)}
    save_file(tensors, path)
    return path


def write_peft(folder: Path, pairs: Pairs, config: Mapping[str, Any] | None = None, infix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (down, up) in pairs.items():
        key = f"base_model.model.{name}"
        tensors |= {f"{key}.lora_A{infix}.weight": down, f"{key}.lora_B{infix}.weight": up}
    save_file(tensors, folder / "adapter_model.safetensors")
    rank = len(next(iter(pairs.values()))[0])
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["qkv_proj"], **(config or {})}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder
