"""An engine for benchmarks with random weights: its text is replaced by as many real words as tokens were decoded.

A real model's thinking stands before its picture, and each denoising step attends to it. Of a thousand random tokens,
turned into text and back into tokens, some fifteen are left, so that the steps would attend to a thousand too few. Here
decoding costs what it always does; only its result is exchanged. Knows nothing of time.
"""

from __future__ import annotations

from collections.abc import Callable

from hunyuan.engines.native import NativeEngine
from hunyuan.generation.decoding import TextRun
from hunyuan.generation.job import EditJob
from hunyuan.generation.shared_text import SharedTextJob
from hunyuan.prompt.tokenizer import Tokenizer

LEAST_TOKENS = 8
"""Of a text: both its parts with their tags, and some words in each."""


def words_of(tokenizer: Tokenizer, count: int) -> list[int]:
    """So many tokens of a thought and a caption, ended as they should be; they read back as themselves."""
    (word,) = tokenizer.encode(" it")
    thought = (count - 3) // 2
    caption = count - 3 - thought
    ends = tokenizer.end_think, tokenizer.recaption, tokenizer.end_recaption
    return [*[word] * thought, *ends[:2], *[word] * caption, ends[2]]


class WordsJob(EditJob):
    """An edit whose decoded text is exchanged for `words_of` its length; one shorter than `LEAST_TOKENS` is kept."""

    def _read(self, new: list[int], run: TextRun, show: Callable[..., None]) -> list[int]:
        said = words_of(self.checkpoint.tokenizer, len(new)) if len(new) >= LEAST_TOKENS else new
        return super()._read(said, run, show)


class SharedWordsJob(WordsJob, SharedTextJob):
    """The same for texts that are decoded together."""


class WordsEngine(NativeEngine):
    """Our engine with those jobs."""

    job_type, shared_job_type = WordsJob, SharedWordsJob
