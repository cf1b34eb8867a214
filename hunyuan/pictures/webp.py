"""A WebP file, chunk by chunk (RIFF).

Knows chunks. The decoder is handed those that make pixels, and no count of frames but one.
"""

from __future__ import annotations

import struct

from hunyuan.pictures.parts import MAX_METADATA_BYTES, MAX_PROFILE_BYTES, BadFile, PictureFile

MAX_CHUNKS = 1000
_PIXELS = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"})
_METADATA_FLAGS = 0x20 | 0x08 | 0x04  # profile, EXIF, XMP


def is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def read_webp(data: bytes) -> PictureFile:
    """The chunks that make pixels, and what the others say of them. Raises `BadFile`: too many chunks, an animation."""
    file, parts = PictureFile(b""), list[bytes]()
    position, chunks, frames = 12, 0, 0
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        end = position + 8 + length + (length & 1)
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise BadFile(f"the WebP has more than {MAX_CHUNKS:,} chunks; save it again in another program")
        frames += kind == b"ANMF"
        if frames > 1:
            raise BadFile("an animated WebP file; send a single picture")
        body = data[position + 8 : position + 8 + length]
        if kind == b"VP8X" and body:
            parts.append(data[position : position + 8] + bytes([body[0] & ~_METADATA_FLAGS]) + body[1:])
        elif kind in _PIXELS:
            parts.append(data[position:end])
        elif kind == b"ICCP" and len(body) <= MAX_PROFILE_BYTES:
            file.colour.profile = file.colour.profile or body
        elif kind == b"EXIF":
            file.exif = file.exif or body[:MAX_METADATA_BYTES]
        elif kind == b"XMP ":
            file.xmp = file.xmp or body[:MAX_METADATA_BYTES]
        position = end
    inner = b"WEBP" + b"".join(parts)
    missing = position - len(data)
    # A cut last chunk keeps its length, and the file claims it: the decoder then sees that bytes are missing.
    claimed = len(inner) + (missing if missing > 1 and parts and kind in _PIXELS else 0)
    file.data = b"RIFF" + struct.pack("<I", claimed) + inner
    return file
