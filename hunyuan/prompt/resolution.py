"""Sizes and the model's resolution buckets (docs/model.md, section 10).

Knows which picture sizes a checkpoint can make, and to which of them the size that is asked for, or a source picture's,
snaps. `Size` is the one type that says which number is the width.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from hunyuan.errors import InvalidRequest

ALIGN = 16
MAX_RATIO = 8.0
MIN_SIDE = 16
_SIZE = re.compile(r"([1-9][0-9]{0,5})([x:])([1-9][0-9]{0,5})")
_EXTRA = ((768, 1024), (720, 1280), (1024, 768), (1280, 720))  # (width, height), whatever the base size is


@dataclass(frozen=True)
class Size:
    """Width and height in pixels."""

    width: int
    height: int

    @property
    def ratio(self) -> float:
        """Height over width, the order the buckets are sorted by."""
        return self.height / self.width

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass(frozen=True)
class Bucket:
    """One size that the model paints; `index` is the number in its `<img_ratio_INDEX>` token."""

    index: int
    size: Size


class ResolutionGroup:
    """The buckets of one base size: about its square in area, from 1:4 to 4:1, and four fixed sizes.

    Args:
        extra: False leaves out the four, for which the base model has no ratio tokens.
    """

    def __init__(self, base_size: int, extra: bool = True) -> None:
        self.base_size = base_size
        sizes = _walk(base_size)
        ratios = {s.ratio for s in sizes}
        if extra:
            sizes += [s for s in (Size(w, h) for w, h in _EXTRA) if s.ratio not in ratios]
        self.buckets = tuple(Bucket(i, s) for i, s in enumerate(sizes))

    def nearest(self, size: Size) -> Bucket:
        """The bucket whose ratio is nearest; only the ratio of `size` counts. The first one wins a tie."""
        return min(self.buckets, key=lambda b: abs(size.ratio - b.size.ratio))

    @property
    def square(self) -> Bucket:
        return self.nearest(Size(1, 1))


@lru_cache
def resolution_group(base_size: int, extra: bool = True) -> ResolutionGroup:
    return ResolutionGroup(base_size, extra)


def _walk(base: int) -> list[Size]:
    """From the square, trade height for width and width for height until both limits are met."""
    step, low, high = base // 16, base // 2, base * 2
    sizes = [Size(base, base)]
    for grow, shrink in (("height", "width"), ("width", "height")):
        sides = {"height": base, "width": base}
        while sides[grow] < high or sides[shrink] > low:
            sides[grow] = min(sides[grow] + step, high)
            sides[shrink] = max(sides[shrink] - step, low)
            sizes.append(Size(sides["width"] // ALIGN * ALIGN, sides["height"] // ALIGN * ALIGN))
    return sorted(sizes, key=lambda s: s.ratio)


def parse_resolution(text: str, field: str = "resolution") -> Size | None:
    """Reads `auto` (None), `WIDTHxHEIGHT` or `W:H`.

    Raises:
        InvalidRequest: anything else, or a ratio beyond 8:1.
    """
    if text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequest(field, f"got {text[:40]!r}; allowed are auto, WIDTHxHEIGHT (1024x768) and W:H (4:3)")
    size = Size(int(match[1]), int(match[3]))
    problem = shape_problem(size, in_pixels=match[2] == "x")
    if problem is not None:
        raise InvalidRequest(field, problem)
    return size


def shape_problem(size: Size, in_pixels: bool = True) -> str | None:
    """What is wrong with a picture's shape: a side too short, where `size` is in pixels, or too long a strip."""
    if in_pixels and min(size.width, size.height) < MIN_SIDE:
        return f"got {size} px; each side must be at least {MIN_SIDE} px"
    ratio = max(size.ratio, 1 / size.ratio)
    if ratio > MAX_RATIO:
        return f"got {size}, a ratio of {ratio:.1f}:1; at most {MAX_RATIO:.0f}:1 is allowed"
    return None


def aligned_output_size(sources: list[tuple[Size, int]], output: Bucket, base_size: int) -> Size:
    """The size the output is resized to under `infer_align_image_size` (docs/model.md, section 17).

    The first source whose bucket is the output's decides: its own ratio at about `base_size` squared pixels,
    unless the bucket's ratio is within .01 of it already. No such source: the bucket's size.

    Args:
        sources: the size and the bucket index of each condition image, in order.
    """
    for size, index in sources:
        if index == output.index:
            if abs(size.ratio - output.size.ratio) < 0.01:
                break
            k = math.sqrt(base_size**2 / (size.width * size.height))
            return Size(round(size.width * k), round(size.height * k))
    return output.size
