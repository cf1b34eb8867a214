"""A checkpoint folder as files: its JSON, its index, its weight files, and whether they are all there and fit.

Everything wrong is found here, from headers alone, before a weight is read. Knows file names and the table of tensor
names; does not know the network's modules or devices.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

from hunyuan.checkpoint.safetensors_file import ShardReader
from hunyuan.checkpoint.tensor_table import STORED_TYPES, TensorSpec
from hunyuan.checkpoint.untrusted import MOST_JSON, FileProblem, NoPlainFile, is_plain_name, parse_json, read_small
from hunyuan.errors import CheckpointError
from hunyuan.formats.config import CheckpointConfig

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
JOURNAL_FILE = "quantization_journal.json"
"""What `hunyuan quantize` has done so far; it goes when the folder is complete."""
MOST_FILES = 4096  # those of the 80B model are 32
_SHOWN = 200


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Raises `CheckpointError` when the file is missing, no JSON object, or beyond the bounds of `untrusted.py`."""
    try:
        value = parse_json(read_file(folder, name, MOST_JSON))
    except FileProblem as problem:
        raise CheckpointError(f"{name} is no valid JSON: {problem}") from problem
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} holds no JSON object")
    return value


def read_file(folder: Path, name: str, most: int) -> bytes:
    """A small file of the folder. Raises `CheckpointError`: it is missing, no plain file, or longer than `most`."""
    try:
        return read_small(folder / name, most)
    except FileNotFoundError:
        raise CheckpointError(_why_missing(folder, name)) from None
    except NoPlainFile as problem:
        raise CheckpointError(f"{_why_missing(folder, name)}; what has that name is no file: {problem}") from problem
    except FileProblem as problem:
        raise CheckpointError(f"{name} cannot be read: {problem}") from problem


def checkpoint_name(folder: Path) -> str:
    """What people call the checkpoint: its folder's name; for a Hub's or a similar cache, whose folders are named by
    the hash of a revision, the model's."""
    path = folder.resolve()
    if not re.fullmatch("[0-9a-f]{40}", path.name):
        return path.name
    owner = next((parent.name for parent in path.parents if parent.name not in ("snapshots", "")), path.name)
    return owner.rpartition("--")[2] if owner.startswith("models--") else owner


def read_config(folder: Path) -> CheckpointConfig:
    """Raises `CheckpointError`: no config, a malformed one, or the folder of an unfinished quantization."""
    return CheckpointConfig.from_dict(read_json(folder, CONFIG_FILE))


def read_index(folder: Path) -> dict[str, str]:
    """The index's map from key to file name; empty for a folder without an index."""
    if not os.path.lexists(folder / INDEX_FILE):
        return {}
    index = read_json(folder, INDEX_FILE).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"{INDEX_FILE}: weight_map must map each key to the name of a file")
    outside = [name for name in dict.fromkeys(index.values()) if not is_plain_name(name)]
    if outside:
        shown = ", ".join(repr(name[:80]) for name in outside[:5])
        raise CheckpointError(f"{INDEX_FILE} names what is no file of this folder: {shown}")
    return index


def weight_files(folder: Path) -> list[str]:
    """The names of the weight files. Raises `CheckpointError`: there are none, or some of the index are missing."""
    if os.path.lexists(folder / INDEX_FILE):
        names = sorted(set(read_index(folder).values()))
    elif os.path.lexists(folder / SINGLE_FILE):
        names = [SINGLE_FILE]
    else:
        name = checkpoint_name(folder)
        raise CheckpointError(f"neither {INDEX_FILE} nor {SINGLE_FILE} is in the checkpoint folder {name}")
    if len(names) > MOST_FILES:
        raise CheckpointError(f"{INDEX_FILE} names {len(names)} weight files; at most {MOST_FILES} are read")
    missing = [n for n in names if not os.path.lexists(folder / n)]
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


def _why_missing(folder: Path, name: str) -> str:
    """Why there is no such file, as far as the folder shows it."""
    if not folder.is_dir():
        return (
            f"no such folder: {folder}" if not folder.exists() else f"{folder} is a file; a checkpoint folder is meant"
        )
    text = f"{name} is missing in the checkpoint folder {checkpoint_name(folder)}{_journal_hint(folder)}"
    return text + _elsewhere_hint(folder) if name == CONFIG_FILE else text


def _elsewhere_hint(folder: Path) -> str:
    """Where checkpoints are that somebody may have meant: the Hub keeps them two folders below a model's cache."""
    for pattern in ("snapshots/*", "models--*/snapshots/*", "hub/models--*/snapshots/*", "*"):
        found = sorted(islice((path.parent for path in folder.glob(f"{pattern}/{CONFIG_FILE}")), _SHOWN))
        if len(found) == 1:
            return f"; there is one in {found[0]}: name that folder"
        if found:
            return f"; there are {len(found)} below, {found[0]} for one: name one of those folders"
    return ""


def _journal_hint(folder: Path) -> str:
    """What a journal that was left behind says, to follow an error."""
    try:
        journal = parse_json(read_small(folder / JOURNAL_FILE, MOST_JSON))
        planned, done = list(journal["planned"]), journal["done"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    waiting = [name for name in planned if name not in done]
    lacking = f"incomplete: {some(waiting)}" if waiting else "index and config are not written"
    return (
        f": it was being quantized and is not complete, {len(planned) - len(waiting)} of {len(planned)} weight files "
        f"are done; {lacking}; the same hunyuan quantize command goes on from there"
    )
