"""Who may wait for the model, who is next, and how long that takes.

Knows places, order and time. Knows neither HTTP nor asyncio nor the editor: the event loop admits and withdraws
edits, the editor's thread takes and ends them, and one lock keeps the two from disagreeing.

An edit holds a place from its admission to its end. A running one whose caller has left holds its place until the
editor really lets go of it: the model is still busy, whatever the caller thinks.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum, auto

from hunyuan.errors import HunyuanError
from hunyuan.requests import CancelToken, EditRequest, EditResult
from hunyuan.serving.http_errors import QueueFull
from hunyuan.serving.records import EditRecord
from hunyuan.serving.watching import Watcher

FIRST_GUESS_S = 15.0  # what an edit takes before one was measured
REMEMBERED = 16
LONGEST_RETRY_S = 600


class State(Enum):
    ADMITTED = auto()  # has a place; its picture is being decoded
    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(eq=False)
class QueuedEdit:
    """One admitted edit: one picture, or several from one request, which have their turn together.

    `done` gets exactly one result (the last picture's) or error, unless its caller has left before; `watcher` hears of
    everything on the way. `on_start` is called on the worker's thread when the edit's turn has come.
    """

    cancel: CancelToken
    edit: EditRecord
    done: Future[EditResult] = field(default_factory=Future)
    requests: Sequence[EditRequest] = ()
    watcher: Watcher | None = None
    on_start: Callable[[], None] = lambda: None
    state: State = State.ADMITTED
    queued_at: float | None = None
    started_at: float | None = None
    left_at: float | None = None  # when its caller went away or got an answer without it


class EditQueue:
    """A bounded line in front of one worker.

    Args:
        size: how many may wait; one more may run.
        clock: seconds that only grow.
        on_depth: told the number of waiting edits whenever it changes; called under the lock, so it must be quick.
        usual: of the last edits' seconds, what the next one will take. Where one edit's turn does work for the next
            ones, turns are uneven, and only their mean says how long a line takes.
    """

    def __init__(
        self,
        size: int,
        clock: Callable[[], float] = time.monotonic,
        on_depth: Callable[[int], None] = lambda depth: None,
        usual: Callable[[Sequence[float]], float] = statistics.median,
    ) -> None:
        self._usual = usual
        self._places = size + 1
        self._clock = clock
        self._on_depth = on_depth
        self._changed = threading.Condition()
        self._edits: list[QueuedEdit] = []  # every one that has not ended
        self._line: deque[QueuedEdit] = deque()
        self._durations: deque[float] = deque(maxlen=REMEMBERED)
        self._closed: Callable[[], HunyuanError] | None = None

    # -- the callers' side -------------------------------------------------------------------------------------

    def admit(self, queued: QueuedEdit) -> None:
        """Gives an edit a place.

        Raises:
            QueueFull: there is none.
            HunyuanError: what `close` was given.
        """
        with self._changed:
            if self._closed is not None:
                raise self._closed()
            if len(self._edits) >= self._places:
                raise QueueFull(f"{self._places - 1} edits are waiting already; try again later", self._retry_after_s())
            self._edits.append(queued)

    def put(self, queued: QueuedEdit, *requests: EditRequest) -> None:
        """Lets an admitted edit wait for its turn."""
        with self._changed:
            if queued.state is not State.ADMITTED:
                return  # it has its error already: the queue was closed while its picture was decoded
            queued.requests, queued.state, queued.queued_at = requests, State.WAITING, self._clock()
            self._line.append(queued)
            self._line_changed()

    def leave(self, queued: QueuedEdit) -> bool:
        """The caller wants nothing more: a waiting edit is dropped, a running one told to stop.

        Returns whether the edit still runs.
        """
        with self._changed:
            if queued.state is State.ENDED:
                return False
            queued.cancel.cancel()
            queued.left_at = self._clock()
            if queued.state is not State.RUNNING:
                self._drop(queued)
            return queued.state is State.RUNNING

    def close(self, make_error: Callable[[], HunyuanError]) -> None:
        """Answers everyone who waits, and everyone who comes later, with an error. The running edit goes on."""
        with self._changed:
            self._closed = make_error
            self.send_away(make_error)

    def send_away(self, make_error: Callable[[], HunyuanError]) -> None:
        """Answers everyone who waits now with an error. The running edit goes on."""
        with self._changed:
            for queued in [queued for queued in self._edits if queued.state is not State.RUNNING]:
                self._drop(queued)
                _settle(queued, make_error())

    def stop_running(self) -> None:
        """Tells a running edit to stop before its next token or step."""
        with self._changed:
            for queued in self._edits:
                queued.cancel.cancel()

    # -- the worker's side -------------------------------------------------------------------------------------

    def next(self) -> QueuedEdit:
        """The first in line; blocks until there is one."""
        with self._changed:
            while not self._line:
                self._changed.wait()
            queued = self._line.popleft()
            queued.state, queued.started_at = State.RUNNING, self._clock()
            queued.edit.queue_s = queued.started_at - (queued.queued_at or queued.started_at)
            self._line_changed()
        queued.on_start()
        return queued

    def waiting(self, most: int) -> list[QueuedEdit]:
        """The next ones in line, who go on waiting."""
        with self._changed:
            return [*self._line][:most]

    def end(self, queued: QueuedEdit, outcome: EditResult | BaseException) -> None:
        """Frees the edit's place, and only then tells its caller."""
        with self._changed:
            queued.state = State.ENDED
            self._edits.remove(queued)
            if isinstance(outcome, EditResult) and queued.started_at is not None:
                self._durations.append(self._clock() - queued.started_at)
        _settle(queued, outcome)

    # -- what there is to know ---------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        with self._changed:
            return len(self._line)

    @property
    def awaited(self) -> int:
        """How many edits have a caller who waits for an answer."""
        with self._changed:
            return sum(queued.left_at is None for queued in self._edits)

    def ahead_of(self, queued: QueuedEdit) -> int:
        """How many edits come before one that waits, the running one included; 0 when it has its turn."""
        with self._changed:
            if queued.state in (State.RUNNING, State.ENDED):
                return 0
            running = sum(other.state is State.RUNNING for other in self._edits)
            waiting = self._line.index(queued) if queued in self._line else len(self._line)
            return running + waiting

    def overdue_s(self) -> float:
        """For how long the running edit has had nobody to run for."""
        with self._changed:
            left = [queued.left_at for queued in self._edits if queued.left_at is not None]
            return self._clock() - min(left) if left else 0.0

    def retry_after_s(self) -> int:
        with self._changed:
            return self._retry_after_s()

    def _retry_after_s(self) -> int:
        """When the line in front of a newcomer should be gone, by the last edits."""
        each = self._usual(self._durations) if self._durations else FIRST_GUESS_S
        started = [queued.started_at for queued in self._edits if queued.started_at is not None]
        spent = min(self._clock() - started[0], each) if started else 0.0
        return min(max(1, math.ceil(each * len(self._edits) - spent)), LONGEST_RETRY_S)

    def _drop(self, queued: QueuedEdit) -> None:
        """Takes an edit that does not run out of the line. Call it with the lock held."""
        queued.cancel.cancel()  # its text may have been begun
        queued.state = State.ENDED
        self._edits.remove(queued)
        if queued in self._line:
            self._line.remove(queued)
            waited = self._clock() - (queued.queued_at or self._clock())
            # What was worked on before its turn is no waiting.
            queued.edit.queue_s = max(0.0, waited - queued.edit.stages.get("total", 0.0))
            self._line_changed()

    def _line_changed(self) -> None:
        self._on_depth(len(self._line))
        self._changed.notify_all()


def _settle(queued: QueuedEdit, outcome: EditResult | BaseException) -> None:
    if not queued.done.set_running_or_notify_cancel():
        return  # nobody listens any more
    if isinstance(outcome, BaseException):
        queued.done.set_exception(outcome)
    else:
        queued.done.set_result(outcome)
