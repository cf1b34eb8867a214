"""Says whether a checkpoint folder is complete: `hunyuan verify FOLDER`.

Every shard that the index names is there, is as long as its own header says, and holds the tensors that the index puts
in it. Reads the headers only: seconds for 166 GB. Needs nothing but Python, and runs as a file of its own too
(scripts/download_model.sh); does not know the model.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

try:
    from hunyuan.checkpoint import untrusted
except ImportError:  # run as a file of its own, where the project's packages are not installed
    import untrusted  # type: ignore[no-redef]

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"
BESIDES = ("config.json", "generation_config.json", "tokenizer.json", "system_prompt.py")


def problems(folder: Path) -> list[str]:
    """What is wrong with the folder, a line each; nothing for a complete one."""
    if not folder.is_dir():
        return [f"{folder} is a file; a folder is meant" if folder.exists() else f"no such folder: {folder}"]
    found = [line for name in BESIDES for line in besides_problems(folder, name)]
    if not os.path.lexists(folder / INDEX):
        alone = folder / ONE_FILE
        one = shard_problems(alone, None) if os.path.lexists(alone) else [f"{INDEX} and {ONE_FILE} are missing"]
        return found + one
    try:
        weight_map = untrusted.parse_json(untrusted.read_small(folder / INDEX, untrusted.MOST_JSON))["weight_map"]
        wanted: dict[str, set[str]] = {}
        for tensor, shard in weight_map.items():
            wanted.setdefault(shard, set()).add(tensor)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [*found, f"{INDEX} is not an index: {error or repr(error)}"]
    for shard in sorted(wanted, key=str):
        outside = not untrusted.is_plain_name(shard)
        wrong = f"{INDEX} names what is no file of this folder: {shard!r}"
        found += [wrong] if outside else shard_problems(folder / shard, wanted[shard])
    return found


def besides_problems(folder: Path, name: str) -> list[str]:
    try:
        head = untrusted.read_head(folder / name)
    except FileNotFoundError:
        return [f"{name} is missing"]
    except untrusted.FileProblem as problem:
        return [f"{name}: {problem}"]
    known = untrusted.what_it_is(head)
    return [f"{name}: {known}"] if known else []


def shard_problems(path: Path, tensors: set[str] | None) -> list[str]:
    try:
        file = untrusted.open_plain(path)
    except FileNotFoundError:
        return [f"{path.name} is missing"]
    except untrusted.FileProblem as problem:
        return [f"{path.name}: {problem}"]
    try:
        header, base = untrusted.read_header(file)
        ends = [untrusted.place_of(entry)[1] for entry in header.values()]
        untrusted.check_size(file, base + max(ends, default=0))
    except (OSError, untrusted.FileProblem) as problem:
        return [f"{path.name} is no safetensors file or not a whole one: {problem}"]
    finally:
        os.close(file)
    absent = sorted((tensors or set()) - header.keys())
    return [f"{path.name} lacks {len(absent)} tensors of the index, {absent[0]} for one"] if absent else []


def adapters(folder: Path) -> list[str]:
    """A line for each adapter that `hunyuan quantize --lora` has merged into the folder's weights."""
    config = untrusted.parse_json(untrusted.read_small(folder / "config.json", untrusted.MOST_JSON))
    section = config.get("quantization_config") if isinstance(config, dict) else None
    merged = section.get("lora", []) if isinstance(section, dict) else []
    return [
        f"in its weights: the adapter {str(row.get('name'))!r}, scale {row.get('scale')}, sha256 {row.get('sha256')}"
        for row in merged
        if isinstance(row, dict)
    ]


def report(folder: Path) -> int:
    """Prints what is wrong, a line each, or that nothing is; the exit status."""
    found = problems(folder)
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(f"{folder} is complete")
        for line in adapters(folder):
            print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(report(Path(sys.argv[1])))
