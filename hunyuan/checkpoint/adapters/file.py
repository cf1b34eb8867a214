"""One LoRA file, open: which layers it changes, and its part of a layer's weight.

Everything wrong with it is found from its header and its config, before a weight is read. Knows pairs of matrices; does
not know which other adapters there are, nor the checkpoint's files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from hunyuan.adapters import Adapter
from hunyuan.checkpoint.adapters.keys import LinearLayers, Part
from hunyuan.checkpoint.adapters.peft import CONFIG_FILE, PeftConfig
from hunyuan.checkpoint.folder import checkpoint_name, read_json, some
from hunyuan.checkpoint.safetensors_file import Entry, ShardReader
from hunyuan.errors import CheckpointError

PEFT_FILE = "adapter_model.safetensors"
MOST_RANK = 1024
_FLOATS = ("BF16", "F16", "F32")
_TYPES: dict[Part, tuple[str, ...]] = {"down": _FLOATS, "up": _FLOATS, "alpha": (*_FLOATS, "F64", "I32", "I64")}


class Pair(NamedTuple):
    """Keys of `down` `[rank, inputs]` and `up` `[outputs, rank]`; the weight gets `strength` times up @ down."""

    down: str
    up: str
    strength: float


class AdapterFile:
    """An open LoRA file that fits the network.

    Attributes:
        name: what answers call it, no path: the file's or its folder's name.
        scale: times what it adds.
        pairs: by the key of the weight that a pair changes.
    """

    def __init__(self, adapter: Adapter, layers: LinearLayers) -> None:
        """Raises one `CheckpointError` for everything about it that is wrong."""
        self.path, config_folder = _places(adapter.path)
        self.name, self.scale = name_of(adapter), adapter.scale
        self._reader = ShardReader(self.path)
        try:
            self.pairs = self._read_pairs(layers, config_folder)
        except CheckpointError as error:
            self.close()
            raise CheckpointError(f"adapter {self.name}: {error}") from error

    def close(self) -> None:
        self._reader.close()

    def changes(self, key: str) -> bool:
        """Whether the weight `key` becomes another one."""
        return key in self.pairs and self.scale * self.pairs[key].strength != 0

    def add_to(self, weight: Tensor, key: str, first: int) -> None:
        """Adds its part to `weight`, fp32 `[rows, inputs]`, the rows of the weight `key` from `first` on.

        Raises:
            ValueError: it holds values that are no numbers.
        """
        pair = self.pairs[key]
        down = self._reader.tensor(pair.down).float().to(weight.device)
        up = self._reader.rows(pair.up, first, len(weight)).float().to(weight.device)
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ValueError(f"adapter {self.name} holds values there that are no numbers")
        weight.addmm_(up, down, alpha=self.scale * pair.strength)

    def digests(self) -> dict[str, str]:
        """SHA-256 of its file and, where there is one beside it, of its config."""
        found = {}
        for path in (self.path, self.path.parent / CONFIG_FILE):
            if path.is_file():
                with path.open("rb") as file:
                    found[path.suffix] = hashlib.file_digest(file, "sha256").hexdigest()
        return found

    def _read_pairs(self, layers: LinearLayers, config_folder: Path) -> dict[str, Pair]:
        entries, pairs, faults = self._reader.entries, dict[str, Pair](), list[str]()
        found, unknown = _by_layer(entries, layers)
        config = _config(config_folder) if any("alpha" not in keys for keys in found.values()) else None
        for layer, keys in found.items():
            spec = layers.specs[layer]
            fault = _fault(keys, entries, spec.shape) or _strength_fault(keys, entries, config, layer)
            if fault is None:
                pairs[spec.key] = Pair(keys["down"], keys["up"], self._strength(layer, keys, config))
            else:
                faults.append(f"{layer}: {fault}")
        wrong = [f"{len(unknown)} keys name no linear layer of this network: {some(unknown)}"] if unknown else []
        wrong += [f"{len(faults)} layers do not fit: {some(faults)}"] if faults else []
        if wrong or not pairs:
            raise CheckpointError("; ".join(wrong) or "it holds no adapter at all")
        return pairs

    def _strength(self, layer: str, keys: Mapping[Part, str], config: PeftConfig | None) -> float:
        """alpha / rank where the file says alpha; else PEFT's config; 1 where a kohya-like file says nothing."""
        rank = self._reader.entries[keys["down"]].shape[0]
        if "alpha" in keys:
            alpha = float(self._reader.tensor(keys["alpha"]).float())
            if not isfinite(alpha):
                raise CheckpointError(f"{keys['alpha']} is no number")
            return alpha / rank
        return 1.0 if config is None else config.strength(layer)


def name_of(adapter: Adapter) -> str:
    """The file's name without its ending; PEFT's files all have one name, so theirs is the folder's."""
    path = adapter.path
    folder = path if path.is_dir() else path.parent if path.name == PEFT_FILE else None
    return path.stem if folder is None else checkpoint_name(folder)


def _places(path: Path) -> tuple[Path, Path]:
    """The weights' file, and the folder where a config may be."""
    if not path.is_dir():
        return path, path.parent
    if not (path / PEFT_FILE).exists():
        raise CheckpointError(f"adapter {path.name}: the folder has no {PEFT_FILE}; name the file itself")
    return path / PEFT_FILE, path


def _config(folder: Path) -> PeftConfig | None:
    """None where there is none."""
    if not (folder / CONFIG_FILE).exists():
        return None
    try:
        return PeftConfig.from_dict(read_json(folder, CONFIG_FILE))
    except ValueError as error:
        raise CheckpointError(f"{CONFIG_FILE}: {error}") from error


def _by_layer(entries: Mapping[str, Entry], layers: LinearLayers) -> tuple[dict[str, dict[Part, str]], list[str]]:
    """The keys of each layer, and those that name none."""
    found: dict[str, dict[Part, str]] = {}
    unknown = []
    for key in entries:
        named = layers.named_by(key)
        if named is None:
            unknown.append(key)
        elif named.part in found.setdefault(named.layer, {}):
            raise CheckpointError(f"{found[named.layer][named.part]} and {key} are for the same layer")
        else:
            found[named.layer][named.part] = key
    return found, unknown


def _fault(keys: Mapping[Part, str], entries: Mapping[str, Entry], shape: tuple[int, ...]) -> str | None:
    """What is wrong with the tensors for a weight of `shape`; None for nothing."""
    if len(keys.keys() & {"down", "up"}) < 2:
        return f"{', '.join(keys.values())} without its other half"
    down, up = entries[keys["down"]], entries[keys["up"]]
    odd = [f"{key} is {entries[key].type}" for part, key in keys.items() if entries[key].type not in _TYPES[part]]
    if odd:
        return f"{', '.join(odd)} instead of {' or '.join(_TYPES['down'])}"
    outputs, inputs = shape
    if down.shape[1:] != (inputs,) or up.shape != (outputs, down.shape[0]):
        return f"{down.shape} and {up.shape} instead of (rank, {inputs}) and ({outputs}, rank)"
    if not 1 <= down.shape[0] <= MOST_RANK:
        return f"rank {down.shape[0]}; 1 to {MOST_RANK} are taken"
    return None


def _strength_fault(
    keys: Mapping[Part, str], entries: Mapping[str, Entry], config: PeftConfig | None, layer: str
) -> str | None:
    """Why it cannot be known how strong a pair of matrices is; None where it can."""
    rank = entries[keys["down"]].shape[0]
    if "alpha" in keys:
        found = entries[keys["alpha"]].shape
        return None if found in ((), (1,)) else f"{keys['alpha']} has the shape {found}; one number is meant"
    if config is None:
        kohya = keys["down"].endswith(".lora_down.weight")
        return None if kohya else f"how strong it is, is not said: put PEFT's {CONFIG_FILE} beside the file"
    return None if config.rank(layer) == rank else f"rank {rank}; {CONFIG_FILE} says {config.rank(layer)}"
