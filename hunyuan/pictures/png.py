"""A PNG file, chunk by chunk.

Knows chunks and their checksums. Decompresses nothing but a colour profile, an orientation's text and those only up
to a limit; pixels are the decoder's work, and it is handed the chunks that make them.
"""

from __future__ import annotations

import struct
import zlib

from hunyuan.pictures.parts import MAX_METADATA_BYTES, MAX_PROFILE_BYTES, BadFile, PictureFile

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 100_000  # 20 MB in chunks of 200 bytes
_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT"})
_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_XMP = b"XML:com.adobe.xmp"
_OLD_EXIF = b"Raw profile type exif"  # ImageMagick's, before there was a chunk for it: hexadecimal, below three lines


def read_png(data: bytes) -> PictureFile:
    """The chunks that make pixels, and what the others say of them.

    Raises:
        BadFile: too many chunks, an animation, a profile beyond the limit.
    """
    file = PictureFile(b"")
    parts, seen = [SIGNATURE], set[bytes]()
    position, chunks, depth, colour_type = len(SIGNATURE), 0, 8, 0
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        chunks += 1
        if chunks > MAX_CHUNKS:
            raise BadFile(f"the PNG has more than {MAX_CHUNKS:,} chunks; save it again in another program")
        if kind == b"IEND":
            break
        if kind == b"IHDR" and position + 18 <= len(data):
            depth, colour_type = data[position + 16], data[position + 17]
            if data[end - 4 : end] == struct.pack(">I", zlib.crc32(data[position + 4 : end - 4])):
                file.claimed = struct.unpack_from(">II", data, position + 8)
        if kind == b"CgBI":
            raise BadFile("a PNG that Xcode has rewritten for iOS (CgBI), which is no standard PNG; save it again")
        if kind == b"IDAT" or (kind in _PIXELS and kind != b"tRNS"):
            # A chunk that the file cuts short would take the bytes behind it for its own.
            whole = end <= len(data)
            parts.append(data[position:end] if whole else _chunk(kind, data[position + 8 : end - 4]))
            seen.add(kind)
        elif end <= len(data) and _is_sound(data, position, end):
            body = data[position + 8 : end - 4]
            if kind == b"tRNS":
                parts.append(_transparent(body, depth, colour_type))
            elif kind == b"acTL" and b"IDAT" in seen:
                pass  # too late to mean an animation
            elif kind not in seen or kind in _TEXTS:
                _note(kind, body, file)
            seen.add(kind)
        position = end
    file.data = b"".join(parts) + _chunk(b"IEND", b"")
    return file


def _is_sound(data: bytes, start: int, end: int) -> bool:
    """An ancillary chunk with a wrong checksum is left out, as every viewer does."""
    return zlib.crc32(memoryview(data)[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def _transparent(body: bytes, depth: int, colour_type: int) -> bytes:
    """A `tRNS` chunk for Pillow, which makes 8-bit values of the pixels and leaves the transparent colour as it is."""
    if colour_type == 0 and depth in (2, 4) and len(body) == 2:
        grey = int.from_bytes(body, "big") & (2**depth - 1)
        body = struct.pack(">H", grey * 255 // (2**depth - 1))
    elif colour_type == 2 and depth == 16 and len(body) == 6:
        body = struct.pack(">3H", *(value >> 8 for value in struct.unpack(">3H", body)))
    return _chunk(b"tRNS", body)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _note(kind: bytes, body: bytes, file: PictureFile) -> None:
    colour = file.colour
    if kind == b"acTL" and len(body) >= 4 and int.from_bytes(body[:4], "big") > 1:
        raise BadFile("an animated PNG file; send a single picture")
    if kind == b"iCCP":
        colour.profile = _profile(body)
    elif kind == b"sRGB":
        colour.is_srgb = True
    elif kind == b"gAMA" and len(body) == 4:
        stored = int.from_bytes(body, "big") / 100_000
        colour.gamma = 1 / stored if stored > 0 else None
    elif kind == b"cHRM" and len(body) == 32:
        colour.chromaticities = tuple(value / 100_000 for value in struct.unpack(">8I", body))
    elif kind == b"cICP" and len(body) == 4:
        colour.cicp = (body[0], body[1], bool(body[3]))
    elif kind == b"eXIf":
        file.exif = b"Exif\0\0" + body[:MAX_METADATA_BYTES]
    elif kind == b"iTXt" and file.xmp is None and body.startswith(_XMP + b"\0"):
        file.xmp = _xmp(body[len(_XMP) + 1 :]) or b""  # unpacked once, whatever comes of it
    elif kind in (b"tEXt", b"zTXt") and file.exif is None and body.startswith(_OLD_EXIF + b"\0"):
        file.exif = _old_exif(body[len(_OLD_EXIF) + 1 :], kind == b"zTXt") or b""


def _profile(body: bytes) -> bytes | None:
    """None where it cannot be unpacked: such a picture is shown without it."""
    _, _, packed = body.partition(b"\0")
    try:
        unpacker = zlib.decompressobj()
        profile = unpacker.decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    if unpacker.unconsumed_tail:
        raise BadFile(f"its colour profile has more than {MAX_PROFILE_BYTES:,} bytes; convert the picture to sRGB")
    return profile


def _xmp(rest: bytes) -> bytes | None:
    text = rest[2:].split(b"\0", 2)[-1]
    return _unpacked(text) if rest[:1] == b"\1" else text[:MAX_METADATA_BYTES]


def _old_exif(text: bytes, packed: bool) -> bytes | None:
    text = (_unpacked(text[1:]) or b"") if packed else text[:MAX_METADATA_BYTES]
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii", "replace"))
    except ValueError:
        return None


def _unpacked(data: bytes) -> bytes | None:
    """The beginning of a compressed text; None where it is damaged."""
    try:
        return zlib.decompressobj().decompress(data, MAX_METADATA_BYTES)
    except zlib.error:
        return None
