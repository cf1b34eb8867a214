"""From an upright RGB picture to the model's two inputs (docs/model.md, section 10).

Knows pixels: the resize or crop to a bucket for the autoencoder, and the patches for the vision tower. Does not know
files (`hunyuan.pictures`) and tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from hunyuan.model.config import ModelConfig
from hunyuan.prompt.resolution import Bucket, Size, resolution_group


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
    pixels: Tensor  # fp32 [3, H, W] in -1..1, of the bucket's size; channels fastest in memory
    vision: VisionInput


def prepare_cond_image(image: Image.Image, config: ModelConfig, align: bool) -> CondImage:
    """Both inputs of one RGB picture. `align` resizes to the bucket, otherwise the centre is cropped."""
    source = Size(*image.size)
    bucket = resolution_group(config.image_base_size, config.has_extra_ratios).nearest(source)
    fitted = resize(image, bucket.size) if align else centre_crop(image, bucket.size)
    pixels = bytes_of(fitted).float()  # [3, H, W], channels still fastest
    # In place: fresh memory for each intermediate takes longer than the arithmetic. x / 127.5 is x / 255 * 2 to the
    # last bit, as doubling is exact.
    pixels.div_(127.5).sub_(1)
    return CondImage(source, bucket, pixels, vision_input(image, config))


def bytes_of(image: Image.Image) -> Tensor:
    """A copy of an RGB picture's values, uint8 `[3, H, W]`, with channels fastest in memory, as Pillow gives them."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize(image: Image.Image, target: Size) -> Image.Image:
    """LANCZOS, columns before rows: Pillow 13 picks the order by cost, earlier ones (and the model) do not.

    The same picture, not a copy, where it has that size.
    """
    for size in ((target.width, image.height), (target.width, target.height)):
        if image.size != size:
            image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def centre_crop(image: Image.Image, target: Size) -> Image.Image:
    """Scales until `target` is covered, then cuts out the middle."""
    width, height = image.size
    if height / width < target.ratio:
        scaled = Size(round(target.height / height * width), target.height)
    else:
        scaled = Size(target.width, round(target.width / width * height))
    left, top = round((scaled.width - target.width) / 2), round((scaled.height - target.height) / 2)
    return resize(image, scaled).crop((left, top, left + target.width, top + target.height))


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
    """Resizes on 8-bit values, normalizes, and cuts into patches flattened as (row, column, channel)."""
    patch, most = config.vit.patch_size, config.vit_processor.max_num_patches
    rows, columns = vision_grid(Size(*image.size), patch, most)
    # As Pillow has the values, with channels fastest: interpolation is quickest so, and gives the same bytes.
    resized = interpolate(bytes_of(image)[None], (rows * patch, columns * patch), mode="bilinear", antialias=True)[0]
    # Cut while a value is one byte, then normalized in the padded result itself: moving memory is what takes time.
    cut = resized.reshape(3, rows, patch, columns, patch).permute(1, 3, 2, 4, 0)  # [rows, columns, patch, patch, 3]
    patches = torch.zeros(most, patch * patch * 3)
    real = patches[: rows * columns]
    real.copy_(cut.reshape(rows * columns, -1))
    mean, std = (
        torch.tensor(v).repeat(patch * patch)  # [patch * patch * 3]
        for v in (config.vit_processor.image_mean, config.vit_processor.image_std)
    )
    real.mul_(config.vit_processor.rescale_factor).sub_(mean).div_(std)
    mask = torch.zeros(most, dtype=torch.int32)
    mask[: rows * columns] = 1
    return VisionInput(patches, (rows, columns), mask)


def to_pil(pixels: Tensor) -> Image.Image:
    """Decoder output `[3, H, W]`, about -1..1, to an RGB picture."""
    values = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())
