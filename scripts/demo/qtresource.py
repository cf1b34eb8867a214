"""Reads the files out of a Qt resource collection (.rcc), as GCompris ships its photographs.

Knows the format's versions 1 to 3 as far as plain (not compressed) files need it.
"""

from __future__ import annotations

import struct

_HEADER = struct.Struct(">4sIIII")
_FOLDER, _PLAIN = 2, 0


def read(data: bytes) -> dict[str, bytes]:
    """Path to content of every file that is stored as it is.

    Raises:
        ValueError: this is no resource collection.
    """
    if len(data) < _HEADER.size or data[:4] != b"qres":
        raise ValueError("not a Qt resource collection: it does not start with 'qres'")
    _, version, tree, contents, names = _HEADER.unpack_from(data)
    size = 14 if version < 2 else 22
    found: dict[str, bytes] = {}

    def walk(node: int, folder: str) -> None:
        at = tree + node * size
        name, flags = struct.unpack_from(">IH", data, at)
        path = f"{folder}/{_name(data, names + name)}".strip("/") if node else ""
        if flags & _FOLDER:
            count, first = struct.unpack_from(">II", data, at + 6)
            for child in range(first, first + count):
                walk(child, path)
        elif flags == _PLAIN:
            start = contents + struct.unpack_from(">I", data, at + 10)[0]
            length = struct.unpack_from(">I", data, start)[0]
            found[path] = data[start + 4 : start + 4 + length]

    walk(0, "")
    return found


def _name(data: bytes, at: int) -> str:
    length = struct.unpack_from(">H", data, at)[0]
    return data[at + 6 : at + 6 + 2 * length].decode("utf-16-be")
