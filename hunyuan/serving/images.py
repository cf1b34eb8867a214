"""Uploaded bytes to a decoded picture.

Knows what a stranger's file may be. Turning it upright and into RGB is the engine's work
(`hunyuan.prompt.images.load_image`).
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from hunyuan.errors import InvalidImage, InvalidRequest
from hunyuan.prompt.resolution import MIN_SIDE, Size, check_ratio

# Phones put a preview or a brightness map behind the photo and so make the JPEG an "MPO"; the photo is the first.
PHONE_JPEG = "MPO"
ALLOWED = "PNG, JPEG and WebP"


def open_image(data: bytes, max_pixels: int, field: str = "image") -> Image.Image:
    """Checks the header first, then decodes; returns a picture that needs no file any more.

    Raises:
        InvalidImage: empty, another format, animated, too large, too small, too long, or damaged.
    """
    image = _identify(data, max_pixels, field)
    if image.format != PHONE_JPEG and getattr(image, "n_frames", 1) > 1:
        raise InvalidImage(f"an animated {image.format} file; send a single picture", field)
    _check_size(Size(*image.size), max_pixels, field)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise whatever they stumble over
        raise _damaged(error, field) from error
    return image.copy() if image.format == PHONE_JPEG else image  # the copy knows nothing of the file's other pictures


def _identify(data: bytes, max_pixels: int, field: str) -> Image.Image:
    if not data:
        raise InvalidImage(f"the file is empty; allowed are {ALLOWED}", field)
    try:
        image = Image.open(BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
    except Image.UnidentifiedImageError as error:
        raise InvalidImage(f"the file ({len(data):,} bytes) is none of {ALLOWED}, or damaged", field) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidImage(f"more than the {max_pixels:,} pixels allowed", field) from error
    except MemoryError:
        raise
    except Exception as error:
        raise _damaged(error, field) from error
    return image


def _check_size(size: Size, max_pixels: int, field: str) -> None:
    pixels = size.width * size.height
    if pixels > max_pixels:
        raise InvalidImage(f"{size} is {pixels:,} pixels; at most {max_pixels:,} are allowed", field)
    if min(size.width, size.height) < MIN_SIDE:
        raise InvalidImage(f"{size} px; each side must be at least {MIN_SIDE} px", field)
    try:
        check_ratio(size, field)
    except InvalidRequest as error:
        raise InvalidImage(str(error).removeprefix(f"{field}: "), field) from error


def _damaged(error: Exception, field: str) -> InvalidImage:
    return InvalidImage(f"the file is cut short or damaged ({type(error).__name__}: {str(error)[:100]})", field)
