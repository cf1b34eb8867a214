"""An edit whose text is decoded beside those of others, before its picture has its turn.

Knows what of an `EditJob` comes before the picture, and that a text too long for its row, or none at all, is left to
the job's own turn. The picture is painted as by any other job: keys and values of prompt and text are copied from the
text's row. Which edits begin together is not decided here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from hunyuan.generation.company import Lane, TextCompany
from hunyuan.generation.decoding import TextRun
from hunyuan.generation.job import EditJob
from hunyuan.generation.kv_cache import KVCache
from hunyuan.generation.text import TextPlan
from hunyuan.prompt.layout import text_task
from hunyuan.requests import EditResult


class _TooLong(Exception):
    """The text has no room in a row of the company."""


@dataclass
class SharedTextJob(EditJob):
    """Call `begin` once, then `run` or `close`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.company: TextCompany | None = None
        self.lane: Lane | None = None
        self.text: tuple[TextRun, Callable[..., None]] | None = None
        self.beginning = False
        self.before = 0.0  # seconds of its own work before `run`

    @property
    def thinking(self) -> bool:
        """Whether its text is being decoded."""
        return self.text is not None and self.lane is not None and self.lane.outcome is None

    @torch.inference_mode()
    def begin(self, company: TextCompany) -> None:
        """Runs everything up to the prompt and lets the text be decoded in `company`; nothing where it may not be.

        Raises what `EditJob.run` raises, and `RuntimeError` where `company` has no place.
        """
        if self.cot is not None or self.request.bot_task == "image" or not company.supports(self.options.sampling):
            return
        began = time.perf_counter()
        self.company, self.beginning = company, True
        try:
            self._start()
            self._enter(company)
        except _TooLong:
            self.company = None  # all but its opened pictures waits for its turn
        except BaseException:
            self.close()
            raise
        finally:
            self.beginning = False
        self.before = time.perf_counter() - began

    def _enter(self, company: TextCompany) -> None:
        plan = self._plan(self.requested_size is None)
        logits = self._prefill_text()
        assert self.lane is not None
        run, show = self._text_run(plan), self._show_text(plan)
        company.begin(self.lane, logits, run, self._check, partial(self._on_token, show))
        self.text = run, show

    def close(self) -> None:
        """Gives the row back; the text, if it still runs, ends."""
        if self.company is not None and self.lane is not None:
            self.company.close(self.lane)
        self.lane = self.text = None

    def run(self) -> EditResult:
        try:
            return super().run()
        finally:
            self.close()

    def _run(self) -> EditResult:
        ahead = self.before + (0.0 if self.lane is None else self.lane.seconds)
        result = super()._run()
        result.timings["total"] += ahead
        return result

    # -- what has been done already ----------------------------------------------------------------------------

    def _start(self) -> None:
        if self.beginning or self.company is None:
            super()._start()

    def open_images(self) -> None:
        super().open_images()
        if self.beginning and self.company is not None and self._text_tokens() > self.company.capacity:
            raise _TooLong

    def _text_tokens(self) -> int:
        """What the text stage takes, known before anything of it lies on the device."""
        request, task = self.request, text_task(self.request.bot_task)
        layout = self.checkpoint.layouts.text_layout(
            self.system, request.prompt, self.shapes, task, None, self.options.drop_think
        )
        return min(len(layout) + request.max_new_tokens, self.config.max_position_embeddings)

    def _prefill_text(self) -> Tensor:
        return torch.empty(0) if self.text is not None else super()._prefill_text()

    def _decode(self, logits: Tensor, plan: TextPlan) -> list[int]:
        if self.text is None or self.company is None or self.lane is None:
            return super()._decode(logits, plan)
        self.timings["think"] += self.lane.seconds
        return self._read(self.company.decode(self.lane), *self.text)

    def _buffers(self, rows: int, capacity: int) -> KVCache:
        if not self.beginning or self.company is None:
            return super()._buffers(rows, capacity)
        if capacity > self.company.capacity:
            raise _TooLong
        self.lane = self.company.open()
        return self.lane.kv
