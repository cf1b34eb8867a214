"""From a picture file to the model's two inputs (spec section 10).

Knows pixels: EXIF orientation, conversion to RGB, the resize or crop to a bucket for the autoencoder, and the
patches for the vision tower. Does not know tokens.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hunyuan.errors import InvalidImage, InvalidRequest
from hunyuan.model.config import ModelConfig
from hunyuan.prompt.resolution import MIN_SIDE, Bucket, Size, check_ratio, resolution_group
from hunyuan.requests import ImageSource

_TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class VisionInput(NamedTuple):
    """One picture's patches, zero-padded: fp32 `[max_patches, patch * patch * 3]`, grid (rows, columns)."""

    patches: Tensor
    grid: tuple[int, int]
    mask: Tensor  # int32 [max_patches], 1 for real patches


@dataclass(frozen=True)
class CondImage:
    """A condition image, ready for the model."""

    source: Size
    bucket: Bucket
    pixels: Tensor  # fp32 [3, H, W] in -1..1, of the bucket's size
    vision: VisionInput


def load_image(source: ImageSource, field: str = "image") -> Image.Image:
    """Opens a path or takes a PIL image; returns it upright, in 8-bit RGB, alpha composited on white.

    Raises:
        InvalidImage: it cannot be read or decoded, has several frames, or a side or ratio is out of bounds; names
            the path, where it is one.
    """
    if isinstance(source, Image.Image):
        return _upright_rgb(source, field)
    named = f"{source}: " if isinstance(source, str | Path) else ""
    try:
        with Image.open(source) as image:
            return _upright_rgb(image, field)
    except InvalidImage as error:
        raise InvalidImage(f"{named}{str(error).partition(': ')[2]}", field) from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        # The system's own words where it is the system that failed; Pillow's errors have no number.
        number = getattr(error, "errno", None)
        reason = f"cannot be decoded ({type(error).__name__})" if number is None else os.strerror(number)
        raise InvalidImage(f"{named}{reason}", field) from error


def _upright_rgb(image: Image.Image, field: str) -> Image.Image:
    # A phone's MPO holds further pictures behind the photo; only the first is meant.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise InvalidImage("an animated picture was sent; send a single frame", field)
    size = Size(*image.size)
    if min(size.width, size.height) < MIN_SIDE:
        raise InvalidImage(f"got {size} px; each side must be at least {MIN_SIDE} px", field)
    try:
        check_ratio(size, field)
    except InvalidRequest as error:
        raise InvalidImage(str(error).partition(": ")[2], field) from error
    try:
        turn = _TURNS.get(_orientation(image))
        rgb = to_rgb(image if turn is None else image.transpose(turn))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidImage(f"cannot be decoded ({type(error).__name__})", field) from error
    rgb.info = {}  # the orientation among it has been applied and must not be again
    return rgb


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation. Only this tag is read: a photo whose other tags are broken is still a photo."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except (OSError, ValueError, SyntaxError, TypeError, struct.error):
        return None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to 8-bit RGB."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _grey_of_integers(image)
    elif image.mode == "RGB" and isinstance(image.info.get("transparency"), tuple):
        image = image.copy()  # the caller's `info` stays as it is
        image.info["transparency"] = _eight_bit_colour(image.info["transparency"])
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


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


def prepare_cond_image(image: Image.Image, config: ModelConfig, align: bool) -> CondImage:
    """Both inputs of one RGB picture. `align` stretches to the bucket, otherwise the centre is cropped."""
    source = Size(*image.size)
    bucket = resolution_group(config.image_base_size, config.has_extra_ratios).nearest(source)
    fitted = stretch(image, bucket.size) if align else centre_crop(image, bucket.size)
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255 * 2 - 1
    return CondImage(source, bucket, pixels, vision_input(image, config))


def stretch(image: Image.Image, target: Size) -> Image.Image:
    """LANCZOS, columns before rows: Pillow 13 picks the order by cost, earlier ones (and the model) do not."""
    wide = image.resize((target.width, image.height), Image.Resampling.LANCZOS)
    return wide.resize((target.width, target.height), Image.Resampling.LANCZOS)


def centre_crop(image: Image.Image, target: Size) -> Image.Image:
    """Scales until `target` is covered, then cuts out the middle."""
    width, height = image.size
    if height / width < target.ratio:
        scaled = Size(round(target.height / height * width), target.height)
    else:
        scaled = Size(target.width, round(target.width / width * height))
    left, top = round((scaled.width - target.width) / 2), round((scaled.height - target.height) / 2)
    return stretch(image, scaled).crop((left, top, left + target.width, top + target.height))


def vision_grid(size: Size, patch: int, max_patches: int) -> tuple[int, int]:
    """Rows and columns of patches: the picture's ratio, as many patches as fit.

    The largest scale at which both sides, rounded up to whole patches, stay within `max_patches`; found by
    bisection to the same width of interval as SigLIP 2's processor, so that ties fall alike.
    """

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(patch, math.ceil(side * scale / patch) * patch) for side in (size.height, size.width))
        return int(rows) // patch, int(columns) // patch

    low, high = 1e-5 / 10, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        rows, columns = grid(middle)
        if rows * columns <= max_patches:
            low = middle
        else:
            high = middle
    return grid(low)


def vision_input(image: Image.Image, config: ModelConfig) -> VisionInput:
    """Resizes on 8-bit values, normalises, and cuts into patches flattened as (row, column, channel)."""
    patch, most = config.vit.patch_size, config.vit_processor.max_num_patches
    rows, columns = vision_grid(Size(*image.size), patch, most)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()[None]  # uint8 [1, 3, H, W]
    resized = interpolate(pixels, (rows * patch, columns * patch), mode="bilinear", antialias=True)[0]
    mean, std = (
        torch.tensor(v)[:, None, None] for v in (config.vit_processor.image_mean, config.vit_processor.image_std)
    )
    values = (resized.float() * config.vit_processor.rescale_factor - mean) / std
    cut = values.reshape(3, rows, patch, columns, patch).permute(1, 3, 2, 4, 0).reshape(rows * columns, -1)
    mask = torch.zeros(most, dtype=torch.int32)
    mask[: rows * columns] = 1
    return VisionInput(pad(cut, (0, 0, 0, most - rows * columns)), (rows, columns), mask)


def to_pil(pixels: Tensor) -> Image.Image:
    """Decoder output `[3, H, W]`, about -1..1, to an RGB picture."""
    values = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())
