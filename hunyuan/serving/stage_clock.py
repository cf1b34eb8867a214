"""How long each stage of an edit has taken so far, told from the progress that its engine reports.

An engine hands over its own, exact timings with the result. An edit that is cancelled or fails has no result; what
this clock has seen until then is what there is to tell. Knows the stages' names and their order, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hunyuan.requests import Stage


class StageClock:
    """Started when it is made.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._since = clock()
        self._open = "prepare"
        self._seconds: dict[str, float] = {}

    def progress(self, stage: Stage, done: int, total: int) -> None:
        """Called as `on_progress`: the time since the last call went into getting here."""
        first = not self._seconds  # what comes before the first report is preparation, whatever follows it
        self._close("prepare" if first else _spent_on(stage, done))
        self._open = _follows(stage, done, total)

    def skip(self) -> float:
        """The time since the last call was spent on something else; how many seconds that were."""
        gap = self._clock() - self._since
        self._since, self._began = self._since + gap, self._began + gap
        return gap

    def so_far(self) -> dict[str, float]:
        """Seconds by stage, the one under way included, and `total`."""
        self._close(self._open)
        return {**self._seconds, "total": self._since - self._began}

    def _close(self, stage: str) -> None:
        now = self._clock()
        self._seconds[stage] = self._seconds.get(stage, 0.0) + now - self._since
        self._since = now


def _spent_on(stage: str, done: int) -> str:
    if stage == "denoise":
        return "first_step" if done <= 1 else "denoise"
    if stage == "vae":
        return "vae" if done else "denoise"
    return stage


def _follows(stage: str, done: int, total: int) -> str:
    if stage == "denoise":
        return "denoise" if done else "first_step"
    if stage == "vae":
        return "vae"
    return "think" if stage == "prefill" and done >= total else stage
