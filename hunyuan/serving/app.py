"""Dresses the framework's ASGI app: the envelope around it, a telling /readyz, an honest OpenAPI page.

Knows BentoML's service object; what an edit is, it does not know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import attrs
import bentoml
from bentoml._internal.service.openapi.specification import PathItem
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Scope

from hunyuan.serving.cors import Cors
from hunyuan.serving.envelope import Envelope, HideExpectedErrors, TrueStatus
from hunyuan.serving.jobs.openapi import operations
from hunyuan.serving.pages import use_our_pages
from hunyuan.serving.records import RequestRecord

API_PATH = "/edit"
_FRAMEWORK_ERRORS = "bentoml._internal.server.http_app"  # the logger of its tracebacks
_ERRORS = {
    400: "invalid_image, invalid_prompt, invalid_field or unknown_field",
    401: "unauthorized, where the server has keys",
    408: "too_slow",
    413: "payload_too_large",
    415: "unsupported_media_type",
    429: "queue_full or too_many_connections; see Retry-After",
    431: "head_too_large",
    503: "loading (see Retry-After), out_of_memory, inference_failed or shutting_down",
    504: "timeout",
}
_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error", "message", "request_id"],
    "properties": {name: {"type": "string"} for name in ("error", "message", "request_id")},
    "additionalProperties": False,
}
_ANSWER_HEADERS = {
    "X-Request-ID": "the caller's own, if it sent one, else a new one",
    "X-Seed": "the seed that was used; with the same fields it gives the same picture",
    "X-Image-Size": "WIDTHxHEIGHT",
    "X-Steps": "denoising steps",
    "X-Recaption": "the prompt as the model rewrote it, percent-encoded, at most 1,024 bytes; absent if it did not",
    "X-Model": "the checkpoint's name",
    "Server-Timing": "milliseconds in the queue and in each stage",
}
# A key is only wanted where the server has some, which the page does not tell: `{}` is the way without.
_KEY_SCHEME = {"key": {"type": "http", "scheme": "bearer", "description": "where the server has keys"}}
_WITH_OR_WITHOUT_KEY: list[dict[str, list[str]]] = [{}, {"key": []}]
_EXPOSED = (*_ANSWER_HEADERS, "Retry-After", "WWW-Authenticate")
# Any header may be sent (OpenAI's own client sends a dozen), for none of them gives a page more rights: the key does.
_CORS = {"allow_methods": ["GET", "POST", "PUT"], "allow_headers": ["*"]}


@attrs.define
class AppHooks:
    """What the service hands over for its ASGI app.

    `model_name` is None until it is known; `describe` is the line that /readyz answers with; `on_end` hears of every
    request that is over; `before` is called once, before there is an app; `admit`, `waited_s` and `has_path` are what
    `Envelope` asks before a body is read; pages of `cors_origins` may call, whatever the framework's own CORS options
    say; `routes` are ours beside the framework's; `v1` describes those under /v1, given the codes of errors by status;
    `version` is this software's.
    """

    max_body_bytes: int
    model_name: Callable[[], str | None]
    describe: Callable[[], str]
    on_end: Callable[[RequestRecord], None]
    before: Callable[[], None]
    admit: Callable[[Scope], str | None] = lambda scope: None
    waited_s: Callable[[Scope], float] = lambda scope: 0.0
    cors_origins: Collection[str] = ()
    routes: Sequence[Route] = ()
    has_path: Callable[[str], bool] = lambda path: False
    v1: Callable[[dict[int, str]], dict[str, tuple[str, dict[str, Any]]]] = lambda errors: {}
    version: str = ""


def service_class(hooks: AppHooks) -> type[bentoml.Service[Any]]:
    """A service class for `@bentoml.service(service_class=...)`."""

    class ServiceWithEnvelope(bentoml.Service[Any]):
        @property
        def openapi_spec(self) -> Any:
            specification = _ours(super().openapi_spec, hooks.version)
            edit = specification.paths[API_PATH].post
            _describe_answers(edit)
            jobs = operations(edit, _ERROR_SCHEMA) if hooks.routes else {}
            ours = {f"{API_PATH}/{action}": told for action, told in jobs.items()}
            for path, (method, operation) in {**ours, **hooks.v1(_ERRORS)}.items():
                item: dict[str, Any] = {method: {**operation, "security": _WITH_OR_WITHOUT_KEY}}
                specification.paths[path] = PathItem(**item)
            return specification

        def schema(self) -> dict[str, Any]:
            """What BentoML's client reads: edits are tasks to it, though none of the framework's own."""
            schema: dict[str, Any] = super().schema()
            for route in schema["routes"]:
                if route["route"] == API_PATH and hooks.routes:
                    route["is_task"] = True
            return schema

        def to_asgi(self, is_main: bool = True) -> ASGIApp:
            self.add_asgi_middleware(TrueStatus)
            hooks.before()
            app = super().to_asgi(is_main=is_main)
            assert isinstance(app, Starlette)
            logging.getLogger(_FRAMEWORK_ERRORS).addFilter(HideExpectedErrors())
            _explain_readyz(app, hooks.describe)
            app.router.redirect_slashes = False  # /edit/ is no path of ours: 404, not a redirect without a body
            use_our_pages(app)
            app.router.routes.extend(hooks.routes)
            _wrap(app, hooks)
            return app

    return ServiceWithEnvelope


def _wrap(app: Starlette, hooks: AppHooks) -> None:
    """Adds the layers that see every request, CORS before the envelope; the last one added is the outermost."""
    cors = _take_cors_out(app)
    if hooks.cors_origins:
        cors = {**_CORS, "allow_origins": list(hooks.cors_origins), "expose_headers": _EXPOSED}
    app.add_middleware(
        Envelope,
        max_body_bytes=hooks.max_body_bytes,
        model_name=hooks.model_name,
        known_paths=_paths_of(app),
        on_end=hooks.on_end,
        admit=hooks.admit,
        waited_s=hooks.waited_s,
        has_path=hooks.has_path,
    )
    if cors is not None:
        app.add_middleware(Cors, **cors)


def _take_cors_out(app: Starlette) -> dict[str, Any] | None:
    """The options of the framework's CORS layer, which is removed: it lies inside, where no error of ours passes.

    None where the operator has not switched it on. A page of another site sees only the headers that are exposed: all
    of ours are.
    """
    inside = [layer for layer in app.user_middleware if layer.cls is CORSMiddleware]
    if not inside:
        return None
    app.user_middleware.remove(inside[0])
    options: dict[str, Any] = {"allow_methods": _CORS["allow_methods"], **inside[0].kwargs}
    for name in ("allow_origins", "allow_methods", "allow_headers", "expose_headers"):
        value = options.get(name) or ()  # the framework takes a text apart letter by letter
        options[name] = value.replace(",", " ").split() if isinstance(value, str) else list(value)
    options["expose_headers"] = [*dict.fromkeys([*options["expose_headers"], *_EXPOSED])]
    return options


def configured_workers(name: str) -> int | str:
    """How many processes `bentoml serve` starts for the service, after BENTOML_CONFIG_OPTIONS and its like."""
    from bentoml._internal.configuration.containers import BentoMLContainer

    workers: int | str = BentoMLContainer.config.services[name].workers.get()
    return workers


def _paths_of(app: Starlette) -> frozenset[str]:
    """Every path that is answered with something, but those of routes with a parameter: `AppHooks.has_path`."""
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    for mount in (route for route in app.routes if isinstance(route, Mount)):
        if isinstance(mount.app, Starlette):
            inside = (route for route in mount.app.routes if isinstance(route, Route))
            paths.update(f"{mount.path}{route.path}" for route in inside if not route.param_convertors)
        elif isinstance(mount.app, StaticFiles):
            folder = Path(str(mount.app.directory))
            files = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
            paths.update(f"{mount.path}/{file}" for file in files)
    return frozenset(paths)


def _explain_readyz(app: Starlette, describe: Callable[[], str]) -> None:
    """Puts a line about the model, or why there is none, into the framework's empty answers."""
    framework_route = next(route for route in app.routes if isinstance(route, Route) and route.name == "readyz")

    async def readyz(request: Request) -> Response:
        try:
            answer = await framework_route.endpoint(request)
        except HTTPException as error:  # the service's __is_ready__ is false
            return PlainTextResponse(f"not ready: {describe()}\n", error.status_code)
        return PlainTextResponse(f"ready: {describe()}\n", answer.status_code)

    app.router.routes.insert(0, Route(framework_route.path, readyz, name="readyz"))


def _ours(specification: Any, version: str) -> Any:
    """The page as one of this service: the framework's own words, version and address say nothing of it."""
    about = {"title": "hunyuan-image-bento", "version": version, "contact": None}
    about["description"] = "Edits and makes pictures. GET / and GET /ui are pages for people."
    return attrs.evolve(
        specification,
        info=attrs.evolve(specification.info, **about),
        components={**specification.components, "securitySchemes": _KEY_SCHEME},
    )


def _describe_answers(operation: dict[str, Any]) -> None:
    """The framework documents its own error bodies and JSON parts; neither is what this service does."""
    success = operation["responses"][200]
    success["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in _ANSWER_HEADERS.items()
    }
    operation["responses"] = {
        200: success,
        **{
            status: {"description": codes, "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
            for status, codes in _ERRORS.items()
        },
    }
    operation["security"] = _WITH_OR_WITHOUT_KEY
    bodies = operation["requestBody"]["content"]
    bodies.update({media_type: attrs.evolve(body, encoding=None) for media_type, body in bodies.items()})
