"""What is left of a request's pictures when its caller gives up: nothing, and not only when the collector comes."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from contextlib import aclosing
from typing import Any

from PIL import Image

from hunyuan.requests import CancelToken, EditRequest, EditResult, PreviewCallback, ProgressCallback, TextCallback
from hunyuan.serving.openai.call import call_of
from hunyuan.serving.openai.painting import Place, paint
from hunyuan.serving.queue import EditQueue
from hunyuan.serving.records import EditRecord
from hunyuan.serving.worker import EditorWorker
from hunyuan.settings import Settings


class Editor:
    """Shows one preview, then works until it is told to stop."""

    model_name, high_steps = "model", 50
    notice: str | None = None

    def __init__(self) -> None:
        self.previews: list[weakref.ref[Image.Image]] = []
        self.shown = threading.Event()

    def warm_up(self) -> None:
        """Nothing to do."""

    def run(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> EditResult:
        assert cancel is not None
        assert on_preview is not None
        picture = Image.new("RGB", (16, 8))
        self.previews.append(weakref.ref(picture))
        on_preview(1, picture)
        del picture
        self.shown.set()
        while True:
            cancel.check()
            time.sleep(0.005)


async def left(editor: Editor) -> None:
    """A caller who reads the first event only, and goes when a preview waits."""
    queue = EditQueue(1)
    worker = EditorWorker(lambda: editor, queue, 60, lambda: None)
    worker.start()
    while not worker.ready:
        await asyncio.sleep(0.01)
    fields: dict[str, Any] = {"prompt": "a", "stream": True, "partial_images": 1, "stream_progress": True}
    call = call_of("image_generation", fields, [], Settings())
    cancel, edit = CancelToken(time.monotonic() + 60), EditRecord(1, "auto", None, None)
    async with aclosing(paint(worker, None, call, cancel, edit)) as reports:  # type: ignore[arg-type]
        assert isinstance(await anext(reports), Place)
        assert await asyncio.to_thread(editor.shown.wait, 30)
        await asyncio.sleep(0.05)  # the event loop takes the preview in
    while queue.awaited or queue.depth or queue.overdue_s():
        await asyncio.sleep(0.01)


def test_previews_that_nobody_fetched_go_with_their_request() -> None:
    editor = Editor()
    gc.collect()
    gc.disable()
    try:
        asyncio.run(left(editor))
        assert [preview() for preview in editor.previews] == [None]
    finally:
        gc.enable()
