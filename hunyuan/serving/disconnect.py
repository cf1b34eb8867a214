"""Works for a client only as long as the client is there and its time is not up.

Knows asyncio and clocks. What the work is, and how it is stopped, is the caller's business: it is cancelled here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from hunyuan.errors import Cancelled, DeadlineExceeded

POLL_S = 0.1  # how often the connection is looked at
Result = TypeVar("Result")


async def while_connected(
    work: Coroutine[Any, Any, Result], deadline: float, is_gone: Callable[[], Awaitable[bool]], poll_s: float = POLL_S
) -> Result:
    """Runs `work` to its end, or cancels it.

    Args:
        deadline: a `time.monotonic()` value.
        is_gone: tells whether the client has closed its connection.

    Raises:
        Cancelled: the client went away.
        DeadlineExceeded: the deadline passed; raised then, however long the work takes to notice.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(_until(is_gone, poll_s))
    try:
        left_s = max(0.0, deadline - time.monotonic())
        await asyncio.wait({task, watcher}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if watcher.done():
            watcher.result()  # an error of the watcher itself must not pass for a client that left
            raise Cancelled("the client went away")
        raise timed_out()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def timed_out() -> DeadlineExceeded:
    return DeadlineExceeded("the request was not finished in the time this server allows for one")


async def _until(is_gone: Callable[[], Awaitable[bool]], poll_s: float) -> None:
    while not await is_gone():
        await asyncio.sleep(poll_s)
