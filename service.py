"""The HTTP service: settings in, one editor behind one thread, `POST /edit` out.

Knows which endpoint does what. The parts behind it are put together in `hunyuan.serving.server`.
"""

from __future__ import annotations

import logging
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from hunyuan import __version__
from hunyuan.loopback import ask_no_proxy
from hunyuan.requests import CancelToken, EditRequest, EditResult
from hunyuan.serving.answer import headers_of
from hunyuan.serving.app import API_PATH, configured_workers, service_class
from hunyuan.serving.disconnect import while_connected
from hunyuan.serving.editor_like import EditorLike
from hunyuan.serving.envelope import reporting
from hunyuan.serving.inputs import edit_form
from hunyuan.serving.openai.routes import ImagesApi
from hunyuan.serving.processes import has_master, join_master, prepare_master
from hunyuan.serving.records import EditRecord, record_of
from hunyuan.serving.server import EditServer
from hunyuan.settings import Settings

NAME = "HunyuanImage"
TIMEOUT_MARGIN_S = 30  # the framework's own timeout is a backstop behind the request's deadline

logger = logging.getLogger("hunyuan.service")


def load_editor(settings: Settings) -> EditorLike:
    from hunyuan.editor import Editor  # imports torch: only in the process that serves

    return Editor.load(settings)


SETTINGS = Settings()
SERVER = EditServer(NAME, __version__, SETTINGS, lambda: load_editor(SETTINGS))
SERVER.log.dress_framework()  # in the master too


# What is there when the image compiles its kernels, before the rest of the Bento is copied into it.
IMAGE = bentoml.images.Image(python_version="3.12").build_include(
    *("hunyuan/__init__.py", "hunyuan/__main__.py", "hunyuan/cli", "hunyuan/errors.py"),
    *("hunyuan/accel/build", "hunyuan/accel/flashinfer_modules.py", "hunyuan/accel/experts/tactics.py"),
)


@bentoml.asgi_app(ImagesApi(SERVER, __version__).app(), path="/v1", name="v1")
@bentoml.service(
    name=NAME,
    image=IMAGE,
    service_class=service_class(SERVER.hooks()),
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
        prepare_master(configured_workers(NAME))

    @bentoml.on_startup
    async def begin(self) -> None:
        SERVER.log.start()
        join_master()
        ask_no_proxy()
        try:
            SERVER.start()
        except Exception as error:
            if not has_master():
                raise
            logger.critical("cannot serve: %s: %s", type(error).__name__, error)
            SERVER.cannot_serve()

    @bentoml.on_shutdown
    async def end(self) -> None:
        await SERVER.stop()

    def __is_ready__(self) -> bool:
        return SERVER.ready

    def __is_alive__(self) -> bool:
        return SERVER.alive

    @bentoml.api(route=API_PATH, input_spec=edit_form(SETTINGS, SERVER.one_upload))
    async def edit(
        self, *, image: bytes, prompt: str, seed: int | None, steps: int | None, resolution: str, ctx: bentoml.Context
    ) -> Annotated[bytes, ContentType("image/png")]:
        """Edits `image` as `prompt` says and answers with a PNG.

        The answer's headers give the seed, so that the same picture can be made again, and the time each stage
        took. `resolution` defaults to the size that fits the image best.
        """
        record = record_of(ctx.request.scope)
        edit = record.edit = EditRecord(len(prompt), resolution, seed, steps)
        deadline = record.started + SETTINGS.request_timeout_s
        request = EditRequest(prompt, seed=seed, steps=steps, resolution=resolution)
        with SERVER.tracing.edit(ctx.request.headers, record), reporting(ctx.request.scope, prompt):
            work = make_picture(request, image, CancelToken(deadline), edit)
            result, png = await while_connected(work, deadline, ctx.request.is_disconnected)
        ctx.response.headers.update(headers_of(result, edit))
        return png


async def make_picture(
    request: EditRequest, image: bytes, cancel: CancelToken, edit: EditRecord
) -> tuple[EditResult, bytes]:
    """A place in the queue first, and only then the work that an upload causes."""
    async with SERVER.worker.place(cancel, edit) as queued:
        picture = await SERVER.decoders.decode(image)
        edit.input_size = picture.size
        request.images = [picture]
        del picture
        result = await SERVER.worker.run(queued, request)
    png = await SERVER.encoded(result, request.prompt)
    return result, png
