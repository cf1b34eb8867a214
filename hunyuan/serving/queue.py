"""Who may wait for the model, who is next, and how long that takes.

Knows places, order and time. Knows neither HTTP nor asyncio nor the editor: the event loop admits and withdraws
jobs, the editor's thread takes and ends them, and one lock keeps the two from disagreeing.

A job holds a place from its admission to its end. A running job whose caller has left holds its place until the
editor really lets go of it: the model is still busy, whatever the caller thinks.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum, auto

from hunyuan.errors import HunyuanError
from hunyuan.requests import CancelToken, EditRequest, EditResult
from hunyuan.serving.calls import EditFacts
from hunyuan.serving.http_errors import QueueFull

FIRST_GUESS_S = 15.0  # what an edit takes before one was measured
REMEMBERED = 16
LONGEST_RETRY_S = 600


class State(Enum):
    ADMITTED = auto()  # has a place; its picture is being decoded
    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


@dataclass(eq=False)
class Job:
    """One admitted edit. `done` gets exactly one result or error, unless its caller has left before."""

    cancel: CancelToken
    facts: EditFacts
    done: Future[EditResult] = field(default_factory=Future)
    request: EditRequest | None = None
    state: State = State.ADMITTED
    queued_at: float | None = None
    started_at: float | None = None
    left_at: float | None = None  # when its caller went away or got an answer without it


class EditQueue:
    """A bounded line in front of one worker.

    Args:
        size: how many may wait; one more may run.
        clock: seconds that only grow.
        on_depth: told the number of waiting jobs whenever it changes; called under the lock, so it must be quick.
    """

    def __init__(
        self,
        size: int,
        clock: Callable[[], float] = time.monotonic,
        on_depth: Callable[[int], None] = lambda depth: None,
    ) -> None:
        self._places = size + 1
        self._clock = clock
        self._on_depth = on_depth
        self._changed = threading.Condition()
        self._jobs: list[Job] = []  # every job that has not ended
        self._line: deque[Job] = deque()
        self._durations: deque[float] = deque(maxlen=REMEMBERED)
        self._closed: Callable[[], HunyuanError] | None = None

    # -- the callers' side -------------------------------------------------------------------------------------

    def admit(self, job: Job) -> None:
        """Gives the job a place.

        Raises:
            QueueFull: there is none.
            HunyuanError: what `close` was given.
        """
        with self._changed:
            if self._closed is not None:
                raise self._closed()
            if len(self._jobs) >= self._places:
                raise QueueFull(f"{self._places - 1} edits are waiting already; try again later", self._retry_after_s())
            self._jobs.append(job)

    def put(self, job: Job, request: EditRequest) -> None:
        """Lets an admitted job wait for its turn."""
        with self._changed:
            if job.state is not State.ADMITTED:
                return  # it has its error already: the queue was closed while its picture was decoded
            job.request, job.state, job.queued_at = request, State.WAITING, self._clock()
            self._line.append(job)
            self._line_changed()

    def leave(self, job: Job) -> bool:
        """The caller wants nothing more: a waiting job is dropped, a running one told to stop.

        Returns whether the job still runs.
        """
        with self._changed:
            if job.state is State.ENDED:
                return False
            job.cancel.cancel()
            job.left_at = self._clock()
            if job.state is not State.RUNNING:
                self._drop(job)
            return job.state is State.RUNNING

    def close(self, make_error: Callable[[], HunyuanError]) -> None:
        """Answers everyone who waits, and everyone who comes later, with an error. The running job goes on."""
        with self._changed:
            self._closed = make_error
            self.send_away(make_error)

    def send_away(self, make_error: Callable[[], HunyuanError]) -> None:
        """Answers everyone who waits now with an error. The running job goes on."""
        with self._changed:
            for job in [job for job in self._jobs if job.state is not State.RUNNING]:
                self._drop(job)
                _settle(job, make_error())

    def stop_running(self) -> None:
        """Tells a running job to stop before its next token or step."""
        with self._changed:
            for job in self._jobs:
                job.cancel.cancel()

    # -- the worker's side -------------------------------------------------------------------------------------

    def next(self) -> Job:
        """The first in line; blocks until there is one."""
        with self._changed:
            while not self._line:
                self._changed.wait()
            job = self._line.popleft()
            job.state, job.started_at = State.RUNNING, self._clock()
            job.facts.queue_s = job.started_at - (job.queued_at or job.started_at)
            self._line_changed()
            return job

    def end(self, job: Job, outcome: EditResult | BaseException) -> None:
        """Frees the job's place, and only then tells its caller."""
        with self._changed:
            job.state = State.ENDED
            self._jobs.remove(job)
            if isinstance(outcome, EditResult) and job.started_at is not None:
                self._durations.append(self._clock() - job.started_at)
        _settle(job, outcome)

    # -- what there is to know ---------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        with self._changed:
            return len(self._line)

    @property
    def attended(self) -> int:
        """How many jobs have a caller who waits for an answer."""
        with self._changed:
            return sum(job.left_at is None for job in self._jobs)

    def overdue_s(self) -> float:
        """For how long the running job has had nobody to run for."""
        with self._changed:
            left = [job.left_at for job in self._jobs if job.left_at is not None]
            return self._clock() - min(left) if left else 0.0

    def retry_after_s(self) -> int:
        with self._changed:
            return self._retry_after_s()

    def _retry_after_s(self) -> int:
        """When the line in front of a newcomer should be gone, by the median of the last edits."""
        each = statistics.median(self._durations) if self._durations else FIRST_GUESS_S
        started = [job.started_at for job in self._jobs if job.started_at is not None]
        spent = min(self._clock() - started[0], each) if started else 0.0
        return min(max(1, math.ceil(each * len(self._jobs) - spent)), LONGEST_RETRY_S)

    def _drop(self, job: Job) -> None:
        """Takes a job that does not run out of the line. Call it with the lock held."""
        job.state = State.ENDED
        self._jobs.remove(job)
        if job in self._line:
            self._line.remove(job)
            job.facts.queue_s = self._clock() - (job.queued_at or self._clock())
            self._line_changed()

    def _line_changed(self) -> None:
        self._on_depth(len(self._line))
        self._changed.notify_all()


def _settle(job: Job, outcome: EditResult | BaseException) -> None:
    if not job.done.set_running_or_notify_cancel():
        return  # nobody listens any more
    if isinstance(outcome, BaseException):
        job.done.set_exception(outcome)
    else:
        job.done.set_result(outcome)
