"""Runs spans of a token sequence through the backbone (docs/model.md, sections 8, 13 and 14).

Knows how a layout's tokens become embeddings and positions, and that each condition image is encoded once a
request. Does not know which span to run when.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hunyuan.errors import CheckpointError
from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.random_numbers import RequestRandom
from hunyuan.model.attention import Segment, split_segments
from hunyuan.model.network import HunyuanImage3
from hunyuan.model.rope import positions_2d, rope_table
from hunyuan.prompt.images import CondImage
from hunyuan.prompt.layout import Layout


@dataclass(frozen=True)
class CondTokens:
    """The embeddings of one condition image: `[h * w, hidden]` and `[max_patches, hidden]`."""

    vae: Tensor
    vit: Tensor


@dataclass(frozen=True)
class Conditions:
    """All condition images of a request, in order, and the embedding of time 0 that marks them."""

    images: tuple[CondTokens, ...]
    timestep: Tensor  # [1, hidden]; no rows without images
    latents: tuple[Tensor, ...] = ()  # scaled, [1, channels, h, w]


def encode_conditions(model: HunyuanImage3, images: Sequence[CondImage], random: RequestRandom) -> Conditions:
    """Runs the autoencoder and the vision tower once per image; draws the posteriors in order.

    A GPU gets all of that before the host waits for any of it: the tower is launched while the autoencoder computes.

    Raises:
        HunyuanError: a picture's latents are not finite.
    """
    if not images:
        return Conditions((), torch.empty(0))
    device, zero = model.device, torch.zeros(1, device=model.device)
    # Copied first: each copy waits for everything that was launched before it.
    inputs = [
        (image.pixels[None].to(device), image.vision.patches[None].to(device), image.vision.mask[None].to(device))
        for image in images
    ]
    posteriors, towers = [], []
    for image, (pixels, patches, mask) in zip(images, inputs, strict=True):
        posteriors.append(model.encode_image(pixels))
        towers.append(model.embed_vision(patches, torch.tensor([image.vision.grid]), mask)[0])  # [max_patches, hidden]
    tokens, latents = [], []
    for posterior, vit in zip(posteriors, towers, strict=True):
        noise = random.normal(posterior.mean.shape, model.vae.dtype, device)
        latent = model.vae.scale(posterior.sample(noise))[:, :, 0]  # [1, channels, h, w]
        tokens.append(CondTokens(model.embed_latents(latent, zero)[0], vit))
        latents.append(latent)
    return Conditions(tuple(tokens), model.timestep_emb(zero), tuple(latents))


def embed_prompt(
    model: HunyuanImage3, layout: Layout, ids: Sequence[int], conditions: Conditions, start: int, stop: int
) -> Tensor:
    """Embeddings `[stop - start, hidden]` of tokens that are text or condition images, on the model's device."""
    x = model.embed_tokens(torch.tensor(ids[start:stop], device=model.device))
    for block, image in zip(layout.conds, conditions.images, strict=True):
        if len(image.vae) != block.vae.stop - block.vae.start:
            raise CheckpointError(
                f"the autoencoder made {len(image.vae)} tokens where the sequence has "
                f"{block.vae.stop - block.vae.start}: vae.ffactor_spatial and vae_downsample_factor disagree"
            )
        for first, rows in (
            (block.timestep, conditions.timestep),
            (block.vae.start, image.vae),
            (block.vit.start, image.vit),
        ):
            low, high = max(first, start), min(first + len(rows), stop)
            if low < high:
                x[low - start : high - start] = rows[low - first : high - first].to(x)
    return x


@dataclass(frozen=True)
class TokenSpan:
    """Consecutive tokens of a sequence as the backbone needs them; the same for every pass over them.

    Attributes:
        rope: cosines and sines, fp32 `[tokens, head_dim]`, on the model's device.
    """

    rope: tuple[Tensor, Tensor]
    segments: list[Segment]

    @classmethod
    def of(cls, model: HunyuanImage3, layout: Layout, start: int, stop: int) -> TokenSpan:
        """The tokens [start, stop); those past the layout's end are generated text."""
        config = model.config
        positions = positions_2d(start, stop, layout.grids).to(model.device)  # [tokens, 2]
        rope = rope_table(positions, config.attention_head_dim, config.rope_theta)
        return cls(rope, split_segments(start, stop, layout.full_blocks))


def run_tokens(model: HunyuanImage3, layout: Layout, x: Tensor, start: int, kv: KVCache) -> Tensor:
    """Embeddings `[rows, tokens, hidden]` of consecutive tokens from `start` through all layers.

    Tokens past the layout's end are generated text. Returns the residual stream, `[rows, tokens, hidden]`.
    """
    span = TokenSpan.of(model, layout, start, start + x.shape[1])
    return model.model(x, span.rope, kv, span.segments)


def prefill(
    model: HunyuanImage3, layout: Layout, ids: Sequence[int], conditions: Conditions, span: tuple[int, int], kv: KVCache
) -> Tensor:
    """Fills `kv` (one row) with the tokens [start, stop) of `ids`; the last one's residual stream `[hidden]`."""
    start, stop = span
    x = embed_prompt(model, layout, ids, conditions, start, stop)
    return run_tokens(model, layout, x[None], start, kv)[0, -1]
