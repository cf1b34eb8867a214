"""How far a candidate's expert weights are from the official ones, from the files alone.

Reads some experts of each layer; where a folder is quantized while it is loaded, quantizes them in the same way. Knows
folders and formats; no network.
"""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from hunyuan.checkpoint.folder import OpenWeights, read_config
from hunyuan.checkpoint.safetensors_file import ShardReader
from hunyuan.checkpoint.sensitivity import sampled_matrices
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.numbers import dequantize_fp8, dequantize_mxfp4, quantize_fp8, quantize_mxfp4
from hunyuan.model.config import ModelConfig

MOST_EXPERTS = 8
"""Of a layer; they are spread over all of them."""


def weight_error(reference: Path | str | None, folder: Path | str | None, target: ModelConfig) -> float | None:
    """`|candidate - official| / |official|` over the experts that are looked at.

    Args:
        reference: the official folder.
        folder: the candidate's.
        target: its config with the formats that its weights have once they are loaded.

    Returns:
        None where either is no folder, or the reference is quantized itself.
    """
    if not isinstance(reference, Path) or not isinstance(folder, Path):
        return None
    source, stored = reference, folder
    if not source.is_dir() or not stored.is_dir() or not isinstance(target, CheckpointConfig):
        return None
    official, own = read_config(source), read_config(stored)
    if official.quantization_config is not None:
        return None
    error = square = 0.0
    with OpenWeights(source, expected_tensors(official)) as first, OpenWeights(stored, expected_tensors(own)) as second:
        ours, theirs = first.where(), second.where()
        for layer, name, expert in sampled_matrices(official, MOST_EXPERTS):
            key = f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
            weight = ours[key].tensor(key).float()
            if own.expert_formats[layer] == "bf16":
                found = _rounded(theirs[key].tensor(key), target.expert_formats[layer])
            else:
                found = _stored(theirs, f"model.layers.{layer}.mlp.experts.{name}", expert, own.expert_formats[layer])
            error += float((found - weight).square().sum(dtype=torch.float64))
            square += float(weight.square().sum(dtype=torch.float64))
    return sqrt(error / square) if square else 0.0


def _rounded(weight: Tensor, kind: str) -> Tensor:
    if kind == "fp8":
        return dequantize_fp8(*quantize_fp8(weight))
    return dequantize_mxfp4(*quantize_mxfp4(weight)) if kind == "mxfp4" else weight.float()


def _stored(held: dict[str, ShardReader], name: str, expert: int, kind: str) -> Tensor:
    values, scale = (held[key].rows(key, expert, 1)[0] for key in (f"{name}_proj", f"{name}_scale"))
    return dequantize_fp8(values, scale) if kind == "fp8" else dequantize_mxfp4(values, scale)
