"""Random weights of the real model's sizes, made in place: for measuring without the real checkpoint.

Knows what random weights neither fade nor explode. The tokenizer and the
texts are the tiny checkpoint's: their ids are a small part of the real vocabulary. Reads no files.
"""

from __future__ import annotations

import json
from math import log2, prod, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hunyuan.checkpoint import tiny_config, tiny_tokenizer
from hunyuan.checkpoint.tiny_config import TinyShape
from hunyuan.formats.numbers import E8M0_BIAS, FP8

_E2M1_RMS = 2.93  # of the 16 values, each as likely as another
_FP8_SPREAD = 100.0
_CHUNK = 8  # experts filled at a time: bounds the temporaries


def write_small_files(folder: Path, raw: dict[str, Any], distil: bool = False) -> None:
    """Everything of a checkpoint folder but its weights, `raw` being its config."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer.build_tokenizer()
    shape = TinyShape(distil=distil, max_positions=raw["max_position_embeddings"])
    texts = {
        "config.json": raw,
        "generation_config.json": tiny_config.generation_config(shape, tokenizer),
        "tokenizer_config.json": tiny_config.tokenizer_config(),
    }
    for name, content in texts.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "system_prompt.py").write_text(tiny_config.SYSTEM_PROMPT, encoding="utf-8")


@torch.no_grad()
def randomize(model: nn.Module, layers: int, seed: int = 0) -> None:
    """Fills every parameter where it lies, in its own format; the same for the same seed, device and sizes."""
    generator: dict[torch.device, torch.Generator] = {}
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        device = parameter.device
        if device not in generator:
            generator[device] = torch.Generator(device).manual_seed(seed)
        if name.endswith("_scale"):
            matrix = name.removesuffix("_scale") + ("" if name.endswith(".weight_scale") else "_proj")
            _fill_scale(parameter.data, parameters[matrix], generator[device])
        else:
            _fill(name, parameter.data, layers, generator[device])


def _fill(name: str, tensor: Tensor, layers: int, generator: torch.Generator) -> None:
    if tensor.dtype == torch.uint8:
        for part in tensor.split(_CHUNK):
            part.random_(0, 256, generator=generator)
            part.masked_fill_((part & 0xF) == 8, 0).masked_fill_((part >> 4) == 8, 0)  # there is no minus zero
    elif tensor.dtype == FP8:
        for part in tensor.split(_CHUNK if tensor.dim() == 3 else 8192):
            noise = torch.randn(part.shape, device=part.device, generator=generator)
            part.copy_((noise * _FP8_SPREAD).clamp(-448, 448))
    elif name.endswith("bias"):
        tensor.normal_(0, 0.05, generator=generator)
    elif tensor.dim() == 1:  # the weight of a norm
        tensor.normal_(1, 0.1, generator=generator)
    else:
        inputs = prod(tensor.shape[2:] if "experts" in name else tensor.shape[1:])
        # What adds to the residual stream once a layer: together as much at any depth.
        depth = sqrt(layers) if name.endswith(("o_proj.weight", "down_proj.weight", "experts.down_proj")) else 1.0
        std = 0.7 if name == "model.wte.weight" else 1 / sqrt(inputs) / depth
        for part in tensor.split(_CHUNK if tensor.dim() == 3 else len(tensor)):
            part.normal_(0, std, generator=generator)


def _fill_scale(scale: Tensor, matrix: Tensor, generator: torch.Generator) -> None:
    """Scales under which `matrix` `[..., inputs]` keeps the size of what goes through it."""
    if scale.dtype == torch.uint8:
        middle = round(log2(1 / sqrt(matrix.shape[-1] * 2) / _E2M1_RMS)) + E8M0_BIAS
        scale.random_(middle - 1, middle + 1, generator=generator)
    else:
        scale.fill_(1 / sqrt(matrix.shape[-1]) / _FP8_SPREAD)
