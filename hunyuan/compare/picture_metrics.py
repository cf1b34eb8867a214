"""How far two pictures are apart: PSNR and SSIM, and a sheet that shows it.

Knows PIL pictures and numbers; nothing of models. SSIM is the index of Wang, Bovik, Sheikh and Simoncelli, "Image
quality assessment: from error visibility to structural similarity" (2004), with the constants given there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageChops, ImageDraw

WINDOW, SIGMA = 11, 1.5
K1, K2, RANGE = 0.01, 0.03, 255.0
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
AMPLIFIED = 8
_TILE, _GAP, _LABEL = 384, 8, 16  # pixels


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio over all three channels, dB; infinite for equal pictures.

    Raises:
        ValueError: the sizes differ.
    """
    first, second = _arrays(a, b)
    error = float(np.mean((first - second) ** 2))
    return math.inf if error == 0 else 10 * math.log10(RANGE**2 / error)


def ssim(a: Image.Image, b: Image.Image) -> float:
    """Mean structural similarity of the luma, 1 for equal pictures; windows that lie wholly inside count.

    Raises:
        ValueError: the sizes differ, or a side is shorter than the window.
    """
    x, y = (picture @ np.array(LUMA) for picture in _arrays(a, b))  # [height, width]
    if min(x.shape) < WINDOW:
        raise ValueError(f"SSIM needs {WINDOW} px a side, got {a.size}")
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    values = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return float(values.mean())


def largest_difference(a: Image.Image, b: Image.Image) -> int:
    """Of any channel of any pixel, 0 to 255. Raises `ValueError` when the sizes differ."""
    first, second = _arrays(a, b)
    return int(np.abs(first - second).max())


def _arrays(a: Image.Image, b: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """fp64 `[height, width, 3]` each."""
    if a.size != b.size:
        raise ValueError(f"pictures of {a.size} and {b.size} cannot be compared pixel by pixel")
    return np.asarray(a.convert("RGB"), dtype=np.float64), np.asarray(b.convert("RGB"), dtype=np.float64)


def gaussian() -> np.ndarray:
    """The window along one axis, `[WINDOW]`, sum 1."""
    offset = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offset**2) / (2 * SIGMA**2))
    return weights / weights.sum()


def _blur(x: np.ndarray) -> np.ndarray:
    """`[h, w]` to `[h - WINDOW + 1, w - WINDOW + 1]`: the window's weighted means, one axis after the other."""
    weights = gaussian()
    for axis in (0, 1):
        length = x.shape[axis] - WINDOW + 1
        x = sum(weight * np.take(x, range(i, i + length), axis=axis) for i, weight in enumerate(weights))
    return x


def difference(a: Image.Image, b: Image.Image) -> Image.Image:
    """The absolute difference, `AMPLIFIED` times, clipped."""
    return ImageChops.difference(a.convert("RGB"), b.convert("RGB")).point(lambda value: min(255, AMPLIFIED * value))


def contact_sheet(rows: Sequence[Sequence[tuple[str, Image.Image | None]]]) -> Image.Image:
    """Labelled pictures in rows, each scaled into a square tile; None leaves its tile empty.

    Pictures smaller than a tile are not enlarged: pixels stay what they are.
    """
    columns = max(len(row) for row in rows)
    step_x, step_y = _TILE + _GAP, _TILE + _LABEL + _GAP
    sheet = Image.new("RGB", (_GAP + columns * step_x, _GAP + len(rows) * step_y), "white")
    draw = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (label, picture) in enumerate(row):
            left, top = _GAP + x * step_x, _GAP + y * step_y
            draw.text((left, top), _ascii(label), fill="black")
            if picture is None:
                draw.rectangle((left, top + _LABEL, left + _TILE - 1, top + _LABEL + _TILE - 1), outline="lightgrey")
                continue
            tile = picture.convert("RGB")
            tile.thumbnail((_TILE, _TILE))
            sheet.paste(tile, (left, top + _LABEL))
    return sheet


def _ascii(text: str) -> str:
    """Pillow's built-in font has no other letters, and a tile no more room."""
    return text.encode("ascii", "replace").decode()[: _TILE // 6]
