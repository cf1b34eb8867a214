"""What stands in front of the web server's signal handlers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Iterator
from types import FrameType

import pytest

from hunyuan.serving.lifecycle import Drain


class WebServer:
    """Counts the signals that reach it; `limit` is its --timeout-graceful-shutdown."""

    def __init__(self, limit: int | None = None) -> None:
        self.got: list[int] = []
        self.config = type("Config", (), {"timeout_graceful_shutdown": limit})()

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        self.got.append(number)


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def drained(web_server: WebServer, busy: Callable[[], bool], *numbers: signal.Signals) -> list[str]:
    """Sends the signals with a pause behind each; returns what `refuse_work` was told."""
    refused: list[str] = []

    async def main() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, web_server.handle_exit)
        Drain(lambda: refused.append("no"), busy).install()
        for number in numbers:
            signal.raise_signal(number)
            await asyncio.sleep(0.15)

    asyncio.run(main())
    return refused


def test_an_idle_server_ends_at_the_first_signal() -> None:
    web_server = WebServer()
    assert drained(web_server, lambda: False, signal.SIGTERM) == ["no"]
    assert web_server.got == [signal.SIGTERM]


def test_a_busy_one_refuses_work_first() -> None:
    web_server = WebServer()
    assert drained(web_server, lambda: True, signal.SIGTERM) == ["no"]
    assert web_server.got == []


def test_a_second_signal_reaches_the_web_server_at_once() -> None:
    web_server = WebServer()
    assert drained(web_server, lambda: True, signal.SIGINT, signal.SIGTERM, signal.SIGINT) == ["no"]
    assert web_server.got == [signal.SIGTERM, signal.SIGINT]


def test_a_limit_of_the_operators_counts_from_the_signal() -> None:
    web_server = WebServer(limit=5)
    assert drained(web_server, lambda: True, signal.SIGTERM) == ["no"]
    assert web_server.got == [signal.SIGTERM]
