"""Reports from the editor's thread to the event loop: their order, and what goes together where nobody reads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from PIL import Image

from hunyuan.requests import EditResult
from hunyuan.serving.openai.outbox import Finished, Outbox, Preview, Progress, Report, Text
from hunyuan.serving.watching import Watcher

PICTURE = Image.new("RGB", (2, 2))


def result(seed: int) -> EditResult:
    return EditResult(PICTURE, None, seed, (2, 2), 1, 0)


def told(script: Callable[[Watcher], None], progress: bool = True, previews: bool = True) -> list[Report]:
    """What is read after all of it was written by another thread."""

    async def read() -> list[Report]:
        outbox = Outbox(progress)
        thread = threading.Thread(target=script, args=(outbox.watcher(previews),))
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)
        outbox.close()
        found: list[Report] = []
        while not outbox.over:
            report = await outbox.next(1)
            assert report is not None
            found.append(report)
        return found

    return asyncio.run(read())


def paint(watcher: Watcher) -> None:
    assert watcher.on_result is not None
    for seed in (1, 2):
        if watcher.on_progress is not None and watcher.on_text is not None:
            for done, piece in enumerate("abc"):
                watcher.on_progress("think", done, 3)
                watcher.on_text(piece)
            watcher.on_progress("denoise", 0, 2)
            watcher.on_progress("denoise", 1, 2)
        if watcher.on_preview is not None:
            watcher.on_preview(1, PICTURE)
        if watcher.on_progress is not None:
            watcher.on_progress("denoise", 2, 2)
        watcher.on_result(result(seed))


def test_what_nobody_has_read_yet_goes_together() -> None:
    reports = told(paint)
    assert reports[:5] == [
        Progress(0, "think", 2, 3),
        Text(0, "abc"),
        Progress(0, "denoise", 1, 2),
        Preview(0, 0, 1, PICTURE),
        Progress(0, "denoise", 2, 2),
    ]
    assert [type(report) for report in reports[5:]] == [Finished, Progress, Text, Progress, Preview, Progress, Finished]
    assert [report.index for report in reports] == [0] * 6 + [1] * 6


def test_only_what_is_wanted_is_told() -> None:
    assert [type(report) for report in told(paint, progress=False)] == [Preview, Finished] * 2
    assert [type(report) for report in told(paint, progress=False, previews=False)] == [Finished] * 2


def test_a_reader_who_keeps_up_gets_every_one() -> None:
    async def read() -> list[Report | None]:
        outbox, found = Outbox(True), list[Report | None]()
        watcher = outbox.watcher(False)
        assert watcher.on_progress is not None
        for done in range(3):
            await asyncio.to_thread(watcher.on_progress, "denoise", done, 3)
            found.append(await outbox.next(1))
        return found

    assert asyncio.run(read()) == [Progress(0, "denoise", done, 3) for done in range(3)]


def test_waiting_ends_with_the_time_and_when_nothing_comes_any_more() -> None:
    async def wait() -> tuple[Report | None, Report | None, bool]:
        outbox = Outbox(True)
        first = await outbox.next(0.01)
        asyncio.get_running_loop().call_later(0.01, outbox.close)
        return first, await outbox.next(60), outbox.over

    assert asyncio.run(wait()) == (None, None, True)
