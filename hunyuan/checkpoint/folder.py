"""A checkpoint folder as files: its JSON, its index, its weight files, and whether they are all there and fit.

Everything wrong is found here, from headers alone, before a weight is read. Knows file names and the table of tensor
names; does not know the network's modules or devices.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hunyuan.checkpoint.safetensors_file import ShardReader
from hunyuan.checkpoint.tensor_table import STORED_TYPES, TensorSpec
from hunyuan.errors import CheckpointError
from hunyuan.model.config import ModelConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
JOURNAL_FILE = "quantization_journal.json"
"""What `hunyuan quantize` has done so far; it goes when the folder is complete."""
_SHOWN = 200


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Raises `CheckpointError` when the file is missing or no JSON object."""
    path = folder / name
    if not path.is_file():
        raise CheckpointError(f"{name} is missing in the checkpoint folder {folder.name}{_unfinished(folder)}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{name} is no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} holds no JSON object")
    return value


def read_config(folder: Path) -> ModelConfig:
    """Raises `CheckpointError`: no config, a malformed one, or the folder of an unfinished quantisation."""
    return ModelConfig.from_dict(read_json(folder, CONFIG_FILE))


def read_index(folder: Path) -> dict[str, str]:
    """The index's map from key to file name; empty for a folder without an index."""
    if not (folder / INDEX_FILE).is_file():
        return {}
    index = read_json(folder, INDEX_FILE).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"{INDEX_FILE}: weight_map must map each key to the name of a file")
    return index


def weight_files(folder: Path) -> list[str]:
    """The names of the weight files. Raises `CheckpointError`: there are none, or some of the index are missing."""
    if (folder / INDEX_FILE).is_file():
        names = sorted(set(read_index(folder).values()))
    elif (folder / SINGLE_FILE).is_file():
        names = [SINGLE_FILE]
    else:
        raise CheckpointError(f"neither {INDEX_FILE} nor {SINGLE_FILE} is in the checkpoint folder {folder.name}")
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(f"weight files named by {INDEX_FILE} are missing: {some(missing)}")
    return names


class OpenWeights:
    """All weight files of a folder, open, complete and of the expected shapes and types.

    Attributes:
        shards: by file name; reading happens through them.
        specs: the expected tensors by key, as given.
    """

    def __init__(self, folder: Path, specs: Mapping[str, TensorSpec]) -> None:
        """Raises one `CheckpointError` for everything of a kind that is wrong: files, names, shapes, types."""
        self.specs = specs
        self.shards: dict[str, ShardReader] = {}
        self._stack = ExitStack()
        try:
            for name in weight_files(folder):
                self.shards[name] = self._stack.enter_context(ShardReader(folder / name))
            check_keys(specs, {k: e.shape for shard in self.shards.values() for k, e in shard.entries.items()})
            check_index(read_index(folder), {name: shard.entries for name, shard in self.shards.items()})
            check_types(specs, {k: e.type for shard in self.shards.values() for k, e in shard.entries.items()})
        except CheckpointError:
            self._stack.close()
            raise

    def __enter__(self) -> OpenWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for shard in self.shards.values() for entry in shard.entries.values())

    def where(self) -> dict[str, ShardReader]:
        """Which file holds a key."""
        return {key: shard for shard in self.shards.values() for key in shard.entries}


def check_index(index: Mapping[str, str], files: Mapping[str, Iterable[str]]) -> None:
    """Raises `CheckpointError` for a key that is in two shards, or not where the index says."""
    counts = Counter(key for keys in files.values() for key in keys)
    doubled = [key for key, count in counts.items() if count > 1]
    if doubled:
        raise CheckpointError(f"these keys are in more than one shard: {some(doubled)}")
    held = {name: set(keys) for name, keys in files.items()}
    absent = [f"{key} (in {name})" for key, name in index.items() if key not in held[name]]
    if absent:
        raise CheckpointError(f"{INDEX_FILE} names keys that their shards do not hold: {some(absent)}")


def check_keys(specs: Mapping[str, TensorSpec], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raises one `CheckpointError` for all differences between what is expected and what is there."""
    missing = [k for k in specs if k not in found]
    unexpected = [k for k in found if k not in specs]
    shapes = [
        f"{k} {found[k]} instead of {s.shape}" for k, s in specs.items() if k in found and tuple(found[k]) != s.shape
    ]
    parts = [
        f"{len(keys)} {what}: {some(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", shapes))
        if keys
    ]
    if parts:
        raise CheckpointError("the weights do not match config.json; " + "; ".join(parts))


def check_types(specs: Mapping[str, TensorSpec], found: Mapping[str, str]) -> None:
    """Raises `CheckpointError` for values of another kind, which would be read as if they were the expected ones."""
    wrong = [
        f"{key} {found[key]} instead of {' or '.join(STORED_TYPES[spec.kind])}"
        for key, spec in specs.items()
        if found[key] not in STORED_TYPES[spec.kind]
    ]
    if wrong:
        raise CheckpointError(f"weights are not stored as config.json says: {some(wrong)}")


def some(names: list[str]) -> str:
    """All names up to a screenful, then how many more."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _unfinished(folder: Path) -> str:
    """What a journal that was left behind says, to follow an error."""
    try:
        journal = json.loads((folder / JOURNAL_FILE).read_text(encoding="utf-8"))
        planned, done = list(journal["planned"]), journal["done"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    waiting = [name for name in planned if name not in done]
    lacking = f"incomplete: {some(waiting)}" if waiting else "index and config are not written"
    return (
        f": it was being quantised and is not complete, {len(planned) - len(waiting)} of {len(planned)} weight files "
        f"are done; {lacking}; the same hunyuan quantize command goes on from there"
    )
