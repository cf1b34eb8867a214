"""Places for jobs in the one queue of a proxy that stands before several replicas.

A job has no connection of its own through the proxy, so the proxy would think this replica free while a job runs, and
send an edit here that another replica could do at once. Hence a request for each job, which this process sends to the
proxy and the proxy, when this replica's turn has come, back to this process; here it stays unanswered until the job
has ended. `deploy/haproxy.cfg` has the other side.

Knows the proxy's address and asyncio. What a job does with its place it does not know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from hunyuan.serving.http_errors import JobNotFound

logger = logging.getLogger(__name__)

PATH = "/place"  # below the path of edits
POLL_S = 0.5  # between two requests for a place
ALONE_S = 10.0  # without an answer that is one: a proxy that cannot give places must not keep a job from a free GPU
_CONNECT_S = 2.0


class _Place:
    def __init__(self) -> None:
        self.given, self.ended = asyncio.Event(), asyncio.Event()


class Places:
    """Asks for places and holds them.

    Args:
        url: the proxy's, with the path of edits.
        alone_s: as `ALONE_S`.
    """

    def __init__(self, url: str, alone_s: float = ALONE_S) -> None:
        self._url, self._alone_s = f"{url}{PATH}", alone_s
        self._places: dict[str, _Place] = {}
        self._asking: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def one(self, job_id: str) -> AsyncIterator[None]:
        """Waits for a place and holds it while the caller is inside."""
        place = self._places[job_id] = _Place()
        asking = asyncio.get_running_loop().create_task(self._ask(job_id, place))
        self._asking.add(asking)  # the loop itself holds on to a task only weakly
        asking.add_done_callback(self._asking.discard)
        try:
            await place.given.wait()
            yield
        finally:
            del self._places[job_id]
            if place.given.is_set():
                place.ended.set()  # the proxy's request is answered, and with it ours
            else:
                asking.cancel()  # the proxy lets a request go whose sender has left

    def waiting(self) -> list[str]:
        """The jobs that have no place yet."""
        return [job_id for job_id, place in self._places.items() if not place.given.is_set()]

    async def hold(self, job_id: str) -> None:
        """The proxy's side: gives the job its place, and returns when it has ended. Raises `JobNotFound`."""
        place = self._places.get(job_id)
        if place is None:
            raise JobNotFound
        place.given.set()
        await place.ended.wait()

    async def _ask(self, job_id: str, place: _Place) -> None:
        """Until there is a place, or it is clear that there will be none."""
        loop = asyncio.get_running_loop()
        end, why = loop.time() + self._alone_s, ""
        limits = httpx.Timeout(None, connect=_CONNECT_S)
        certificates = self._url.startswith("https:")  # to read them takes longer than a request
        async with httpx.AsyncClient(timeout=limits, trust_env=False, verify=certificates) as client:
            while not place.given.is_set():
                sent = loop.time()
                try:
                    answer = await client.post(self._url, params={"task_id": job_id})
                    why = f"status {answer.status_code}"
                except httpx.HTTPError as error:
                    why = type(error).__name__
                if place.given.is_set():
                    return
                if loop.time() - sent > self._alone_s:  # it stood in the queue: this is no proxy that says no at once
                    end = loop.time() + self._alone_s
                if loop.time() >= end:
                    logger.warning("the proxy gives a job no place (%s): it is done without one", why)
                    place.given.set()
                    return
                await asyncio.sleep(POLL_S)
