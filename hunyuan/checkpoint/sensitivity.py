"""How much each layer's experts lose in 4 bits and in fp8, from a sample of an official folder's weights.

Reads a few experts of each layer and quantizes them; what they compute is `hunyuan.calibration`'s business. Knows
folders and formats.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from hunyuan.checkpoint.folder import OpenWeights, read_config
from hunyuan.checkpoint.layer_choice import LayerErrors
from hunyuan.checkpoint.quantize_report import relative_error
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.formats.config import CheckpointConfig
from hunyuan.formats.numbers import fp8_squared_error, quantize_fp8, quantize_mxfp4_measured


def sampled_matrices(config: CheckpointConfig, most: int) -> Iterator[tuple[int, str, int]]:
    """Layer, matrix and expert, of about `most` experts of each layer, spread over all of them."""
    for layer in range(config.num_hidden_layers):
        if config.is_moe(layer):
            count = config.num_experts[layer]
            for expert in range(0, count, max(1, count // most)):
                yield from ((layer, name, expert) for name in ("gate_and_up", "down"))


@torch.inference_mode()
def weight_errors(folder: Path, device: torch.device, most: int = 2) -> dict[int, LayerErrors]:
    """By layer with experts: the relative error of some of its experts' weights; adapters are not in them.

    Args:
        folder: an official one.
        device: where to quantize.
        most: experts of each layer.

    Raises:
        CheckpointError: the folder is not whole, or a matrix cannot be quantized.
    """
    config = read_config(folder)
    found: dict[int, list[tuple[float, float, float]]] = {}
    with OpenWeights(folder, expected_tensors(config)) as weights:
        held = weights.where()
        for layer, name, expert in sampled_matrices(config, most):
            key = f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
            weight = held[key].tensor(key).to(device)  # [rows, columns]
            four = float(quantize_mxfp4_measured(weight)[2])
            eight = float(fp8_squared_error(weight, *quantize_fp8(weight)))
            found.setdefault(layer, []).append((four, eight, float(weight.float().square().sum(dtype=torch.float64))))
    return {
        layer: LayerErrors(*(relative_error([(0, part[i], part[2]) for part in parts]) for i in (0, 1)))
        for layer, parts in found.items()
    }
