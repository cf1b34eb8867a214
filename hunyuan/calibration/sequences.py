"""The calibration's requests as hidden states before the first layer, and what a layer needs to run them.

Each request goes through both stages as an edit does: its prompt and text, then the picture's tokens at one time of
the schedule, every other request with guidance's second row too, all on one row of keys and values that later
spans write over. What comes twice is computed once. The text is the request's own `cot_text`: nothing is decoded,
since the whole model never is in memory. Knows layouts and embeddings; no layers, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hunyuan.calibration.drawing import drawing
from hunyuan.errors import SequenceTooLong
from hunyuan.generation.config import Options
from hunyuan.generation.denoise import Denoiser
from hunyuan.generation.job import Checkpoint
from hunyuan.generation.kv_cache import KVCache, shared_prefix
from hunyuan.generation.prefill import Conditions, TokenSpan, embed_prompt, encode_conditions
from hunyuan.generation.random_numbers import RequestRandom
from hunyuan.generation.scheduler import Schedule
from hunyuan.pictures.reader import load_image
from hunyuan.prompt.images import CondImage, prepare_cond_image
from hunyuan.prompt.layout import CondShape, Layout
from hunyuan.prompt.resolution import Bucket, Size, parse_resolution, resolution_group
from hunyuan.requests import EditRequest

TIMES = 8
"""Steps of the schedule whose times are met, from pure noise to a nearly finished picture, one a request in turn: a new
request teaches more than the same one at another time."""


@dataclass(frozen=True)
class RequestSpan:
    """Consecutive tokens of a request, in the order in which they are computed.

    Attributes:
        request: its number.
        rows: where its hidden states stand among all.
        tokens: their angles and who attends to whom.
    """

    request: int
    rows: slice
    tokens: TokenSpan

    @property
    def stop(self) -> int:
        """The end of the keys that they see."""
        return self.tokens.segments[-1].stop


@torch.inference_mode()
def embed_requests(
    checkpoint: Checkpoint, requests: Sequence[EditRequest], on_request: Callable[[int], object] = lambda done: None
) -> tuple[Tensor, list[RequestSpan]]:
    """Hidden states `[tokens, hidden]` before the first layer, and how they hang together.

    Args:
        checkpoint: its model needs all weights but the layers'.

    Raises:
        SequenceTooLong: a request is longer than the model's positions.
        InvalidImage, InvalidRequest: a picture or a size is wrong.
    """
    hidden: list[Tensor] = []
    spans: list[RequestSpan] = []
    tokens = 0
    for number, request in enumerate(requests):
        for x, own in _Request(checkpoint, request, number).spans():
            spans.append(RequestSpan(number, slice(tokens, tokens + len(x)), own))
            tokens += len(x)
            hidden.append(x)
        on_request(number + 1)
    return torch.cat(hidden), spans


class _Request:
    """One request's sequences. `seed` is its number."""

    def __init__(self, checkpoint: Checkpoint, request: EditRequest, seed: int) -> None:
        self.checkpoint, self.request, self.model = checkpoint, request, checkpoint.model
        self.time = (3 * seed + seed // 4) % TIMES
        self.unguided = seed % 2 == 0
        config = self.model.config
        self.options = Options.resolve(request, checkpoint.generation)
        self.random = RequestRandom(seed, self.model.device, True)
        self.system = checkpoint.prompts.resolve(request.use_system_prompt, request.bot_task, request.system_prompt)
        self.group = resolution_group(config.image_base_size, config.has_extra_ratios)
        align = request.infer_align_image_size
        self.images = [prepare_cond_image(load_image(image), config, align) for image in request.images]
        self.shapes = [CondShape(image.bucket, image.vision.grid) for image in self.images]
        self.conditions = encode_conditions(self.model, self.images, self.random)

    def spans(self) -> list[tuple[Tensor, TokenSpan]]:
        layouts, request, drop = self.checkpoint.layouts, self.request, self.options.drop_think
        text = layouts.text_layout(self.system, request.prompt, self.shapes, "think")
        cot = request.cot_text or ""
        said = self.checkpoint.tokenizer.encode(cot.removeprefix("<think>"))
        output = self._output()
        image = layouts.image_layout(self.system, request.prompt, self.shapes, output, cot or None, drop)
        self._check(max(len(text) + len(said), len(image)))
        ids, block = [*text.ids, *said], image.generated
        found = [self._prompt(text, ids, 0, len(ids))]
        found += self._after(image, image.ids, shared_prefix(ids, image.ids, text.full_blocks, image.full_blocks))
        picture = self._picture(image, output)
        found.append(picture)
        if self.unguided and self.options.guidance_scale > 1 and not self.model.config.cfg_distilled:
            shared = shared_prefix(image.ids[: block.timestep], image.uncond_ids, image.full_blocks)
            found += self._after(image, image.uncond_ids, shared)
            found.append(picture)
        return found

    def _prompt(self, layout: Layout, ids: Sequence[int], start: int, stop: int) -> tuple[Tensor, TokenSpan]:
        x = embed_prompt(self.model, layout, ids, self.conditions, start, stop)
        return x, TokenSpan.of(self.model, layout, start, stop)

    def _after(self, layout: Layout, ids: Sequence[int], shared: int) -> list[tuple[Tensor, TokenSpan]]:
        """What stands before the picture and has not been computed yet."""
        stop = layout.generated.timestep
        return [self._prompt(layout, ids, shared, stop)] if shared < stop else []

    def _picture(self, layout: Layout, output: Bucket) -> tuple[Tensor, TokenSpan]:
        """The picture's tokens on their way from noise."""
        schedule = Schedule.create(TIMES, self.options.flow_shift)
        none = KVCache([], [])
        denoiser = Denoiser(self.model, layout, layout.generated, none, schedule, self.options.guidance_scale)
        clean = self._clean(output).float()
        noise = self.random.normal(clean.shape, torch.float32, self.model.device)
        latents = torch.lerp(clean, noise, float(schedule.sigmas[self.time]))
        return denoiser.embed(latents, self.time), denoiser.span

    def _clean(self, output: Bucket) -> Tensor:
        """Latents of a finished picture: the first source, or a drawing. `[1, channels, h, w]`."""
        if self.conditions.latents and self.images[0].bucket == output:
            return self.conditions.latents[0]
        made = drawing(output.size.width, output.size.height, seed=len(self.request.prompt))
        return self._latents(prepare_cond_image(made, self.model.config, True))

    def _latents(self, image: CondImage) -> Tensor:
        conditions: Conditions = encode_conditions(self.model, [image], self.random)
        return conditions.latents[0]

    def _output(self) -> Bucket:
        wanted: Size | None = parse_resolution(self.request.resolution)
        if wanted is not None:
            return self.group.nearest(wanted)
        return self.images[0].bucket if self.images else self.group.square

    def _check(self, length: int) -> None:
        most = self.model.config.max_position_embeddings
        if length > most:
            raise SequenceTooLong(length, most, "calibration")
