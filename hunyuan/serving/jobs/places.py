"""A job's place in the one queue of several replicas, which a proxy in front of them keeps.

That proxy lets each replica work on so many requests at a time, and a job is none: its submitter has the answer. So
the replica itself asks the proxy, with a request that comes back to this very process when its turn has come and is
answered when the job has ended. For the proxy the replica is busy as long. Knows HTTP and tokens, no job.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from hunyuan.errors import HunyuanError, InferenceFailed
from hunyuan.serving.disconnect import timed_out, while_connected
from hunyuan.serving.http_errors import NotFound

HEADER = "x-place"
CONNECT_S = 5.0
LINGER_S = 1.0  # for the proxy to take the answer, so that it sees the place free at once
LONGEST_S = 86_400.0


@dataclass
class _Place:
    """`granted`: the proxy has let our request through. `over`: it may be answered."""

    granted: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Places:
    """The places of this process's jobs.

    Args:
        url: where the proxy takes the requests for them; None: there is no such proxy, and no waiting here.
    """

    def __init__(self, url: str | None) -> None:
        self._url = url
        self._open: dict[str, _Place] = {}

    @asynccontextmanager
    async def one(self, job_id: str, ended: Awaitable[object] | None = None) -> AsyncIterator[float]:
        """Holds a place while the caller is inside; the value is how many seconds it waited for it.

        Args:
            ended: is done when the job has ended otherwise; its error is raised then.

        Raises:
            DeadlineExceeded: the proxy had none in its own time.
            InferenceFailed: the proxy does not answer, or refuses.
        """
        if self._url is None:
            yield 0.0
            return
        token, place, began = secrets.token_hex(16), _Place(), time.monotonic()
        self._open[token] = place
        asking = asyncio.ensure_future(self._ask(self._url, job_id, token))
        try:
            await _first_of(place.granted.wait(), asking, ended)
            yield time.monotonic() - began
        finally:
            place.over.set()
            del self._open[token]
            await asyncio.wait({asking}, timeout=LINGER_S if place.granted.is_set() else 0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def hold(self, token: str, is_gone: Callable[[], Awaitable[bool]]) -> None:
        """Our own request has come back: returns when its job has ended, or the proxy has gone.

        Raises:
            NotFound: it is none of ours.
            Cancelled: the proxy has gone. The job goes on.
        """
        place = self._open.get(token)
        if place is None:
            raise NotFound("there is nothing at this path")
        place.granted.set()
        await while_connected(_until(place.over), time.monotonic() + LONGEST_S, is_gone)

    async def _ask(self, url: str, job_id: str, token: str) -> None:
        """Ends with an error where there was no place."""
        times = httpx.Timeout(None, connect=CONNECT_S)
        try:
            async with httpx.AsyncClient(timeout=times, trust_env=False, verify=url.startswith("https:")) as client:
                answer = await client.post(url, params={"task_id": job_id}, headers={HEADER: token})
        except httpx.HTTPError as error:
            raise InferenceFailed(
                f"the proxy that gives jobs their turn does not answer ({type(error).__name__})"
            ) from None
        if answer.status_code == 504:
            raise timed_out()
        if not answer.is_success:
            raise InferenceFailed(f"the proxy that gives jobs their turn answered with HTTP {answer.status_code}")


async def _until(event: asyncio.Event) -> None:
    await event.wait()


async def _first_of(granted: Awaitable[object], asking: asyncio.Future[None], ended: Awaitable[object] | None) -> None:
    """Returns when the place is there; raises the error of whichever of the others ends before."""
    waiting = asyncio.ensure_future(granted)
    others: set[asyncio.Future[Any]] = {asking} if ended is None else {asking, asyncio.ensure_future(ended)}
    try:
        await asyncio.wait({waiting, *others}, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return
        for other in others:
            if other.done():
                other.result()
        raise HunyuanError("a job's turn ended before it came")
    finally:
        waiting.cancel()
