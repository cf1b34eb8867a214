"""The parts of one serving process, made from the settings and put together: who tells whom.

Knows which part there is and what each hears of the others. What an endpoint answers is `service.py`'s; how a part
works is in its own file.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from functools import partial

from starlette.requests import Request

from hunyuan.requests import EditResult
from hunyuan.serving import metric_files
from hunyuan.serving.address import address_of, invitation
from hunyuan.serving.answer import png_of
from hunyuan.serving.app import API_PATH, AppHooks
from hunyuan.serving.arrival import Arrivals
from hunyuan.serving.connections import Connections
from hunyuan.serving.decoders import Decoders
from hunyuan.serving.door import Door
from hunyuan.serving.editor_like import EditorLike
from hunyuan.serving.http11 import host_of, watch_over
from hunyuan.serving.http_errors import ShuttingDown
from hunyuan.serving.inputs import max_body_bytes
from hunyuan.serving.jobs.job import Job
from hunyuan.serving.jobs.places import Places
from hunyuan.serving.jobs.routes import job_routes
from hunyuan.serving.jobs.runner import Jobs
from hunyuan.serving.jobs.store import JobStore
from hunyuan.serving.jobs.table import JobTable
from hunyuan.serving.lifecycle import Drain, web_server
from hunyuan.serving.logs import ServiceLog, log_job, log_request
from hunyuan.serving.memory import return_large_blocks
from hunyuan.serving.metrics import metrics
from hunyuan.serving.openai.models import is_model_path
from hunyuan.serving.openai.schema import operations
from hunyuan.serving.pace import Least
from hunyuan.serving.peers import Peers
from hunyuan.serving.processes import end_both
from hunyuan.serving.queue import EditQueue
from hunyuan.serving.records import RequestRecord
from hunyuan.serving.tracing import Tracing
from hunyuan.serving.uploads import Upload, Uploads
from hunyuan.serving.worker import EditorWorker
from hunyuan.settings import Settings, ignored_variables

MAX_UPLOADS = 32
READY_EVERY_S = 1.0
LAST_WORDS_S = 2.0  # for requests to end by themselves after the web server has cut them off
STOP_MARGIN_S = 20  # after the last edit's deadline, before the process is ended by force
PROCESSES = 2  # to decode pictures, and as many threads to encode them

logger = logging.getLogger(__name__)


class EditServer:
    """One process's parts.

    Args:
        name: of the BentoML service, whose address the log tells.
        version: of our code, which pictures tell.
        load: builds the editor; called on the worker's own thread.
    """

    def __init__(self, name: str, version: str, settings: Settings, load: Callable[[], EditorLike]) -> None:
        self.name, self.version, self.settings = name, version, settings
        self.log = ServiceLog(settings.log_format)
        self.tracing = Tracing()
        usual = statistics.median if settings.text_batch == 1 else statistics.fmean
        self.queue = EditQueue(settings.queue_size, on_depth=show_depth, usual=usual)
        self.worker = EditorWorker(
            load, self.queue, settings.stuck_s, self.cannot_serve, self.say_ready, self.log.progress
        )
        least = Least(settings.idle_s, settings.min_rate_kb_s * 1024)
        self.peers = Peers(settings.trusted_proxies or ())
        self.door = Door(settings.keys)
        self.uploads = Uploads(MAX_UPLOADS, max(1, int(MAX_UPLOADS * settings.peer_share)), least)
        self.connections = Connections(
            settings.max_connections, settings.peer_share, least, count_closed, show_connections
        )
        self.drain = Drain(
            self.refuse_work,
            lambda: self.queue.awaited > 0 or self.jobs.busy,
            self.connections.end_soon,
            settings.request_timeout_s + STOP_MARGIN_S,
            self.cannot_serve,
        )
        self.decoders = Decoders(
            PROCESSES,
            settings.max_pixels,
            settings.max_decode_s,
            settings.stuck_s,
            show_decoding,
            count_killed_decoder,
            show_decoders,
        )
        self._telling: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[None]] | None = None  # the web server's own
        self.encoding = ThreadPoolExecutor(PROCESSES, thread_name_prefix="encode")
        self.jobs = self._jobs()

    def _jobs(self) -> Jobs:
        settings = self.settings
        return Jobs(
            JobStore(settings.jobs_dir, job_table(settings), show_jobs),
            self.worker,
            self.decoders,
            self.encoded,
            self.tracing,
            settings.replica,
            None if settings.jobs_proxy is None else Places(f"{settings.jobs_proxy}{API_PATH}"),
            settings.queue_size,
            job_ended,
        )

    def hooks(self) -> AppHooks:
        """What the ASGI app around the endpoints asks and tells."""
        limit = max_body_bytes(self.settings)
        return AppHooks(
            limit,
            lambda: self.worker.model_name,
            self.describe,
            self.finished,
            self.make_room,
            self.door.admit,
            Arrivals(self.peers).waited_s,
            self.settings.cors_origins or (),
            job_routes(API_PATH, self.jobs, self.settings, self.one_upload),
            partial(is_model_path, self.worker),
            partial(operations, self.settings),
            self.version,
        )

    def start(self) -> None:
        """Everything that runs beside the web server; call it on the event loop."""
        self.tracing.start()
        metrics()  # so that all names are there from the first scrape on
        for line in self.settings.lines():
            logger.info("setting %s", line)
        if names := ignored_variables():
            logger.info("not ours, as Kubernetes and Docker write them about other services: %s", ", ".join(names))
        return_large_blocks()
        self.jobs.store.open()
        self.watch_connections()
        server = web_server()
        if server is not None:
            self._requests = server.server_state.tasks
        self.jobs.start(self._requests)
        self.drain.install()
        self.decoders.start()
        self.worker.start()
        self._telling = asyncio.get_running_loop().create_task(self._tell_ready())

    async def _tell_ready(self) -> None:
        while True:
            metrics().ready.set(self.ready)
            await asyncio.sleep(READY_EVERY_S)

    async def stop(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
        self.worker.shut_down()
        await self.jobs.stop()
        if self._requests:  # after --timeout-graceful-shutdown the web server has cancelled them, and waits no more
            await asyncio.wait(set(self._requests), timeout=LAST_WORDS_S)
        self.queue.stop_running()
        self.decoders.stop()
        self.tracing.stop()
        self.log.stop()

    @property
    def ready(self) -> bool:
        return self.worker.ready and self.decoders.alive

    @property
    def alive(self) -> bool:
        return self.worker.alive and self.decoders.alive

    def describe(self) -> str:
        """One line on what is being served, or why nothing is."""
        return self.decoders.trouble or self.worker.describe()

    def one_upload(self, request: Request, deadline: float) -> AbstractAsyncContextManager[Upload]:
        """A place for a request's body, on the account of whoever sends it."""
        peer = self.peers.of_request(host_of(request.scope), request.headers)
        announced = request.headers.get("content-length", "")
        return self.uploads.one(peer, int(announced) if announced.isdecimal() else None, deadline)

    async def encoded(self, result: EditResult, prompt: str) -> bytes:
        """The PNG of a result, made on a thread of its own."""
        shown = prompt if self.settings.png_prompt else None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.encoding, png_of, result, self.worker.model_name, self.version, shown)

    def finished(self, record: RequestRecord) -> None:
        """After every answer. Both only hand figures over; the log is written by a thread of its own."""
        log_request(record)
        metrics().request(record)

    def refuse_work(self) -> None:
        self.worker.shut_down()
        self.jobs.refuse()
        self.uploads.close(ShuttingDown)

    def watch_connections(self) -> None:
        server = web_server()
        if server is None:
            logger.warning("not under uvicorn: connections have no limits of ours, slow ones may stay")
        else:
            watch_over(server, self.connections, self.peers)

    def say_ready(self, serving: str) -> None:
        """The last line of the start: what, where, and a command to try."""
        logger.info("ready: serving %s%s", serving, invitation(address_of(self.name), bool(self.door.names)))

    def make_room(self) -> None:
        """Before the framework's app: already its start writes figures."""
        try:
            metric_files.reserve()
        except metric_files.NoRoomForMetrics as error:
            self.log.start()
            logger.critical("cannot serve: %s", error)
            self.cannot_serve()

    def cannot_serve(self) -> None:
        self.log.stop()  # writes the reason first
        end_both()


# The figures are made when the process that serves starts, not when these parts are: hence functions.


def show_depth(depth: int) -> None:
    metrics().depth.set(depth)


def show_connections(count: int) -> None:
    metrics().connections.set(count)


def count_closed(reason: str) -> None:
    metrics().closed.labels(reason).inc()


def show_jobs(number: int, size: int) -> None:
    metrics().jobs_kept.set(number)
    metrics().jobs_bytes.set(size)


def job_ended(job: Job, record: RequestRecord) -> None:
    log_job(job.state, record)
    metrics().job(job.state, record)


def job_table(settings: Settings) -> JobTable:
    return JobTable(settings.jobs_kept, int(settings.jobs_mb * 2**20), settings.jobs_keep_s)


def show_decoding(seconds: float) -> None:
    metrics().decoding.observe(seconds)


def count_killed_decoder(reason: str) -> None:
    metrics().decoders_killed.labels(reason).inc()


def show_decoders(number: int) -> None:
    metrics().decoders.set(number)
