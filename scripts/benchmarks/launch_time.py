"""How long the host takes to launch a denoising step: what one thread must do for every GPU while the GPUs compute.

Part of `bench_engine.py --launches`. The devices are idle before each step, so no full queue of launches holds the host
up; the step's own time is not measured.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from hunyuan.engines.native import NativeEngine
from hunyuan.generation.denoise import Denoiser
from hunyuan.generation.two_copies import TwoCopiesDenoiser
from hunyuan.requests import EditRequest

STEPS = 6


def launch_line(engine: NativeEngine, request: EditRequest) -> str:
    """Runs an edit of a few steps without a text."""
    kind = Denoiser if engine.checkpoint.second is None else TwoCopiesDenoiser
    predict, times = kind.predict, list[float]()

    def timed(self: Any, latents: torch.Tensor, index: int) -> torch.Tensor:
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        velocity = predict(self, latents, index)
        times.append(time.perf_counter() - began)
        return velocity

    with mock.patch.object(kind, "predict", timed):
        quick = replace(request, bot_task="image", step_cache=None)
        engine.run(quick, seed=1, steps=STEPS, on_progress=None, cancel=None)
    rows = "one row on each of two devices" if kind is TwoCopiesDenoiser else "all rows on one device"
    return f"host: {statistics.median(times[1:]) * 1e3:.1f} ms to launch a step, {rows} (median of {STEPS - 1})"
