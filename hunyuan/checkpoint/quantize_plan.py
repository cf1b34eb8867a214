"""What a quantized folder holds before there is any of it: its files, its layers with experts, its sizes.

Knows the table of tensors; reads and writes nothing.
"""

from __future__ import annotations

from collections import Counter

from hunyuan.checkpoint.tensor_table import TensorSpec, expected_tensors
from hunyuan.formats.config import CheckpointConfig

_SHARD_BYTES = 2 * 2**30


def plan_shards(config: CheckpointConfig) -> dict[str, list[TensorSpec]]:
    """The tensors of each weight file: one file per layer, then the rest in files of at most 2 GiB or one tensor.

    The file names do not depend on the experts' formats.
    """
    groups: dict[str, list[TensorSpec]] = {f"model.layers.{n}.": [] for n in range(config.num_hidden_layers)}
    rest: list[list[TensorSpec]] = [[]]
    for spec in expected_tensors(config).values():
        layer = ".".join(spec.key.split(".")[:3]) + "."
        if layer in groups:
            groups[layer].append(spec)
        elif rest[-1] and sum(s.nbytes for s in rest[-1]) + spec.nbytes > _SHARD_BYTES:
            rest.append([spec])
        else:
            rest[-1].append(spec)
    parts = [*groups.values(), *rest]
    return {f"model-{i + 1:04d}-of-{len(parts):04d}.safetensors": part for i, part in enumerate(parts)}


def moe_layers(config: CheckpointConfig) -> list[int]:
    return [n for n in range(config.num_hidden_layers) if config.is_moe(n)]


def expert_bytes(config: CheckpointConfig) -> Counter[int]:
    """By layer."""
    found: Counter[int] = Counter()
    for spec in expected_tensors(config).values():
        if ".experts." in spec.key:
            found[int(spec.key.split(".")[2])] += spec.nbytes
    return found


def stored_bytes(config: CheckpointConfig) -> int:
    return sum(spec.nbytes for spec in expected_tensors(config).values())
