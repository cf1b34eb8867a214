"""An uploaded file's bytes to a picture: the checks of a stranger's file, then the decoding.

Knows which formats are read and how large a picture may be. How much time and memory a file may take is limited from
outside (`hunyuan.serving.decoder_process`).
"""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from hunyuan.errors import InvalidImage, InvalidRequest
from hunyuan.pictures.rgb import load_image
from hunyuan.prompt.resolution import MIN_SIDE, Size, check_ratio

ALLOWED = "PNG, JPEG and WebP"
# Phones put a preview or a brightness map behind the photo and so make the JPEG an "MPO"; the photo is the first.
_PHONE_JPEG = "MPO"


def read_picture(data: bytes, max_pixels: int, field: str = "image") -> Image.Image:
    """The file's picture, upright, in 8-bit sRGB, alpha composited on white. The header is checked before decoding.

    Raises:
        InvalidImage: empty, another format, animated, too large, too small, too long, or damaged.
    """
    image = _identify(data, max_pixels, field)
    if image.format != _PHONE_JPEG and getattr(image, "n_frames", 1) > 1:
        raise InvalidImage(f"an animated {image.format} file; send a single picture", field)
    _check_size(Size(*image.size), max_pixels, field)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # the decoders raise whatever they stumble over
        raise _damaged(error, field) from error
    return load_image(image, field)


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
