"""A result's picture as a file: PNG, JPEG or WebP, marked as made by AI.

Knows formats. What is written into a PNG's text chunks is `png.py`'s.
"""

from __future__ import annotations

from io import BytesIO
from typing import Literal, get_args

from hunyuan.requests import EditResult
from hunyuan.serving.png import ai_mark, encode_png

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)
_FULL_COLOUR = 0  # JPEG's 4:4:4: no colour is shared between neighbours


def encode_picture(
    result: EditResult,
    output_format: Format,
    compression: int,
    *,
    model_name: str,
    version: str,
    prompt: str | None = None,
    from_picture: bool = True,
) -> bytes:
    """The picture as a file in sRGB; the same arguments give the same bytes.

    Args:
        compression: 0 to 100, of a JPEG or WebP; 100 is the best and the largest. A PNG loses nothing.

    The other arguments are those of `encode_png`; only a PNG names seed, steps and model.
    """
    if output_format == "png":
        return encode_png(result, model_name=model_name, version=version, prompt=prompt, from_picture=from_picture)
    buffer, mark = BytesIO(), ai_mark(from_picture).encode()
    # Pillow would otherwise copy these from the picture's `info`, where an uploaded file may have left them.
    nothing = {"icc_profile": None, "exif": b"", "comment": b""}
    if output_format == "jpeg":
        quality = max(1, compression)
        result.image.save(buffer, "JPEG", quality=quality, subsampling=_FULL_COLOUR, xmp=mark, **nothing)
    else:
        result.image.save(buffer, "WEBP", quality=compression, xmp=mark, **nothing)
    return buffer.getvalue()
