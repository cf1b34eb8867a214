"""Files that every viewer shows: what is not pixels cannot make them damaged; missing pixels do."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pictures.picture_files import PNG_SIGNATURE, chunk, jpeg_of_empty_scans, segment
from PIL import Image

from hunyuan.errors import InvalidImage
from hunyuan.pictures.reader import load_image, read_picture

LIMIT = 1_000_000


def photo(width: int = 120, height: int = 90) -> Image.Image:
    values = np.random.default_rng(3).integers(0, 255, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def encoded(fmt: str, **options: object) -> bytes:
    buffer = BytesIO()
    photo().save(buffer, fmt, **options)
    return buffer.getvalue()


PNG, JPEG, PROGRESSIVE = encoded("PNG"), encoded("JPEG", quality=90), encoded("JPEG", progressive=True)
WEBP = encoded("WEBP", lossless=True)


def with_chunks(*chunks: bytes) -> bytes:
    """The PNG with more chunks behind its header."""
    end = len(PNG_SIGNATURE) + 25
    return PNG[:end] + b"".join(chunks) + PNG[end:]


def pixels(data: bytes) -> bytes:
    return read_picture(data, LIMIT).tobytes()


TEXT = b"x" * 3_000_000


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(TEXT)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(TEXT)),
        chunk(b"iTXt", b"prompt\0\0\0\0\0" + TEXT),
        chunk(b"tEXt", b"workflow\0" + TEXT),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(TEXT)),
        b"".join(chunk(b"zTXt", b"part\0\0" + zlib.compress(TEXT)) for _ in range(40)),
        chunk(b"zTXt", b"workflow\0\0no zlib"),
        chunk(b"tEXt", b"Comment\0hello", crc=0),
        chunk(b"gAMA", struct.pack(">I", 100_000), crc=1),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08", crc=2),
        chunk(b"tIME", b"short"),
        chunk(b"caNv", bytes(16)),
    ],
    ids=lambda extra: f"{extra[4:8].decode()}-{len(extra)}",
)
def test_what_is_no_pixel_of_a_png_does_not_matter(extra: bytes) -> None:
    assert pixels(with_chunks(extra)) == photo().tobytes()


def test_a_png_without_its_end_is_shown_where_all_pixels_are_there() -> None:
    assert pixels(PNG[:-12]) == photo().tobytes()
    assert pixels(PNG[:-5]) == photo().tobytes()
    with pytest.raises(InvalidImage, match="cut short or damaged"):
        pixels(PNG[:-40])


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, encoded("JPEG", subsampling=0, restart_marker_blocks=4)])
def test_a_jpeg_without_its_end_marker_is_shown(data: bytes) -> None:
    assert data.endswith(b"\xff\xd9")
    assert pixels(data[:-2]) == pixels(data)
    assert pixels(data[:-1]) == pixels(data)  # the marker's first half is left


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE])
@pytest.mark.parametrize("missing", [20, 100, 500, 1000])
def test_a_jpeg_that_lacks_pixels_is_refused(data: bytes, missing: int) -> None:
    with pytest.raises(InvalidImage, match="cut short or damaged"):
        pixels(data[:-missing])


@pytest.mark.parametrize("quality", [60, 90])
@pytest.mark.parametrize("missing", range(3, 20))
def test_a_jpeg_that_lacks_its_last_bytes_is_whole_or_refused(quality: int, missing: int) -> None:
    whole = encoded("JPEG", quality=quality)
    try:
        seen = pixels(whole[:-missing])
    except InvalidImage:
        return
    assert seen == pixels(whole)


def test_a_progressive_jpeg_that_ends_between_two_scans_is_refused() -> None:
    starts = [at for at in range(len(PROGRESSIVE)) if PROGRESSIVE.startswith(b"\xff\xda", at)]
    assert len(starts) > 4
    before_tables = PROGRESSIVE.rindex(b"\xff\xc4", 0, starts[-1])
    with pytest.raises(InvalidImage, match="parts of the picture are missing"):
        pixels(PROGRESSIVE[:before_tables])


@pytest.mark.parametrize(
    "extra",
    [
        segment(0xFE, b"a comment") * 300,
        segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(60_000)) * 40,
        segment(0xE1, b"Exif\0\0no TIFF at all"),
        segment(0xE2, b"ICC_PROFILE\0\1\2one of two"),
        segment(0xE2, b"MPF\0broken"),
        segment(0xED, b"Photoshop 3.0\0broken"),
    ],
)
def test_what_is_no_pixel_of_a_jpeg_does_not_matter(extra: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pixels(JPEG[:2] + extra + JPEG[2:]) == pixels(JPEG)


def test_what_follows_a_jpeg_does_not_matter() -> None:
    """A phone's film, a second picture."""
    assert pixels(JPEG + b"\0\0\0\x18ftypmp42" + bytes(1000)) == pixels(JPEG)
    assert pixels(JPEG + PROGRESSIVE) == pixels(JPEG)


def test_what_is_no_pixel_of_a_webp_does_not_matter() -> None:
    flags = bytes([0x2C]) + bytes(3) + (119).to_bytes(3, "little") + (89).to_bytes(3, "little")
    image = WEBP[12:]

    def riff(*chunks: bytes) -> bytes:
        body = b"WEBP" + b"".join(chunks)
        return b"RIFF" + struct.pack("<I", len(body)) + body

    def part(kind: bytes, body: bytes) -> bytes:
        return kind + struct.pack("<I", len(body)) + body + bytes(len(body) & 1)

    data = riff(part(b"VP8X", flags), part(b"ICCP", b"no profile"), image, part(b"EXIF", b"no"), part(b"XMP ", TEXT))
    assert pixels(data) == photo().tobytes()
    assert pixels(data[:-1_000_000]) == photo().tobytes()  # the text is cut short, the pixels are not


def test_a_header_that_cannot_be_read_is_said_in_words() -> None:
    with pytest.raises(InvalidImage) as caught:
        pixels(PNG[:20] + b"?" + PNG[21:])  # the header's checksum is wrong
    assert str(caught.value) == "image: the file is cut short or damaged: its header cannot be read"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (jpeg_of_empty_scans(64, 64, 20).replace(b"\xff\xc2\0\x0b\x08", b"\xff\xc2\0\x0b\x0c"), "12 bits per sample"),
        (jpeg_of_empty_scans(64, 64, 20).replace(b"\xff\xc2", b"\xff\xc3"), "lossless or hierarchical JPEG"),
        (jpeg_of_empty_scans(64, 0, 20), "its height behind the picture (DNL)"),
        (PNG[:8] + chunk(b"CgBI", bytes(4)) + PNG[8:], "rewritten for iOS (CgBI)"),
        (JPEG[:2] + segment(0xC0, struct.pack(">BHHB", 8, 64, 64, 2) + bytes(6)) + JPEG[2:], "with 2 components"),
    ],
)
def test_what_the_decoder_cannot_read_is_named_and_not_called_damaged(data: bytes, message: str) -> None:
    with pytest.raises(InvalidImage) as caught:
        pixels(data)
    assert message in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_a_file_of_ones_own_is_taken_apart_the_same_way(tmp_path: Path) -> None:
    """The command line and the Python interface get the same files as the service."""
    path = tmp_path / "photo"
    for data in (with_chunks(chunk(b"zTXt", b"workflow\0\0" + zlib.compress(TEXT))), PNG[:-12]):
        path.write_bytes(data)
        assert load_image(path).tobytes() == photo().tobytes()
    path.write_bytes(JPEG[:-2])
    assert load_image(path).tobytes() == pixels(JPEG)
    path.write_bytes(JPEG[: len(JPEG) // 2])
    with pytest.raises(InvalidImage, match="cut short or damaged"):
        load_image(path)
    photo().save(path, "TIFF")
    assert load_image(path).tobytes() == photo().tobytes()


def test_a_png_that_lacks_its_last_bytes_is_whole_or_refused() -> None:
    """The decoder must not take the end mark for pixels."""
    for missing in range(1, 60):
        try:
            seen = pixels(PNG[:-missing])
        except InvalidImage:
            continue
        assert seen == photo().tobytes(), missing


def test_a_cut_picture_that_the_caller_has_opened_is_refused() -> None:
    with pytest.raises(InvalidImage, match="cannot be decoded"):
        load_image(Image.open(BytesIO(PNG[: len(PNG) // 2])))


def test_a_note_of_an_animation_behind_the_pixels_means_nothing() -> None:
    assert pixels(PNG[:-12] + chunk(b"acTL", struct.pack(">II", 2, 0)) + PNG[-12:]) == photo().tobytes()


def plain_png(depth: int, colour_type: int, pixel: bytes, clear: bytes) -> bytes:
    """64x64 of one value, with a transparent colour."""
    header = struct.pack(">IIBBBBB", 64, 64, depth, colour_type, 0, 0, 0)
    rows = (b"\0" + pixel) * 64
    return (
        PNG_SIGNATURE + chunk(b"IHDR", header) + chunk(b"tRNS", clear) + chunk(b"IDAT", zlib.compress(rows)) + PNG[-12:]
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("clear", [True, False])
def test_a_transparent_grey_is_white_at_every_depth(depth: int, clear: bool) -> None:
    value = 1
    packed = b"\0\1" * 64 if depth == 16 else bytes([sum(value << at for at in range(0, 8, depth))]) * (8 * depth)
    data = plain_png(depth, 0, packed, struct.pack(">H", value if clear else 0))
    shown = value >> 8 if depth == 16 else value * 255 // (2**depth - 1)
    assert read_picture(data, LIMIT).getpixel((5, 5)) == ((255 if clear else shown),) * 3


def test_a_dark_transparent_colour_of_sixteen_bits_is_white() -> None:
    pixel = struct.pack(">3H", 1, 2, 3)
    assert read_picture(plain_png(16, 2, pixel * 64, pixel), LIMIT).getpixel((5, 5)) == (255, 255, 255)
