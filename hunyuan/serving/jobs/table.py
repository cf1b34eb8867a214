"""Which jobs there are, how many and how much of them is kept, and which has to go for another.

Knows numbers and times. The files themselves are `files.py`'s. Used on the event loop only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hunyuan.serving.http_errors import JobNotFound, NoStorage
from hunyuan.serving.jobs.job import Job


class JobTable:
    """All jobs of one process.

    Unfinished ones always stay: the queue bounds their number. Of the finished ones the oldest go first.

    Args:
        most: finished jobs that are kept.
        most_bytes: of all jobs together.
        keep_s: seconds that a job is kept after its end.
        clock: seconds since 1970.
    """

    def __init__(self, most: int, most_bytes: int, keep_s: float, clock: Callable[[], float] = time.time) -> None:
        self.keep_s = keep_s
        self._most, self._most_bytes = most, most_bytes
        self._clock = clock
        self._jobs: dict[str, Job] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def size(self) -> int:
        """Bytes of all jobs together."""
        return sum(job.size for job in self._jobs.values())

    def get(self, job_id: str) -> Job:
        """Raises `JobNotFound`, also for one whose time is up but which was not swept away yet."""
        job = self._jobs.get(job_id)
        if job is None or self._is_over(job):
            raise JobNotFound
        return job

    def expires(self, job: Job) -> float | None:
        """When it goes, at the latest; None while it is not finished."""
        return None if job.ended is None else job.ended + self.keep_s

    def add(self, job: Job) -> list[Job]:
        """Takes a job in and returns those that had to go for it.

        Raises:
            NoStorage: it would be too much even without any finished one.
        """
        gone = self._make_room(job.size)
        self._jobs[job.id] = job
        return gone

    def readmit(self, job: Job) -> None:
        """Takes in one that is on the disk already; `surplus` says which of them are too many."""
        self._jobs[job.id] = job

    def grow(self, job: Job, result_bytes: int) -> list[Job]:
        """Counts the bytes of a job's result; otherwise as `add`."""
        gone = self._make_room(result_bytes)
        job.result_bytes = result_bytes
        return gone

    def surplus(self) -> list[Job]:
        """Takes out the finished jobs that are too old, too many or too large, and returns them."""
        old = self._drop([job for job in self._jobs.values() if self._is_over(job)])
        finished, size = self._finished(), self.size
        many = []
        while finished and (len(finished) > self._most or size > self._most_bytes):
            size -= finished[0].size
            many.append(finished.pop(0))
        return [*old, *self._drop(many)]

    def drop(self, job: Job) -> None:
        self._jobs.pop(job.id, None)

    def _is_over(self, job: Job) -> bool:
        expires = self.expires(job)
        return expires is not None and expires <= self._clock()

    def _finished(self) -> list[Job]:
        """The one that ended first comes first."""
        return sorted((job for job in self._jobs.values() if job.finished), key=lambda job: job.ended or 0.0)

    def _make_room(self, wanted: int) -> list[Job]:
        missing = self.size + wanted - self._most_bytes
        gone = []
        for job in self._finished():
            if missing <= 0:
                break
            gone.append(job)
            missing -= job.size
        if missing > 0:
            raise NoStorage(f"its {wanted:,} bytes are more than is left of the {self._most_bytes:,} for jobs")
        return self._drop(gone)

    def _drop(self, jobs: list[Job]) -> list[Job]:
        for job in jobs:
            self.drop(job)
        return jobs
