"""Says whether a checkpoint folder is complete, and which one it is: `hunyuan verify FOLDER`.

Every shard that the index names is there, is as long as its own header says, and holds the tensors that the index puts
in it; config.json is that of these weights (`identity.py`). Reads the headers only: seconds for 166 GB. Needs nothing
but Python, and runs as a file of its own too (scripts/download_model.sh); does not know the network: that every tensor
is there and has its shape is checked by `hunyuan verify` through `folder.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    from hunyuan.checkpoint import identity, untrusted
except ImportError:  # run as a file of its own, where the project's packages are not installed
    import identity  # type: ignore[no-redef]
    import untrusted  # type: ignore[no-redef]

INDEX = "model.safetensors.index.json"
ONE_FILE = "model.safetensors"
BESIDES = ("config.json", "generation_config.json", "tokenizer.json", "system_prompt.py")


JOURNAL = "quantization_journal.json"


def problems(folder: Path, contents: identity.Contents | None = None) -> list[str]:
    """What is wrong with the folder, a line each; nothing for a complete one whose config.json is its own.

    Args:
        contents: what `identity.look` has seen in it already.
    """
    half = os.path.lexists(folder / JOURNAL) and not os.path.lexists(folder / "config.json")  # which comes last
    found = [f"it was being quantized ({JOURNAL}): the same hunyuan quantize command goes on from there"] * half
    return found + _missing(folder) or identity.contradictions(contents or identity.look(folder))


def _missing(folder: Path) -> list[str]:
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


def report(folder: Path, found: Sequence[str], line: str) -> int:
    """Prints which checkpoint it is, what is wrong, a line each, or that nothing is; returns the exit status."""
    print(f"{folder}: {line}")
    for problem in found:
        print(problem, file=sys.stderr)
    if not found:
        print(f"{folder} is complete")
    return 1 if found else 0


if __name__ == "__main__":
    named = Path(sys.argv[1])
    sys.exit(report(named, problems(named), identity.describe(identity.look(named))))
