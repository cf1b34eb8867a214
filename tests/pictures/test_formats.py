"""Phones' formats are read; any other is named, with what to do."""

from __future__ import annotations

import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hunyuan.errors import InvalidImage
from hunyuan.pictures.reader import load_image, read_picture

SAMPLES = Path(__file__).parents[1] / "data" / "pictures"
HEIC = (SAMPLES / "plain.heic").read_bytes()


def halves(mode: str = "RGB") -> Image.Image:
    """Red above blue."""
    image = Image.new("RGB", (64, 32), (255, 0, 0))
    image.paste((0, 0, 255), (0, 16, 64, 32))
    return image.convert(mode)


def encoded(fmt: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = BytesIO()
    (image or halves()).save(buffer, fmt, **options)
    return buffer.getvalue()


AVIF = encoded("AVIF", quality=95, subsampling="4:4:4")


def near(picture: Image.Image, at: tuple[int, int], expected: tuple[int, ...]) -> bool:
    assert picture.mode == "RGB"
    return int(np.abs(np.subtract(picture.getpixel(at), expected)).max()) <= 6


def test_avif_is_read() -> None:
    picture = read_picture(AVIF, 10**6)
    assert picture.size == (64, 32)
    assert near(picture, (5, 5), (255, 0, 0))
    assert near(picture, (5, 27), (0, 0, 255))


def test_heic_is_read(tmp_path: Path) -> None:
    picture = read_picture(HEIC, 10**6)
    assert picture.size == (64, 48)
    assert near(picture, (5, 5), (230, 120, 40))
    assert near(picture, (5, 40), (20, 60, 200))
    (tmp_path / "photo.heic").write_bytes(HEIC)
    assert load_image(tmp_path / "photo.heic").tobytes() == picture.tobytes()


def test_a_turned_avif_is_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = read_picture(encoded("AVIF", exif=exif, quality=95, subsampling="4:4:4"), 10**6)
    assert picture.size == (32, 64)
    assert near(picture, (27, 5), (255, 0, 0))
    assert near(picture, (5, 5), (0, 0, 255))


def test_alpha_of_an_avif_is_laid_on_white() -> None:
    image = halves("RGBA")
    image.putalpha(0)
    assert near(read_picture(encoded("AVIF", image), 10**6), (5, 5), (255, 255, 255))


@pytest.mark.parametrize("fmt", ["PNG", "WEBP", "AVIF"])
def test_an_animation_is_refused(fmt: str) -> None:
    data = encoded(fmt, save_all=True, append_images=[halves().rotate(180)])
    with pytest.raises(InvalidImage, match="animated"):
        read_picture(data, 10**6)


@pytest.mark.parametrize("data", [AVIF, HEIC])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.97])
def test_a_file_cut_short_is_refused(data: bytes, kept: float) -> None:
    with pytest.raises(InvalidImage, match="cut short or damaged"):
        read_picture(data[: int(len(data) * kept)], 10**6)


@pytest.mark.parametrize("data", [AVIF, HEIC])
def test_the_size_is_looked_at_before_decoding(data: bytes) -> None:
    with pytest.raises(InvalidImage, match="at most 1,000 are allowed"):
        read_picture(data, 1000)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (encoded("GIF"), "a GIF file"),
        (encoded("BMP"), "a BMP file"),
        (encoded("TIFF"), "a TIFF file"),
        (b"MM\0*" + bytes(50), "a TIFF file"),
        (b"II*\0\x10\0\0\0CR\x02\0" + bytes(50), "raw file"),
        (b"FUJIFILMCCD-RAW 0201", "raw file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "raw file"),
        (b"\0\0\0\x18ftypmp42\0\0\0\1isommp42", "a video"),
        (b"\0\0\0\x18ftypqt  \0\0\0\1qt  qt  ", "a video"),
        (encoded("ICO"), "an icon"),
        (encoded("JPEG2000"), "a JPEG 2000 file"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- by hand -->\n<svg>", "an SVG drawing"),
        (b"\xff\x0a" + bytes(20), "a JPEG XL file"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL file"),
        (b"8BPS\0\1" + bytes(20), "a Photoshop document"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"PK\x03\x04" + bytes(20), "a ZIP archive"),
        (b"data:image/png;base64,iVBORw0KGgo=", "the text of a data URL"),
        (b"iVBORw0KGgoAAAANSUhEUg", "base64 text"),
        (b"/9j/4AAQSkZJRg", "base64 text"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0msf1hevc", "animated"),
        (bytes(100), "is none of PNG, JPEG, WebP, HEIC and AVIF"),
    ],
)
def test_any_other_format_is_named(data: bytes, named: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        read_picture(data, 10**6)
    assert str(caught.value).startswith("image: ")
    assert named in str(caught.value)
    assert ("HEIC and AVIF" in str(caught.value)) != ("animated" in str(caught.value))


def test_the_primary_picture_of_a_heic_series_is_meant(tmp_path: Path) -> None:
    """Phones write bursts so; the file holds blue, then red, and names red."""
    data = (SAMPLES / "series.heic").read_bytes()
    for picture in (read_picture(data, 10**6), load_image(SAMPLES / "series.heic")):
        red, green, blue = picture.getpixel((30, 20))
        assert red > 200
        assert max(green, blue) < 60


def test_a_size_beyond_a_decoders_own_limit_is_named() -> None:
    """And the file is not called damaged."""
    at = AVIF.index(b"ispe") + 8
    with pytest.raises(InvalidImage, match="60000x60000 is 3,600,000,000 pixels; at most"):
        read_picture(AVIF[:at] + struct.pack(">II", 60_000, 60_000) + AVIF[at + 8 :], 50_000_000)
