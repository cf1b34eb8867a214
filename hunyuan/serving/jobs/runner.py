"""Does jobs: each one is an edit like any other, only that nobody's connection stays open for it.

Knows the way from a place in the queue to a stored result, and who may end it on the way. The parts that it uses are
the same that `POST /edit` uses; HTTP is `routes.py`'s.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from hunyuan.errors import Cancelled, HunyuanError
from hunyuan.requests import CancelToken, EditRequest, EditResult
from hunyuan.serving.answer import headers_of
from hunyuan.serving.decoders import Decoders
from hunyuan.serving.disconnect import timed_out
from hunyuan.serving.envelope import let_go
from hunyuan.serving.header_text import printable
from hunyuan.serving.http_errors import (
    Interrupted,
    JobCancelled,
    JobFinished,
    QueueFull,
    ShuttingDown,
    describe_failure,
    failed,
)
from hunyuan.serving.jobs.job import EditFields, Job, new_id
from hunyuan.serving.jobs.places import Places
from hunyuan.serving.jobs.store import JobStore, told
from hunyuan.serving.queue import QueuedEdit
from hunyuan.serving.records import EditRecord, RequestRecord
from hunyuan.serving.tracing import Tracing
from hunyuan.serving.worker import EditorWorker

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LiveJob:
    """A job that has not ended, and what is in memory of it only.

    `stop` is why it was told to end; `ending`: its last state is being written, too late to stop it. `accepted` gets
    True once the job has its place and is on the disk, else the error that its submitter is told.
    """

    job: Job
    record: RequestRecord
    edit: EditRecord
    deadline: float
    headers: Mapping[str, str]
    source: bytes | None
    accepted: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    stop: HunyuanError | None = None
    ending: bool = False
    task: asyncio.Task[None] | None = None

    def tell(self, reason: HunyuanError) -> None:
        """Ends it, unless it is ending already. The first reason counts."""
        if self.stop is None and not self.ending and self.task is not None:
            self.stop = reason
            self.task.cancel()


class Jobs:
    """All jobs of one process.

    Args:
        encode: makes the file of a result.
        replica: begins every job's id, so that a balancer knows whom to ask; None: nothing does.
        places: of a proxy's queue, which every job takes before it takes its turn here; None: there is no proxy.
        most: jobs that may be unfinished at once, where there is one; else the queue bounds them.
        on_end: told of every job that has ended, after that is known to callers.
    """

    def __init__(
        self,
        store: JobStore,
        worker: EditorWorker,
        decoders: Decoders,
        encode: Callable[[EditResult, str], Awaitable[bytes]],
        tracing: Tracing,
        replica: str | None,
        places: Places | None = None,
        most: int = 1,
        on_end: Callable[[Job, RequestRecord], None] = lambda job, record: None,
    ) -> None:
        self.store = store
        self._worker, self._decoders, self._encode, self._tracing = worker, decoders, encode, tracing
        self._replica, self._most = replica, most
        self.places = places
        self._on_end = on_end
        self._live: dict[str, LiveJob] = {}
        self._keep_alive: set[asyncio.Task[None]] = set()

    def start(self, keep_alive: set[asyncio.Task[None]] | None = None) -> None:
        """Call it on the event loop, after the store was opened.

        `keep_alive` is the web server's own set of tasks, which it waits for before it ends.
        """
        if keep_alive is not None:
            self._keep_alive = keep_alive
        self.store.start()

    async def stop(self) -> None:
        """Ends what still runs, and says so in its state. Nothing is submitted any more."""
        for live in list(self._live.values()):
            live.tell(Interrupted(told(live.job)))
        tasks = [live.task for live in self._live.values() if live.task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        self.store.close()

    def refuse(self) -> None:
        """Jobs that wait for a place of the proxy's will get none; those that wait here hear of it from the queue."""
        for job_id in self.places.waiting() if self.places else ():
            self._live[job_id].tell(Interrupted(told(self._live[job_id].job)))

    @property
    def busy(self) -> bool:
        """Whether a job waits, runs or is being written."""
        return bool(self._live)

    def edit_of(self, job: Job) -> EditRecord | None:
        """How far an unfinished job is."""
        live = self._live.get(job.id)
        return None if live is None else live.edit

    async def submit(
        self, fields: EditFields, source: bytes, record: RequestRecord, deadline: float, headers: Mapping[str, str]
    ) -> Job:
        """Returns once the job has its place in the queue, its picture was decoded and it is on the disk.

        Cancelling this while it waits for that cancels the job, of which nothing stays.

        Args:
            record: of the request that brings it.
            deadline: a `time.monotonic()` value, for the job.
            headers: are searched for the caller's trace.

        Raises:
            HunyuanError: what `POST /edit` answers with in that case.
            NoStorage: it cannot be kept.
        """
        job = Job(new_id(self._replica), record.request_id, fields)
        edit = fields.record()
        own = replace(record, edit=edit, ended=None, error=None, status=None, bytes_out=0)
        live = LiveJob(job, own, edit, deadline, headers, source)
        live.task = asyncio.get_running_loop().create_task(self._run(live), context=contextvars.Context())
        self._live[job.id] = live
        self._keep_alive.add(live.task)
        live.task.add_done_callback(self._keep_alive.discard)
        try:
            await asyncio.wait({live.accepted})
            live.accepted.result()
        except asyncio.CancelledError:
            live.tell(Cancelled("the client went away"))
            await asyncio.wait({live.task})
            self.store.drop(job)
            raise
        return job

    async def cancel(self, job: Job) -> Job:
        """Ends a job that waits or runs; one that was cancelled before stays so. Raises `JobFinished`."""
        live = self._live.get(job.id)
        if live is not None and live.task is not None:
            live.tell(JobCancelled())
            await asyncio.wait({live.task})
        if job.state != "canceled":
            raise JobFinished(job.state)
        return job

    # -- one job's own task ------------------------------------------------------------------------------------

    async def _run(self, live: LiveJob) -> None:
        """Whatever happens, the job ends in a state that says why."""
        job, record = live.job, live.record
        with self._tracing.edit(live.headers, record):
            error = record.error = await self._outcome(live)
        live.ending, live.source = True, None
        accepted = live.accepted.done()
        if error is not None and accepted:
            self.store.fail(job, error, canceled=isinstance(error, JobCancelled))
        elif error is not None:
            live.accepted.set_exception(error)
            live.accepted.exception()  # whoever waited may have gone
        del self._live[job.id]
        if accepted:
            record.ended, record.status = time.monotonic(), 200 if error is None else error.status
            record.bytes_out = job.result_bytes
            self._on_end(job, record)
            let_go(error)  # else the submitter's answer is made of it, and the envelope does so

    async def _outcome(self, live: LiveJob) -> HunyuanError | None:
        """None where the result is stored."""
        prompt = live.job.fields.prompt
        try:
            await self._do(live)
        except asyncio.CancelledError:
            return live.stop or Interrupted(told(live.job))
        except ShuttingDown as error:
            return Interrupted(told(live.job)) if live.accepted.done() else error
        except HunyuanError as error:
            if error.status >= 500 and error.__cause__ is not None:
                logger.error("request %s: %s", live.job.request_id, describe_failure(error, prompt))
            return error
        except Exception as error:
            logger.error("request %s: %s", live.job.request_id, describe_failure(error, prompt))
            let_go(error)
            return failed(live.job.request_id)
        return None

    async def _do(self, live: LiveJob) -> None:
        ends = asyncio.timeout(live.deadline - time.monotonic())
        try:
            async with ends:
                result = await self._edited(live)
                headers = headers_of(result, live.edit)
                png = await self._encode(result, live.job.fields.prompt)
        except TimeoutError:
            if ends.expired():
                raise timed_out() from None
            raise
        name = self._worker.model_name
        live.ending = True
        await self.store.complete(live.job, png, headers if name is None else headers | {"X-Model": printable(name)})

    async def _edited(self, live: LiveJob) -> EditResult:
        if self.places is None:
            async with self._place(live) as queued:
                return await self._worker.run(queued, await self._accepted(live))
        self._worker.require_usable()
        if len(self._live) > self._most:
            raise QueueFull(f"{self._most} jobs wait here already; try again later")
        request = await self._accepted(live)
        async with self.places.one(live.job.id), self._place(live) as queued:
            return await self._worker.run(queued, request)

    @asynccontextmanager
    async def _place(self, live: LiveJob) -> AsyncIterator[QueuedEdit]:
        loop = asyncio.get_running_loop()

        def on_start() -> None:
            loop.call_soon_threadsafe(self._began, live.job)

        async with self._worker.place(CancelToken(live.deadline), live.edit) as queued:
            queued.on_start = on_start
            yield queued

    async def _accepted(self, live: LiveJob) -> EditRequest:
        """Decodes the picture and keeps the job; from then on it ends in a state and not in an error."""
        assert live.source is not None
        picture = await self._decoders.decode(live.source)
        live.edit.input_size = picture.size
        await self.store.add(live.job, live.source)
        live.source = None
        live.accepted.set_result(True)
        fields = live.job.fields
        return EditRequest(fields.prompt, [picture], fields.seed, fields.steps, fields.resolution)

    def _began(self, job: Job) -> None:
        if job.state == "pending":
            job.state, job.started = "in_progress", time.time()
            self.store.note(job)
