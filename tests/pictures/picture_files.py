"""Picture files made by hand: what no encoder writes, but a stranger may send."""

from __future__ import annotations

import struct
import zlib

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
END_OF_IMAGE = b"\xff\xd9"


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A PNG chunk; `crc` replaces the right checksum."""
    right = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", right if crc is None else crc)


def segment(marker: int, data: bytes) -> bytes:
    """A JPEG marker segment."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg_of_empty_scans(width: int, height: int, scans: int, end: bytes = END_OF_IMAGE) -> bytes:
    """A progressive grey JPEG whose scans hold no data; each of them makes the decoder walk through all blocks."""
    frame = segment(0xC2, struct.pack(">BHHBBBB", 8, height, width, 1, 1, 0x11, 0))
    tables = segment(0xDB, b"\0" + bytes([1] * 64)) + b"".join(
        segment(0xC4, bytes([kind]) + bytes([1] + [0] * 15) + b"\0") for kind in (0x00, 0x10)
    )
    first = segment(0xDA, bytes([1, 1, 0x00, 0, 0, 0]))
    return b"\xff\xd8" + frame + tables + first + segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0])) * scans + end
