"""How many connections are open, whose they are, and which of them have to go.

Knows phases, peers and time. Knows neither HTTP nor sockets: `http11.py` tells it what a connection is doing. Every
connection in which the next move is the client's has to move; one that waits for an edit may wait.

Where there are too many, a newcomer takes the place of the oldest that does nothing, so that probes and good callers
get in while someone holds thousands of silent ones; only where all are busy the newcomer is sent away.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol

from hunyuan.errors import HunyuanError
from hunyuan.serving.http_errors import TooManyConnections, TooSlow
from hunyuan.serving.pace import Least, Pace

logger = logging.getLogger(__name__)

PRESSED_S = 2.0  # where places are short, an answer that nobody takes for so long has to go
LINGER_S = 2.0  # for a client to read its answer before the connection is closed for good
DRAIN_S = 300.0  # for a body whose answer is out: some clients read only when all is sent, but one may have no end
LAST_S = 10.0  # for all answers that are out when the process ends
RESERVED = 64  # file descriptors for everything that is no connection
FEWEST = 16
REASONS = ("silent", "slow_head", "idle", "slow_body", "answer_not_read", "crowded", "share", "not_http", "shutdown")


class Phase(Enum):
    SILENT = auto()  # nothing has come yet
    HEAD = auto()  # a part of a request's head has
    WORKING = auto()  # the next move is the server's; or it reads a body, which `uploads.py` watches
    ANSWER = auto()  # an answer is on its way out
    DRAIN = auto()  # the answer is out, and the body still comes
    LEAVING = auto()  # refused; what still comes is thrown away
    IDLE = auto()  # between two requests


_NO_REQUEST_YET = (Phase.SILENT, Phase.HEAD, Phase.LEAVING)
_REASON = {
    Phase.SILENT: "silent",
    Phase.HEAD: "slow_head",
    Phase.IDLE: "idle",
    Phase.DRAIN: "slow_body",
    Phase.ANSWER: "answer_not_read",
}


class Connection(Protocol):
    @property
    def peer(self) -> str | None: ...

    @property
    def phase(self) -> Phase: ...

    @property
    def moved(self) -> int:
        """Grows with every byte of a body that comes and of an answer that is taken."""

    @property
    def turn(self) -> int:
        """Grows with every request."""

    @property
    def unread(self) -> bool:
        """Whether it has sent bytes that the event loop has not come to yet: it only looks as if it said nothing."""

    def refuse(self, error: HunyuanError, at_once: bool = False) -> None:
        """Says why, where nothing was said yet, and hangs up: at once, or when the client has read it."""

    def abort(self) -> None: ...


@dataclass
class _Watch:
    """What was last seen of a connection."""

    phase: Phase
    turn: int
    since: float
    pace: Pace


class Connections:
    """All connections of this process; used on the event loop only.

    Args:
        most: at the same time; `fit_to_descriptors` may lower it.
        share: the part of them that one peer may have.
        least: the slowest that is borne.
        on_close: told the reason, one of `REASONS`, for every connection that did not end by itself.
        on_count: told how many there are.
    """

    def __init__(
        self,
        most: int,
        share: float,
        least: Least,
        on_close: Callable[[str], None] = lambda reason: None,
        on_count: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.most, self._share, self._least = most, share, least
        self._on_close, self._on_count = on_close, on_count
        self._all: dict[Connection, _Watch] = {}  # the oldest first
        self._of_peer: dict[str, dict[Connection, None]] = {}
        self._ending_since: float | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def share(self) -> int:
        return max(1, int(self.most * self._share))

    def fit_to_descriptors(self) -> int:
        """Lowers `most` to what the process may open; returns how many may wait to be accepted."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        left = soft - len(os.listdir("/proc/self/fd")) - RESERVED if soft != resource.RLIM_INFINITY else 2**20
        room = max(FEWEST, left * 3 // 4)  # a burst is accepted before the first of it can be closed again
        if room < self.most:
            logger.warning("RLIMIT_NOFILE is %d: at most %d connections instead of %d", soft, room, self.most)
            self.most = room
        return max(FEWEST, min(2048, left - self.most))

    def __len__(self) -> int:
        return len(self._all)

    # -- one connection ----------------------------------------------------------------------------------------

    def admit(self, connection: Connection) -> None:
        """Takes a new connection in, or refuses it."""
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep_again_and_again())
        now, peer = time.monotonic(), connection.peer
        mine = self._of_peer.get(peer, {}) if peer is not None else {}
        if len(mine) >= self.share and not self._end_one_of(mine, now, "share"):
            self._turn_away(connection, "share", "from your address ")
        elif len(self._all) >= self.most and not self._end_one_of(self._all, now, "crowded"):
            self._turn_away(connection, "crowded", "")
        else:
            if peer is not None:
                self._of_peer.setdefault(peer, {})[connection] = None
            self._all[connection] = self._watch(connection, now)
            self._on_count(len(self._all))

    def leave(self, connection: Connection) -> None:
        """Forgets a connection; it may be forgotten already."""
        if self._all.pop(connection, None) is None:
            return
        peer = connection.peer
        if peer is not None:
            mine = self._of_peer.get(peer, {})
            mine.pop(connection, None)
            if not mine:
                self._of_peer.pop(peer, None)
        self._on_count(len(self._all))

    def note(self, reason: str) -> None:
        """Counts a connection that the protocol itself ends."""
        self._on_close(reason)

    def end_soon(self) -> None:
        """The process ends: whoever does nothing is closed now, and nobody gets much time to take an answer."""
        self._ending_since = time.monotonic()

    # -- all of them -------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Ends every connection whose client has had its time."""
        for connection, seen in list(self._all.items()):
            watch, phase = seen, connection.phase
            if (phase, connection.turn) != (seen.phase, seen.turn):
                watch = self._all[connection] = self._watch(connection, now)
            watch.pace.see(connection.moved, now)
            if self._has_to_go(watch, now):
                self._end(connection, phase)

    def _has_to_go(self, watch: _Watch, now: float) -> bool:
        spent_s, ending = now - watch.since, self._ending_since
        ending_s = 0.0 if ending is None else now - max(ending, watch.since)
        if watch.phase is Phase.WORKING:
            return False
        if watch.phase is Phase.LEAVING:
            return spent_s >= LINGER_S
        if ending is None:
            if watch.phase in (Phase.ANSWER, Phase.DRAIN):
                endless = watch.phase is Phase.DRAIN and spent_s >= DRAIN_S
                return endless or watch.pace.fault(now) is not None
            return spent_s >= self._least.idle_s
        if watch.phase is Phase.ANSWER:
            return watch.pace.stalls(now, LINGER_S) or ending_s >= LAST_S
        return watch.phase is not Phase.DRAIN or ending_s >= LINGER_S

    def _end(self, connection: Connection, phase: Phase) -> None:
        if phase is not Phase.LEAVING:
            self._on_close("shutdown" if self._ending_since is not None else _REASON[phase])
        if phase is Phase.HEAD and self._ending_since is None:  # stays until it has read that
            connection.refuse(TooSlow(f"the request's head did not come within {self._least.idle_s:g} s"))
        else:
            self.leave(connection)
            connection.abort()

    def _end_one_of(self, crowd: Iterable[Connection], now: float, reason: str) -> bool:
        """Makes room: the oldest without a request goes, then one between two, then an answer that nobody takes."""
        victim = (
            next((one for one in crowd if one.phase in _NO_REQUEST_YET and not one.unread), None)
            # A good caller may be about to use it.
            or next((one for one in crowd if one.phase is Phase.IDLE and not one.unread), None)
            or next((one for one in crowd if self._stands_in_the_way(one, now)), None)
        )
        if victim is None:
            return False
        self.leave(victim)
        self._on_close(reason)
        victim.abort()
        return True

    def _stands_in_the_way(self, connection: Connection, now: float) -> bool:
        return connection.phase is not Phase.WORKING and self._all[connection].pace.stalls(now, PRESSED_S)

    def _turn_away(self, connection: Connection, reason: str, whose: str) -> None:
        self._on_close(reason)
        message = f"too many connections {whose}are open; close some, or try again later"
        connection.refuse(TooManyConnections(message, max(1, round(self._least.idle_s))), at_once=True)

    def _watch(self, connection: Connection, now: float) -> _Watch:
        return _Watch(connection.phase, connection.turn, now, Pace(self._least, now, connection.moved))

    async def _sweep_again_and_again(self) -> None:
        while True:
            self.sweep(time.monotonic())
            ending = self._ending_since is not None
            await asyncio.sleep(0.1 if ending else min(1.0, self._least.idle_s / 8))
