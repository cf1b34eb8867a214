"""Answers a request to /v1/images: with one JSON object at the end, or with a stream of events.

Both are ASGI applications that do the work while they answer. Whatever happens ends in one known way: an error before
the first byte is an answer with its status (the envelope writes its body), a later one is the stream's last event.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hunyuan.errors import HunyuanError
from hunyuan.requests import CancelToken, EditResult
from hunyuan.serving.disconnect import while_connected
from hunyuan.serving.envelope import refusal, reporting
from hunyuan.serving.http_errors import ShuttingDown
from hunyuan.serving.openai.answers import Painter, answer_of, image_of
from hunyuan.serving.openai.call import ImageCall
from hunyuan.serving.openai.events import EventSender, event_of, is_slow
from hunyuan.serving.openai.outbox import Finished
from hunyuan.serving.openai.painting import paint
from hunyuan.serving.records import EditRecord, record_of
from hunyuan.serving.server import EditServer


class Reply:
    """One request's answer.

    Args:
        deadline: a `time.monotonic()` value.
    """

    def __init__(self, server: EditServer, call: ImageCall, painter: Painter, deadline: float) -> None:
        self.server, self.call, self.painter, self.deadline = server, call, painter, deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, record = Request(scope, receive), record_of(scope)
        edit = record.edit = edit_record(self.call)
        sender = EventSender(send)
        try:
            with self.server.tracing.edit(request.headers, record), reporting(scope, *self.call.hidden):
                work = self._stream(sender, edit) if self.call.stream else self._whole(edit)
                answer = await while_connected(work, self.deadline, request.is_disconnected)
        except HunyuanError as error:
            if not sender.started:
                await refusal(error)(scope, receive, send)
                return
            await sender.error(error)
        except asyncio.CancelledError:  # the web server's patience with a shutdown is over
            if not sender.started:
                raise
            record.error = ShuttingDown()
            await sender.error(record.error)
        if sender.started:
            await sender.end()
        else:
            await Response(answer, media_type="application/json")(scope, receive, send)

    async def _whole(self, edit: EditRecord) -> bytes:
        """The body of the answer. A picture is encoded while the next one is painted."""
        results: list[EditResult] = []
        images: list[asyncio.Future[dict[str, Any]]] = []
        cancel, encoding = CancelToken(self.deadline), self.server.encoding
        loop = asyncio.get_running_loop()
        async with aclosing(paint(self.server.worker, self.server.decoders, self.call, cancel, edit)) as reports:
            async for report in reports:
                if isinstance(report, Finished):
                    results.append(report.result)
                    images.append(loop.run_in_executor(encoding, image_of, report.result, self.call, self.painter))
        answer = answer_of(results, await asyncio.gather(*images), self.call)
        return await loop.run_in_executor(encoding, _json, answer)

    async def _stream(self, sender: EventSender, edit: EditRecord) -> bytes:
        """Sends the events as they come; there is no other body."""
        cancel, encoding = CancelToken(self.deadline), self.server.encoding
        loop = asyncio.get_running_loop()
        async with aclosing(paint(self.server.worker, self.server.decoders, self.call, cancel, edit)) as reports:
            async for report in reports:
                where: Executor | None = encoding if is_slow(report) else None
                if where is None:
                    fields = event_of(report, self.call, self.painter)
                else:
                    fields = await loop.run_in_executor(where, event_of, report, self.call, self.painter)
                await sender.event(fields)
        return b""


def edit_record(call: ImageCall) -> EditRecord:
    request = call.request
    return EditRecord(len(request.prompt), request.resolution, request.seed, request.steps, images=len(call.pictures))


def _json(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
