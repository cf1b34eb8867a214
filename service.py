"""The HTTP service: settings in, one editor behind one thread, `POST /edit` out.

Knows which endpoint does what and puts the parts together. How a body is read, an error looks, a request waits or the
model runs is in `hunyuan.serving` and `hunyuan.editor`.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Annotated

import bentoml
from bentoml.validators import ContentType
from starlette.requests import Request

from hunyuan import __version__
from hunyuan.loopback import ask_no_proxy
from hunyuan.requests import CancelToken, EditRequest, EditResult
from hunyuan.serving import metric_files
from hunyuan.serving.address import address_of, invitation
from hunyuan.serving.app import API_PATH, Dressing, configured_workers, dressed_service
from hunyuan.serving.attend import attended
from hunyuan.serving.calls import Call, EditFacts, call_of
from hunyuan.serving.connections import Connections
from hunyuan.serving.decoders import Decoders
from hunyuan.serving.envelope import reporting
from hunyuan.serving.http11 import host_of, watch_over
from hunyuan.serving.http_errors import ShuttingDown
from hunyuan.serving.inputs import edit_form, max_body_bytes
from hunyuan.serving.lifecycle import Drain, web_server
from hunyuan.serving.logs import ServiceLog, log_request
from hunyuan.serving.memory import return_large_blocks
from hunyuan.serving.metrics import metrics
from hunyuan.serving.pace import Least
from hunyuan.serving.peers import Peers
from hunyuan.serving.png import encode_png
from hunyuan.serving.processes import end_both, has_master, join_master, prepare_master
from hunyuan.serving.queue import EditQueue
from hunyuan.serving.tracing import Tracing
from hunyuan.serving.uploads import Upload, Uploads
from hunyuan.serving.worker import EditorLike, EditorWorker
from hunyuan.settings import Settings, ignored_variables

SETTINGS = Settings()
TIMEOUT_MARGIN_S = 30  # the framework's own timeout is a backstop behind the request's deadline
MAX_UPLOADS = 32
STOP_MARGIN_S = 20  # after the last edit's deadline the process is ended by force
PROCESSES = 2  # that decode pictures, and threads that encode them

logger = logging.getLogger("hunyuan.service")


def load_editor(settings: Settings) -> EditorLike:
    from hunyuan.editor import Editor  # imports torch: only in the process that serves

    return Editor.load(settings)


def cannot_serve() -> None:
    LOG.stop()  # writes the reason first
    end_both()


def make_room() -> None:
    """Before the framework's app: already its start writes figures."""
    try:
        metric_files.reserve()
    except metric_files.NoRoomForMetrics as error:
        LOG.start()
        logger.critical("cannot serve: %s", error)
        cannot_serve()


def finished(call: Call) -> None:
    """After every answer. Both only hand figures over; the log is written by a thread of its own."""
    log_request(call)
    metrics().request(call)


def say_ready(serving: str) -> None:
    """The last line of the start: what, where, and a command to try."""
    logger.info("ready: serving %s%s", serving, invitation(address_of("HunyuanImage")))


def refuse_work() -> None:
    WORKER.shut_down()
    UPLOADS.close(ShuttingDown)


def one_upload(request: Request, deadline: float) -> AbstractAsyncContextManager[Upload]:
    """A place for a request's body, on the account of whoever sends it."""
    peer = PEERS.of_request(host_of(request.scope), request.headers)
    announced = request.headers.get("content-length", "")
    return UPLOADS.one(peer, int(announced) if announced.isdecimal() else None, deadline)


def watch_connections() -> None:
    server = web_server()
    if server is None:
        logger.warning("not under uvicorn: connections have no limits of ours, slow ones may stay")
    else:
        watch_over(server, CONNECTIONS, PEERS)


def show_depth(depth: int) -> None:
    metrics().depth.set(depth)


def show_connections(count: int) -> None:
    metrics().connections.set(count)


def count_closed(reason: str) -> None:
    metrics().closed.labels(reason).inc()


def show_decoding(seconds: float) -> None:
    metrics().decoding.observe(seconds)


def show_decoder_killed(reason: str) -> None:
    metrics().decoders_killed.labels(reason).inc()


def show_decoders(number: int) -> None:
    metrics().decoders.set(number)


def describe() -> str:
    return DECODERS.trouble or WORKER.describe()


LOG = ServiceLog(SETTINGS.log_format)
LOG.dress_framework()  # in the master too
TRACING = Tracing()
QUEUE = EditQueue(SETTINGS.queue_size, on_depth=show_depth)
WORKER = EditorWorker(lambda: load_editor(SETTINGS), QUEUE, SETTINGS.stuck_s, cannot_serve, say_ready, LOG.progress)
LEAST = Least(SETTINGS.idle_s, SETTINGS.min_rate_kb_s * 1024)
PEERS = Peers(SETTINGS.trusted_proxies or ())
UPLOADS = Uploads(MAX_UPLOADS, max(1, int(MAX_UPLOADS * SETTINGS.peer_share)), LEAST)
CONNECTIONS = Connections(SETTINGS.max_connections, SETTINGS.peer_share, LEAST, count_closed, show_connections)
ENDS_WITHIN_S = SETTINGS.request_timeout_s + STOP_MARGIN_S
DRAIN = Drain(refuse_work, lambda: QUEUE.attended > 0, CONNECTIONS.end_soon, ENDS_WITHIN_S, cannot_serve)
DECODERS = Decoders(
    PROCESSES,
    SETTINGS.max_pixels,
    SETTINGS.max_decode_s,
    SETTINGS.stuck_s,
    show_decoding,
    show_decoder_killed,
    show_decoders,
)
ENCODING = ThreadPoolExecutor(PROCESSES, thread_name_prefix="encode")


def start_all() -> None:
    """Everything that runs beside the web server, on whose event loop it is called."""
    TRACING.start()
    metrics()  # so that all names are there from the first scrape on
    for line in SETTINGS.lines():
        logger.info("setting %s", line)
    if names := ignored_variables():
        logger.info("not ours, as Kubernetes and Docker write them about other services: %s", ", ".join(names))
    return_large_blocks()
    watch_connections()
    DRAIN.install()
    DECODERS.start()
    WORKER.start()


# What is there when the image compiles its kernels, before the rest of the Bento is copied into it.
IMAGE = bentoml.images.Image(python_version="3.12").build_include(
    *("hunyuan/__init__.py", "hunyuan/__main__.py", "hunyuan/cli", "hunyuan/errors.py"),
    *("hunyuan/accel/build", "hunyuan/accel/flashinfer_modules.py", "hunyuan/accel/experts/tactics.py"),
)


@bentoml.service(
    name="HunyuanImage",
    image=IMAGE,
    service_class=dressed_service(
        Dressing(max_body_bytes(SETTINGS), lambda: WORKER.model_name, describe, finished, make_room)
    ),
    resources={"gpu": 1, "gpu_type": "nvidia-h100-80gb"},
    traffic={"timeout": SETTINGS.request_timeout_s + TIMEOUT_MARGIN_S},
    workers=1,
    http={"port": 8000, "cors": {"enabled": False}},
    logging={"access": {"enabled": False}},
)
class HunyuanImage:
    """Edits a picture as a prompt says, with HunyuanImage-3.0-Instruct."""

    @bentoml.on_deployment
    @staticmethod
    def prepare() -> None:
        """In the master, before it starts the process that serves."""
        prepare_master(configured_workers("HunyuanImage"))

    @bentoml.on_startup
    async def begin(self) -> None:
        LOG.start()
        join_master()
        ask_no_proxy()
        try:
            start_all()
        except Exception as error:
            if not has_master():
                raise
            logger.critical("cannot serve: %s: %s", type(error).__name__, error)
            cannot_serve()

    @bentoml.on_shutdown
    def end(self) -> None:
        WORKER.shut_down()
        QUEUE.stop_running()
        DECODERS.stop()
        TRACING.stop()
        LOG.stop()

    def __is_ready__(self) -> bool:
        return WORKER.ready and DECODERS.alive

    def __is_alive__(self) -> bool:
        return WORKER.alive and DECODERS.alive

    @bentoml.api(route=API_PATH, input_spec=edit_form(SETTINGS, one_upload))
    async def edit(
        self, *, image: bytes, prompt: str, seed: int | None, steps: int | None, resolution: str, ctx: bentoml.Context
    ) -> Annotated[bytes, ContentType("image/png")]:
        """Edits `image` as `prompt` says and answers with a PNG.

        The answer's headers give the seed, so that the same picture can be made again, and the time each stage
        took. `resolution` defaults to the size that fits the image best.
        """
        call = call_of(ctx.request.scope)
        facts = call.edit = EditFacts(len(prompt), resolution, seed, steps)
        deadline = call.started + SETTINGS.request_timeout_s
        request = EditRequest(prompt, seed=seed, steps=steps, resolution=resolution)
        with TRACING.edit(ctx.request.headers, call), reporting(ctx.request.scope, hide=prompt):
            work = make_picture(request, image, CancelToken(deadline), facts)
            result, png = await attended(work, deadline, ctx.request.is_disconnected)
        ctx.response.headers.update(headers_of(result, facts))
        return png


async def make_picture(
    request: EditRequest, image: bytes, cancel: CancelToken, facts: EditFacts
) -> tuple[EditResult, bytes]:
    """A place in the queue first, and only then the work that an upload causes."""
    loop = asyncio.get_running_loop()
    async with WORKER.place(cancel, facts) as job:
        picture = await DECODERS.decode(image)
        facts.input_size = picture.size
        request.images = [picture]
        del picture
        result = await WORKER.run(job, request)
    return result, await loop.run_in_executor(ENCODING, png_of, result, request.prompt)


def png_of(result: EditResult, prompt: str) -> bytes:
    shown = prompt if SETTINGS.png_prompt else None
    return encode_png(result, model_name=WORKER.model_name or "", version=__version__, prompt=shown)


def headers_of(result: EditResult, facts: EditFacts) -> dict[str, str]:
    """What the answer says about the edit; the envelope adds `X-Request-ID` and `X-Model`."""
    width, height = result.size
    timings = {"queue": facts.queue_s or 0.0, **result.timings}
    return {
        "X-Seed": str(result.seed),
        "X-Image-Size": f"{width}x{height}",
        "X-Steps": str(result.steps),
        "Server-Timing": ", ".join(f"{stage};dur={seconds * 1e3:.1f}" for stage, seconds in timings.items()),
    }
