"""The server-sent events of a stream: OpenAI's, ours, and the one that ends a stream badly.

Knows names, fields and the wire format.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hunyuan.errors import HunyuanError
from hunyuan.requests import EditResult
from hunyuan.serving.openai.answers import Painter, about, how_made, usage_of
from hunyuan.serving.openai.call import ImageCall
from hunyuan.serving.openai.errors import error_body
from hunyuan.serving.openai.outbox import Finished, Preview, Progress, Report, Text
from hunyuan.serving.openai.painting import Place

if TYPE_CHECKING:  # scripts/benchmarks/stream_cost.py runs where there is a GPU and no web framework
    from starlette.types import Send

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would keep the events together
]


class EventSender:
    """Writes events into an answer that begins with the first one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def event(self, fields: Mapping[str, Any]) -> None:
        """`fields["type"]` is the event's name."""
        if not self.started:
            await self._send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
            self.started = True
        body = f"event: {fields['type']}\ndata: {_one_line(fields)}\n\n"
        await self._send({"type": "http.response.body", "body": body.encode("utf-8", "replace"), "more_body": True})

    async def error(self, error: HunyuanError) -> None:
        await self.event({"type": "error", **error_body(error)})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})


def _one_line(fields: Mapping[str, Any]) -> str:
    """JSON without the ends of lines that only Unicode knows: clients that split text by them would cut an event."""
    text = json.dumps(fields, ensure_ascii=False)
    for end in ("\x85", "\u2028", "\u2029"):
        text = text.replace(end, f"\\u{ord(end):04x}")
    return text


def event_of(report: Report | Place, call: ImageCall, painter: Painter) -> dict[str, Any]:
    """The event about a report. Slow where a picture is encoded: call it on a thread then."""
    match report:
        case Place():
            return {"type": "hunyuan.queue", "ahead": report.ahead}
        case Progress():
            counts = {"stage": report.stage, "done": report.done, "total": report.total}
            return {"type": "hunyuan.stage", "index": report.index, **counts}
        case Text():
            return {"type": "hunyuan.text", "index": report.index, "text": report.text}
        case Preview():
            return _preview(report, call, painter)
        case Finished():
            return _finished(report, call, painter)


def is_slow(report: Report | Place) -> bool:
    return isinstance(report, Preview | Finished)


def _preview(preview: Preview, call: ImageCall, painter: Painter) -> dict[str, Any]:
    shown = EditResult(preview.image, None, call.seed + preview.index, preview.image.size, preview.steps, 0)
    return {
        "type": f"{call.operation}.partial_image",
        "b64_json": painter.base64_of(shown, call),
        "created_at": int(time.time()),
        **how_made(preview.image, call),
        "partial_image_index": preview.number,
        "index": preview.index,
    }


def _finished(finished: Finished, call: ImageCall, painter: Painter) -> dict[str, Any]:
    result = finished.result
    return {
        "type": f"{call.operation}.completed",
        "b64_json": painter.base64_of(result, call),
        "created_at": int(time.time()),
        **how_made(result.image, call),
        "usage": usage_of([result.usage]),
        **about(result),
        "index": finished.index,
    }
