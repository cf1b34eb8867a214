"""A JPEG file, segment by segment.

Knows markers. Decodes nothing: entropy-coded data is only looked through for the marker that ends it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from hunyuan.pictures.parts import MAX_METADATA_BYTES, MAX_PROFILE_BYTES, BadFile, PictureFile

SIGNATURE = b"\xff\xd8\xff"
END = b"\xff\xd9"
# Each scan makes the decoder walk through every block, data or not. Encoders write 10; the most thorough ones about 60.
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 10**9  # over all scans: 20 of 50 megapixels, 83 of 12
MAX_SEGMENTS = 10_000
_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_READ_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


@dataclass
class _Frame:
    """`pixels` as the header claims them; `left`: per component, the coefficients whose last bit has not come yet."""

    left: dict[int, set[int]]
    pixels: int


@dataclass
class _Walk:
    parts: list[bytes] = field(default_factory=lambda: [b"\xff\xd8"])
    profile: dict[int, bytes] = field(default_factory=dict)
    profile_count: int = 0
    frame: _Frame | None = None
    scans: int = 0


def read_jpeg(data: bytes) -> PictureFile:
    """The first picture in the file; what comes behind it (a phone's second picture, a film) is left out.

    Raises:
        BadFile: too many segments or scans, or a kind of JPEG that is not read.
    """
    file, walk = PictureFile(b"", ended=False), _Walk()
    position, segments = 2, 0
    while (position := data.find(b"\xff", position)) >= 0:
        while data[position : position + 2] == b"\xff\xff":
            position = _after_fill(data, position)
        marker = data[position + 1] if position + 1 < len(data) else None
        if marker is None:
            break
        if marker == END[1]:
            file.ended = True
            break
        segments += 1
        if segments > MAX_SEGMENTS:
            raise BadFile(f"the JPEG has more than {MAX_SEGMENTS:,} segments; save it again in another program")
        if marker in _BARE:
            position += 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        _segment(marker, data[position:end], walk, file)
        if marker == 0xDA:
            found = _SCAN_END.search(data, end)
            scan_end = found.start() if found else len(data)
            walk.parts.append(data[end:scan_end])
            end = scan_end
        position = max(end, position + 2)
    if not file.ended:
        _refuse_missing_scans(walk)
        walk.parts[-1] = walk.parts[-1].rstrip(b"\xff")
    file.colour.profile = _joined(walk)
    file.data = b"".join(walk.parts) + (END if file.ended else b"")
    return file


def _after_fill(data: bytes, position: int) -> int:
    """The last of many 0xFF: any number of them may stand before a marker."""
    found = re.compile(rb"\xff+").match(data, position)
    assert found is not None
    return found.end() - 1


def _segment(marker: int, segment: bytes, walk: _Walk, file: PictureFile) -> None:
    body = segment[4:]
    if marker == 0xE1 and body.startswith(_EXIF) and file.exif is None:
        file.exif = body
    elif marker == 0xE1 and body.startswith(_XMP) and file.xmp is None:
        file.xmp = body[len(_XMP) :][:MAX_METADATA_BYTES]
    elif marker == 0xE2 and body.startswith(_ICC) and len(body) > len(_ICC) + 2:
        number, walk.profile_count = body[len(_ICC)], body[len(_ICC) + 1]
        walk.profile.setdefault(number, body[len(_ICC) + 2 :])
    if (0xE1 <= marker <= 0xEF and marker != 0xEE) or marker == 0xFE:
        return  # no pixels; 0xE0 (JFIF) and 0xEE (Adobe) say which colour space the values are in
    if marker in _FRAMES:
        walk.frame = _frame(marker, body)
    elif marker == 0xDA:
        walk.scans += 1
        if walk.scans > MAX_SCANS:
            raise BadFile(f"the JPEG has more than {MAX_SCANS} scans; save it as a baseline JPEG")
        if walk.frame and walk.scans > 1 and walk.scans * walk.frame.pixels > MAX_SCANNED_PIXELS:
            most = MAX_SCANNED_PIXELS // walk.frame.pixels
            raise BadFile(f"the JPEG has more than the {most} scans allowed at its size; save it as a baseline JPEG")
        _note_scan(body, walk.frame)
    walk.parts.append(segment)


def _frame(marker: int, body: bytes) -> _Frame:
    """Refuses by name what the decoder would call damaged."""
    precision, height, width, components = struct.unpack(">BHHB", body[:6])
    if marker not in _READ_FRAMES:
        raise BadFile("a lossless or hierarchical JPEG; save it as an ordinary (baseline) one")
    if precision != 8:
        raise BadFile(f"a JPEG with {precision} bits per sample; save it with 8")
    if height == 0:
        raise BadFile("a JPEG that tells its height behind the picture (DNL); save it again in another program")
    if components not in (1, 3, 4):
        raise BadFile(f"a JPEG with {components} components; save it as grey, RGB or CMYK")
    progressive = marker in (0xC2, 0xCA)
    numbers = body[6 : 6 + 3 * components : 3]
    return _Frame({number: set(range(64)) if progressive else {0} for number in numbers}, width * height)


def _note_scan(body: bytes, frame: _Frame | None) -> None:
    if frame is None or not body:
        return
    components = body[1 : 1 + 2 * body[0] : 2]
    first, last, bits = (*body[1 + 2 * body[0] : 4 + 2 * body[0]], 0, 0, 0)[:3]
    if bits & 15 == 0:
        for number in components:
            frame.left.get(number, set()).difference_update(range(first, last + 1))


def _refuse_missing_scans(walk: _Walk) -> None:
    if walk.frame is None or any(walk.frame.left.values()):
        raise BadFile("the file is cut short or damaged: parts of the picture are missing")


def _joined(walk: _Walk) -> bytes | None:
    """The profile's pieces, where all are there."""
    if not walk.profile or set(walk.profile) != set(range(1, walk.profile_count + 1)):
        return None
    profile = b"".join(walk.profile[number] for number in sorted(walk.profile))
    return profile if len(profile) <= MAX_PROFILE_BYTES else None
