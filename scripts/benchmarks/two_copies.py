"""How far two copies are from one network that runs both rows, on one engine: `bench_engine.py --gpus 2`.

The same request without a text, a few steps, once with the second copy and once without. What differs is the height of
the matrix products, so the figure is that of rounding in the formats at work. Measures no time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import torch
from torch import Tensor

from hunyuan.engines.native import NativeEngine
from hunyuan.generation.denoise import Denoiser
from hunyuan.requests import EditRequest

STEPS = 6


def difference_line(engine: NativeEngine, request: EditRequest) -> str:
    """The latents' relative distance after one step and after all."""
    one = NativeEngine(replace(engine.checkpoint, second=None), engine.noise_on_cpu, engine.workspace)
    quick = replace(request, bot_task="image", step_cache=None)
    apart = []
    for steps in (1, STEPS):
        ours, again, theirs = (latents_of(e, quick, steps) for e in (engine, engine, one))
        if not torch.equal(ours, again):
            return f"two copies: NOT the same twice, {steps} steps with one seed"
        apart.append(f"{float((ours - theirs).norm() / theirs.norm()):.1e} after {steps}")
    return f"two copies: the same bits twice; latents from those of both rows in one pass: {', '.join(apart)} steps"


def latents_of(engine: NativeEngine, request: EditRequest, steps: int) -> Tensor:
    """What the image stage ends with, fp32 `[1, channels, h, w]`."""
    run, kept = Denoiser.run, list[Tensor]()

    def noted(self: Denoiser, noise: Tensor, on_step: Callable[[int], None]) -> Tensor:
        kept.append(run(self, noise, on_step))
        return kept[-1]

    with mock.patch.object(Denoiser, "run", noted):
        engine.run(request, seed=1, steps=steps, on_progress=None, cancel=None)
    return kept[0]
