"""Which connections have to go, and when, with a clock and connections made of plain values."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable

import pytest

from hunyuan.errors import HunyuanError
from hunyuan.serving import connections as module
from hunyuan.serving.connections import DRAIN_S, FEWEST, LAST_S, LINGER_S, REASONS, Connections, Phase
from hunyuan.serving.http_errors import TooManyConnections, TooSlow
from hunyuan.serving.pace import Least

IDLE_S, RATE = 10.0, 100.0


class Fake:
    def __init__(self, peer: str | None = "a", phase: Phase = Phase.SILENT) -> None:
        self.peer, self.phase = peer, phase
        self.moved = self.turn = 0
        self.unread = False
        self.refused: list[HunyuanError] = []
        self.aborted = False

    def refuse(self, error: HunyuanError, at_once: bool = False) -> None:
        self.refused.append(error)
        self.phase = Phase.LEAVING

    def abort(self) -> None:
        self.aborted = True

    @property
    def gone(self) -> bool:
        return self.aborted or bool(self.refused)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def of(reasons: list[str], most: int = 8, share: float = 0.5) -> Connections:
    return Connections(most, share, Least(IDLE_S, RATE), reasons.append)


def inside(body: Callable[[], None]) -> None:
    """On an event loop, which `admit` starts its sweep on; a sweep of its own never comes in here."""

    async def main() -> None:
        body()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("phase", "reason"),
    [(Phase.SILENT, "silent"), (Phase.IDLE, "idle"), (Phase.DRAIN, "slow_body"), (Phase.ANSWER, "answer_not_read")],
)
def test_who_does_not_move_is_ended_after_the_limit(clock: Clock, phase: Phase, reason: str) -> None:
    reasons: list[str] = []
    connections, one = of(reasons), Fake(phase=phase)

    def body() -> None:
        connections.admit(one)
        connections.sweep(clock.now + IDLE_S - 0.1)
        assert not one.gone
        connections.sweep(clock.now + IDLE_S)
        assert one.aborted
        assert len(connections) == 0

    inside(body)
    assert reasons == [reason]
    assert reason in REASONS


def test_half_a_head_is_told_and_gets_a_moment_to_read_it(clock: Clock) -> None:
    connections, one = of([]), Fake(phase=Phase.HEAD)

    def body() -> None:
        connections.admit(one)
        connections.sweep(clock.now + IDLE_S)
        assert isinstance(one.refused[0], TooSlow)
        connections.sweep(clock.now + IDLE_S + 0.1)
        assert not one.aborted
        connections.sweep(clock.now + IDLE_S + 0.1 + LINGER_S)
        assert one.aborted

    inside(body)


def test_a_head_that_grows_has_no_more_time_than_one_that_does_not(clock: Clock) -> None:
    connections, one = of([]), Fake(phase=Phase.HEAD)

    def body() -> None:
        connections.admit(one)
        for second in range(1, 10):
            one.moved += 1000
            connections.sweep(clock.now + second)
            assert not one.gone
        connections.sweep(clock.now + IDLE_S)
        assert one.gone

    inside(body)


def test_an_answer_that_is_taken_goes_on_and_one_that_creeps_does_not(clock: Clock) -> None:
    connections, quick, slow = of([]), Fake(phase=Phase.ANSWER), Fake("b", Phase.ANSWER)

    def body() -> None:
        connections.admit(quick)
        connections.admit(slow)
        for second in range(1, 40):
            quick.moved += int(RATE)
            slow.moved += int(RATE / 2)
            connections.sweep(clock.now + second)
        assert (quick.gone, slow.gone) == (False, True)

    inside(body)


def test_a_body_without_end_is_not_taken_for_ever_when_its_answer_is_out(clock: Clock) -> None:
    reasons: list[str] = []
    connections, one = of(reasons), Fake(phase=Phase.DRAIN)

    def body() -> None:
        connections.admit(one)
        for second in range(1, int(DRAIN_S)):
            one.moved += int(RATE * 100)
            connections.sweep(clock.now + second)
        assert not one.gone
        connections.sweep(clock.now + DRAIN_S)
        assert one.gone

    inside(body)
    assert reasons == ["slow_body"]


def test_who_waits_for_the_server_waits_as_long_as_it_takes(clock: Clock) -> None:
    connections, one = of([]), Fake(phase=Phase.WORKING)

    def body() -> None:
        connections.admit(one)
        connections.end_soon()
        connections.sweep(clock.now + 100_000)
        assert not one.gone

    inside(body)


def test_a_new_request_has_its_own_time(clock: Clock) -> None:
    connections, one = of([]), Fake(phase=Phase.IDLE)

    def body() -> None:
        connections.admit(one)
        for second in range(1, 60):
            one.turn += second % 5 == 0
            connections.sweep(clock.now + second)
        assert not one.gone

    inside(body)


def test_a_newcomer_takes_the_place_of_the_oldest_of_its_peer_without_a_request(clock: Clock) -> None:
    reasons: list[str] = []
    connections = of(reasons)
    works, idle = Fake(phase=Phase.WORKING), Fake(phase=Phase.IDLE)
    first, second, other = Fake(), Fake(), Fake("b")
    newcomer = Fake()

    def body() -> None:
        for one in (other, works, idle, first, second, newcomer):
            connections.admit(one)

    inside(body)
    assert first.aborted
    assert not any(one.gone for one in (works, idle, second, other, newcomer))
    assert reasons == ["share"]


def test_whose_request_has_arrived_but_was_not_read_yet_is_not_silent(clock: Clock) -> None:
    connections, asked, silent, idle = of([]), Fake(), Fake(), Fake(phase=Phase.IDLE)
    asked.unread = True
    newcomers = [Fake(), Fake(), Fake()]

    def body() -> None:
        for one in (asked, idle, silent, *newcomers):
            connections.admit(one)

    inside(body)
    assert silent.aborted
    assert not asked.gone


def test_where_all_of_a_peer_are_busy_it_is_told(clock: Clock) -> None:
    reasons: list[str] = []
    connections, newcomer, other = of(reasons), Fake(), Fake("b")

    def body() -> None:
        for _ in range(4):
            connections.admit(Fake(phase=Phase.WORKING))
        connections.admit(newcomer)
        connections.admit(other)

    inside(body)
    (error,) = newcomer.refused
    assert isinstance(error, TooManyConnections)
    assert error.retry_after_s == IDLE_S
    assert not other.gone
    assert reasons == ["share"]
    assert len(connections) == 5


def test_a_proxy_has_no_share_but_the_whole_has_its_limit(clock: Clock) -> None:
    reasons: list[str] = []
    connections, all_of_them = of(reasons), [Fake(None) for _ in range(10)]

    def body() -> None:
        for one in all_of_them:
            connections.admit(one)

    inside(body)
    assert [one.gone for one in all_of_them] == [True] * 2 + [False] * 8
    assert reasons == ["crowded"] * 2


def test_an_answer_that_stands_still_gives_way_and_one_that_moves_does_not(clock: Clock) -> None:
    connections, reading, standing = of([], most=2, share=1), Fake("a", Phase.ANSWER), Fake("b", Phase.ANSWER)
    early, late = Fake("c"), Fake("d")

    def body() -> None:
        connections.admit(reading)
        connections.admit(standing)
        connections.admit(early)
        assert early.refused
        for _ in range(3):
            clock.now += 1
            reading.moved += 1000
            connections.sweep(clock.now)
        connections.admit(late)

    inside(body)
    assert [one.gone for one in (reading, standing, late)] == [False, True, False]


def test_at_the_end_only_work_and_answers_on_their_way_are_waited_for(clock: Clock) -> None:
    reasons: list[str] = []
    connections = of(reasons, most=100, share=1)
    phases = {phase: Fake(phase=phase) for phase in Phase}
    reading = Fake(phase=Phase.ANSWER)

    def gone() -> set[Phase]:
        return {phase for phase, one in phases.items() if one.gone}

    def body() -> None:
        for one in (*phases.values(), reading):
            connections.admit(one)
        connections.end_soon()
        began = clock.now
        connections.sweep(began + 0.1)
        assert gone() == {Phase.SILENT, Phase.HEAD, Phase.IDLE}
        for tenth in range(2, int(LAST_S * 10)):
            reading.moved += 1000
            connections.sweep(began + tenth / 10)
            assert not reading.gone
        assert gone() == set(Phase) - {Phase.WORKING}
        connections.sweep(began + LAST_S)
        assert reading.gone

    inside(body)
    assert set(reasons) == {"shutdown"}


def test_a_connection_that_left_is_forgotten_once(clock: Clock) -> None:
    counts: list[int] = []
    connections = Connections(8, 1, Least(IDLE_S, RATE), on_count=counts.append)
    one, two = Fake(), Fake()

    def body() -> None:
        connections.admit(one)
        connections.admit(two)
        connections.leave(one)
        connections.leave(one)
        connections.leave(two)

    inside(body)
    assert counts == [1, 2, 1, 0]
    assert len(connections) == 0


def test_few_descriptors_mean_few_connections(caplog: pytest.LogCaptureFixture) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))
        few = Connections(1024, 0.25, Least(IDLE_S, RATE))
        backlog = few.fit_to_descriptors()
        assert FEWEST <= few.most < 336 * 3 / 4
        assert few.most + backlog < 336
        assert "RLIMIT_NOFILE is 400" in caplog.text
        plenty = Connections(32, 0.25, Least(IDLE_S, RATE))
        plenty.fit_to_descriptors()
        assert plenty.most == 32
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
