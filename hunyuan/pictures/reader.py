"""A file's bytes to a picture: the checks of a stranger's file, then the decoding.

Knows which decoder gets which format and how large a picture may be. How a file is taken apart is in the walkers
(`jpeg.py`, `png.py`, `webp.py`, `heif.py`); how much time and memory it may take is limited from outside
(`hunyuan.serving.decoder_process`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from hunyuan.errors import InvalidImage
from hunyuan.pictures.heif import read_heif
from hunyuan.pictures.jpeg import END, read_jpeg
from hunyuan.pictures.parts import BadFile, Colour, PictureFile
from hunyuan.pictures.png import read_png
from hunyuan.pictures.rgb import upright_rgb
from hunyuan.pictures.signatures import ALLOWED, format_of
from hunyuan.pictures.webp import read_webp
from hunyuan.prompt.resolution import Size, shape_problem
from hunyuan.requests import ImageSource

__all__ = ["ALLOWED", "load_image", "read_picture"]

AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a process is given one picture at a time, and an amount of CPU time for it
_WALKERS: dict[str, Callable[[bytes], PictureFile]] = {
    "JPEG": read_jpeg,
    "PNG": read_png,
    "WEBP": read_webp,
    "AVIF": read_heif,
    "HEIF": read_heif,
}
_FILLER = b"\xb5\x6a" * 1000  # begins with a one: what is missing at a picture's end is read as zeros


def read_picture(data: bytes, max_pixels: int, field: str = "image") -> Image.Image:
    """The file's picture, upright, in 8-bit sRGB, alpha composited on white. The header is checked before decoding.

    Raises:
        InvalidImage: empty, another format, animated, too large, too small, too long, too complicated, or damaged.
    """
    try:
        kind = format_of(data)
        file = _WALKERS[kind](data)
        if file.claimed is not None:
            _check_size(Size(*file.claimed), max_pixels, field)
        image = _opened(kind, file)
        if getattr(image, "n_frames", 1) > 1 and kind != "HEIF":  # a HEIC file may hold a series; its first is meant
            raise BadFile(f"an animated {kind} file; send a single picture")
        _check_size(Size(*image.size), max_pixels, field)
        image.load()
        if not file.ended:
            _refuse_cut_data(kind, file, image)
        return upright_rgb(image, field, file.colour)
    except BadFile as error:
        raise InvalidImage(str(error), field) from error
    except (InvalidImage, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidImage(f"more than the {max_pixels:,} pixels allowed", field) from error
    except Exception as error:  # the decoders raise whatever they stumble over
        raise _damaged(error, field) from error


def load_image(source: ImageSource, field: str = "image") -> Image.Image:
    """Opens a path of one's own or takes a PIL image; as `read_picture`, but in any format that Pillow reads.

    Raises:
        InvalidImage: it cannot be read or decoded, has several frames, or a side or ratio is out of bounds; names
            the path, where it is one.
    """
    if isinstance(source, Image.Image):
        return upright_rgb(source, field)
    try:
        return upright_rgb(*_of_path(Path(source), field))
    except InvalidImage as error:
        raise InvalidImage(f"{source}: {str(error).partition(': ')[2]}", field) from error
    except BadFile as error:
        raise InvalidImage(f"{source}: {error}", field) from error
    except MemoryError:
        raise
    except Exception as error:
        # The system's own words where it is the system that failed; Pillow's errors have no number.
        number = getattr(error, "errno", None)
        reason = f"cannot be decoded ({type(error).__name__})" if number is None else os.strerror(number)
        raise InvalidImage(f"{source}: {reason}", field) from error


def _of_path(path: Path, field: str) -> tuple[Image.Image, str, Colour | None]:
    with open(path, "rb") as opened:
        data = opened.read()
    try:
        kind = format_of(data)
    except BadFile as unknown:
        try:
            return Image.open(BytesIO(data)), field, None  # TIFF, BMP and the like
        except UnidentifiedImageError:
            raise unknown from None
    file = _WALKERS[kind](data)
    image = _opened(kind, file)
    if not file.ended:
        _refuse_cut_data(kind, file, image)
    return image, field, file.colour


def _opened(kind: str, file: PictureFile) -> Image.Image:
    data = file.data if file.ended else file.data + END
    image = Image.open(BytesIO(data), formats=(kind,))
    if kind in ("HEIF", "AVIF"):  # these decoders translate the file's own turns into an orientation
        return image
    if file.exif is not None:
        image.info["exif"] = file.exif
    if file.xmp is not None:
        image.info["xmp"] = file.xmp
    return image


def _refuse_cut_data(kind: str, file: PictureFile, image: Image.Image) -> None:
    """A JPEG without its end marker is whole where nothing that follows makes a difference.

    Where data are missing the decoder reads on: zeros before an end marker, the filler's bytes otherwise.
    """
    other = _opened(kind, replace(file, data=file.data + _FILLER))
    if other.tobytes() != image.tobytes():
        raise BadFile("the file is cut short or damaged: a part of the picture is missing")


def _check_size(size: Size, max_pixels: int, field: str) -> None:
    pixels = size.width * size.height
    if pixels > max_pixels:
        raise InvalidImage(f"{size} is {pixels:,} pixels; at most {max_pixels:,} are allowed", field)
    if problem := shape_problem(size):
        raise InvalidImage(problem, field)


def _damaged(error: Exception, field: str) -> InvalidImage:
    if isinstance(error, UnidentifiedImageError):  # its message is the address of an object
        return InvalidImage("the file is cut short or damaged: its header cannot be read", field)
    return InvalidImage(f"the file is cut short or damaged ({type(error).__name__}: {str(error)[:100]})", field)
