"""The units of an edit's cost for one shape of request: part of `bench_growth.py`.

Knows how to measure them cheaply: an edit decodes a few tokens, then the rest of a text of the length that was asked
for is put behind them in one pass, so that the few steps that follow see as long a context as after real thinking. The
text is of words (`words_engine.py`). Does not know which shapes are asked for, nor what is made of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from hunyuan.engines.native import NativeEngine
from hunyuan.generation.prefill import run_tokens
from hunyuan.generation.text import TextPlan
from hunyuan.generation.workspace import decoder_for
from hunyuan.requests import EditRequest, EditResult
from scripts.benchmarks.words_engine import LEAST_TOKENS, WordsJob, words_of

MEASURED_TOKENS = 65
"""Decoded one by one in a measured edit, the first of them from the prompt's own pass."""
MEASURED_STEPS = 4


@dataclass(frozen=True)
class Units:
    """Measured seconds, medians over the measured edits; without a text, the prompt's pass is in the first step.

    Attributes:
        prompt: tokens that were read, those of pictures included.
        decoded: how many tokens were decoded.
        text_start: from the prompt's logits to the first token, once a text.
        token: one of those behind it.
        step: one after the first, the mean of `MEASURED_STEPS - 1`.
    """

    prompt: float
    decoded: float
    prepare: float
    prefill: float
    text_start: float
    token: float
    first_step: float
    step: float
    vae: float

    @property
    def context(self) -> float:
        """Tokens before a decoded one, on average."""
        return self.prompt + self.decoded / 2


@dataclass
class MeasuredJob(WordsJob):
    """An edit whose text is `words_of` the length that the request allows.

    Attributes:
        decoded: so many of its tokens are decoded, which gives a token's time; the others then run in one pass, which
            is not timed.
        marks: tokens so far and when they were read, the first one for none.
    """

    decoded: int = MEASURED_TOKENS
    marks: list[tuple[int, float]] = field(default_factory=list)

    def _decode(self, logits: torch.Tensor, plan: TextPlan) -> list[int]:
        self.marks = [(0, time.perf_counter())]
        run = self._text_run(replace(plan, stop=frozenset()))  # a random stop token ends nothing
        few = replace(run, uniform=run.uniform[: self.decoded])
        decoder = decoder_for(self.model, self._prefilled().kv, few, self.workspace)
        decoder.decode(logits, few, self._check, self._mark)
        words = words_of(self.checkpoint.tokenizer, len(run.uniform))
        if len(few.uniform) < len(words):
            self._run_at_once(words[:-1])
        return self._read(words, run, self._show_text(plan))

    def _mark(self, tokens: list[int]) -> None:
        if tokens:
            self.marks.append((len(tokens), time.perf_counter()))

    def _run_at_once(self, words: list[int]) -> None:
        prompt = self._prefilled()
        x = self.model.embed_tokens(torch.tensor(words, device=self.model.device))[None]  # [1, tokens, hidden]
        run_tokens(self.model, prompt.layout, x, len(prompt.ids), prompt.kv)


def run_edit(
    engine: NativeEngine, request: EditRequest, steps: int, decoded: int
) -> tuple[EditResult, Sequence[tuple[int, float]]]:
    """One edit on the engine, and when its tokens were there. Its text is `request.max_new_tokens` long."""
    job = MeasuredJob(
        engine.checkpoint, request, 1, steps, engine.noise_on_cpu, workspace=engine.workspace, decoded=decoded
    )
    return engine.finish(job), job.marks


def measure(engine: NativeEngine, request: EditRequest, repeat: int) -> Units:
    """Units of the request's shape: one edit to warm up, then `repeat` measured ones. No tokens: no text stage."""
    if not request.max_new_tokens:
        request = replace(request, bot_task="image")
    run_edit(engine, request, 2, LEAST_TOKENS)
    every = [units_of(*run_edit(engine, request, MEASURED_STEPS, MEASURED_TOKENS)) for _ in range(repeat)]
    return Units(**{f.name: statistics.median(getattr(units, f.name) for units in every) for f in fields(Units)})


def units_of(result: EditResult, marks: Sequence[tuple[int, float]]) -> Units:
    """Of an edit of `MEASURED_STEPS` steps."""
    took, usage = result.timings, result.usage
    assert usage is not None  # our own engine tells
    text_start = token = 0.0
    decoded = 0
    if marks:
        (_, began), (first, there), *_ = marks
        decoded, last = marks[-1]
        text_start, token = there - began, (last - there) / (decoded - first)
    return Units(
        prompt=usage.text + usage.images,
        decoded=decoded,
        prepare=took["prepare"],
        prefill=took["prefill"],
        text_start=text_start,
        token=token,
        first_step=took["first_step"],
        step=took["denoise"] / (MEASURED_STEPS - 1),
        vae=took["vae"],
    )
