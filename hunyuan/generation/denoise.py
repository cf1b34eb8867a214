"""The image stage: from noise to latents, one velocity a step (docs/model.md, sections 13, 17 and 18).

Everything before the timestep token keeps its keys and values over all steps; a step runs only the special
tokens and the image's own, for the guided and the unguided row together. What is the same at every step is computed
once, and no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.prefill import TokenSpan
from hunyuan.generation.scheduler import Schedule, classifier_free_guidance
from hunyuan.generation.step_cache import StepCache
from hunyuan.model.network import HunyuanImage3
from hunyuan.prompt.layout import GenBlock, Layout


@dataclass(frozen=True)
class Denoiser:
    """One request's image stage.

    Attributes:
        kv: holds the tokens before `block.timestep`, one row, or two with the unconditional one second.
        guidance_scale: used between the two rows, or given to the model as a token by a distilled checkpoint.
        cache: forecasts the backbone at some steps; None: every step runs in full.
        shown: after so many steps `on_clean` gets their number and the clean latents that the last of them predicts.
    """

    model: HunyuanImage3
    layout: Layout
    block: GenBlock
    kv: KVCache
    schedule: Schedule
    guidance_scale: float
    cache: StepCache | None = None
    shown: frozenset[int] = frozenset()
    on_clean: Callable[[int, Tensor], None] = lambda done, clean: None

    @cached_property
    def span(self) -> TokenSpan:
        """The special tokens and the image's."""
        return TokenSpan.of(self.model, self.layout, self.block.timestep, self.block.image.stop)

    @cached_property
    def times(self) -> Tensor:
        """The schedule's timesteps on the model's device, fp32 `[steps + 1]`."""
        return self.schedule.timesteps.to(self.model.device)

    @cached_property
    def guidance(self) -> Tensor:
        """What a distilled checkpoint's guidance token stands for, fp32 `[1]`."""
        # The model was trained with this value in bfloat16: 2.5 is 2496, not 2500.
        value = torch.tensor([1000 * self.guidance_scale], dtype=torch.bfloat16)
        return value.float().to(self.model.device)

    def upload(self) -> None:
        """Puts on the device what is the same at every step; else step 0 does, behind all that the device has to do."""
        for name in ("span", "times"):
            getattr(self, name)

    def predict(self, latents: Tensor, index: int) -> Tensor:
        """The network's velocity at step `index`: fp32 `[rows, channels, h, w]`, the conditional row first."""
        t = self.times[index : index + 1]  # [1]
        if self.cache is None:
            hidden = self._backbone(latents, index)
        elif self.cache.needs_full(index):
            hidden = self._backbone(latents, index)
            self.cache.record(index, hidden)
        else:
            hidden = self.cache.forecast()
        grid = self.block.image
        image = hidden[:, grid.start - self.block.timestep :]
        return self.model.velocity(image, t.expand(self.kv.rows), grid.height, grid.width)

    def _backbone(self, latents: Tensor, index: int) -> Tensor:
        """The residual stream of the special tokens and the image's, `[rows, specials + h * w, hidden]`."""
        x = self.embed(latents, index)[None].expand(self.kv.rows, -1, -1)
        return self.model.model(x, self.span.rope, self.kv, self.span.segments)

    def embed(self, latents: Tensor, index: int) -> Tensor:
        """What the backbone gets at step `index`: the special tokens and the image's, `[specials + h * w, hidden]`."""
        t = self.times[index : index + 1]  # [1]
        image = self.model.embed_latents(latents, t)[0]  # [h * w, hidden]
        return torch.cat([*self._specials(t, index), image])

    def _specials(self, t: Tensor, index: int) -> list[Tensor]:
        """`<timestep>`, and a distilled checkpoint's `<guidance>` and `<timestep_r>`: `[1, hidden]` each."""
        model, specials = self.model, [self.model.timestep_emb(t)]
        if model.guidance_emb is not None:
            specials.append(model.guidance_emb(self.guidance))
        if model.timestep_r_emb is not None:
            specials.append(model.timestep_r_emb(self.times[index + 1 : index + 2]))
        return specials

    def guided(self, predicted: Tensor) -> Tensor:
        """`[rows, ...]` -> `[1, ...]`."""
        if len(predicted) == 1:
            return predicted
        return classifier_free_guidance(predicted[:1], predicted[1:], self.guidance_scale)

    def run(self, noise: Tensor, on_step: Callable[[int], None]) -> Tensor:
        """Noise `[1, channels, h, w]` to latents, fp32.

        Args:
            on_step: called with the number of steps done, before each step and after the last; may raise.
        """
        latents, clean = noise, noise
        for index in range(self.schedule.steps):
            on_step(index)
            if index in self.shown:
                self.on_clean(index, clean)
            velocity = self.guided(self.predict(latents, index))
            if index + 1 in self.shown:
                clean = self.schedule.clean(latents, velocity, index)
            latents = self.schedule.step(latents, velocity, index)
        on_step(self.schedule.steps)
        return latents


def preview_steps(steps: int, number: int) -> frozenset[int]:
    """After which of `steps` steps to show `number` previews: evenly spread, never after the last one."""
    return frozenset(round(steps * (i + 1) / (number + 1)) for i in range(number)) - {0, steps}
