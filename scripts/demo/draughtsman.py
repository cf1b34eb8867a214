"""Procedural pictures, drawn on the device in batches: plain and graded grounds, shapes, stroke figures, lines, noise.

Pictures are float32 [n, 3, h, w] in 0..1, figures premultiplied with alpha [n, 1, h, w]; edges are smooth over a pixel.
Knows nothing of photographs or requests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Draughtsman:
    """Draws with one generator's random numbers."""

    def __init__(self, device: torch.device, rng: torch.Generator) -> None:
        self.device, self._rng = device, rng

    def grounds(self, n: int, h: int, w: int) -> Tensor:
        """Plain, graded and cloudy surfaces; a third is nearly white."""
        first, second = self._colours(n), self._colours(n)
        pale = 0.92 + 0.08 * self._uniform(n, 1, 1, 1)
        first = torch.where(self._uniform(n, 1, 1, 1) < 0.35, pale.expand_as(first), first)
        y, x = self._axes(h, w)
        angle = 6.283 * self._uniform(n, 1, 1, 1)
        slope = ((x * angle.cos() + y * angle.sin()) * 0.5 + 0.5).clamp(0, 1)
        clouds = F.interpolate(self._uniform(n, 3, 4, 4), size=(h, w), mode="bicubic").clamp(0, 1)
        kind = self._uniform(n, 1, 1, 1)
        graded = torch.where(kind < 0.9, first * (1 - slope) + second * slope, clouds)
        return torch.where(kind < 0.6, first.expand(n, 3, h, w), graded)

    def figures(self, n: int, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Figures of strokes, thin ones among them, and blobs: what has legs, whiskers, handles and holes."""
        colour, second = self._colours(n), self._colours(n)
        centre = 0.7 * self._uniform(n, 2, 1, 1) - 0.35
        rgb, alpha = torch.zeros(n, 3, h, w, device=self.device), torch.zeros(n, 1, h, w, device=self.device)
        for i in range(8):
            ends = (1.5 * self._uniform(n, 4, 1, 1) - 0.75) * 0.8 + torch.cat([centre, centre], 1)
            thick = 0.008 + 0.05 * self._uniform(n, 1, 1, 1) ** 2
            cover = self._stroke(ends, thick, h, w) if i < 5 else self._blob(ends, h, w)
            cover = cover * (self._uniform(n, 1, 1, 1) < 0.75)
            paint = colour if i % 2 else second
            rgb, alpha = rgb * (1 - cover) + paint * cover, alpha * (1 - cover) + cover
        body = self._blob(torch.cat([centre, centre + 0.3], 1), h, w)
        return rgb * (1 - body) + colour * body, alpha * (1 - body) + body

    def pictures(self, n: int, h: int, w: int) -> Tensor:
        """Whole drawings: shapes and strokes on grounds, stripes, checks, writing-like strokes, and noise."""
        shapes = self._covered(n, h, w, 6)
        figures, alpha = self.figures(n, h, w)
        drawings = figures + (1 - alpha) * self.grounds(n, h, w)
        kind = self._uniform(n, 1, 1, 1)
        rest = torch.where(kind < 0.8, self._patterns(n, h, w), self._noise(n, h, w))
        rest = torch.where(kind < 0.65, self._writing(n, h, w), rest)
        return torch.where(kind < 0.25, shapes, torch.where(kind < 0.45, drawings, rest)).clamp(0, 1)

    def _covered(self, n: int, h: int, w: int, count: int) -> Tensor:
        picture = self.grounds(n, h, w)
        y, x = self._axes(h, w)
        for _ in range(count):
            cx, cy = (2 * self._uniform(n, 1, 1, 1) - 1 for _ in range(2))
            rx, ry = (0.06 + 0.5 * self._uniform(n, 1, 1, 1) for _ in range(2))
            round_ = ((x - cx) / rx).square() + ((y - cy) / ry).square() - 1
            square = torch.maximum((x - cx).abs() / rx, (y - cy).abs() / ry) - 1
            far = torch.where(self._uniform(n, 1, 1, 1) < 0.5, round_, square) * torch.minimum(rx, ry)
            cover = (0.5 - far * min(h, w) / 2).clamp(0, 1)
            picture = picture * (1 - cover) + self._colours(n) * cover
        return picture

    def _patterns(self, n: int, h: int, w: int) -> Tensor:
        """Stripes and checks of any width and angle."""
        y, x = self._axes(h, w)
        angle, pitch = 3.1416 * self._uniform(n, 1, 1, 1), 6 + 40 * self._uniform(n, 1, 1, 1)
        waves = [(pitch * (x * a + y * b)).sin() for a, b in ((angle.cos(), angle.sin()), (-angle.sin(), angle.cos()))]
        wave = torch.where(self._uniform(n, 1, 1, 1) < 0.5, waves[0], waves[0] * waves[1])
        cover = (0.5 + 4 * wave).clamp(0, 1)
        return self._colours(n) * (1 - cover) + self._colours(n) * cover

    def _writing(self, n: int, h: int, w: int) -> Tensor:
        """Short strokes in rows, like print: dark on pale or the other way round."""
        rows, columns = 4 + int(self._uniform(1) * 8), 10 + int(self._uniform(1) * 22)
        size = (rows * 8, columns * 6)
        marks = (self._uniform(n, 1, *size) < 0.5).float()
        rows_y = torch.arange(size[0], device=self.device).view(1, 1, -1, 1) % 8
        columns_x = torch.arange(size[1], device=self.device).view(1, 1, 1, -1) % 6
        marks = marks * (rows_y < 5) * (columns_x < 4)
        marks = marks * (F.interpolate(self._uniform(n, 1, rows, columns), size=size) < 0.8)
        cover = F.interpolate(marks, size=(h, w), mode="bilinear", antialias=h < size[0])
        return self.grounds(n, h, w) * (1 - cover) + self._colours(n) * cover

    def _noise(self, n: int, h: int, w: int) -> Tensor:
        """Cloudy noise of several scales, coloured: bark, stone, water."""
        total = torch.zeros(n, 3, h, w, device=self.device)
        for level in range(2, 7):
            side = 2**level
            layer = F.interpolate(self._uniform(n, 3, side, side) - 0.5, size=(h, w), mode="bicubic")
            grey = layer.mean(1, keepdim=True).expand_as(layer)
            total = total + torch.where(self._uniform(n, 1, 1, 1) < 0.5, layer, grey) * 0.75 ** (level - 2)
        return (0.5 * self._colours(n) + 0.25 + total * 0.7).clamp(0, 1)

    def _stroke(self, ends: Tensor, thick: Tensor, h: int, w: int) -> Tensor:
        """How much of each pixel a line from (x0, y0) to (x1, y1) covers, in units of half the short side."""
        y, x = self._axes(h, w)
        x0, y0, x1, y1 = ends.split(1, 1)
        dx, dy = x1 - x0, y1 - y0
        along = (((x - x0) * dx + (y - y0) * dy) / (dx.square() + dy.square() + 1e-6)).clamp(0, 1)
        far = ((x - x0 - along * dx).square() + (y - y0 - along * dy).square()).sqrt() - thick
        return (0.5 - far * min(h, w) / 2).clamp(0, 1)

    def _blob(self, ends: Tensor, h: int, w: int) -> Tensor:
        """An ellipse around the first point, as large as the way to the second."""
        y, x = self._axes(h, w)
        x0, y0, x1, y1 = ends.split(1, 1)
        rx, ry = ((a - b).abs() * 0.6 + 0.05 for a, b in ((x1, x0), (y1, y0)))
        far = (((x - x0) / rx).square() + ((y - y0) / ry).square()).sqrt() - 1
        return (0.5 - far * torch.minimum(rx, ry) * min(h, w) / 2).clamp(0, 1)

    def _axes(self, h: int, w: int) -> tuple[Tensor, Tensor]:
        """y and x of every pixel's middle; the short side runs from -1 to 1."""
        short = min(h, w)
        y = (torch.arange(h, device=self.device) + 0.5 - h / 2) / (short / 2)
        x = (torch.arange(w, device=self.device) + 0.5 - w / 2) / (short / 2)
        return y.view(1, 1, h, 1), x.view(1, 1, 1, w)

    def _colours(self, n: int) -> Tensor:
        return self._uniform(n, 3, 1, 1)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, device=self.device, generator=self._rng)
