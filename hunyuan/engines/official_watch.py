"""Sees each call of the official model: one per decoded token and one per denoising step.

Two forward hooks are enough for cancelling, progress and timings. Knows what the calls mean; does not know the request.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hunyuan.requests import STAGES, CancelToken, ProgressCallback


class Watch:
    """Sees each call of the model: checks for cancelling before it, reports progress and time after it."""

    def __init__(
        self, steps: int, max_new_tokens: int, on_progress: ProgressCallback | None, cancel: CancelToken | None
    ) -> None:
        self.steps = steps
        self.max_new_tokens = max_new_tokens
        self.on_progress: ProgressCallback = on_progress or (lambda stage, done, total: None)
        self.cancel = cancel or CancelToken()
        self.text: list[tuple[float, float]] = []  # (start, end) of each call
        self.image: list[tuple[float, float]] = []
        self.start = 0.0
        self.call_start = 0.0

    @contextmanager
    def attached(self, model: Any) -> Iterator[None]:
        before = model.register_forward_pre_hook(self._before, with_kwargs=True)
        after = model.register_forward_hook(self._after, with_kwargs=True)
        try:
            self.cancel.check()
            self.start = _now()
            yield
        finally:
            before.remove()
            after.remove()

    def finish(self) -> dict[str, float]:
        """Call it once the picture is there. Gives the timings."""
        end = _now()
        self.on_progress("vae", 1, 1)
        parts: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        if self.text:
            parts["prefill"] = self.text[0][1] - self.text[0][0]
            parts["think"] = self.text[-1][1] - self.text[0][1]
        if self.image:
            parts["first_step"] = self.image[0][1] - self.image[0][0]
            parts["denoise"] = self.image[-1][1] - self.image[0][1]
            parts["vae"] = end - self.image[-1][1]
        total = end - self.start
        return {**parts, "prepare": total - sum(parts.values()), "total": total}

    def _before(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.cancel.check()
        if kwargs.get("mode") == "gen_text" and not self.text:
            self.on_progress("prefill", 0, 1)
        self.call_start = _now()

    def _after(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = (self.call_start, _now())
        if kwargs.get("mode") == "gen_text":
            self.text.append(call)
            if len(self.text) == 1:
                self.on_progress("prefill", 1, 1)
            else:
                self.on_progress("think", len(self.text), self.max_new_tokens)
        elif kwargs.get("mode") == "gen_image":
            self.image.append(call)
            self.on_progress("denoise", len(self.image), self.steps)
            if len(self.image) == self.steps:
                self.on_progress("vae", 0, 1)


def _now() -> float:
    """The clock, read when the GPUs have done what they were given."""
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
    return time.perf_counter()
