"""Weight files (safetensors), read and written piece by piece without mapping them into memory.

A mapped file's pages count as the process's own memory; plain reads into a small buffer do not, and several threads can
have reads under way. Knows the file format only: 8 bytes with the header's length, a JSON header that gives each
tensor's type, shape and place, then the values. Does not know the model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hunyuan.checkpoint.untrusted import PREFIX, FileProblem, check_size, open_plain, place_of, read_header
from hunyuan.errors import CheckpointError

TYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}
"""safetensors' names of the types that torch has on every version we run on."""
TYPE_NAMES = {dtype: name for name, dtype in TYPES.items()}
_MOST_SIDES = 8  # of a tensor; the network's have 5 at most
_ALIGNMENT = 8
_LARGE_READ = 1 << 20


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: safetensors' name of its type, its shape, and where its bytes lie."""

    type: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def dtype(self) -> torch.dtype:
        return TYPES[self.type]


class ShardReader:
    """An open weight file; `read_into` may be called from several threads at once."""

    def __init__(self, path: Path) -> None:
        """Raises `CheckpointError` for a file that is no safetensors or shorter than its header says."""
        self.name = path.name
        self._file = -1
        try:
            self._file = open_plain(path)
            self.entries = self._read_entries()
        except (OSError, FileProblem) as error:
            self.close()
            raise CheckpointError(f"{path.name} cannot be read as safetensors: {error}") from error

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def __del__(self) -> None:
        self.close()

    def _read_entries(self) -> dict[str, Entry]:
        header, base = read_header(self._file)
        entries = [(key, _entry(key, value, base)) for key, value in header.items()]
        entries.sort(key=lambda item: item[1].start)
        end = base
        for key, entry in entries:
            if entry.start < end:
                raise FileProblem(f"{key} lies over the tensor before it")
            end = entry.start + entry.size
        check_size(self._file, end)
        return dict(entries)

    def read_into(self, buffer: Tensor, start: int) -> None:
        """Fills `buffer`, uint8 on the CPU, with the file's bytes from `start` on.

        Raises:
            CheckpointError: the file ends before that, or cannot be read.
        """
        view = buffer.numpy().data
        done = 0
        if len(view) >= _LARGE_READ:
            # All of it at once: the kernel's own guess goes wrong where several threads read one file.
            os.posix_fadvise(self._file, start, len(view), os.POSIX_FADV_WILLNEED)
        while done < len(view):
            try:
                count = os.preadv(self._file, [view[done:]], start + done)
            except OSError as error:
                raise CheckpointError(f"{self.name} cannot be read: {error}") from error
            if count == 0:
                raise CheckpointError(f"{self.name} became shorter while it was read")
            done += count

    def tensor(self, key: str) -> Tensor:
        """A copy of one tensor, on the CPU."""
        entry = self.entries[key]
        buffer = torch.empty(entry.size, dtype=torch.uint8)
        self.read_into(buffer, entry.start)
        return buffer.view(entry.dtype).view(entry.shape)

    def rows(self, key: str, first: int, count: int) -> Tensor:
        """A copy of `count` entries along one tensor's first axis, from `first` on: `[count, ...]`, on the CPU."""
        entry = self.entries[key]
        width = entry.size // entry.shape[0]  # bytes per entry
        buffer = torch.empty(count * width, dtype=torch.uint8)
        self.read_into(buffer, entry.start + first * width)
        return buffer.view(entry.dtype).view(count, *entry.shape[1:])


class ShardWriter:
    """A weight file with a given content, filled in any order, from several threads; `finish` makes it appear.

    Until then it has another name, so that a file with the right name is always whole.
    """

    def __init__(self, path: Path, content: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        places: dict[str, tuple[int, int]] = {}
        # As the format's own library does it: wide types first, so that every tensor is aligned.
        for key in sorted(content, key=lambda key: (-content[key][0].itemsize, key)):
            dtype, shape = content[key]
            size = dtype.itemsize * prod(shape)
            header[key] = {"dtype": TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
            places[key], offset = (offset, size), offset + size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        base = PREFIX + len(text)
        self._places = {key: (base + start, size) for key, (start, size) in places.items()}
        self._file = os.open(self.partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.pwrite(self._file, len(text).to_bytes(PREFIX, "little") + text, 0)
        os.ftruncate(self._file, base + offset)

    def write(self, key: str, values: Tensor, first: int = 0) -> None:
        """Puts `values`, of the tensor's own type, into it from its value number `first` on."""
        data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        offset, size = self._places[key]
        start, view, done = first * values.element_size(), data.numpy().data, 0
        if start + len(view) > size:
            raise ValueError(f"{key}: {len(view)} bytes at {start} of {size}")
        while done < len(view):
            done += os.pwrite(self._file, view[done:], offset + start + done)

    def finish(self) -> int:
        """Makes the file durable and visible under its name; returns its size."""
        os.fsync(self._file)
        size = os.fstat(self._file).st_size
        self.abandon()
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)
        return size

    def abandon(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def write_durably(path: Path, text: str) -> None:
    """Writes a small file so that after a crash it holds either its old content or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _entry(key: str, value: dict[str, Any], base: int) -> Entry:
    start, end = place_of(value)
    kind, shape = value.get("dtype"), value.get("shape")
    if not isinstance(kind, str) or not isinstance(shape, list) or len(shape) > _MOST_SIDES:
        raise FileProblem(f"{key} has no dtype or no shape")
    if not all(type(side) is int and 0 <= side < 2**63 for side in shape):
        raise FileProblem(f"{key} has a shape that is none")
    dtype = TYPES.get(kind)
    if dtype is not None and end - start != dtype.itemsize * prod(shape):
        raise FileProblem(f"{key} has {end - start} bytes, not those of its shape {tuple(shape)}")
    return Entry(kind, tuple(shape), base + start, end - start)
