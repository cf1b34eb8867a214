"""Says which checkpoint a folder holds: whose weights, how they are stored, and whether config.json belongs to them.

Two small tensors tell the published checkpoints apart by their fingerprints; names, shapes and types tell the rest.
What is not known is said to be unknown, never refused. Does not know the other tensors' values: an adapter merged into
the experts leaves both fingerprints as they were. Reads headers and those two tensors. Python's own library only:
verify.py runs alone.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    from hunyuan.checkpoint import untrusted
except ImportError:  # beside verify.py, which is run as a file of its own
    import untrusted  # type: ignore[no-redef]

FIRST, LAST = "model.layers.0.input_layernorm.weight", "model.ln_f.weight"
INSTRUCT, DISTIL, BASE = "HunyuanImage-3.0-Instruct", "HunyuanImage-3.0-Instruct-Distil", "HunyuanImage-3.0"
Table = Mapping[str, Mapping[str, str]]

PUBLISHED: Table = {
    INSTRUCT: {FIRST: "47a6bac6de8a5785", LAST: "ff87973199632c7f"},
    DISTIL: {FIRST: "ddba8fb657790c51", LAST: "ff87973199632c7f"},
    BASE: {FIRST: "38576cd111049364"},
}
"""By a checkpoint's name and a tensor's: the first 16 hex digits of the SHA-256 of its bf16 bytes."""

SWITCHES = {"cfg_distilled": "guidance_emb.", "use_meanflow": "timestep_r_emb."}
"""By the key of config.json: what the names of the tensors begin with that it asks for."""

_LONGEST = 1 << 20  # bytes of a tensor that is fingerprinted; the published ones have 8,192
_EXPERTS = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+\.)?gate_and_up_proj(?:\.weight)?")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_ATTENTION = "model.layers.0.self_attn.qkv_proj.weight"
_STACKED = {"U8": "mxfp4", "F8_E4M3": "fp8"}
_METHOD = "hunyuan-bento"
_SHOWN = 200


@dataclass(frozen=True)
class Contents:
    """What a folder holds, as far as it can be read.

    Attributes:
        config: of config.json; empty where that cannot be read.
        types, shapes: by tensor, of the files that can be read.
        fingerprints: of `FIRST` and `LAST`, where they are there.
    """

    config: dict[str, Any] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, list[Any]] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)


def look(folder: Path) -> Contents:
    """Raises nothing: files that are missing or damaged are left out, and whoever checks the folder names them."""
    contents = Contents(config=look_at_config(folder))
    for name in _weight_files(folder):
        try:
            file = untrusted.open_plain(folder / name)
        except (OSError, untrusted.FileProblem):
            continue
        try:
            _add_file(contents, file)
        except (OSError, untrusted.FileProblem):
            continue
        finally:
            os.close(file)
    return contents


def name_of(contents: Contents, table: Table | None = None) -> str | None:
    """The name in `table` (`PUBLISHED`) whose first fingerprint the weights have."""
    own = contents.fingerprints.get(FIRST)
    return next((n for n, prints in (table or PUBLISHED).items() if own is not None and prints.get(FIRST) == own), None)


def describe(contents: Contents, table: Table | None = None, name: str | None = None) -> str:
    """One line for people: which checkpoint, how large, how stored.

    Args:
        name: what it is, where that is known without its fingerprints.
    """
    table = table or PUBLISHED
    parts = [name or _whose(contents, table), _size(contents), _storage(contents)]
    return ", ".join(part for part in parts if part)


def contradictions(contents: Contents, table: Table | None = None) -> list[str]:
    """Where config.json belongs to other weights than these, a line each."""
    config, types = contents.config, contents.types
    found = []
    for switch, prefix in SWITCHES.items():
        has, says = any(key.startswith(prefix) for key in types), bool(config.get(switch, False))
        if has != says:
            holds = f"{'hold' if has else 'lack'} {prefix}*"
            found.append(f"config.json says {switch} {str(says).lower()}, but the weights {holds}")
    name, version = name_of(contents, table), config.get("model_version")
    if name == BASE and version != BASE:
        found.append(f"the weights are the base model's, whose config.json says model_version {BASE}, not {version!r}")
    if name in (INSTRUCT, DISTIL) and version == BASE:
        found.append(f"the weights are {name}'s, but config.json says model_version {BASE}, which is the base model's")
    return found + _other_shapes(contents) + _other_formats(contents)


# --- reading


def look_at_config(folder: Path) -> dict[str, Any]:
    """config.json; empty where it cannot be read."""
    return _object(folder / "config.json")


def _object(path: Path) -> dict[str, Any]:
    try:
        value = untrusted.parse_json(untrusted.read_small(path, untrusted.MOST_JSON))
    except (OSError, untrusted.FileProblem):
        return {}
    return value if isinstance(value, dict) else {}


def _weight_files(folder: Path) -> list[str]:
    index = _object(folder / "model.safetensors.index.json").get("weight_map")
    names = set(filter(untrusted.is_plain_name, index.values())) if isinstance(index, dict) else set()
    return sorted(names) or ["model.safetensors"]


def _add_file(contents: Contents, file: int) -> None:
    header, base = untrusted.read_header(file)
    for key, entry in header.items():
        shape = entry.get("shape")
        contents.types[key] = str(entry.get("dtype"))
        contents.shapes[key] = shape if isinstance(shape, list) else []
        if key in (FIRST, LAST):
            start, stop = untrusted.place_of(entry)
            data = os.pread(file, min(stop - start, _LONGEST), base + start)
            if len(data) == stop - start:
                contents.fingerprints[key] = fingerprint(data, contents.types[key])


def fingerprint(data: bytes, kind: str) -> str:
    """Of a tensor's bytes. One in F32 that holds nothing but bf16 numbers has that of their bf16 bytes."""
    if kind == "F32" and len(data) % 4 == 0 and not any(data[0::4]) and not any(data[1::4]):
        halves = bytearray(len(data) // 2)
        halves[0::2], halves[1::2] = data[2::4], data[3::4]
        data = bytes(halves)
    return hashlib.sha256(data).hexdigest()[:16]


# --- words


def _whose(contents: Contents, table: Table) -> str:
    name = name_of(contents, table)
    if name is None:
        distilled = any(key.startswith(prefix) for key in contents.types for prefix in SWITCHES.values())
        built = f"built like {DISTIL}" if distilled else f"built like {INSTRUCT} or the base model"
        own = contents.fingerprints.get(FIRST)
        why = f"no known fingerprint: {FIRST} has {own}" if own else f"{FIRST} cannot be read"
        return f"unknown weights ({why}), {built}" if contents.types else f"unknown weights ({why})"
    shown = f"{name} (base)" if name == BASE else name
    other = [k for k, v in table[name].items() if k in contents.fingerprints and contents.fingerprints[k] != v]
    unread = [k for k in table[name] if k not in contents.fingerprints]
    changed = f", but {other[0]} has {contents.fingerprints[other[0]]}: changed" if other else ""
    return f"{shown} by its fingerprints{changed}{f', {unread[0]} cannot be read' if unread else ''}"


def _size(contents: Contents) -> str:
    layers = {match[1] for key in contents.types if (match := _LAYER.match(key))}
    if not layers:
        return ""
    return f"{len(contents.types):,} tensors, {len(layers)} layer{'s' if len(layers) > 1 else ''}"


def _storage(contents: Contents) -> str:
    section = contents.config.get("quantization_config")
    method = section.get("quant_method") if isinstance(section, dict) else None
    formats = Counter(expert_formats(contents.types).values())
    attention = contents.types.get(_ATTENTION, "")
    dense = _STACKED.get(attention, attention)
    if section is not None and method != _METHOD:
        return f"quantized by another program (quant_method {str(method)[:_SHOWN]!r})"
    if method is None and not {*formats, dense} & {*_STACKED.values()}:
        every = sorted({*formats, dense} - {""})
        return f"not quantized ({', '.join(every)})" if every else ""
    words = " and ".join(f"{kind} in {count} of {formats.total()} layers" for kind, count in sorted(formats.items()))
    words = next(iter(formats)) if len(formats) == 1 else words
    return f"quantized by hunyuan quantize (experts {words}, attention and shared MLP {dense}){_more(section)}"


def _more(section: Any) -> str:
    """What our section says beside the formats."""
    own = ("quant_method", "version", "experts", "dense", "lora")
    known = section if isinstance(section, dict) else {}
    told = ", ".join(f"{key} {value}" for key, value in known.items() if key not in own)
    return (f", {told[:_SHOWN]}" if told else "") + _adapters(known.get("lora"))


def _adapters(merged: Any) -> str:
    """Those that were merged before quantizing, each by its file's name, its scale and the beginning of its SHA-256."""
    rows = [row for row in merged if isinstance(row, dict)] if isinstance(merged, list) else []
    words = [f"{row.get('name')!r} (scale {row.get('scale')}, SHA-256 {str(row.get('sha256'))[:16]})" for row in rows]
    return f", with {' and '.join(words)[:_SHOWN]} merged before" if words else ""


def expert_formats(types: Mapping[str, str]) -> dict[str, str]:
    """By a layer's number: `mxfp4`, `fp8`, or the type of experts that are stored one by one, as `BF16`."""
    found = {}
    for key, kind in types.items():
        if match := _EXPERTS.fullmatch(key):
            found[match[1]] = kind if match[2] else _STACKED.get(kind, kind)
    return found


# --- what does not go together


def _other_shapes(contents: Contents) -> list[str]:
    config, shapes = contents.config, contents.shapes
    lacking = [key for key in ("vocab_size", "hidden_size", "num_hidden_layers") if config.get(key) is None]
    if lacking:
        return [f"config.json does not say {', '.join(lacking)}"]
    found = []
    said, table = [config["vocab_size"], config["hidden_size"]], shapes.get("model.wte.weight")
    if table is not None and table != said:
        found.append(f"config.json says vocab_size and hidden_size {said}, but model.wte.weight has {table}")
    layers = len({match[1] for key in contents.types if (match := _LAYER.match(key))})
    if layers != config["num_hidden_layers"]:
        found.append(f"config.json says num_hidden_layers {config['num_hidden_layers']}, the weights have {layers}")
    return found


def _other_formats(contents: Contents) -> list[str]:
    section = contents.config.get("quantization_config")
    section = section if isinstance(section, dict) else {}
    said = section.get("experts", "bf16")
    kinds = {*_STACKED.values()}
    for layer, kind in sorted(expert_formats(contents.types).items(), key=lambda item: (len(item[0]), item[0])):
        number = int(layer) if len(layer) < 6 else -1
        word = said[number] if isinstance(said, list) and 0 <= number < len(said) else said
        if (kind if kind in kinds else "bf16") != word:
            return [f"config.json says experts {word!r} of layer {layer}, but the weights are {kind}"]
    return []
