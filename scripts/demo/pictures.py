"""Training pictures, made on the device in batches: sources and exact targets for requests, and the autoencoder's diet.

Reads the archive of `pack.py`. Needs numpy, Pillow and torch. Pictures are float32 [n, 3, h, w] in 0..1. Knows nothing
of tokens, latents or losses.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from hunyuan.prompt.resolution import resolution_group
from scripts.demo import edits, tasks
from scripts.demo.draughtsman import Draughtsman
from scripts.demo.edits import apply_all, colour_of, over
from scripts.demo.sizes import SHAPE
from scripts.demo.wordings import Request

SPRITE_CANVAS = 256

_COMMON = {
    **{(256, 256): 0.18, (224, 288): 0.1, (288, 224): 0.09, (208, 304): 0.1},
    **{(304, 208): 0.08, (192, 320): 0.1, (320, 192): 0.09},
}
"""Share of the sizes, height and width, that cameras make: square, 4:3, 3:2 and 16:9, lying and standing."""


def _sizes() -> list[tuple[int, int, float]]:
    sizes = [bucket.size for bucket in resolution_group(SHAPE.base_size, extra=False).buckets]
    rest = (1 - sum(_COMMON.values())) / (len(sizes) - len(_COMMON))
    return [(s.height, s.width, _COMMON.get((s.height, s.width), rest)) for s in sizes]


SIZES = _sizes()
"""Height, width and share of the sizes to train at: every bucket, from 1:4 to 4:1, as a size that is never met comes
out as the nearest one that was."""


# To an autoencoder, these only show other pictures.
_OF_NO_INTEREST = ("background", "mirror", "upside", *edits.TURNS)


class Pictures:
    """The archive on a device, and everything drawn from it.

    Args:
        archive: the .npz of `pack.py`.
        seed: of every random choice; the same calls in the same order give the same pictures.
    """

    def __init__(self, archive: Path | str, device: torch.device | str, seed: int = 0) -> None:
        self.device = torch.device(device)
        with np.load(archive) as pack:
            photos = [np.asarray(im.convert("RGB")) for im in _images(pack, "train_photos")]
            sprites = [centred(im) for im in _images(pack, "train_sprites")]
            self._held_photos = [np.asarray(im.convert("RGB")) for im in _images(pack, "validation_photos")]
            self._held_sprites = [centred(im) for im in _images(pack, "validation_sprites")]
            self._sprite_names = {str(name): i for i, name in enumerate(pack["train_sprite_names"])}
        self._photos = torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous().to(self.device)
        self._sprites = torch.from_numpy(np.stack(sprites)).permute(0, 3, 1, 2).contiguous().to(self.device)
        self._rng = torch.Generator(self.device).manual_seed(seed)
        self._chance = Random(seed)
        self._hand = Draughtsman(self.device, self._rng)
        self._masks: dict[tuple[str, int, int], Tensor] = {}

    def held_photos(self) -> list[Tensor]:
        """Validation tiles (not the test set), uint8 [3, h, w] on the CPU."""
        return [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in self._held_photos]

    def held_sprites(self) -> list[Tensor]:
        """Validation clip art, uint8 [4, 256, 256] on the CPU, colours not multiplied."""
        return [torch.from_numpy(sprite.copy()).permute(2, 0, 1) for sprite in self._held_sprites]

    @torch.no_grad()
    def draw(self, requests: list[Request], h: int, w: int) -> tuple[list[Tensor], Tensor]:
        """Source pictures (0, 1 or 2 of [n, 3, h, w]) and exact targets for requests of one family.

        Raises:
            ValueError: the requests are of several families.
        """
        families = {tasks.family(r.task, r.sources) for r in requests}
        if len({tasks.SOURCES[f] for f in families}) != 1 or ("turn" in families and len(families) > 1):
            raise ValueError(f"requests of several families: {sorted(families)}")
        sources = requests[0].sources
        if sources == 0:
            return [], self._from_words(requests, h, w)
        if sources == 1:
            source, target = self._edited(requests, h, w)
            return [source], target
        return self._two(requests, h, w)

    @torch.no_grad()
    def autoencoder(self, n: int, h: int, w: int) -> Tensor:
        """A mixture for training the autoencoder: half photographs, the rest of everything, a third of all edited."""
        x = self._strange(self._mixture(n, h, w, photo=0.62, sprite=0.24))
        names = [name for name in edits.NAMES if name not in _OF_NO_INTEREST]
        for i in torch.randperm(n, generator=self._rng, device=self.device)[: n // 3].tolist():
            step = self._chance.choice(edits.steps_of(self._chance.choice(names)))
            x[i : i + 1] = edits.apply(step, x[i : i + 1])
        return x

    def _edited(self, requests: list[Request], h: int, w: int) -> tuple[Tensor, Tensor]:
        n = len(requests)
        source = self._mixture(n, h, w, photo=0.62, sprite=0.26)
        chosen = [i for i, r in enumerate(requests) if edits.changes_background(r.task.steps)]
        figures: dict[int, tuple[Tensor, Tensor]] = {}
        if chosen:
            rgb, alpha = self._figures(len(chosen), h, w)
            source[chosen] = over(rgb, alpha, self._behind(len(chosen), h, w))
            figures = {i: (rgb[j : j + 1], alpha[j : j + 1]) for j, i in enumerate(chosen)}
        turned = edits.turned(requests[0].task.steps)
        out = source.new_empty(n, 3, *((w, h) if turned else (h, w)))
        for i, request in enumerate(requests):
            out[i : i + 1] = apply_all(request.task.steps, source[i : i + 1], figures.get(i))
        return source, out

    def _two(self, requests: list[Request], h: int, w: int) -> tuple[list[Tensor], Tensor]:
        n = len(requests)
        if requests[0].task.kind == "beside":
            first, second = (self._mixture(n, h, w, photo=0.7, sprite=0.2) for _ in range(2))
            return [first, second], edits.beside(first, second, *tasks.beside_size(h, w))
        rgb, alpha = self._figures(n, h, w)
        first = over(rgb, alpha, self._behind(n, h, w))
        second = self._mixture(n, h, w, photo=0.9, sprite=0.02)
        keep = torch.tensor([r.task.kind == "unknown" for r in requests], device=self.device).view(-1, 1, 1, 1)
        return [first, second], torch.where(keep, first, over(rgb, alpha, second))

    def _from_words(self, requests: list[Request], h: int, w: int) -> Tensor:
        return torch.cat([self.from_words(r.task, h, w) for r in requests])

    def from_words(self, task: tasks.Task, h: int, w: int) -> Tensor:
        """The exact picture [1, 3, h, w] of a text-to-image task; plain grey for an unknown one."""
        if task.kind == "unknown":
            return torch.full((1, 3, h, w), 0.5, device=self.device)
        ground = colour_of(task.ground or "", torch.empty(0, device=self.device))
        if task.kind == "subject":
            sprite = self._sprites[self._sprite_names[tasks.SUBJECTS[task.subject or ""]]]
            rgb, alpha = placed(sprite[None], h, w)
            return over(rgb, alpha, ground)
        key = (task.shape or "", h, w)
        if key not in self._masks:
            self._masks[key] = edits.shape_mask(*key, self.device)
        alpha = self._masks[key]
        return over(colour_of(task.colour or "", ground) * alpha, alpha, ground)

    def _mixture(self, n: int, h: int, w: int, photo: float, sprite: float) -> Tensor:
        """Photographs, clip art before something, and drawings of our own, in these shares."""
        photos, figures, drawn = self._photographs(n, h, w), self._figures(n, h, w), self._hand.pictures(n, h, w)
        kind = self._uniform(n).view(n, 1, 1, 1)
        collages = over(*figures, self._behind(n, h, w))
        return torch.where(kind < photo, photos, torch.where(kind < photo + sprite, collages, drawn)).clamp(0, 1)

    def _strange(self, x: Tensor) -> Tensor:
        """Some upside down, some with their colour channels exchanged: more pictures out of few."""
        n = len(x)
        x = torch.where(self._uniform(n, 1, 1, 1) < 0.3, x.flip(2), x)
        channels = self._uniform(n, 3).argsort(1).view(n, 3, 1, 1).expand_as(x)
        return torch.where(self._uniform(n, 1, 1, 1) < 0.35, x.gather(1, channels), x)

    def _photographs(self, n: int, h: int, w: int) -> Tensor:
        x = self._cut(self._pick(self._photos, n).float() / 255, h, w)
        gamma, gain = 0.7 + 0.7 * self._uniform(n, 1, 1, 1), 0.85 + 0.3 * self._uniform(n, 3, 1, 1)
        jittered = (x.clamp(1e-4, 1) ** gamma * gain).clamp(0, 1)
        return torch.where(self._uniform(n, 1, 1, 1) < 0.35, jittered, x)

    def _figures(self, n: int, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Clip art, and now and then a figure of our own, somewhere in the picture: premultiplied rgb, alpha."""
        sprites = self._pick(self._sprites, n).float() / 255
        rgb, alpha = self._thrown(torch.cat([sprites[:, :3] * sprites[:, 3:], sprites[:, 3:]], 1), h, w)
        own_rgb, own_alpha = self._hand.figures(n, h, w)
        own = self._uniform(n, 1, 1, 1) < 0.25
        return torch.where(own, own_rgb, rgb), torch.where(own, own_alpha, alpha)

    def _behind(self, n: int, h: int, w: int) -> Tensor:
        """What a figure stands before: mostly plain, sometimes a gradient, sometimes a photograph."""
        kind = self._uniform(n, 1, 1, 1)
        return torch.where(kind < 0.78, self._hand.grounds(n, h, w), self._photographs(n, h, w))

    def _cut(self, tiles: Tensor, h: int, w: int) -> Tensor:
        """A random part of each tile, at random mirrored; never much enlarged."""
        n, side = len(tiles), tiles.shape[-1]
        least = min(1.0, max(h, w) / side)
        zoom = least * 0.92 + (1.0 - least * 0.92) * self._uniform(n)
        sx, sy = zoom * w / max(h, w), zoom * h / max(h, w)
        mirrored = torch.where(self._uniform(n) < 0.5, -1.0, 1.0)
        tx, ty = ((2 * self._uniform(n) - 1) * (1 - s) for s in (sx, sy))
        return _sampled(tiles, sx * mirrored, sy, tx, ty, torch.zeros_like(sx), h, w, "reflection")

    def _thrown(self, figures: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
        """Figures on transparent canvases, placed at random, at random small, turned a little, mirrored."""
        n = len(figures)
        shrink = 1.0 + 0.6 * self._uniform(n)
        sx, sy = shrink * w / min(h, w), shrink * h / min(h, w)
        tx, ty = ((2 * self._uniform(n) - 1) * (s - 0.9).clamp(min=0) for s in (sx, sy))
        angle = (2 * self._uniform(n) - 1) * torch.where(self._uniform(n) < 0.5, 0.0, 0.25)
        mirrored = torch.where(self._uniform(n) < 0.5, -1.0, 1.0)
        x = _sampled(figures, sx * mirrored, sy, tx, ty, angle, h, w, "zeros").clamp(0, 1)
        return x[:, :3], x[:, 3:]

    def _pick(self, pool: Tensor, n: int) -> Tensor:
        return pool[torch.randint(len(pool), (n,), device=self.device, generator=self._rng)]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, device=self.device, generator=self._rng)


def placed(sprites: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Clip art (uint8 [n, 4, 256, 256]) in the middle of h x w: premultiplied rgb, alpha. What the judge uses, too."""
    x = sprites.float() / 255
    x = torch.cat([x[:, :3] * x[:, 3:], x[:, 3:]], 1)
    one = torch.ones(len(x), device=x.device)
    fit = 1.12 * one
    still = torch.zeros_like(one)
    x = _sampled(x, fit * w / min(h, w), fit * h / min(h, w), still, still, still, h, w, "zeros").clamp(0, 1)
    return x[:, :3], x[:, 3:]


def _sampled(
    x: Tensor, sx: Tensor, sy: Tensor, tx: Tensor, ty: Tensor, angle: Tensor, h: int, w: int, padding: str
) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack([sx * cos, -sy * sin, tx], 1), torch.stack([sx * sin, sy * cos, ty], 1)
    grid = F.affine_grid(torch.stack(rows, 1), [len(x), x.shape[1], h, w], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode=padding, align_corners=False)


def _images(pack: np.lib.npyio.NpzFile, name: str) -> list[Image.Image]:
    data, ends = pack[f"{name}_data"].tobytes(), pack[f"{name}_ends"].tolist()
    starts = [0, *ends[:-1]]

    def decoded(start: int, end: int) -> Image.Image:
        image = Image.open(io.BytesIO(data[start:end]))
        image.load()
        return image

    with ThreadPoolExecutor() as pool:
        return list(pool.map(decoded, starts, ends))


def centred(image: Image.Image) -> np.ndarray:
    """A clip art on a transparent 256x256 canvas, [256, 256, 4]."""
    canvas = Image.new("RGBA", (SPRITE_CANVAS, SPRITE_CANVAS))
    canvas.paste(image.convert("RGBA"), ((SPRITE_CANVAS - image.width) // 2, (SPRITE_CANVAS - image.height) // 2))
    return np.array(canvas)
