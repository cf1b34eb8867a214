"""Bounds how many request bodies are in memory while they arrive, and how long a slow one may take.

Knows places and peers. Without it, ten thousand slow senders could fill the memory in front of the queue, or
thirty-two of them could keep everybody else out: so a body has to keep moving, no peer gets more than its share of
the places, and where places are short, a body that does not move gives its place to one that comes.

Used on the event loop only, so that plain numbers will do.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager

from hunyuan.errors import HunyuanError
from hunyuan.serving.disconnect import timed_out
from hunyuan.serving.http_errors import QueueFull, TooSlow
from hunyuan.serving.pace import Least, Pace

LOOKS = 8  # a body is looked at so many times in the time that it may stand still
PRESSED_S = 2.0  # where places are short, a body that stands still or creeps so long has to go


class Upload:
    """One body on its way.

    Args:
        peer: whose share it counts for; None: nobody's.
        length: of the body, where it was announced.
        deadline: a `time.monotonic()` value.
        ends: rescheduled to end it before.
    """

    def __init__(
        self, peer: str | None, length: int | None, deadline: float, least: Least, ends: asyncio.Timeout
    ) -> None:
        self.peer, self.length, self.deadline, self.least = peer, length, deadline, least
        self.got = 0
        self.error: HunyuanError | None = None  # why it was ended
        self.pace = Pace(least, time.monotonic())
        self._ends = ends

    def receive(self, count: int) -> None:
        """`count` bytes more have come."""
        self.got += count
        self.pace.see(self.got, time.monotonic())

    def end(self, error: HunyuanError) -> None:
        if self.error is None:
            self.error = error
            self._ends.reschedule(asyncio.get_running_loop().time())

    async def watch(self) -> None:
        """Ends a body that stands still or creeps."""
        while self.error is None:
            await asyncio.sleep(self.least.idle_s / LOOKS)
            fault = self.pace.fault(time.monotonic())
            if fault is not None:
                self.end(TooSlow(f"the request's body comes too slowly: {fault}"))

    def left_s(self, now: float) -> float:
        """Seconds until its place should be free: at its present rate, or when the patience with it ends."""
        latest = self.deadline - now
        if self.length is None or self.pace.creeps(now):
            return min(latest, self.pace.patience_s(now) + self.least.idle_s / LOOKS)
        return min(latest, (self.length - self.got) / self.pace.rate(now))


class Uploads:
    """All bodies that arrive now.

    Args:
        most: places.
        share: of them, for one peer.
        least: the slowest that is borne.
    """

    def __init__(self, most: int, share: int, least: Least) -> None:
        self._most, self._share, self._least = most, share, least
        self._now: set[Upload] = set()
        self._closed: Callable[[], HunyuanError] | None = None

    @asynccontextmanager
    async def one(self, peer: str | None, length: int | None, deadline: float) -> AsyncIterator[Upload]:
        """Holds a place while a body is read inside; arguments as for `Upload`.

        Raises:
            QueueFull: there is no place, or the peer has its share already.
            TooSlow: the body stood still or crept.
            DeadlineExceeded: the time was up.
            HunyuanError: what `close` was given.
        """
        if self._closed is not None:
            raise self._closed()
        self._make_room(peer)
        ends = asyncio.timeout(deadline - time.monotonic())
        upload = Upload(peer, length, deadline, self._least, ends)
        self._now.add(upload)
        watch = asyncio.get_running_loop().create_task(upload.watch())
        try:
            async with ends:
                yield upload
        except TimeoutError:
            raise (upload.error or timed_out()) from None
        finally:
            self._now.discard(upload)
            watch.cancel()

    def close(self, make_error: Callable[[], HunyuanError]) -> None:
        """Ends every body with an error, now and from now on."""
        self._closed = make_error
        for upload in self._now:
            upload.end(make_error())

    def _make_room(self, peer: str | None) -> None:
        mine = [upload for upload in self._now if peer is not None and upload.peer == peer]
        if len(mine) >= self._share:
            self._end_one_of(mine, "from your address ")
        elif len(self._now) >= self._most:
            self._end_one_of(self._now, "")

    def _end_one_of(self, crowd: Collection[Upload], whose: str) -> None:
        now = time.monotonic()
        slow = [upload for upload in crowd if upload.pace.stalls(now, PRESSED_S)]
        if not slow:
            wait_s = math.ceil(min(upload.left_s(now) for upload in crowd))
            raise QueueFull(f"{len(crowd)} uploads {whose}are under way already; try again later", max(1, wait_s))
        slowest = min(slow, key=lambda upload: upload.pace.rate(now))
        slowest.end(TooSlow("the request's body came too slowly while others waited for its place"))
        self._now.discard(slowest)
