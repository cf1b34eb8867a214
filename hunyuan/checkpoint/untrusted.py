"""Reads the small files of a checkpoint folder, which somebody else has filled, and says what is wrong in words.

Bounds size, nesting and numbers, so that no file costs more than a moment; opens nothing but plain files that lie in
the folder itself or where its links lead (a Hub snapshot is made of links). Knows JSON, safetensors' header and what
commonly stands where a file should be; does not know the model. Python's own library only: verify.py runs alone.
"""

from __future__ import annotations

import json
import os
import stat
from math import isfinite
from pathlib import Path
from typing import Any

MIB = 1 << 20
MOST_JSON = 16 * MIB  # the index of the 80B model has less than 2
MOST_HEADER = 16 * MIB  # of a weight file; those of the 80B model have less than 1
PREFIX = 8  # bytes of a weight file that say how long its header is
_HEAD = 512

_BEGINNINGS = (
    (
        b"version https://git-lfs.github.com/",
        "a Git LFS pointer, not the file itself: run `git lfs pull` in the folder",
    ),
    (b"PK\x03\x04", "a zip archive, as PyTorch's own format is; safetensors is wanted"),
    (b"\x80", "a Python pickle, as PyTorch's old format is; safetensors is wanted"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"GGUF", "a GGUF file; safetensors is wanted"),
)
_WEB = (b"<!doctype", b"<html", b"<?xml", b"<head")


class FileProblem(ValueError):
    """A file cannot be used. The message does not repeat the file's name."""


class NoPlainFile(FileProblem):
    """Something else has a file's name."""


def is_plain_name(name: object) -> bool:
    """True for the name of a file directly in a folder: no path, nothing that leads out."""
    return (
        isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"} and len(name) < 256
    )


def open_plain(path: Path) -> int:
    """A descriptor to read from.

    Raises:
        FileNotFoundError: there is nothing of that name.
        FileProblem: it is no plain file, or a link that leads nowhere; or the system's own reason.
    """
    try:
        # Looked at before it is opened: to open a pipe waits, to open a device may do anything.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise NoPlainFile("it is a folder, a pipe or a device")
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if path.is_symlink():
            raise FileProblem(_nowhere(path)) from None
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from error
    except OSError as error:
        raise FileProblem(f"{error.strerror}") from error


def _nowhere(path: Path) -> str:
    target = os.readlink(path)
    why = f"it is a link to {target[:200]}, which is not there"
    if "blobs" in Path(target).parts:
        why += (
            "; a snapshot's files lie in the blobs folder beside snapshots: mount or copy the whole models--... folder"
        )
    return why


def read_small(path: Path, most: int) -> bytes:
    """All of a file of at most `most` bytes. Raises `FileNotFoundError` and `FileProblem`."""
    file = open_plain(path)
    try:
        size = os.fstat(file).st_size
        if size > most:
            raise FileProblem(f"it has {size} bytes; at most {most} are read")
        return _read(file, size, 0)
    except OSError as error:
        raise FileProblem(f"{error.strerror}") from error
    finally:
        os.close(file)


def read_head(path: Path) -> bytes:
    """The beginning of a file of any length. Raises `FileNotFoundError` and `FileProblem`."""
    file = open_plain(path)
    try:
        return _read(file, _HEAD, 0)
    except OSError as error:
        raise FileProblem(f"{error.strerror}") from error
    finally:
        os.close(file)


def what_it_is(head: bytes) -> str | None:
    """What a file with this beginning is in place of JSON or weights; None for nothing that is known."""
    if not head:
        return "it is empty"
    if not head.strip(b"\0"):
        return "it begins with nothing but zeros: a download that broke off, or a full disk; download it again"
    if head.lstrip().lower().startswith(_WEB):
        return "it is a web page: what a server answers in place of a file (a login or an error); download it again"
    return next((f"it is {what}" for start, what in _BEGINNINGS if head.startswith(start)), None)


def parse_json(data: bytes) -> Any:
    """Strict JSON. Raises `FileProblem`: malformed, nested too deeply, a key twice, a number that is none."""
    if known := what_it_is(data[:_HEAD]):
        raise FileProblem(known)
    try:
        return json.loads(
            data.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite
        )
    except RecursionError:
        raise FileProblem("it is nested too deeply") from None
    except FileProblem:
        raise
    except ValueError as error:  # malformed, no UTF-8, or a whole number of thousands of digits
        raise FileProblem(str(error)) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise FileProblem(f"the key {next(k for k in keys if keys.count(k) > 1)[:80]!r} is there twice")
    return found


def _no_number(text: str) -> Any:
    raise FileProblem(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise FileProblem(f"the number {text[:40]} is too large")
    return value


def read_header(file: int) -> tuple[dict[str, Any], int]:
    """The header of an open weight file, without its metadata, and where the values begin.

    Raises:
        FileProblem: it is no safetensors file, or ends within its header.
    """
    size = os.fstat(file).st_size
    head = _read(file, min(size, _HEAD), 0)
    length = int.from_bytes(head[:PREFIX], "little")
    if (known := what_it_is(head)) and not (len(head) > PREFIX and head[PREFIX : PREFIX + 1] == b"{"):
        raise FileProblem(known)
    if len(head) < PREFIX or (length > MOST_HEADER and head[PREFIX : PREFIX + 1] != b"{"):
        raise FileProblem("it is no safetensors file")
    if length > MOST_HEADER:
        raise FileProblem(f"a header of {length} bytes; at most {MOST_HEADER} are read")
    if length > size - PREFIX:
        raise FileProblem(f"the file of {size} bytes ends within its header: it is cut off; download it again")
    header = parse_json(_read(file, length, PREFIX))
    if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
        raise FileProblem("its header does not describe tensors")
    header.pop("__metadata__", None)
    return header, PREFIX + length


def place_of(entry: dict[str, Any]) -> tuple[int, int]:
    """First and last offset of a header's entry. Raises `FileProblem`."""
    place = entry.get("data_offsets")
    if not isinstance(place, list) or len(place) != 2 or not all(type(n) is int and n >= 0 for n in place):
        raise FileProblem("data_offsets must be two whole numbers")
    if place[1] < place[0]:
        raise FileProblem(f"data_offsets {place[0]} and {place[1]} are the wrong way round")
    return place[0], place[1]


def check_size(file: int, end: int) -> None:
    """Raises `FileProblem` where a weight file does not end where its header says."""
    size = os.fstat(file).st_size
    if size != end:
        why = ": it is cut off; download it again" if size < end else ""
        raise FileProblem(f"the file has {size} bytes, its header describes {end}{why}")


def _read(file: int, count: int, start: int) -> bytes:
    data = b""
    while len(data) < count:
        part = os.pread(file, count - len(data), start + len(data))
        if not part:
            break
        data += part
    return data
