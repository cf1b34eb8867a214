"""A job's place: asked for at the proxy, granted when the request comes back, given back at the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from hunyuan.errors import Cancelled, DeadlineExceeded, InferenceFailed
from hunyuan.serving.http_errors import NotFound, ShuttingDown
from hunyuan.serving.jobs.places import HEADER, Places


async def here() -> bool:
    return False


class Proxy(BaseHTTPRequestHandler):
    """Answers at once with `status`, or (204) when `come_back` was held to its end on the tests' loop."""

    status = 204
    places: Places
    loop: asyncio.AbstractEventLoop
    seen: list[str]

    def do_POST(self) -> None:
        self.seen.append(self.path)
        if self.status == 204:
            held = self.places.hold(self.headers[HEADER], here)
            asyncio.run_coroutine_threadsafe(held, self.loop).result(10)
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def proxy(status: int) -> Iterator[tuple[Places, type[Proxy]]]:
    handler = type("Handler", (Proxy,), {"status": status, "seen": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    handler.places = Places(f"http://127.0.0.1:{server.server_port}/edit/place")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield handler.places, handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_without_a_proxy_nobody_waits() -> None:
    async def main() -> None:
        async with Places(None).one("x") as waited_s:
            assert waited_s == 0.0

    asyncio.run(main())


def test_a_place_is_held_and_given_back() -> None:
    with proxy(204) as (places, handler):

        async def main() -> None:
            handler.loop = asyncio.get_running_loop()
            async with places.one("gpu0-ab") as waited_s:
                assert 0 < waited_s < 5
                assert len(places._open) == 1
            assert places._open == {}

        asyncio.run(main())
        assert handler.seen == ["/edit/place?task_id=gpu0-ab"]


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (504, DeadlineExceeded, "not finished in the time"),
        (503, InferenceFailed, "HTTP 503"),
        (404, InferenceFailed, "404"),
    ],
)
def test_what_the_proxy_says_ends_the_job(status: int, kind: type[Exception], words: str) -> None:
    async def main(places: Places) -> None:
        async with places.one("x"):
            raise AssertionError("there was no place")

    with proxy(status) as (places, _), pytest.raises(kind, match=words):
        asyncio.run(main(places))


def test_a_proxy_that_is_not_there() -> None:
    async def main() -> None:
        async with Places("http://127.0.0.1:9/edit/place").one("x"):
            raise AssertionError("there was no place")

    with pytest.raises(InferenceFailed, match=r"does not answer \(ConnectError\)"):
        asyncio.run(main())


def test_a_job_that_is_sent_away_stops_asking() -> None:
    async def main() -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.1, ended.set_exception, ShuttingDown())

        async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        silent = await asyncio.start_server(says_nothing, "127.0.0.1", 0)
        async with silent, Places(f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/x").one("x", ended):
            raise AssertionError("there was no place")

    with pytest.raises(ShuttingDown):
        asyncio.run(main())


def test_nobody_else_gets_in_and_a_proxy_may_go() -> None:
    async def main() -> None:
        places = Places("http://127.0.0.1:9/edit/place")
        for token in ("", "guessed"):
            with pytest.raises(NotFound):
                await places.hold(token, here)

        async def gone() -> bool:
            return True

        from hunyuan.serving.jobs.places import _Place

        places._open["t"] = _Place()
        with pytest.raises(Cancelled):
            await places.hold("t", gone)

    asyncio.run(main())
