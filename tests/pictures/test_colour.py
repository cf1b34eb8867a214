"""Colours: what the file says its values mean decides what the model sees, in sRGB."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures.picture_files import PNG_SIGNATURE, chunk
from PIL import ExifTags, Image, ImageCms

from hunyuan.errors import InvalidImage
from hunyuan.pictures.colour import matrix_profile
from hunyuan.pictures.reader import load_image, read_picture

HEIC = Path(__file__).parents[1] / "data" / "pictures"
ORANGE = (230, 120, 40)  # in sRGB
SRGB_CURVE = (3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
D65 = (0.3127, 0.3290)
SRGB_XY = (*D65, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
P3_XY = (*D65, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
ADOBE_XY = (*D65, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
PROPHOTO_XY = (0.3457, 0.3585, 0.7347, 0.2653, 0.1596, 0.8404, 0.0366, 0.0001)
DISPLAY_P3 = matrix_profile(P3_XY, SRGB_CURVE)
ADOBE_RGB = matrix_profile(ADOBE_XY, (0, 563 / 256))
PROPHOTO = matrix_profile(PROPHOTO_XY, (0, 1.8))
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def grey_profile(gamma: float) -> bytes:
    """A minimal one: white point and curve."""
    fixed = lambda *values: b"".join(struct.pack(">i", round(v * 65536)) for v in values)  # noqa: E731
    white = b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)
    curve = b"para" + bytes(8) + fixed(gamma)
    table = struct.pack(">I4sII4sII", 2, b"wtpt", 156, 20, b"kTRC", 176, 16)
    header = struct.pack(">I4sI4s4s4s", 192, b"\0" * 4, 0x04200000, b"mntr", b"GRAY", b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return header.ljust(128, b"\0") + table + white + curve


def encoded(image: Image.Image, fmt: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


def plain(colour: Any, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (64, 64), colour)


def first(data: bytes) -> tuple[int, ...]:
    picture = read_picture(data, 10**6)
    assert picture.mode == "RGB"
    return tuple(picture.getpixel((20, 20)))


def near(seen: tuple[int, ...], expected: tuple[int, ...], within: int = 1) -> bool:
    return max(abs(a - b) for a, b in zip(seen, expected, strict=True)) <= within


def png_with(values: tuple[int, ...], *chunks: bytes) -> bytes:
    data = encoded(plain(values))
    end = len(PNG_SIGNATURE) + 25
    return data[:end] + b"".join(chunks) + data[end:]


def chrm(xy: tuple[float, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in xy)))


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(100_000 / gamma)))


# What ORANGE is called in other spaces, by their published primaries and curves (Bradford adaptation).
@pytest.mark.parametrize(
    ("values", "profile"),
    [((216, 126, 61), DISPLAY_P3), ((205, 119, 50), ADOBE_RGB), ((170, 116, 50), PROPHOTO), (ORANGE, SRGB)],
    ids=["Display P3", "Adobe RGB", "ProPhoto", "sRGB"],
)
@pytest.mark.parametrize(
    ("fmt", "options", "within"),
    [
        ("PNG", {}, 2),
        ("JPEG", {"quality": 98, "subsampling": 0}, 4),
        ("WEBP", {"lossless": True}, 2),
        ("AVIF", {"quality": 98, "subsampling": "4:4:4"}, 4),
    ],
)
def test_an_embedded_profile_is_applied(
    values: tuple[int, ...], profile: bytes, fmt: str, options: dict[str, Any], within: int
) -> None:
    assert near(first(encoded(plain(values), fmt, icc_profile=profile, **options)), ORANGE, within)


def test_a_phones_heic_is_converted() -> None:
    """Both files hold the values (230, 120, 40), one of them in Display P3."""
    assert near(first((HEIC / "plain.heic").read_bytes()), ORANGE, 2)
    assert near(first((HEIC / "display_p3.heic").read_bytes()), (248, 112, 0), 3)


def says(space: int | None, index: str | None) -> bytes:
    """What cameras write that embed no profile."""
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {
        **({} if space is None else {ExifTags.Base.ColorSpace: space}),
        **({} if index is None else {ExifTags.IFD.Interop: {ExifTags.Interop.InteropIndex: index}}),
    }
    return exif.tobytes()


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(("space", "index"), [(65535, "R03"), (None, "R03"), (2, None)])
def test_adobe_rgb_of_a_camera_without_a_profile_is_converted(fmt: str, space: int | None, index: str | None) -> None:
    options = {"lossless": True} if fmt == "WEBP" else {"quality": 98, "subsampling": 0}
    data = encoded(plain((205, 119, 50)), fmt, exif=says(space, index), **options)
    assert near(first(data), ORANGE, 4)


@pytest.mark.parametrize(("space", "index"), [(65535, None), (65535, "R98"), (1, "R03"), (1, "R98")])
def test_other_words_of_a_camera_mean_srgb(space: int, index: str | None) -> None:
    assert first(encoded(plain(ORANGE), exif=says(space, index))) == ORANGE
    assert near(first(encoded(plain((216, 126, 61)), exif=says(65535, "R03"), icc_profile=DISPLAY_P3)), ORANGE, 2)


def test_a_picture_in_srgb_stays_as_it_is_to_the_last_bit() -> None:
    values = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    own = matrix_profile(SRGB_XY, SRGB_CURVE)
    assert own is not None
    for options in ({}, {"icc_profile": SRGB}, {"icc_profile": own}, {"icc_profile": b"no profile at all"}):
        assert np.array_equal(np.asarray(read_picture(encoded(image, **options), 10**6)), values)


@pytest.mark.parametrize("profile", [b"", b"no profile", SRGB[:200], DISPLAY_P3[:128] + bytes(200), grey_profile(1.8)])
def test_a_profile_that_does_not_fit_is_passed_over(profile: bytes) -> None:
    data = encoded(plain(ORANGE))
    end = len(PNG_SIGNATURE) + 25
    packed = chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))
    assert first(data[:end] + packed + data[end:]) == ORANGE


def test_alpha_is_laid_on_white_in_srgb() -> None:
    image = plain((216, 126, 61, 255), "RGBA")
    image.paste((0, 0, 0, 0), (32, 0, 64, 64))
    picture = read_picture(encoded(image, icc_profile=DISPLAY_P3), 10**6)
    assert near(picture.getpixel((8, 8)), ORANGE, 2)
    assert picture.getpixel((60, 8)) == (255, 255, 255)


def test_a_palette_is_converted() -> None:
    assert near(first(encoded(plain((216, 126, 61)).quantize(4), icc_profile=DISPLAY_P3)), ORANGE, 2)


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile_is_applied(mode: str) -> None:
    """Linear light: a value of 55 of 255 is 128 in sRGB."""
    value: Any = {"L": 55, "LA": (55, 255), "I;16": 55 * 257}[mode]
    data = encoded(plain(value, mode), icc_profile=grey_profile(1.0))
    assert near(first(data), (128, 128, 128), 1)


def test_a_cmyk_profile_is_applied() -> None:
    """No press profile may be given away here: a made one, whose cyan is (0, 90, 160)."""
    profile = cmyk_profile()
    data = encoded(plain((255, 0, 0, 0), "CMYK"), "JPEG", quality=98, subsampling=0, icc_profile=profile)
    reference = ImageCms.profileToProfile(
        plain((255, 0, 0, 0), "CMYK"),
        ImageCms.ImageCmsProfile(BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert reference is not None
    assert near(first(data), reference.getpixel((1, 1)), 4)
    assert not near(first(data), (0, 255, 255), 40)  # what it is without the profile


def cmyk_profile() -> bytes:
    """A press with two points on each axis of its table (lut8): Lab values for all combinations of ink."""
    grid = []
    for index in range(16):
        cyan, magenta, yellow, black = (index >> 3 & 1, index >> 2 & 1, index >> 1 & 1, index & 1)
        light = 255 if not index else max(20, 255 - 110 * cyan - 100 * magenta - 20 * yellow - 200 * black)
        grid += [light, 128 - 30 * cyan + 70 * magenta, 128 - 45 * cyan + 80 * yellow]
    ramp = bytes(range(256))
    matrix = b"".join(struct.pack(">i", 65536 if i % 4 == 0 else 0) for i in range(9))
    lut = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + bytes(min(v, 255) for v in grid) + ramp * 3
    white = b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(v * 65536)) for v in (0.9642, 1.0, 0.8249))
    offset = 128 + 4 + 24
    table = struct.pack(">I4sII4sII", 2, b"wtpt", offset, 20, b"A2B0", offset + 20, len(lut))
    header = struct.pack(">I4sI4s4s4s", offset + 20 + len(lut), bytes(4), 0x02400000, b"prtr", b"CMYK", b"Lab ")
    header += bytes(12) + b"acsp" + bytes(28) + white[8:]
    return header.ljust(128, b"\0") + table + white + lut


# --- what PNG says without a profile


@pytest.mark.parametrize(
    ("values", "chunks", "expected"),
    [
        ((216, 126, 61), [chunk(b"cICP", bytes([12, 13, 0, 1]))], ORANGE),
        ((216, 126, 61), [chrm(P3_XY)], ORANGE),
        ((216, 126, 61), [chrm(P3_XY), gama(2.2)], (231, 121, 35)),
        ((205, 119, 50), [chrm(ADOBE_XY), gama(2.2)], ORANGE),
        ((201, 48, 5), [gama(1.0)], ORANGE),
        (ORANGE, [gama(2.2)], ORANGE),
        (ORANGE, [gama(2.2), chrm(SRGB_XY)], ORANGE),
        (ORANGE, [chunk(b"sRGB", b"\0"), gama(1.0), chrm(P3_XY)], ORANGE),
        (ORANGE, [chunk(b"cICP", bytes([1, 13, 0, 1])), gama(1.0)], ORANGE),
        (ORANGE, [chunk(b"gAMA", bytes(4))], ORANGE),
        (ORANGE, [chunk(b"gAMA", b"\0\0\0\1")], ORANGE),
        (ORANGE, [chunk(b"cHRM", bytes(32))], ORANGE),
        (ORANGE, [chunk(b"cHRM", b"\xff" * 32)], ORANGE),
    ],
)
def test_pngs_own_words_for_colour(values: tuple[int, ...], chunks: list[bytes], expected: tuple[int, ...]) -> None:
    assert near(first(png_with(values, *chunks)), expected, 3)


@pytest.mark.parametrize(
    ("cicp", "message"),
    [
        ((9, 16, 0, 1), r"an HDR picture \(PQ\)"),
        ((9, 18, 0, 1), r"an HDR picture \(HLG\)"),
        ((1, 13, 0, 0), "narrow"),
        ((10, 13, 0, 1), "primaries 10, transfer 13"),
        ((1, 9, 0, 1), "primaries 1, transfer 9"),
    ],
)
def test_what_has_no_place_in_srgb_is_refused_by_name(cicp: tuple[int, ...], message: str) -> None:
    with pytest.raises(InvalidImage, match=message):
        first(png_with(ORANGE, chunk(b"cICP", bytes(cicp))))


def test_pictures_of_the_python_interface_are_converted_too(tmp_path: Path) -> None:
    (tmp_path / "p3.png").write_bytes(encoded(plain((216, 126, 61)), icc_profile=DISPLAY_P3))
    assert near(load_image(tmp_path / "p3.png").getpixel((1, 1)), ORANGE, 2)
    with Image.open(tmp_path / "p3.png") as opened:
        assert near(load_image(opened).getpixel((1, 1)), ORANGE, 2)
    (tmp_path / "gamma.png").write_bytes(png_with((201, 48, 5), gama(1.0)))
    assert near(load_image(tmp_path / "gamma.png").getpixel((1, 1)), ORANGE, 3)
