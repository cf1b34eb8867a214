"""Events on the wire."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hunyuan.serving.openai.events import EventSender


def sent(*events: dict[str, Any]) -> bytes:
    messages: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        messages.append(dict(message))

    async def all_of_them() -> None:
        sender = EventSender(send)
        for event in events:
            await sender.event(event)
        await sender.end()

    asyncio.run(all_of_them())
    assert messages[0]["status"] == 200
    return b"".join(message.get("body", b"") for message in messages)


def test_no_text_breaks_an_event_for_any_way_to_split_lines() -> None:
    """`str.splitlines`, and so httpx, knows more ends of lines than server-sent events do."""
    text = "".join(map(chr, [*range(0x20), 0x7F, 0x85, 0x2028, 0x2029])) + "\n\ndata: x\r\n\r\n四 é"
    event = {"type": "hunyuan.text", "index": 0, "text": text}
    body = sent(event, event).decode()
    head, data, end = body.splitlines()[:3]
    assert body.splitlines() == [head, data, end] * 2
    assert (head, end) == ("event: hunyuan.text", "")
    assert json.loads(data.removeprefix("data: ")) == event
    assert "四 é" in data
