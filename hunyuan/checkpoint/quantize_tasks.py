"""The single steps of a quantization: read a piece of a source tensor, convert it, write it to its place.

A step holds one expert's matrix or a few rows, and may run beside others. Knows which source tensors a stored one is
made of; does not know files' names or the order of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from hunyuan.checkpoint.adapters.merge import Adapters
from hunyuan.checkpoint.safetensors_file import ShardReader, ShardWriter
from hunyuan.checkpoint.tensor_table import TensorSpec
from hunyuan.errors import CheckpointError
from hunyuan.formats.numbers import (
    FP8,
    dequantize_mxfp4,
    fp8_squared_error,
    quantize_fp8,
    quantize_fp8_rows,
    quantize_mxfp4_measured,
)

_PIECE_BYTES = 32 << 20
_DTYPES = {"fp8": FP8, "mxfp4": torch.uint8, "mxfp4_scale": torch.uint8, "scale": torch.float32}


class Measured(NamedTuple):
    """Of one matrix or part of one: its number in the tensor, squared error and sum of squares; where layers are still
    to be chosen, fp8's squared error too."""

    number: int
    error: float
    square: float
    fp8: float | None = None


@dataclass(frozen=True)
class Task:
    """One step. `size` is the bytes it reads; `run` returns what it measured, None for a plain copy."""

    key: str
    size: int
    run: Callable[[ShardWriter, torch.device], Measured | None]


def measured_mxfp4(slot: int, weight: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> Measured:
    """Of an expert's matrix `[rows, columns]` and its stored form."""
    error = (dequantize_mxfp4(values, scale) - weight.float()).square_().sum(dtype=torch.float64)
    return Measured(slot, float(error), _square(weight))


def stored_content(
    specs: list[TensorSpec], held: Mapping[str, ShardReader]
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Type and shape of each tensor of a file; what is not quantized keeps the source's type."""
    content = {}
    for spec in specs:
        dtype = _DTYPES.get(spec.kind) or held[spec.key].entries[spec.key].dtype
        content[spec.key] = (dtype, spec.shape)
    return content


def shard_tasks(
    specs: list[TensorSpec],
    source: Mapping[str, TensorSpec],
    held: Mapping[str, ShardReader],
    adapters: Adapters,
    fp8_too: bool = False,
) -> list[Task]:
    """All steps that fill the tensors `specs` of one file; scales come with the matrix that they belong to.

    Args:
        fp8_too: experts in 4 bits are measured in fp8 as well.
    """
    experts: dict[str, list[TensorSpec]] = {}
    for spec in source.values():
        if spec.slot is not None:
            experts.setdefault(spec.param, []).append(spec)
    tasks: list[Task] = []
    for spec in specs:
        if spec.kind in ("scale", "mxfp4_scale"):
            continue
        if spec.key in experts:
            for part in experts[spec.key]:
                shard = held[part.key]
                run = partial(_quantize_expert, spec, part, shard, adapters, fp8_too)
                tasks.append(Task(spec.key, shard.entries[part.key].size, run))
        else:
            tasks += _row_tasks(spec, held[spec.key], adapters)
    return tasks


def _quantize_expert(
    spec: TensorSpec,
    part: TensorSpec,
    shard: ShardReader,
    adapters: Adapters,
    fp8_too: bool,
    writer: ShardWriter,
    device: torch.device,
) -> Measured:
    weight = shard.tensor(part.key).to(device)  # [rows, columns]
    slot, fp8 = part.slot or 0, None
    try:
        weight = adapters.merged(part.key, weight)
        if spec.kind == "mxfp4":
            values, scale, error = quantize_mxfp4_measured(weight)
            if fp8_too:
                fp8 = float(fp8_squared_error(weight, *quantize_fp8(weight)))
        else:
            values, scale = quantize_fp8(weight)
            error = fp8_squared_error(weight, values, scale)
    except ValueError as problem:
        raise CheckpointError(f"{part.key}: {problem}") from problem
    writer.write(spec.key, values, slot * values.numel())
    writer.write(spec.key.removesuffix("_proj") + "_scale", scale, slot * scale.numel())
    return Measured(slot, float(error), _square(weight), fp8)


def _row_tasks(spec: TensorSpec, shard: ShardReader, adapters: Adapters) -> list[Task]:
    """A tensor in pieces of whole rows: copied, merged, or a dense layer's matrix to fp8."""
    entry = shard.entries[spec.key]
    width = entry.size // max(1, entry.shape[0])  # bytes per row
    rows = max(1, _PIECE_BYTES // width)
    tasks = []
    for first in range(0, entry.shape[0], rows):
        count = min(rows, entry.shape[0] - first)
        run = partial(_write_rows, spec, shard, adapters, first, count)
        tasks.append(Task(spec.key, count * width, run))
    return tasks


def _write_rows(
    spec: TensorSpec,
    shard: ShardReader,
    adapters: Adapters,
    first: int,
    count: int,
    writer: ShardWriter,
    device: torch.device,
) -> Measured | None:
    values = shard.rows(spec.key, first, count).view(count, -1)  # [rows, the rest]
    try:
        if spec.kind != "fp8":
            if adapters.change(spec.key):
                values = adapters.merged(spec.key, values.to(device), first).to(values.dtype)
            writer.write(spec.key, values, first * values.shape[1])
            return None
        weight = adapters.merged(spec.key, values.to(device), first)
        quantized, scale = quantize_fp8_rows(weight)
    except ValueError as problem:
        raise CheckpointError(f"{spec.key}: {problem}") from problem
    writer.write(spec.key, quantized, first * values.shape[1])
    writer.write(spec.key + "_scale", scale, first)
    return Measured(first, float(fp8_squared_error(weight, quantized, scale[:, None])), _square(weight))


def _square(weight: torch.Tensor) -> float:
    """Sum of squares, a few million values at a time in float32, then in float64."""
    rows = max(1, (1 << 18) // weight.shape[1])
    parts = [part.float().square_().sum(dtype=torch.float64) for part in weight.split(rows)]
    return float(torch.stack(parts).sum())
