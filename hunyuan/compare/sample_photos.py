"""Made-up photos for load and fuzzing: smooth colours, a pattern and grain, so that they compress like real ones.

No files, no network; the same arguments give the same picture.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


def photo(width: int, height: int, seed: int = 0, grain: float = 4.0) -> Image.Image:
    """An RGB picture. `grain` is the noise's standard deviation in 8-bit steps, as of a camera at low light."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    turn, scale = rng.uniform(0, 6.28), rng.uniform(30, 120)
    pattern = 128 + 100 * np.sin(x / scale + turn) * np.cos(y / scale)
    values = np.stack([x * 255 / width, y * 255 / height, pattern], axis=-1)[..., rng.permutation(3)]
    values = values + rng.normal(0, grain, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, fmt: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=fmt, **options)
    return buffer.getvalue()
