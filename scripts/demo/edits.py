"""The edits that the demo checkpoint learns, as exact arithmetic: the one definition for training and for judging.

Pictures are float tensors [n, 3, h, w] in 0..1, on any device; every function is deterministic. Lengths are those of
pictures of about 256x256 pixels. Knows nothing of wordings, files or how training pictures are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.12, 0.14),
    "green": (0.16, 0.66, 0.25),
    "blue": (0.13, 0.32, 0.86),
    "yellow": (0.98, 0.86, 0.16),
    "orange": (0.98, 0.55, 0.10),
    "purple": (0.52, 0.20, 0.70),
    "pink": (0.98, 0.55, 0.75),
    "black": (0.03, 0.03, 0.03),
    "white": (1.0, 1.0, 1.0),
    "grey": (0.5, 0.5, 0.5),
    "turquoise": (0.12, 0.76, 0.74),
    "brown": (0.48, 0.29, 0.14),
}
"""Name to sRGB in 0..1."""

FRAME_WIDTH = 16
PIXEL_SIZE = 16
BLUR_SIGMA = 4.0
SHARPEN_SIGMA, SHARPEN_AMOUNT = 5.0, 0.6
"""So wide that an autoencoder of a sixteenth of the size can show it; what is finer it loses."""
_SEPIA = ((0.393, 0.769, 0.189), (0.349, 0.686, 0.168), (0.272, 0.534, 0.131))


@dataclass(frozen=True)
class Step:
    """One edit: its name, and the colour of those that want one (tint, background, frame)."""

    name: str
    colour: str | None = None


COLOURED = ("tint", "background", "frame")
TURNS = ("left", "right")

# Several steps of one request are carried out in this order, whatever the order of the words.
ORDER = (
    *("bw", "sepia", "invert", "tint", "vivid", "pale", "warmer", "cooler"),
    *("brighter", "darker", "contrast", "flat", "background", "blur", "sharpen", "pixelate"),
    *("mirror", "upside", "left", "right", "frame"),
)
NAMES = ORDER


def steps_of(name: str) -> list[Step]:
    """The edits of one name: one, or one for each colour."""
    return [Step(name, colour) for colour in COLOURS] if name in COLOURED else [Step(name)]


def in_order(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps as they are carried out."""
    return tuple(sorted(steps, key=lambda step: ORDER.index(step.name)))


def turned(steps: Sequence[Step]) -> bool:
    """Whether the answer's height and width are the source's, swapped."""
    return sum(step.name in TURNS for step in steps) % 2 == 1


def changes_background(steps: Sequence[Step]) -> bool:
    """Whether the edits need to know what is in front."""
    return any(step.name == "background" for step in steps)


def apply(step: Step, x: Tensor) -> Tensor:
    """One edit of [n, 3, h, w] in 0..1.

    Raises:
        KeyError: an unknown name, or `background`, which needs to know what is in front (`over`).
    """
    if step.colour is None:
        return _PLAIN[step.name](x)
    colour = colour_of(step.colour, x)
    return {"tint": _tint, "frame": _frame}[step.name](x, colour)


def apply_all(steps: Sequence[Step], x: Tensor, figure: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Several edits, in their order.

    Args:
        figure: what is in front in `x`, premultiplied rgb [n, 3, h, w] and alpha [n, 1, h, w]; for `background`. Edits
            of colour and light come before it and change the figure: the new background is of the colour asked for.
    """
    steps = in_order(steps)
    if changes_background(steps):
        if figure is None:
            raise ValueError("background: what is in front must be told")
        rgb, alpha = figure
        place = [step.name for step in steps].index("background")
        for step in steps[:place]:
            rgb = alpha * apply(step, (rgb / alpha.clamp(min=1e-3)).clamp(0, 1))
        x = over(rgb, alpha, colour_of(steps[place].colour or "", rgb))
        steps = steps[place + 1 :]
    for step in steps:
        x = apply(step, x)
    return x


def over(rgb: Tensor, alpha: Tensor, behind: Tensor) -> Tensor:
    """Clip art (premultiplied rgb [n, 3, h, w], alpha [n, 1, h, w]) over a picture or a colour [1 or n, 3, 1, 1]."""
    return (rgb + (1 - alpha) * behind).clamp(0, 1)


def colour_of(name: str, like: Tensor) -> Tensor:
    """A named colour as [1, 3, 1, 1], of another tensor's device and dtype."""
    return like.new_tensor(COLOURS[name]).view(1, 3, 1, 1)


def luma(x: Tensor) -> Tensor:
    """[n, 1, h, w]: how bright each pixel looks."""
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def gauss(x: Tensor, sigma: float) -> Tensor:
    """Gaussian blur, mirrored at the borders."""
    radius = int(3 * sigma + 0.5)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype) ** 2) / (2 * sigma * sigma))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="reflect"), kernel[:, :, None], groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, radius, radius), mode="reflect"), kernel[..., None], groups=x.shape[1])


def fill(x: Tensor, height: int, width: int) -> Tensor:
    """Resized to cover height x width, and cropped in the middle."""
    scale = max(height / x.shape[2], width / x.shape[3])
    size = (max(height, round(x.shape[2] * scale)), max(width, round(x.shape[3] * scale)))
    if size != (x.shape[2], x.shape[3]):
        x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return x[:, :, top : top + height, left : left + width].clamp(0, 1)


def beside(first: Tensor, second: Tensor, height: int, width: int) -> Tensor:
    """Two pictures side by side, each filling one half of height x width."""
    return torch.cat([fill(first, height, width // 2), fill(second, height, width // 2)], dim=3)


def shape_mask(name: str, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """A shape in the middle as [1, 1, h, w] in 0..1, smooth over a pixel.

    Raises:
        KeyError: an unknown shape.
    """
    short = min(height, width)
    y = ((torch.arange(height, device=device) + 0.5 - height / 2) / (short / 2)).view(1, 1, -1, 1)
    x = ((torch.arange(width, device=device) + 0.5 - width / 2) / (short / 2)).view(1, 1, 1, -1)
    return (0.5 - _SHAPES[name](x, y) * short / 2).clamp(0, 1)


def _polygon(points: Sequence[tuple[float, float]]) -> Callable[[Tensor, Tensor], Tensor]:
    """The distance to a polygon's edge, negative inside."""

    def far(x: Tensor, y: Tensor) -> Tensor:
        nearest = torch.full(torch.broadcast_shapes(x.shape, y.shape), 9.0, device=x.device)
        inside = torch.zeros_like(nearest, dtype=torch.bool)
        for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
            dx, dy = x1 - x0, y1 - y0
            along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
            nearest = torch.minimum(nearest, ((x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2).sqrt())
            if dy:
                inside ^= ((y0 > y) != (y1 > y)) & (x < dx * (y - y0) / dy + x0)
        return torch.where(inside, -nearest, nearest)

    return far


def _star() -> list[tuple[float, float]]:
    radii = [0.68 if i % 2 == 0 else 0.28 for i in range(10)]
    return [(r * math.sin(math.pi * i / 5), 0.05 - r * math.cos(math.pi * i / 5)) for i, r in enumerate(radii)]


def _heart() -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / 48 for i in range(48)]
    heights = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) for t in turns]
    return [(0.036 * 16 * math.sin(t) ** 3, -0.036 * y - 0.07) for t, y in zip(turns, heights, strict=True)]


def _cross() -> list[tuple[float, float]]:
    a, b = 0.18, 0.6
    return [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]


_SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda x, y: (x * x + y * y).sqrt() - 0.6,
    "ring": lambda x, y: ((x * x + y * y).sqrt() - 0.48).abs() - 0.14,
    "square": _polygon([(-0.55, -0.55), (0.55, -0.55), (0.55, 0.55), (-0.55, 0.55)]),
    "diamond": _polygon([(0, -0.68), (0.5, 0), (0, 0.68), (-0.5, 0)]),
    "triangle": _polygon([(0, -0.6), (0.65, 0.5), (-0.65, 0.5)]),
    "star": _polygon(_star()),
    "heart": _polygon(_heart()),
    "cross": _polygon(_cross()),
}


def _grey(x: Tensor) -> Tensor:
    return luma(x).expand(-1, 3, -1, -1)


def _sepia(x: Tensor) -> Tensor:
    toned = torch.einsum("oc,nchw->nohw", x.new_tensor(_SEPIA), x).clamp(0, 1)
    return toned * x.new_tensor((0.98, 0.94, 0.86)).view(1, 3, 1, 1)


def _saturate(amount: float) -> Callable[[Tensor], Tensor]:
    return lambda x: (luma(x) + (x - luma(x)) * amount).clamp(0, 1)


def _contrast(amount: float) -> Callable[[Tensor], Tensor]:
    return lambda x: ((x - 0.5) * amount + 0.5).clamp(0, 1)


def _light(gain: tuple[float, float, float], lift: tuple[float, float, float]) -> Callable[[Tensor], Tensor]:
    def lit(x: Tensor) -> Tensor:
        return (x * x.new_tensor(gain).view(1, 3, 1, 1) + x.new_tensor(lift).view(1, 3, 1, 1)).clamp(0, 1)

    return lit


def _sharpen(x: Tensor) -> Tensor:
    return (x + SHARPEN_AMOUNT * (x - gauss(x, SHARPEN_SIGMA))).clamp(0, 1)


def _pixelate(x: Tensor) -> Tensor:
    small = F.avg_pool2d(x, PIXEL_SIZE, ceil_mode=True, count_include_pad=False)
    large = small.repeat_interleave(PIXEL_SIZE, 2).repeat_interleave(PIXEL_SIZE, 3)
    return large[:, :, : x.shape[2], : x.shape[3]]


def _tint(x: Tensor, colour: Tensor) -> Tensor:
    # Black to the colour to white, and a quarter of the plain colour, so that black, white and grey are tints as well.
    y = luma(x)
    toned = torch.where(y < 0.5, 2 * y * colour, colour + (1 - colour) * (2 * y - 1))
    return 0.75 * toned + 0.25 * colour


def _frame(x: Tensor, colour: Tensor) -> Tensor:
    framed, edge = colour.expand_as(x).clone(), FRAME_WIDTH
    framed[:, :, edge:-edge, edge:-edge] = x[:, :, edge:-edge, edge:-edge]
    return framed


_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "bw": _grey,
    "sepia": _sepia,
    "invert": lambda x: 1 - x,
    "brighter": lambda x: x.clamp(1e-4, 1) ** 0.6,
    "darker": lambda x: x.clamp(1e-4, 1) ** 1.8,
    "contrast": _contrast(1.6),
    "flat": _contrast(0.5),
    "warmer": _light((1.15, 1.0, 0.70), (0.04, 0.01, 0.0)),
    "cooler": _light((0.72, 0.98, 1.15), (0.0, 0.01, 0.05)),
    "vivid": _saturate(1.9),
    "pale": _saturate(0.4),
    "mirror": lambda x: x.flip(3),
    "upside": lambda x: x.flip(2),
    # "Upside down" is what a mirror on the floor shows; a half turn is not in the set.
    "left": lambda x: x.rot90(1, (2, 3)),
    "right": lambda x: x.rot90(-1, (2, 3)),
    "blur": lambda x: gauss(x, BLUR_SIGMA),
    "sharpen": _sharpen,
    "pixelate": _pixelate,
}
