"""Reads an official checkpoint folder into the network, tensor by tensor.

Knows files and where each tensor goes. Host memory stays bounded by the tensor in flight (shards are memory
mapped), experts land in their stacked place as they arrive. Does not run the network.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from tqdm import tqdm

from hunyuan.checkpoint.names import TensorSpec, expected_tensors
from hunyuan.errors import CheckpointError
from hunyuan.model.config import ModelConfig
from hunyuan.model.network import HunyuanImage3

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHOWN = 200
_STORED_DTYPES = ("BF16", "F16", "F32")

log = logging.getLogger(__name__)


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Raises `CheckpointError` when the file is missing or no JSON object."""
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{name} is missing in the checkpoint folder {folder.name}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{name} is no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} holds no JSON object")
    return value


def read_config(folder: Path) -> ModelConfig:
    return ModelConfig.from_dict(read_json(folder, "config.json"))


def weight_files(folder: Path) -> dict[str, list[str]]:
    """Which keys each weight file holds.

    Raises:
        CheckpointError: no weights, or missing or unreadable shards.
    """
    if (folder / INDEX_FILE).is_file():
        names = sorted(set(read_index(folder).values()))
    elif (folder / SINGLE_FILE).is_file():
        names = [SINGLE_FILE]
    else:
        raise CheckpointError(f"neither {INDEX_FILE} nor {SINGLE_FILE} is in the checkpoint folder {folder.name}")
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(f"weight files named by {INDEX_FILE} are missing: {_some(missing)}")
    return {name: list(_open(folder / name).keys()) for name in names}


def read_index(folder: Path) -> dict[str, str]:
    """The index's map from key to file name; empty for a folder without an index."""
    if not (folder / INDEX_FILE).is_file():
        return {}
    index = read_json(folder, INDEX_FILE).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"{INDEX_FILE}: weight_map must map each key to the name of a file")
    return index


def check_index(index: Mapping[str, str], files: Mapping[str, list[str]]) -> None:
    """Raises `CheckpointError` for a key that is in two shards, or not where the index says."""
    counts = Counter(key for keys in files.values() for key in keys)
    doubled = [key for key, count in counts.items() if count > 1]
    if doubled:
        raise CheckpointError(f"these keys are in more than one shard: {_some(doubled)}")
    held = {name: set(keys) for name, keys in files.items()}
    absent = [f"{key} (in {name})" for key, name in index.items() if key not in held[name]]
    if absent:
        raise CheckpointError(f"{INDEX_FILE} names keys that their shards do not hold: {_some(absent)}")


def load_model(folder: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> HunyuanImage3:
    """Builds the network on `device` and fills it; the router stays fp32.

    Raises:
        CheckpointError: naming every key that is missing, unexpected or of the wrong shape.
    """
    specs = expected_tensors(config)
    files = weight_files(folder)
    check_keys(specs, _shapes(folder, files))
    check_index(read_index(folder), files)
    _check_dtypes(folder, files)
    model = empty_model(config, device, dtype)
    parameters = dict(model.named_parameters())
    # The bar shows on a terminal only; a log file gets the two lines around it.
    log.info("loading %d tensors from %d files of %s", len(specs), len(files), folder.name)
    with tqdm(total=len(specs), desc="loading weights", unit="tensor", mininterval=1.0, disable=None) as progress:
        for name in files:
            with _open(folder / name) as shard:
                for key in shard.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                    fill(parameters, specs[key], shard.get_tensor(key))
                    progress.update()
    log.info("all weights loaded")
    return model


def empty_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> HunyuanImage3:
    """The network with uninitialised weights, ready for inference."""
    with torch.device("meta"):
        model = HunyuanImage3(config)
    for name, parameter in model.named_parameters():
        own = parameter.dtype != torch.float32 or name.endswith(("mlp.gate.wg.weight", "_scale"))
        _replace(model, name, torch.empty(parameter.shape, dtype=parameter.dtype if own else dtype, device=device))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.wte.weight
    return model.eval().requires_grad_(False)


def fill(parameters: Mapping[str, nn.Parameter], spec: TensorSpec, tensor: torch.Tensor) -> None:
    """Copies one checkpoint tensor into its parameter, or into its slot of the stacked experts."""
    target = parameters[spec.param].data
    (target if spec.slot is None else target[spec.slot]).copy_(tensor)


def check_keys(specs: Mapping[str, TensorSpec], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises one `CheckpointError` for all differences between what is expected and what is there."""
    missing = [k for k in specs if k not in found]
    unexpected = [k for k in found if k not in specs]
    shapes = [
        f"{k} {found[k]} instead of {s.shape}" for k, s in specs.items() if k in found and tuple(found[k]) != s.shape
    ]
    parts = [
        f"{len(keys)} {what}: {_some(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", shapes))
        if keys
    ]
    if parts:
        raise CheckpointError("the weights do not match config.json; " + "; ".join(parts))


def _shapes(folder: Path, files: Mapping[str, Iterable[str]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, keys in files.items():
        with _open(folder / name) as shard:
            found.update({key: tuple(shard.get_slice(key).get_shape()) for key in keys})
    return found


def _check_dtypes(folder: Path, files: Mapping[str, Iterable[str]]) -> None:
    """Weights of another kind (integers of a quantised checkpoint, say) would be read as if they were these."""
    wrong = []
    for name, keys in files.items():
        with _open(folder / name) as shard:
            stored = {key: shard.get_slice(key).get_dtype() for key in keys}
        wrong += [f"{key} {dtype}" for key, dtype in stored.items() if dtype not in _STORED_DTYPES]
    if wrong:
        raise CheckpointError(f"weights must be stored as {', '.join(_STORED_DTYPES)}; these are not: {_some(wrong)}")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except Exception as error:  # safetensors raises its own untyped errors
        raise CheckpointError(f"{path.name} cannot be read as safetensors: {error}") from error


def _replace(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))


def _some(names: list[str]) -> str:
    """All names up to a screenful, then how many more."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
