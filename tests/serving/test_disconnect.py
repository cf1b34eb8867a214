"""Work ends with its client or its deadline."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from hunyuan.errors import Cancelled, DeadlineExceeded
from hunyuan.serving.disconnect import while_connected


async def never() -> bool:
    return False


async def at_once() -> bool:
    return True


class Work:
    def __init__(self, seconds: float) -> None:
        self.seconds, self.cancelled = seconds, False

    async def __call__(self) -> str:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return "done"


def attend(work: Any, seconds: float = 5, is_gone: Any = never) -> Any:
    async def main() -> Any:
        return await while_connected(work(), time.monotonic() + seconds, is_gone, poll_s=0.01)

    return asyncio.run(main())


def test_what_ends_in_time_is_returned() -> None:
    assert attend(Work(0.01)) == "done"


def test_its_own_error_comes_through() -> None:
    async def fail() -> None:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        attend(fail)


def test_the_deadline_cancels_it() -> None:
    work = Work(5)
    with pytest.raises(DeadlineExceeded):
        attend(work, seconds=0.03)
    assert work.cancelled


def test_a_deadline_in_the_past_does_not_wait() -> None:
    with pytest.raises(DeadlineExceeded):
        attend(Work(5), seconds=-1)


def test_a_client_that_leaves_cancels_it() -> None:
    work = Work(5)
    with pytest.raises(Cancelled, match="client"):
        attend(work, is_gone=at_once)
    assert work.cancelled


def test_a_broken_watcher_does_not_pass_for_a_client_that_left() -> None:
    async def broken() -> bool:
        raise OSError("no connection")

    with pytest.raises(OSError, match="no connection"):
        attend(Work(5), is_gone=broken)
