"""What happens to an edit, on its way from the editor's thread to the event loop.

Knows threads and order. Reports that nobody has fetched yet are merged: of a stage's progress the latest counts, and
pieces of text are put together; so whoever reads slowly holds up nobody and piles up little.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, replace

from PIL import Image

from hunyuan.requests import EditResult, Stage
from hunyuan.serving.watching import Watcher


@dataclass(frozen=True)
class Progress:
    """`index` is the picture's number among those of the request, here and below."""

    index: int
    stage: Stage
    done: int
    total: int


@dataclass(frozen=True)
class Text:
    index: int
    text: str


@dataclass(frozen=True)
class Preview:
    """`number` counts the previews of a picture from 0."""

    index: int
    number: int
    steps: int
    image: Image.Image


@dataclass(frozen=True)
class Finished:
    index: int
    result: EditResult


Report = Progress | Text | Preview | Finished


class Outbox:
    """Made and read on the event loop; written by the editor's thread through `watcher`.

    Args:
        progress: whether progress and text are wanted.
    """

    def __init__(self, progress: bool) -> None:
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._reports: deque[Report] = deque()
        self._came = asyncio.Event()
        self._closed = self._abandoned = False
        self._index = self._previews = 0  # the editor's thread's own

    def watcher(self, previews: bool) -> Watcher:
        return Watcher(
            self._on_progress if self._progress else None,
            self._on_text if self._progress else None,
            self._on_preview if previews else None,
            self._on_result,
        )

    async def next(self, timeout_s: float) -> Report | None:
        """The oldest report; None where none comes in time, or none comes any more."""
        if not self._reports and not self._closed:
            self._came.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._came.wait()
        return self._reports.popleft() if self._reports else None

    def close(self) -> None:
        """Nothing more will come: nobody needs to wait."""
        self._closed = True
        self._came.set()

    def abandon(self) -> None:
        """Nobody reads any more. What waits goes now: pictures are large, and this object is in a cycle."""
        self._abandoned = True
        self._reports.clear()
        self.close()

    @property
    def over(self) -> bool:
        return self._closed and not self._reports

    # -- the editor's thread -----------------------------------------------------------------------------------

    def _on_progress(self, stage: Stage, done: int, total: int) -> None:
        self._send(Progress(self._index, stage, done, total))

    def _on_text(self, piece: str) -> None:
        self._send(Text(self._index, piece))

    def _on_preview(self, steps: int, image: Image.Image) -> None:
        self._send(Preview(self._index, self._previews, steps, image))
        self._previews += 1

    def _on_result(self, result: EditResult) -> None:
        self._send(Finished(self._index, result))
        self._index, self._previews = self._index + 1, 0

    def _send(self, report: Report) -> None:
        self._loop.call_soon_threadsafe(self._take, report)

    # -- the event loop ----------------------------------------------------------------------------------------

    def _take(self, report: Report) -> None:
        if self._abandoned:
            return
        merged = _merged(self._reports, report)
        if merged is not None:
            place, report = merged
            self._reports[place] = report
        else:
            self._reports.append(report)
        self._came.set()


def _merged(reports: deque[Report], new: Report) -> tuple[int, Report] | None:
    """Where `new` goes together with one that still waits: progress and text come in turns, so the last two count."""
    for place in range(-1, -min(len(reports), 2) - 1, -1):
        old = reports[place]
        if isinstance(old, Preview | Finished) or old.index != new.index:
            return None
        if isinstance(old, Text) and isinstance(new, Text):
            return place, replace(new, text=old.text + new.text)
        if isinstance(old, Progress) and isinstance(new, Progress) and old.stage == new.stage:
            return place, new
    return None
