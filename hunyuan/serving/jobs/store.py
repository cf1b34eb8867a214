"""Jobs as the event loop sees them: the table in memory and the files behind it, which a thread of its own writes.

Knows what is written when, so that a job that was promised is on the disk, and that what ran or waited when a process
ended is told by the next one. Knows nothing of edits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from hunyuan.errors import HunyuanError
from hunyuan.serving.http_errors import Interrupted, NoStorage
from hunyuan.serving.jobs.files import RECORD, RESULT, SOURCE, JobFiles
from hunyuan.serving.jobs.folder import LockedFolder, jobs_folder
from hunyuan.serving.jobs.job import Job, JobError
from hunyuan.serving.jobs.table import JobTable

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

SWEEPS = 10  # in the time that a job is kept
SWEEP_S = (0.1, 60.0)  # at least and at most between two


class JobStore:
    """Everything but `open` and `close` is called on the event loop, between the two.

    Args:
        folder: that the operator named; None: one of the user's.
        table: an empty one.
        on_change: told the number of jobs and their bytes whenever they change.
    """

    def __init__(
        self, folder: Path | None, table: JobTable, on_change: Callable[[int, int], None] = lambda number, size: None
    ) -> None:
        self._named, self._table, self._on_change = folder, table, on_change
        self._files = JobFiles(Path())
        self._lock: LockedFolder | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")  # one: writes happen in the order they are told
        self._sweeper: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Finds the folder and what an earlier process has left in it. Raises `SettingsError`."""
        self._lock = jobs_folder(self._named)
        if self._lock is None:
            logger.warning("no folder for jobs can be written: POST /edit/submit is answered with no_storage")
            return
        self._files.folder = self._lock.path
        jobs = self._files.load()
        interrupted = [job for job in jobs if not job.finished]
        for job in interrupted:
            job.end("failed", JobError.of(Interrupted(told(job))))
            self.note(job)
        for job in jobs:
            self._table.readmit(job)
        for job in self._table.surplus():
            self._files.remove(job.id)
        kept = f"{len(self._table)} jobs are kept in {self._lock.path}"
        logger.info("%s%s", kept, f"; {len(interrupted)} were interrupted" if interrupted else "")
        self._changed()

    def start(self) -> None:
        """From now on jobs go when their time is over; call it on the event loop."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._thread.shutdown()
        if self._lock is not None:
            self._lock.close()

    # -- reading -----------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """Raises `JobNotFound`."""
        return self._table.get(job_id)

    def expires(self, job: Job) -> float | None:
        return self._table.expires(job)

    async def result(self, job: Job) -> bytes:
        return await self._on_thread(self._files.read, job.id, RESULT)

    async def source(self, job: Job) -> bytes:
        return await self._on_thread(self._files.read, job.id, SOURCE)

    # -- writing -----------------------------------------------------------------------------------------------

    async def add(self, job: Job, source: bytes) -> None:
        """Raises `NoStorage`; nothing is left of the job then."""
        if self._lock is None:
            raise NoStorage("this server has no folder for jobs")
        job.source_bytes = len(source)
        self._remove(self._table.add(job))
        try:
            await self._on_thread(self._files.write, job.id, SOURCE, source)
            await self._on_thread(self._files.write, job.id, RECORD, job.to_json())
        except BaseException:
            self.drop(job)
            raise
        self._changed()

    def note(self, job: Job) -> None:
        """Writes the record anew, some time soon. A disk that does not take it is said in the log."""
        written = self._thread.submit(self._files.write, job.id, RECORD, job.to_json())
        written.add_done_callback(_log_failure)

    async def complete(self, job: Job, png: bytes, headers: dict[str, str]) -> None:
        """Raises `NoStorage`; the job is then as it was before."""
        self._remove(self._table.grow(job, len(png)))
        try:
            await self._on_thread(self._files.write, job.id, RESULT, png)
            written = replace(job, headers=headers)
            written.end("completed")
            await self._on_thread(self._files.write, job.id, RECORD, written.to_json())
        except HunyuanError:
            job.result_bytes = 0
            self._thread.submit(self._files.remove_result, job.id)
            raise
        job.state, job.ended, job.headers = written.state, written.ended, headers
        self._tidy()

    def fail(self, job: Job, error: HunyuanError, canceled: bool = False) -> None:
        """The job has ended without a result. Counts from now on, whether or not the disk takes it."""
        job.end("canceled" if canceled else "failed", JobError.of(error))
        self.note(job)
        self._tidy()

    def drop(self, job: Job) -> None:
        """Forgets a job and removes its files."""
        self._table.drop(job)
        self._remove([job])

    def _tidy(self) -> None:
        self._remove(self._table.surplus())

    def _remove(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._thread.submit(self._files.remove, job.id)
        self._changed()

    def _changed(self) -> None:
        self._on_change(len(self._table), self._table.size)

    async def _sweep(self) -> None:
        least, most = SWEEP_S
        while True:
            await asyncio.sleep(min(max(self._table.keep_s / SWEEPS, least), most))
            self._tidy()

    async def _on_thread(self, work: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)


def told(job: Job) -> str:
    """Its state in words, for an error's sentence."""
    return {"pending": "waiting", "in_progress": "running"}.get(job.state, job.state)


def _log_failure(written: Any) -> None:
    error = written.exception()
    if error is not None:
        logger.error("what a job has come to is not on the disk: %s", error)
