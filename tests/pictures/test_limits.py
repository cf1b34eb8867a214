"""What an upload may cost: files made to take long are refused by their structure, each with its limit named."""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO

import numpy as np
import pytest
from pictures.picture_files import PNG_SIGNATURE, chunk, jpeg_of_empty_scans, segment
from PIL import Image

from hunyuan.errors import InvalidImage
from hunyuan.pictures.reader import read_picture

MAX_PIXELS = 50_000_000
QUICK_S = 3.0  # of a file of 20 MB on a busy machine


def encoded(fmt: str, **options: object) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(buffer, fmt, **options)
    return buffer.getvalue()


PNG, JPEG, WEBP, AVIF = encoded("PNG"), encoded("JPEG"), encoded("WEBP"), encoded("AVIF")
HEADER_END = len(PNG_SIGNATURE) + 25


@cache
def zeros() -> bytes:
    return zlib.compress(bytes(10**8), 1)


def webp_of(count: int) -> bytes:
    body = WEBP[8:] + (b"JUNK" + struct.pack("<I", 0)) * count
    return b"RIFF" + struct.pack("<I", len(body)) + body


def avif_with(boxes: bytes) -> bytes:
    """At the end, so that the offsets within the file stay right."""
    return AVIF + boxes


def many_items(count: int) -> bytes:
    inner = b"iinf" + bytes(4) + struct.pack(">H", count)
    iinf = struct.pack(">I", len(inner) + 4) + inner
    meta = b"meta" + bytes(4) + iinf
    return struct.pack(">I", len(meta) + 4) + meta


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: jpeg_of_empty_scans(7040, 7040, 25_000), "the JPEG has more than the 20 scans allowed at its size"),
        (lambda: jpeg_of_empty_scans(7040, 7040, 20), "the JPEG has more than the 20 scans allowed at its size"),
        (lambda: jpeg_of_empty_scans(640, 640, 100), "the JPEG has more than 100 scans"),
        (lambda: JPEG[:2] + segment(0xFE, b"") * 4_000_000 + JPEG[2:], "the JPEG has more than 10,000 segments"),
        (lambda: JPEG[:2] + b"\xff\x01" * 8_000_000 + JPEG[2:], "the JPEG has more than 10,000 segments"),
        (
            lambda: PNG[:HEADER_END] + chunk(b"tEXt", b"a\0b") * 1_200_000 + PNG[HEADER_END:],
            "the PNG has more than 100,000",
        ),
        (
            lambda: PNG[:HEADER_END] + chunk(b"IDAT", b"") * 1_500_000 + PNG[HEADER_END:],
            "the PNG has more than 100,000",
        ),
        (
            lambda: PNG[:HEADER_END] + chunk(b"iCCP", b"p\0\0" + zeros()) + PNG[HEADER_END:],
            "its colour profile has more than 16,777,216 bytes",
        ),
        (lambda: webp_of(2_000_000), "the WebP has more than 1,000 chunks"),
        (lambda: avif_with(b"\0\0\0\x08free" * 2_000_000), "the file has more than 2,000 boxes"),
        (lambda: avif_with(many_items(60_000)), "the file has 60,000 items; at most 1,000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_made_to_take_long_is_refused_with_the_limit(data: Callable[[], bytes], message: str) -> None:
    content = data()  # made here, not for those who run other tests
    started = time.process_time()
    with pytest.raises(InvalidImage) as caught:
        read_picture(content, MAX_PIXELS)
    assert time.process_time() - started < QUICK_S
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        lambda: JPEG[:2] + b"\xff" * 20_000_000 + JPEG[3:],  # fill bytes
        lambda: JPEG[:-2] + b"\xff\x00" * 10_000_000 + b"\xff\xd9",
        lambda: JPEG[:-2] + b"\xff\xd0" * 10_000_000 + b"\xff\xd9",  # restart markers
        lambda: JPEG + b"\xff" * 20_000_000,
        lambda: PNG[:HEADER_END] + chunk(b"zTXt", b"a\0\0" + zeros()) * 100 + PNG[HEADER_END:],
        lambda: PNG[:HEADER_END] + chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zeros()) * 500 + PNG[HEADER_END:],
        lambda: PNG[:HEADER_END] + chunk(b"zTXt", b"Raw profile type exif\0\0" + zeros()) * 500 + PNG[HEADER_END:],
    ],
    ids=["fill", "stuffing", "restarts", "trailer", "text bombs", "XMP bombs", "EXIF bombs"],
)
def test_bytes_that_are_no_pixels_cost_next_to_nothing(data: Callable[[], bytes]) -> None:
    content = data()  # made here, not for those who run other tests
    started = time.process_time()
    assert read_picture(content, MAX_PIXELS).size == (48, 32)
    assert time.process_time() - started < QUICK_S


def test_what_encoders_write_is_within_the_limits() -> None:
    assert read_picture(jpeg_of_empty_scans(7000, 7000, 19), MAX_PIXELS).size == (7000, 7000)
    assert read_picture(jpeg_of_empty_scans(64, 64, 99), MAX_PIXELS).size == (64, 64)
    assert read_picture(webp_of(900), MAX_PIXELS).size == (48, 32)
    assert read_picture(avif_with(b"\0\0\0\x08free" * 1000), MAX_PIXELS).size == (48, 32)
