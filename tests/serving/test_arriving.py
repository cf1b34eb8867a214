"""Places for bodies that arrive: bounded, shared out, and not for those that stand still."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from slowness import slowness

from hunyuan.errors import DeadlineExceeded, HunyuanError
from hunyuan.serving import uploads as module
from hunyuan.serving.http_errors import QueueFull, ShuttingDown, TooSlow
from hunyuan.serving.pace import Least, Pace
from hunyuan.serving.uploads import Uploads

MB = 1_000_000


async def arrive(
    uploads: Uploads, peer: str | None = "a", seconds: float = 5, rate: float = MB, deadline_s: float = 60
) -> HunyuanError | None:
    """A body that comes at `rate` bytes a second; returns why it was not let in or ended."""
    try:
        async with uploads.one(peer, int(seconds * rate), time.monotonic() + deadline_s) as upload:
            began = time.monotonic()
            while (passed := time.monotonic() - began) < seconds:
                await asyncio.sleep(0.02)
                upload.receive(int(rate * (time.monotonic() - began - passed)))  # however busy the machine is
    except HunyuanError as error:
        return error
    return None


def run(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(main())


def test_a_body_that_moves_is_let_through() -> None:
    assert run(lambda: arrive(Uploads(1, 1, Least(0.2, MB / 10)), seconds=0.6)) is None


def test_one_that_stands_still_or_creeps_is_ended() -> None:
    uploads = Uploads(2, 2, Least(0.2, MB))
    began = time.monotonic()
    still = run(lambda: arrive(uploads, rate=0))
    assert time.monotonic() - began < 0.4 * slowness()
    creeping = run(lambda: arrive(uploads, rate=MB / 10))
    assert [type(still), type(creeping)] == [TooSlow, TooSlow]
    assert "nothing moved for 0.2 s" in str(still)
    assert "less than 976.562 KiB a second" in str(creeping)
    assert still.status == 408


def test_the_deadline_is_another_error() -> None:
    assert isinstance(run(lambda: arrive(Uploads(1, 1, Least(5, 1)), deadline_s=0.1)), DeadlineExceeded)


def test_a_peer_gets_its_share_and_nobody_more_than_there_is() -> None:
    async def main() -> list[HunyuanError | None]:
        uploads = Uploads(3, 2, Least(10, 1))
        first = [asyncio.create_task(arrive(uploads, peer, 0.3)) for peer in ("a", "a", "b")]
        await asyncio.sleep(0.05)
        late = [await arrive(uploads, peer) for peer in ("a", "c", None)]
        assert [await task for task in first] == [None] * 3
        return [*late, await arrive(uploads, "a", 0.05)]

    mine, others, proxy, afterwards = run(main)
    assert [type(error) for error in (mine, others, proxy)] == [QueueFull] * 3
    assert "2 uploads from your address are under way already" in str(mine)
    assert "3 uploads are under way already" in str(others)
    assert afterwards is None


def test_retry_after_says_when_a_place_should_be_free() -> None:
    async def main(seconds: float, rate: float) -> int:
        uploads = Uploads(1, 1, Least(10, 1000))
        task = asyncio.create_task(arrive(uploads, "a", seconds, rate))
        await asyncio.sleep(0.5)
        refused = await arrive(uploads, "b")
        task.cancel()
        assert isinstance(refused, QueueFull)
        return refused.retry_after_s

    assert 28 <= asyncio.run(main(30, MB)) <= 33  # it goes on at that rate
    assert 10 <= asyncio.run(main(30, 1)) <= 12  # it will be ended


def test_where_places_are_short_the_slowest_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PRESSED_S", 0.2)

    async def main() -> list[HunyuanError | None]:
        uploads = Uploads(2, 2, Least(10, MB / 10))
        slow = asyncio.create_task(arrive(uploads, "a", rate=10))
        quick = asyncio.create_task(arrive(uploads, "a", 0.8))
        await asyncio.sleep(0.4)
        return [await arrive(uploads, "b", 0.1), await slow, await quick]

    newcomer, slow, quick = run(main)
    assert (newcomer, quick) == (None, None)
    assert "while others waited for its place" in str(slow)


def test_closing_ends_those_on_their_way_and_refuses_the_rest() -> None:
    async def main() -> list[HunyuanError | None]:
        uploads = Uploads(4, 4, Least(10, 1))
        tasks = [asyncio.create_task(arrive(uploads)) for _ in range(3)]
        await asyncio.sleep(0.05)
        uploads.close(ShuttingDown)
        return [*await asyncio.wait_for(asyncio.gather(*tasks), 0.5), await arrive(uploads)]

    assert [type(error) for error in run(main)] == [ShuttingDown] * 4


def test_a_pace_is_measured_over_the_whole_window_and_then_anew() -> None:
    pace = Pace(Least(10, 100), now=0)
    for second in range(1, 10):
        pace.see(90 * second, second)
        assert pace.fault(second) is None
    pace.see(1000, 10)
    assert pace.fault(10) is None  # 1,000 in 10 s is just enough, and a new window begins
    pace.see(1001, 19)
    assert pace.patience_s(19) == 1
    assert "less than 0.0976562 KiB a second moved for 10 s" in str(pace.fault(20))
    assert pace.fault(29) == "nothing moved for 10 s"
