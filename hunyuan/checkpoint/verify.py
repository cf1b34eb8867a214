"""Says whether a checkpoint folder is complete: `hunyuan verify FOLDER`.

Every shard that the index names is there, is as long as its own header says, and holds the tensors that the index puts
in it. Reads the headers only: seconds for 166 GB. Needs nothing but Python, and runs as a file of its own too
(scripts/download_model.sh); does not know the model.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"
BESIDES = ("config.json", "generation_config.json", "tokenizer.json", "system_prompt.py")
MAX_HEADER = 100_000_000  # the format's own limit


def problems(folder: Path) -> list[str]:
    """What is wrong with the folder, a line each; nothing for a complete one."""
    found = [f"{name} is missing" for name in BESIDES if not (folder / name).is_file()]
    index = folder / INDEX
    if not index.is_file():
        alone = folder / ONE_FILE
        return found + (shard_problems(alone, None) if alone.is_file() else [f"{INDEX} and {ONE_FILE} are missing"])
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        return [*found, f"{INDEX} is not an index: {error!r}"]
    wanted: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        wanted.setdefault(shard, set()).add(tensor)
    for shard in sorted(wanted):
        found += shard_problems(folder / shard, wanted[shard])
    return found


def shard_problems(path: Path, tensors: set[str] | None) -> list[str]:
    if not path.is_file():
        return [f"{path.name} is missing"]
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, MAX_HEADER):
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path.name} is no safetensors file: {error}"]
    if size != 8 + length + end:
        return [f"{path.name} has {size} bytes, its header says {8 + length + end}"]
    absent = sorted((tensors or set()) - header.keys())
    return [f"{path.name} lacks {len(absent)} tensors of the index, {absent[0]} for one"] if absent else []


def report(folder: Path) -> int:
    """Prints what is wrong, a line each, or that nothing is; the exit status."""
    found = problems(folder)
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(f"{folder} is complete")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(report(Path(sys.argv[1])))
