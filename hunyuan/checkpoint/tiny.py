"""Writes small random checkpoints in the official layout (docs/model.md, sections 1 to 4, 11 and 16).

They have every part of the real model at a size that runs on a laptop's CPU in seconds; tests use them everywhere, and
`MODEL_ID=tiny` serves one. Pictures made with them are colourful noise. Knows files and folders; `tiny_config.py` has
the sizes, `tiny_tokenizer.py` the vocabulary and `tiny_weights.py` the numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from hunyuan.checkpoint import tensor_table, tiny_config, tiny_tokenizer, tiny_weights
from hunyuan.checkpoint.tiny_config import DEFAULT_SHAPE, DTYPES, TinyShape
from hunyuan.errors import CheckpointError
from hunyuan.formats.config import CheckpointConfig

_INDEX = "model.safetensors.index.json"


def write_tiny_checkpoint(
    out: Path,
    shape: TinyShape = DEFAULT_SHAPE,
    *,
    seed: int = 0,
    shards: int = 1,
    dtype: str = "bfloat16",
    force: bool = False,
) -> Path:
    """Writes a checkpoint folder and returns its path.

    Args:
        seed: of the weights; the tokenizer and the texts are always the same.
        shards: 1 writes `model.safetensors`, more write numbered files and their index.
        dtype: of the stored weights, "bfloat16" or "float32"; the router's are float32 in either case.
        force: replace the checkpoint's files in a folder that is not empty; other files there are left alone.

    Raises:
        CheckpointError: an argument is out of bounds, or the folder is not empty and `force` is false.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"tiny checkpoint: dtype must be one of {', '.join(DTYPES)}; got {dtype!r}")
    tokenizer = tiny_tokenizer.build_tokenizer()
    raw = tiny_config.model_config(shape, tokenizer)
    config = CheckpointConfig.from_dict(raw)
    specs = tensor_table.expected_tensors(config)
    if not 1 <= shards <= len(specs):
        raise CheckpointError(f"tiny checkpoint: shards must be 1 to {len(specs)}; got {shards}")
    out = Path(out)
    _prepare_folder(out, force)

    weights = tiny_weights.random_weights(config, tiny_tokenizer.script_pairs(tokenizer, shape.base_size), seed)
    generation = tiny_config.generation_config(shape, tokenizer)
    write_small_files(out, SmallFiles(raw, generation, tokenizer, tiny_config.SYSTEM_PROMPT))
    write_weights(out, as_stored(weights, config, DTYPES[dtype]), shards)
    return out


@dataclass(frozen=True)
class SmallFiles:
    """What stands beside the weights in a checkpoint folder.

    Attributes:
        config, generation: `config.json` and `generation_config.json`.
        system_prompt: the text of `system_prompt.py`.
    """

    config: dict[str, Any]
    generation: dict[str, Any]
    tokenizer: Tokenizer
    system_prompt: str


def write_small_files(out: Path, files: SmallFiles) -> None:
    """Writes them into `out`, which is made if absent; weights that are there stay."""
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "config.json", files.config)
    _write_json(out / "generation_config.json", files.generation)
    _write_json(out / "tokenizer_config.json", tiny_config.tokenizer_config())
    files.tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    (out / "system_prompt.py").write_text(files.system_prompt, encoding="utf-8")


def as_stored(weights: Mapping[str, Tensor], config: CheckpointConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """The official keys' tensors in `dtype`, the router's in float32."""
    specs = tensor_table.expected_tensors(config)
    return {key: weights[key].to(torch.float32 if spec.float32 else dtype) for key, spec in specs.items()}


def _prepare_folder(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out} is a file, not a folder")
    if out.is_dir() and any(out.iterdir()):
        if not force:
            raise CheckpointError(f"{out} is not empty; choose another folder, or --force (force=True) to replace it")
        # An old shard left behind would make the new folder a mixture of two checkpoints.
        for stale in (*out.glob("model*.safetensors"), out / _INDEX):
            stale.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)


def write_weights(out: Path, weights: dict[str, Tensor], shards: int = 1) -> None:
    """Writes the weight files of a folder that has its small files, and the index of several."""
    if shards == 1:
        _save(weights, out / "model.safetensors")
        return
    keys = list(weights)
    weight_map = {}
    for shard in range(shards):
        file_name = f"model-{shard + 1:04d}-of-{shards:04d}.safetensors"
        part = keys[len(keys) * shard // shards : len(keys) * (shard + 1) // shards]
        _save({key: weights[key] for key in part}, out / file_name)
        weight_map.update(dict.fromkeys(part, file_name))
    total = sum(weight.numel() * weight.element_size() for weight in weights.values())
    _write_json(out / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _save(weights: dict[str, Tensor], path: Path) -> None:
    save_file(weights, path, metadata={"format": "pt"})
    # The library makes files that only their owner can read; a cache may be filled by one user and read by another.
    shutil.copymode(path.parent / "config.json", path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
