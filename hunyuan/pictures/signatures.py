"""Which format a file is, by its first bytes.

Knows the formats that are read, and the names of those that people send instead.
"""

from __future__ import annotations

from typing import NoReturn

from hunyuan.pictures import heif, jpeg, png, webp
from hunyuan.pictures.parts import BadFile

ALLOWED = "PNG, JPEG, WebP, HEIC and AVIF"
_ONE_PICTURE = "save it as PNG or JPEG and send that"
_RAW = f"a camera's raw file; develop it, {_ONE_PICTURE}"
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"GIF8", f"a GIF file; {_ONE_PICTURE}"),
    (b"BM", f"a BMP file; {_ONE_PICTURE}"),
    (b"II*\0\x10\0\0\0CR", _RAW),
    (b"IIU\0", _RAW),
    (b"IIRO", _RAW),
    (b"IIRS", _RAW),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"II*\0", f"a TIFF file or a camera's raw file (DNG, NEF, ARW); {_ONE_PICTURE}"),
    (b"MM\0*", f"a TIFF file or a camera's raw file (DNG, NEF, ARW); {_ONE_PICTURE}"),
    (b"II\xbc", f"a JPEG XR file; {_ONE_PICTURE}"),
    (b"%PDF", "a PDF document; export the page as PNG and send that"),
    (b"%!PS", "a PostScript document; export it as PNG and send that"),
    (b"\xff\x0a", f"a JPEG XL file; {_ONE_PICTURE}"),
    (b"\0\0\0\x0cJXL ", f"a JPEG XL file; {_ONE_PICTURE}"),
    (b"\0\0\0\x0cjP  ", f"a JPEG 2000 file; {_ONE_PICTURE}"),
    (b"\xff\x4f\xff\x51", f"a JPEG 2000 file; {_ONE_PICTURE}"),
    (b"8BPS", "a Photoshop document (PSD); export it as PNG and send that"),
    (b"gimp xcf", "a GIMP document (XCF); export it as PNG and send that"),
    (b"\0\0\x01\0", f"an icon (ICO); {_ONE_PICTURE}"),
    (b"v/1\x01", f"an OpenEXR file; {_ONE_PICTURE}"),
    (b"#?RADIANCE", f"a Radiance HDR file; {_ONE_PICTURE}"),
    (b"qoif", f"a QOI file; {_ONE_PICTURE}"),
    (b"PK\x03\x04", "a ZIP archive or an office document; send the picture itself"),
    (b"\x1f\x8b", "a gzip file; send the picture itself"),
    (b"\x1aE\xdf\xa3", "a video (WebM or Matroska); send a single picture"),
    (b"data:", "the text of a data URL; send the picture's bytes"),
    (b"iVBORw0KGgo", "base64 text; send the picture's bytes"),
    (b"/9j/", "base64 text; send the picture's bytes"),
    (b"UklGR", "base64 text; send the picture's bytes"),
    (b"http", "the text of an address; addresses are not fetched, send the picture itself"),
)


def format_of(data: bytes) -> str:
    """Pillow's name of a format that is read.

    Raises:
        BadFile: it is another one; the message names it and says what to do.
    """
    if not data:
        raise BadFile(f"the file is empty; allowed are {ALLOWED}")
    if data.startswith(png.SIGNATURE):
        return "PNG"
    if data.startswith(jpeg.SIGNATURE):
        return "JPEG"
    if webp.is_webp(data):
        return "WEBP"
    return heif.brand_of(data) or _refuse(data)


def _refuse(data: bytes) -> NoReturn:
    for start, name in _OTHERS:
        if data.startswith(start):
            raise BadFile(f"{name} (allowed are {ALLOWED})")
    if data[4:8] == b"ftyp":
        name = _RAW if data[8:12] == b"crx " else "a video or another file of its family; send a single picture"
        raise BadFile(f"{name} (allowed are {ALLOWED})")
    text = data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--")) and b"<svg" in data[:4000].lower():
        raise BadFile(f"an SVG drawing; export it as PNG and send that (allowed are {ALLOWED})")
    if text.startswith((b"<!doctype html", b"<html")):
        raise BadFile(f"a web page; send the picture itself (allowed are {ALLOWED})")
    raise BadFile(f"the file ({len(data):,} bytes) is none of {ALLOWED}, or damaged")
