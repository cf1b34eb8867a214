"""Which adapters (LoRA files) are to be merged into the weights: `PATH[:SCALE]`, comma between several.

Knows how they are named on a command line and in a setting, and that their files are there. Opens none;
`hunyuan.checkpoint.adapters` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

SUFFIX = ".safetensors"
MOST = 16  # adapters at a time
LARGEST_SCALE = 100.0


class Adapter(NamedTuple):
    """A safetensors file, or PEFT's folder of one and its `adapter_config.json`; `scale` times what it adds."""

    path: Path
    scale: float = 1.0

    def __str__(self) -> str:
        return labelled(str(self.path), self.scale)


def labelled(name: str, scale: float) -> str:
    """`name:0.8`; the name alone where the scale is 1."""
    return name if scale == 1 else f"{name}:{repr(float(scale)).removesuffix('.0')}"


def adapters_of(value: str | os.PathLike[str] | Iterable[Any]) -> tuple[Adapter, ...]:
    """Of text as the setting has it, or of several of text, paths, pairs of path and scale, and `Adapter`.

    Raises:
        ValueError: none is named, or too many; a file is not there or no safetensors; a scale is out of bounds.
    """
    if isinstance(value, str):
        found = [_parsed(item.strip()) for item in value.split(",") if item.strip()]
    elif isinstance(value, os.PathLike):
        found = [Adapter(Path(value))]
    else:
        found = [_one(item) for item in value]
    if isinstance(value, str) and not found:
        raise ValueError("it names no file; write PATH or PATH:SCALE")
    if len(found) > MOST:
        raise ValueError(f"{len(found)} adapters are named; at most {MOST} are merged")
    for adapter in found:
        _check(adapter)
    return tuple(found)


def _one(item: Any) -> Adapter:
    if isinstance(item, str):
        return _parsed(item.strip())
    return Adapter(Path(item)) if isinstance(item, os.PathLike) else Adapter(Path(item[0]), float(item[1]))


def _parsed(text: str) -> Adapter:
    """A name may have a colon of its own: what is behind the last one is a scale where it is a number."""
    path, colon, scale = text.rpartition(":")
    try:
        return Adapter(Path(path), float(scale)) if colon and path else Adapter(Path(text))
    except ValueError:
        return Adapter(Path(text))


def _check(adapter: Adapter) -> None:
    path = adapter.path
    if not (isfinite(adapter.scale) and abs(adapter.scale) <= LARGEST_SCALE):
        bounds = f"{-LARGEST_SCALE:g} to {LARGEST_SCALE:g}"
        raise ValueError(f"{path.name}: the scale is {adapter.scale}; {bounds} are allowed")
    try:
        if not path.exists():
            hint = "; ~ stands for the home folder in a shell only" if str(path).startswith("~") else ""
            raise ValueError(f"no such file or folder: {path}{hint}")
        if not path.is_dir() and path.suffix != SUFFIX:
            raise ValueError(f"{path} is no {SUFFIX} file; nothing else is read (a pickle may run code)")
    except OSError as error:
        raise ValueError(f"{path} cannot be looked at: {error.strerror}") from error
