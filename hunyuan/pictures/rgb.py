"""A picture that Pillow has opened to upright 8-bit sRGB, whatever its mode.

Knows Pillow's modes and the EXIF orientation. Which files are opened is `reader.py`'s business.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pi_heif
from PIL import ExifTags, Image

from hunyuan.errors import InvalidImage
from hunyuan.pictures.colour import ADOBE_RGB, colour_of, to_srgb
from hunyuan.pictures.parts import BadFile, Colour
from hunyuan.prompt.resolution import Size, shape_problem

# One thread: a process that decodes is given one picture at a time, and an amount of CPU time for it.
pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)

_TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright_rgb(image: Image.Image, field: str, colour: Colour | None = None) -> Image.Image:
    """A picture that is open: upright, in 8-bit sRGB, alpha composited on white.

    Args:
        colour: what its file says of it; None: what Pillow knows.

    Raises:
        InvalidImage: it cannot be decoded, has several frames, or a side or ratio is out of bounds.
    """
    # A phone's MPO holds further pictures behind the photo; only the first is meant,
    # and a HEIC file may be a series, of which the primary one is meant.
    if getattr(image, "n_frames", 1) > 1 and image.format not in ("MPO", "HEIF"):
        raise InvalidImage("an animated picture was sent; send a single frame", field)
    if problem := shape_problem(Size(*image.size)):
        raise InvalidImage(problem, field)
    try:
        image.load()  # here, and not while its EXIF is looked for, where an error means that there is none
        colour = colour_of(image.info) if colour is None else colour
        if colour == Colour() and _says_adobe_rgb(image):
            colour = ADOBE_RGB
        turn = _TURNS.get(_orientation(image))
        rgb = to_rgb(image if turn is None else image.transpose(turn), colour)
    except BadFile as error:
        raise InvalidImage(str(error), field) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidImage(f"cannot be decoded ({type(error).__name__})", field) from error
    if rgb is image:  # the caller's, or a file's, which stays as it is
        rgb = image.copy()
    rgb.info = {}  # the orientation among it has been applied and must not be again
    return rgb


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation. Only this tag is read: a photo whose other tags are broken is still a photo."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except (OSError, ValueError, SyntaxError, TypeError, struct.error):
        return None


def _says_adobe_rgb(image: Image.Image) -> bool:
    """How cameras say it that embed no profile (DCF: ColorSpace is "uncalibrated", the interoperability index R03)."""
    try:
        exif = image.getexif()
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        index = exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, AttributeError, struct.error):
        return False
    return space == 2 or (space != 1 and index in ("R03", b"R03"))


def to_rgb(image: Image.Image, colour: Colour | None = None) -> Image.Image:
    """Any mode to 8-bit sRGB; the same image where it is. `colour`: what its values mean; None: what Pillow knows."""
    colour = colour_of(image.info) if colour is None else colour
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey_of_integers(image)
    elif image.mode == "RGB" and isinstance(image.info.get("transparency"), tuple):
        image = image.copy()  # the caller's `info` stays as it is
        image.info["transparency"] = _eight_bit_colour(image.info["transparency"])
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image, colour)
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return to_srgb(image, colour)


def _on_white(image: Image.Image, colour: Colour) -> Image.Image:
    """Composited in sRGB, as browsers do."""
    with_alpha = image.convert("RGBA")
    plain = image.convert("L") if image.mode in ("L", "LA") else with_alpha.convert("RGB")
    upper = to_srgb(plain, colour)
    upper.putalpha(with_alpha.getchannel("A"))
    del with_alpha, plain
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, upper).convert("RGB")


def _grey_of_integers(image: Image.Image) -> Image.Image:
    """16-bit grey keeps its high byte; PIL's own conversion would clip at 255.

    PIL's 32-bit mode `I` says nothing of its range: with no value above 255 it holds 8-bit grey (what `convert("I")`
    makes of it), else 16-bit grey.
    """
    values = np.asarray(image)
    if image.mode == "I":
        values = values.clip(0, 65535)
    eight_bit = image.mode == "I" and int(values.max()) <= 255
    grey = (values if eight_bit else values >> 8).astype(np.uint8)
    clear = image.info.get("transparency")
    if clear is not None:
        grey[values == clear] = 255  # a transparent grey, in the file's own range, lies on white
    return Image.fromarray(grey)


def _eight_bit_colour(colour: tuple[int, ...]) -> tuple[int, ...]:
    """PIL reads the pixels of a 16-bit PNG as 8-bit ones, but leaves its transparent colour as it was."""
    return tuple(value >> 8 for value in colour) if max(colour) > 255 else colour
