"""The pages: `/` says what the API takes and answers, with a form to try it; `/ui` is for whoever edits pictures.

Small files of ours in place of the framework's page, which loads badges and a tag manager from other sites. They ask
nothing of anybody but this server. What they do with its answers is theirs to know; here they are bytes with a tag.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

FOLDER = Path(__file__).parent / "static"
_UI = ("ui.css", "ui.js", "api.js", "page.js", "progress.js", "sources.js", "stage.js")
FILES = {
    **{"/": "index.html", "/api.css": "api.css", "/api.js": "api.js", "/ui": "ui/index.html"},
    **{f"/ui/{name}": f"ui/{name}" for name in _UI},
}
"""Paths, and the files of `FOLDER` that are there."""

_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked for each time: the tag tells whether it has changed
}
_FRAMEWORKS = ("static_content", "assets", "index")  # the names of its routes for a page


def use_our_pages(app: Starlette) -> None:
    """Takes the framework's page and its files away and puts ours there, under the same prefix."""
    own = [route for route in app.router.routes if _name(route) in _FRAMEWORKS]
    prefix = next(route.path for route in own if isinstance(route, Route)).rstrip("/")
    app.router.routes[:] = [route for route in app.router.routes if route not in own]
    for path, name in FILES.items():
        file = FOLDER / name
        app.router.routes.append(_file_route(f"{prefix}{path}", file.read_bytes(), _MEDIA_TYPES[file.suffix]))
    app.router.routes.append(Route(f"{prefix}/ui/", _without_slash, methods=["GET"]))


def _name(route: BaseRoute) -> str | None:
    return route.name if isinstance(route, Route | Mount) else None


def _file_route(path: str, content: bytes, media_type: str) -> Route:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def answer(request: Request) -> Response:
        if is_named(tag, request.headers.getlist("if-none-match")):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return Route(path, answer, methods=["GET"])


def is_named(tag: str, lines: list[str]) -> bool:
    """Whether the lines of an If-None-Match (RFC 9110, section 13.1.2) name a tag; a proxy may have made it weak."""
    named = [name.strip().removeprefix("W/") for line in lines for name in line.split(",")]
    return tag in named or named == ["*"]


async def _without_slash(_: Request) -> Response:
    """The names in the page count from the folder above."""
    return RedirectResponse("../ui", status_code=308)
