"""One request's pictures from the queue to the last report: a place first, and only then the work.

Knows the order of things and who does what. How a report is told to the caller is `replies.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from PIL.Image import Image

from hunyuan.errors import InvalidImage
from hunyuan.requests import CancelToken
from hunyuan.serving.decoders import Decoders
from hunyuan.serving.openai.call import ImageCall
from hunyuan.serving.openai.outbox import Outbox, Report
from hunyuan.serving.queue import QueuedEdit
from hunyuan.serving.records import EditRecord
from hunyuan.serving.worker import EditorWorker

LOOK_S = 0.1  # how often the place in the queue is looked at


@dataclass(frozen=True)
class Place:
    """A place in the queue: so many edits come before, the running one included."""

    ahead: int


async def paint(
    worker: EditorWorker, decoders: Decoders, call: ImageCall, cancel: CancelToken, edit: EditRecord
) -> AsyncGenerator[Report | Place, None]:
    """Everything that happens to a request, its last picture at the end. Close it to give the work up.

    Places, progress and text are only told where the request wants them.

    Raises:
        QueueFull, Loading, ShuttingDown, Restarting: there is no place to be had.
        InvalidImage: an upload is none that is taken.
        HunyuanError: painting failed.
    """
    async with worker.place(cancel, edit) as queued:
        outbox = Outbox(call.stream_progress)
        queued.watcher = outbox.watcher(call.request.previews > 0)
        work = await _begin(worker, decoders, call, queued)
        work.add_done_callback(lambda _: outbox.close())
        told: int | None = None
        report: Report | None = None
        try:
            while not outbox.over:
                ahead = worker.ahead_of(queued) if call.stream_progress else None
                if ahead is not None and ahead != told:
                    told = ahead
                    yield Place(ahead)
                report = await outbox.next(LOOK_S)
                if report is not None:
                    yield report
            await work
        finally:
            report = None
            outbox.abandon()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


async def _begin(worker: EditorWorker, decoders: Decoders, call: ImageCall, queued: QueuedEdit) -> asyncio.Task[object]:
    """Decodes the uploads and lets the edit wait for its turn; nothing here keeps the pictures."""
    images, names = list[Image](), call.picture_names
    while call.pictures:  # an upload goes when its picture is there
        number = len(images)
        try:
            images.append(await decoders.decode(call.pictures.pop(0)))
        except InvalidImage as error:
            raise InvalidImage(str(error).removeprefix(f"{error.field}: "), names[number]) from None
    queued.edit.input_size = images[0].size if images else None
    requests = call.requests(images, worker.high_steps)
    queued.edit.steps = requests[0].steps
    return asyncio.create_task(worker.run(queued, *requests))
