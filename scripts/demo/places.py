"""Where things stand in training's sequences, as tensors on the device: made once for each kind of batch.

Batches with equally large pictures in equally long prefixes are of one kind. Made anew in each step, these tensors
took a hundred small operations, and each one that comes from the CPU waits until the GPU has done all it was given.
Knows positions; knows no weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from hunyuan.model.config import ModelConfig, VitProcessorConfig
from hunyuan.model.rope import Grid, positions_2d, rope_axes
from hunyuan.prompt.layout import CondBlock
from scripts.demo.operations import MOST_CONDS, Rule
from scripts.demo.sequences import Batch


@dataclass(frozen=True)
class Places:
    """One kind of batch.

    Attributes:
        bounds: int32 `[2, 2]`, first and last + 1 of each source's tokens, for `Rule`.
        text: int64 `[texts]`, the prefix's places that neither a picture nor its timestep takes.
        pieces: how `text` falls into pieces: one before, between and behind each of these.
        axes: fp32 `[tokens, head_dim]`, the position by which each of a head's values turns.
        painted: fp32 `[tokens, 1]`, 1 for tokens whose positions count from the end of their sample's prefix.
        frequency: fp32 `[head_dim]`.
        resized: fp32 `[patches, positions]`, from the vision tower's table of positions to those of a source's patches.
        mask: fp32 `[1, 1, 1, patches]`, what keeps the tower from seeing patches that fill up; none if all are real.
        tiles: FlexAttention's, for `Rule`.
    """

    bounds: Tensor
    text: Tensor
    pieces: list[int]
    axes: Tensor
    painted: Tensor
    frequency: Tensor
    resized: Tensor | None
    mask: Tensor | None
    tiles: BlockMask

    @classmethod
    def create(cls, batch: Batch, rule: Rule, config: ModelConfig) -> Places:
        device = rule.length.device
        conds = [(c.vae.start, c.vit_stop) for c in batch.conds]
        bounds = torch.tensor(conds + [(0, 0)] * (MOST_CONDS - len(conds)), dtype=torch.int32)
        grids = [grid for block in batch.conds for grid in (block.vae, block.vit)]
        copy = positions_2d(0, rule.stretch, [Grid(1, *batch.grid)]).repeat(rule.copies, 1)
        positions = torch.cat([positions_2d(0, rule.room, grids), copy])  # [tokens, 2]
        axes, frequency = rope_axes(positions, config.attention_head_dim, config.rope_theta)  # of half a head
        painted = (torch.arange(rule.tokens) >= rule.room).float()[:, None]
        pieces = _pieces(rule.room, batch.conds)
        text = torch.cat([torch.arange(*piece) for piece in pieces])
        resized, mask = _vision(batch.conds[0], config) if batch.conds else (None, None)
        return cls(
            bounds.to(device),
            text.to(device),
            [stop - start for start, stop in pieces],
            axes.repeat(1, 2).to(device),
            painted.to(device),
            frequency.repeat(2).to(device),
            None if resized is None else resized.to(device),
            None if mask is None else mask.to(device),
            rule.tiles(bounds, math.prod(batch.grid)),
        )

    def rope(self, length: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines fp32 `[n, tokens, 1, head_dim]`, for prefixes with `length` `[n]` real tokens."""
        positions = torch.addcmul(self.axes, self.painted, length.float()[:, None, None])  # [n, tokens, head_dim]
        angles = (positions * self.frequency)[:, :, None]
        return angles.cos(), angles.sin()


def _pieces(room: int, conds: list[CondBlock]) -> list[tuple[int, int]]:
    """Start and stop of the prefix's text before, between and behind its timesteps, latents and patches."""
    taken = [(block.timestep, block.timestep + 1) for block in conds]
    taken += [(block.vae.start, block.vae.stop) for block in conds]
    taken = sorted(taken + [(block.vit.start, block.vit_stop) for block in conds])
    stops, starts = [start for start, _ in taken], [stop for _, stop in taken]
    return list(zip([0, *starts], [*stops, room], strict=True))


def _vision(block: CondBlock, config: ModelConfig) -> tuple[Tensor, Tensor | None]:
    """A source's `resized` and `mask`.

    transformers resizes the table sample by sample. Resizing is linear, so that a matrix does it.
    """
    side, size = round(config.vit.num_patches**0.5), (block.vit.height, block.vit.width)
    table = torch.eye(side * side).view(1, side * side, side, side)
    made = F.interpolate(table, size=size, mode="bilinear", align_corners=False, antialias=True)
    rows = made[0].flatten(1).T  # [real patches, positions]
    most = config.vit_processor.max_num_patches
    resized = torch.cat([rows, rows[:1].expand(most - len(rows), -1)])  # as transformers fills up
    mask = torch.zeros(1, 1, 1, most)
    mask[..., len(rows) :] = torch.finfo(mask.dtype).min
    return resized, None if len(rows) == most else mask


@cache
def pixel_scale(processor: VitProcessorConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and summand fp32 `[3, 1, 1]` that make the vision tower's values of a picture's 0 to 255."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (processor.image_mean, processor.image_std))
    return (1 / (255 * std)).to(device), (-mean / std).to(device)
