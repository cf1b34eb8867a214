"""The routes of OpenAI's images API, as an application to be mounted at /v1.

Knows which route reads what. The work behind them is the service's own: the same queue, limits, log and metrics.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from hunyuan.errors import HunyuanError, UnknownField
from hunyuan.serving.envelope import refusal, reporting
from hunyuan.serving.openai.answers import Painter
from hunyuan.serving.openai.bodies import Body, OnBytes, read_edit, read_generation
from hunyuan.serving.openai.call import Operation, call_of
from hunyuan.serving.openai.models import model_of, models_of
from hunyuan.serving.openai.replies import Reply
from hunyuan.serving.records import record_of
from hunyuan.serving.server import EditServer

Reader = Callable[[Request, OnBytes], Awaitable[Body]]


class ImagesApi:
    """OpenAI's routes in front of one process's parts.

    Args:
        version: of this software, for the files.
    """

    def __init__(self, server: EditServer, version: str) -> None:
        self.server, self.version = server, version
        self.started = int(time.time())

    def app(self) -> Starlette:
        routes = [
            Route("/images/edits", self.edits, methods=["POST"]),
            Route("/images/generations", self.generations, methods=["POST"]),
            Route("/models", self.models, methods=["GET"]),
            Route("/models/{model:path}", self.models, methods=["GET"]),  # the envelope lets no other name through
        ]
        app = Starlette(routes=routes)
        app.router.redirect_slashes = False
        return app

    async def edits(self, request: Request) -> ASGIApp:
        return await self._reply(request, "image_edit", read_edit)

    async def generations(self, request: Request) -> ASGIApp:
        return await self._reply(request, "image_generation", read_generation)

    async def models(self, request: Request) -> Response:
        """The one model that is served, in a list or alone."""
        try:
            with reporting(request.scope):
                self.server.worker.require_usable()
        except HunyuanError as error:
            return refusal(error)
        tell = model_of if "model" in request.path_params else models_of
        return JSONResponse(tell(self.server.worker.model_name or "", self.started))

    async def _reply(self, request: Request, operation: Operation, read: Reader) -> ASGIApp:
        """Reads and checks the whole request; the answer does the work."""
        settings = self.server.settings
        deadline = record_of(request.scope).started + settings.request_timeout_s
        try:
            with reporting(request.scope):
                if names := list(request.query_params):
                    raise UnknownField(names[0][:64] or "(no name)", "fields go into the body; the address takes none")
                async with self.server.one_upload(request, deadline) as upload:
                    body = await read(request, upload.receive)
                call = call_of(operation, body.values, body.pictures, settings, body.field_name)
        except HunyuanError as error:
            return refusal(error)
        painter = Painter(self.server.worker.model_name or "", self.version, settings.png_prompt)
        return Reply(self.server, call, painter, deadline)
