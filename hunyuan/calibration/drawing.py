"""Made-up pictures to calibrate with: surfaces, shapes, strokes like writing and grain, each from a number.

Photographs cannot be shipped small; what matters here is that flat, graded, edged and noisy patches all occur. Knows
pixels only.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_SHAPES = 9


def drawing(width: int, height: int, seed: int) -> Image.Image:
    """An RGB picture; the same arguments give the same one."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    first, second = random.uniform(0, 255, (2, 3))
    angle = random.uniform(0, 2 * np.pi)
    slope = x / width * np.cos(angle) + y / height * np.sin(angle)  # [height, width]
    slope = (slope - slope.min()) / max(float(np.ptp(slope)), 1e-9)
    ground = first + (second - first) * slope[..., None]
    picture = Image.fromarray(ground.astype(np.uint8))
    _shapes(picture, random)
    _writing(picture, random)
    if seed % 3 == 0:  # out of focus
        picture = picture.filter(ImageFilter.GaussianBlur(min(width, height) / 120))
    values = np.asarray(picture, dtype=np.float64)
    wave = np.sin(x * random.uniform(0.02, 0.6) + y * random.uniform(0.02, 0.6)) * random.uniform(0, 18)
    values = values + wave[..., None] + random.normal(0, random.uniform(1, 10), values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _shapes(picture: Image.Image, random: np.random.Generator) -> None:
    draw = ImageDraw.Draw(picture)
    for kind in range(_SHAPES):
        corner = random.uniform(-0.1, 0.9, 2) * picture.size
        size = random.uniform(0.08, 0.5, 2) * min(picture.size)
        box = (*corner, *(corner + size))
        colour = tuple(int(v) for v in random.integers(0, 256, 3))
        if kind % 3 == 0:
            draw.ellipse(box, fill=colour)
        elif kind % 3 == 1:
            draw.rectangle(box, fill=colour)
        else:
            draw.line(box, fill=colour, width=1 + int(size.min() / 12))


def _writing(picture: Image.Image, random: np.random.Generator) -> None:
    """Rows of short strokes."""
    draw, unit = ImageDraw.Draw(picture), max(2, min(picture.size) // 60)
    left, top = (int(v) for v in random.uniform(0.05, 0.6, 2) * picture.size)
    shade = tuple(int(v) for v in random.integers(0, 256, 3))
    for row in range(4):
        for column in range(14):
            a, b = random.integers(0, 2 * unit, 2)
            at = (left + column * 2 * unit, top + row * 4 * unit)
            if random.random() < 0.8:
                draw.line((at[0] + int(a), at[1], at[0] + int(b), at[1] + 2 * unit), fill=shade, width=unit // 2)
