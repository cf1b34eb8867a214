"""What stands in front of the web server's signal handlers."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

import pytest
import uvicorn

from hunyuan.serving.lifecycle import Drain, web_server


class WebServer:
    """Counts the signals that reach it; `limit` is its --timeout-graceful-shutdown."""

    def __init__(self, limit: int | None = None) -> None:
        self.got: list[int] = []
        self.config = type("Config", (), {"timeout_graceful_shutdown": limit})()

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        self.got.append(number)


@pytest.fixture(autouse=True)
def _handlers_are_put_back() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup
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


def test_a_closed_terminal_means_sigterm_unless_it_is_ignored() -> None:
    web_server = WebServer()
    assert drained(web_server, lambda: False, signal.SIGHUP) == ["no"]
    assert web_server.got == [signal.SIGTERM]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert drained(web_server, lambda: False, signal.SIGHUP) == []


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


def test_connections_are_hurried_when_the_web_server_gets_the_signal_and_not_before() -> None:
    web_server, told = WebServer(), list[str]()

    async def main() -> None:
        signal.signal(signal.SIGTERM, web_server.handle_exit)
        busy = [True]
        Drain(lambda: told.append("refuse"), lambda: busy[0], lambda: told.append("hurry")).install()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0.1)
        assert told == ["refuse"]
        busy[0] = False
        await asyncio.sleep(0.15)

    asyncio.run(main())
    assert told == ["refuse", "hurry"]
    assert web_server.got == [signal.SIGTERM]


def test_what_does_not_end_by_itself_is_ended_by_force() -> None:
    web_server, forced = WebServer(), threading.Event()

    async def main() -> None:
        signal.signal(signal.SIGTERM, web_server.handle_exit)
        Drain(lambda: None, lambda: True, limit_s=0.2, force=forced.set).install()
        began = time.monotonic()
        signal.raise_signal(signal.SIGTERM)
        await asyncio.sleep(0.05)
        assert not forced.is_set()
        time.sleep(0.3)  # an event loop that stands still
        assert forced.is_set()
        assert time.monotonic() - began < 2

    asyncio.run(main())


def test_the_web_server_is_found_where_it_waits_for_signals() -> None:
    server = uvicorn.Server(uvicorn.Config(app="none:none", log_config=None))
    assert web_server() is None
    signal.signal(signal.SIGTERM, server.handle_exit)
    assert web_server() is server
