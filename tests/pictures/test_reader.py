"""Which files are accepted as pictures, and that a refusal says why."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hunyuan.errors import InvalidImage
from hunyuan.pictures.reader import read_picture

LIMIT = 1_000_000


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=fmt, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
def test_three_formats_are_accepted(fmt: str) -> None:
    image = read_picture(encoded(noise(40, 30), fmt), LIMIT)
    assert image.size == (40, 30)
    assert image.convert("RGB").getpixel((0, 0)) is not None


def test_a_phone_photo_with_a_second_picture_behind_it_is_no_animation() -> None:
    data = encoded(noise(64, 48), "MPO", save_all=True, append_images=[noise(16, 16)])
    image = read_picture(data, LIMIT)
    assert image.size == (64, 48)
    assert getattr(image, "n_frames", 1) == 1


def test_exif_rotation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_picture(encoded(noise(40, 30), "JPEG", exif=exif), LIMIT)
    assert image.size == (30, 40)


def halves(mode: str, left: object, right: object) -> Image.Image:
    image = Image.new(mode, (32, 16), left)
    image.paste(right, (16, 0, 32, 16))
    return image


def palette_with_a_clear_colour() -> bytes:
    image = halves("P", 0, 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    return encoded(image, "PNG", transparency=1)


def deep_grey() -> bytes:
    values = np.full((16, 32), 0x12FF, dtype=np.uint16)
    values[:, 16:] = 0xFE01
    return encoded(Image.fromarray(values), "PNG")


RED, WHITE = (255, 0, 0), (255, 255, 255)
CLEAR_RIGHT = halves("RGBA", (255, 0, 0, 255), (0, 0, 0, 0))


@pytest.mark.parametrize(
    ("data", "left", "right"),
    [
        (encoded(CLEAR_RIGHT, "PNG"), RED, WHITE),
        (encoded(CLEAR_RIGHT, "WEBP", lossless=True), RED, WHITE),
        (encoded(halves("LA", (100, 255), (100, 0)), "PNG"), (100,) * 3, WHITE),
        (palette_with_a_clear_colour(), RED, WHITE),
        (encoded(halves("L", 100, 255), "JPEG", quality=95), (100,) * 3, WHITE),
        (encoded(halves("1", 0, 1), "PNG"), (0,) * 3, WHITE),
        (encoded(halves("CMYK", (0, 255, 255, 0), (0, 0, 0, 0)), "JPEG", quality=95, subsampling=0), RED, WHITE),
        (deep_grey(), (0x12,) * 3, (0xFE,) * 3),
    ],
)
def test_what_the_engine_gets_of_an_upload(data: bytes, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    ready = read_picture(data, LIMIT)
    assert (ready.mode, ready.size) == ("RGB", (32, 16))
    for x, expected in ((4, left), (27, right)):
        assert np.abs(np.subtract(ready.getpixel((x, 8)), expected)).max() <= 3


@pytest.mark.parametrize(("fmt", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("WEBP", {"lossless": True})])
def test_a_turned_upload_is_upright_for_the_engine(fmt: str, options: dict[str, object]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: what is left in the file belongs on top
    ready = read_picture(encoded(halves("RGB", RED, WHITE), fmt, exif=exif, **options), LIMIT)
    assert ready.size == (16, 32)
    for y, expected in ((4, RED), (27, WHITE)):
        assert np.abs(np.subtract(ready.getpixel((8, y)), expected)).max() <= 3


@pytest.mark.parametrize("fmt", ["PNG", "WEBP"])
def test_an_animation_is_refused(fmt: str) -> None:
    data = encoded(noise(40, 30), fmt, save_all=True, append_images=[noise(40, 30).rotate(180)])
    with pytest.raises(InvalidImage, match="image: an animated"):
        read_picture(data, LIMIT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"just some text", "none of PNG, JPEG, WebP, HEIC and AVIF"),
        (encoded(noise(40, 30), "GIF"), "a GIF file; save it as PNG or JPEG"),
        (encoded(noise(40, 30), "BMP"), "a BMP file; save it as PNG or JPEG"),
        (encoded(noise(1001, 1000), "JPEG"), "1001x1000 is 1,001,000 pixels; at most 1,000,000"),
        (encoded(noise(15, 100), "PNG"), "got 15x100 px; each side must be at least 16 px"),
        (encoded(noise(16, 129), "PNG"), "at most 8:1"),
        (png_header(9_000, 9_000), "81,000,000 pixels"),
        (png_header(10_000, 10_000), "at most 1,000,000 are allowed"),  # beyond where Pillow only warns
        (png_header(60_000, 60_000), "at most 1,000,000 are allowed"),  # beyond where Pillow refuses
        (png_header(100, 100), "damaged"),
    ],
)
def test_a_refusal_names_what_came_and_what_is_allowed(data: bytes, message: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        read_picture(data, LIMIT, field="image")
    assert str(caught.value).startswith("image: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.97])
def test_a_file_cut_short_is_refused(fmt: str, kept: float) -> None:
    data = encoded(noise(200, 150), fmt)
    with pytest.raises(InvalidImage, match="damaged"):
        read_picture(data[: int(len(data) * kept)], LIMIT)


def test_random_damage_never_escapes_as_another_error() -> None:
    rng = np.random.default_rng(1)
    for fmt in ("PNG", "JPEG", "WEBP"):
        good = np.frombuffer(encoded(noise(64, 48), fmt), dtype=np.uint8)
        for _ in range(60):
            bad = good.copy()
            bad[rng.integers(0, len(bad), 8)] = rng.integers(0, 255, 8)
            with suppress(InvalidImage):
                read_picture(bad.tobytes(), LIMIT)


def test_the_extremes_that_are_allowed() -> None:
    assert read_picture(encoded(noise(16, 128), "PNG"), LIMIT).size == (16, 128)
    assert read_picture(encoded(noise(1000, 1000), "JPEG"), LIMIT).size == (1000, 1000)
