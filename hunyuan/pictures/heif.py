"""HEIC and AVIF files, box by box (ISO/IEC 14496-12 and 23008-12).

Knows the few boxes that tell which item is the picture and what its colours mean. The decoders read the file itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from hunyuan.pictures.parts import MAX_PROFILE_BYTES, BadFile, PictureFile

MAX_BOXES = 2000  # a 50-megapixel photo of 512x512 tiles has 200 items and 10 properties
MAX_ITEMS = 1000
_AVIF = frozenset({b"avif", b"avis"})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_SEQUENCES = frozenset({b"avis", b"hevc", b"hevx", b"msf1"})


def brand_of(data: bytes) -> str:
    """`AVIF`, `HEIF`, or nothing where the file is neither."""
    if data[4:8] != b"ftyp":
        return ""
    length = min(int.from_bytes(data[:4], "big"), 512)
    brands = {data[8:12], *(data[at : at + 4] for at in range(16, length, 4))}
    if brands & _AVIF:
        return "AVIF"
    return "HEIF" if brands & _HEIC and data[8:12] != b"crx " else ""


def read_heif(data: bytes) -> PictureFile:
    """The file as it is, and what its boxes say. Raises `BadFile`: too many boxes or items, an animation."""
    if data[8:12] in _SEQUENCES:
        raise BadFile("an animated HEIF or AVIF file; send a single picture")
    file = PictureFile(data)
    for kind, body in _boxes(data):
        if kind == b"meta":
            _note_properties(body[4:], file)
    return file


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    for _ in range(MAX_BOXES):
        if position + 8 > len(data):
            return
        size, kind, start = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8], 8
        if size == 1:
            size, start = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        end = position + size if size else len(data)
        if end < position + start:
            return
        yield kind, data[position + start : end] if kind != b"mdat" else b""
        position = end
    raise BadFile(f"the file has more than {MAX_BOXES:,} boxes; save it again in another program")


def _note_properties(meta: bytes, file: PictureFile) -> None:
    """The size and the colour properties of the primary item."""
    parts = {kind: body for kind, body in _boxes(meta) if kind in (b"pitm", b"iinf", b"iprp")}
    info = parts.get(b"iinf", bytes(6))
    items = int.from_bytes(info[4:6] if info[0] == 0 else info[4:8], "big")
    if items > MAX_ITEMS:
        raise BadFile(f"the file has {items:,} items; at most {MAX_ITEMS:,} are allowed")
    inner = dict(_boxes(parts.get(b"iprp", b"")))
    properties = list(_boxes(inner.get(b"ipco", b"")))
    primary = int.from_bytes(parts.get(b"pitm", b"")[4:], "big")
    for number in _linked(inner.get(b"ipma", b""), primary):
        kind, body = properties[number - 1] if 0 < number <= len(properties) else (b"", b"")
        if kind == b"ispe" and len(body) >= 12:
            file.claimed = int.from_bytes(body[4:8], "big"), int.from_bytes(body[8:12], "big")
        elif kind == b"colr" and body[:4] in (b"prof", b"rICC") and len(body) <= MAX_PROFILE_BYTES:
            file.colour.profile = body[4:]
        elif kind == b"colr" and body[:4] == b"nclx" and len(body) >= 11:
            primaries, transfer = int.from_bytes(body[4:6], "big"), int.from_bytes(body[6:8], "big")
            file.colour.cicp = (primaries, transfer, True)  # the decoder has made full range of whatever it was
    if file.colour.profile is not None:
        file.colour.cicp = None  # where there are both, the numbers say how the values are coded


def _linked(box: bytes, item: int) -> list[int]:
    """The numbers, from 1, of an item's properties in an `ipma` box."""
    if len(box) < 8:
        return []
    wide_item, wide_number = box[0] > 0, bool(box[3] & 1)
    position, id_bytes, number_bytes = 8, 4 if wide_item else 2, 2 if wide_number else 1
    for _ in range(min(int.from_bytes(box[4:8], "big"), MAX_ITEMS)):
        found = int.from_bytes(box[position : position + id_bytes], "big")
        position += id_bytes
        count = box[position] if position < len(box) else 0
        numbers = box[position + 1 : position + 1 + count * number_bytes]
        position += 1 + count * number_bytes
        if found == item:
            mask = 0x7FFF if wide_number else 0x7F
            return [
                int.from_bytes(numbers[at : at + number_bytes], "big") & mask
                for at in range(0, len(numbers), number_bytes)
            ]
    return []
