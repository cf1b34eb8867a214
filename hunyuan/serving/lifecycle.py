"""What a process does when it is told to end.

The web server's own answer to SIGTERM is to stop listening at once, which leaves new connections unanswered while
the running edit finishes. `Drain` stands in front of it: first the service refuses work with an answer (503), then,
when nobody waits for an edit any more, the web server gets the signal. A second signal reaches it at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

logger = logging.getLogger(__name__)

POLL_S = 0.05
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_HANGUP = signal.SIGHUP  # a terminal that was closed: means SIGTERM here, unless the caller ignores it (nohup)


class Drain:
    """Chained in front of the handlers that are there when `install` is called.

    Args:
        refuse_work: called on the event loop at the first signal.
        busy: true while a running edit has a caller who waits for it.
        hurry: called on the event loop when the web server gets the signal: nothing more is worth waiting for, but
            the answers that are out.
        limit_s: when so much time has passed since the first signal, `force` ends the process.
    """

    def __init__(
        self,
        refuse_work: Callable[[], None],
        busy: Callable[[], bool],
        hurry: Callable[[], None] = lambda: None,
        limit_s: float | None = None,
        force: Callable[[], None] = lambda: None,
    ) -> None:
        self._refuse_work, self._busy, self._hurry = refuse_work, busy, hurry
        self._limit_s, self._force = limit_s, force
        self._previous: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._begun = False

    def install(self) -> None:
        """Call it on the event loop. Does nothing outside the main thread, where Python allows no handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)
        if signal.getsignal(_HANGUP) is signal.SIG_DFL:
            signal.signal(_HANGUP, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Runs between any two instructions of the main thread, so it takes no lock: the loop does the work."""
        assert self._loop is not None
        number = signal.SIGTERM if number == _HANGUP else number
        if self._begun:
            self._pass_on(number)
            return
        self._begun = True
        self._loop.call_soon_threadsafe(self._begin, number)

    def _begin(self, number: int) -> None:
        logger.info("told to end (%s): no new work; the running edit finishes", signal.Signals(number).name)
        if self._limit_s is not None:
            end_by_force_after(self._limit_s, self._force)
        self._refuse_work()
        if self._has_own_limit(number):
            self._pass_on(number)
        else:
            self._task = asyncio.get_running_loop().create_task(self._finish(number))

    async def _finish(self, number: int) -> None:
        while self._busy():
            await asyncio.sleep(POLL_S)
        self._pass_on(number)

    def _has_own_limit(self, number: int) -> bool:
        """`--timeout-graceful-shutdown N` counts from the moment the web server gets the signal: do not hold it."""
        server = _owner_of(self._previous[number])
        return getattr(getattr(server, "config", None), "timeout_graceful_shutdown", None) is not None

    def _pass_on(self, number: int) -> None:
        previous = self._previous[number]
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._hurry)
        if callable(previous):
            previous(number, None)
        else:  # SIG_DFL or SIG_IGN
            signal.signal(number, previous)
            signal.raise_signal(number)


def web_server() -> uvicorn.Server | None:
    """The web server that waits for signals in this process, if it is the one we know."""
    owner = _owner_of(signal.getsignal(signal.SIGTERM))
    return owner if isinstance(owner, uvicorn.Server) else None


def _owner_of(handler: Any) -> object:
    return getattr(handler, "__self__", None)


def end_by_force_after(seconds: float, force: Callable[[], None]) -> None:
    """For what nobody has thought of: a thread that hangs, an event loop that stands still."""

    def end() -> None:
        logger.critical("not ended %g s after the signal; ending by force", seconds)
        force()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
