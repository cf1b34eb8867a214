"""A job's place in a proxy's queue: asked for, given, held until the job has ended, or done without."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from hunyuan.serving.http_errors import JobNotFound
from hunyuan.serving.jobs.places import Places

ALONE_S = 1.0


class Proxy:
    """Answers each request with `status`, at once or when its gate opens; counts those whose sender has left."""

    def __init__(self, status: int = 503) -> None:
        self.status = status
        self.gate = asyncio.Event()
        self.asked: list[str] = []
        self.left = self.serving = 0
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/edit"
        async with server:
            yield self
            self.gate.set()
            await until(lambda: self.serving == 0)
            await asyncio.sleep(0.02)  # the other end reads the answer and closes

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving += 1
        line = await reader.readline()
        while await reader.readline() != b"\r\n":
            pass
        self.asked.append(line.decode().split()[1])
        gone, opened = asyncio.ensure_future(reader.read()), asyncio.ensure_future(self.gate.wait())
        await asyncio.wait({gone, opened}, return_when=asyncio.FIRST_COMPLETED)
        self.left += gone.done()
        gone.cancel()
        opened.cancel()
        writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        self.serving -= 1


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


def test_a_place_is_held_as_long_as_the_job_is_inside() -> None:
    async def story() -> None:
        async with Proxy().running() as proxy:
            places, inside, done = Places(proxy.url), asyncio.Event(), asyncio.Event()

            async def job() -> None:
                async with places.one("a-job"):
                    inside.set()
                    await done.wait()

            working = asyncio.create_task(job())
            await until(lambda: proxy.asked)
            assert proxy.asked == ["/edit/place?task_id=a-job"]
            assert places.waiting() == ["a-job"]
            assert not inside.is_set()
            held = asyncio.create_task(places.hold("a-job"))
            await asyncio.wait_for(inside.wait(), 5)
            assert places.waiting() == []
            assert not held.done()
            done.set()
            await asyncio.wait_for(held, 5)
            await working
            with pytest.raises(JobNotFound):
                await places.hold("a-job")

    asyncio.run(story())


def test_a_job_that_ends_while_it_waits_leaves_the_queue() -> None:
    async def story() -> None:
        async with Proxy().running() as proxy:
            places = Places(proxy.url)

            async def job() -> None:
                async with places.one("a-job"):
                    raise AssertionError("nobody gave it a place")

            working = asyncio.create_task(job())
            await until(lambda: proxy.asked)
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            await until(lambda: proxy.left == 1)
            assert places.waiting() == []

    asyncio.run(story())


@pytest.mark.parametrize("status", [404, 503, 504])
def test_a_proxy_that_says_no_is_asked_again_and_then_done_without(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("hunyuan.serving.jobs.places.POLL_S", 0.05)

    async def story() -> None:
        async with Proxy(status).running() as proxy:
            proxy.gate.set()
            async with asyncio.timeout(5), Places(proxy.url, ALONE_S).one("a-job"):
                assert len(proxy.asked) > 1

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert f"gives a job no place (status {status})" in caplog.text
    assert "a-job" not in caplog.text


def test_a_proxy_that_is_not_there_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        async with Proxy().running() as proxy:
            url = proxy.url
        async with asyncio.timeout(5), Places(url, ALONE_S).one("a-job"):
            pass

    with caplog.at_level(logging.WARNING):
        asyncio.run(story())
    assert "(ConnectError)" in caplog.text
