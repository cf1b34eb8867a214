"""The page at `/`: what the API takes and answers, and a form that uses it.

Three small files of ours in place of the framework's page, which loads badges and a tag manager from other sites. It
asks nothing of anybody but this server; what it says of the API it reads from `/docs.json`.
"""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

FILES = {"index.html": "text/html", "api.css": "text/css", "api.js": "text/javascript"}
_FOLDER = Path(__file__).parent / "static"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_FRAMEWORKS = ("static_content", "assets", "index")  # the names of its routes for a page


def use_our_page(app: Starlette) -> None:
    """Takes the framework's page and its files away and puts ours there, under the same prefix."""
    own = [route for route in app.router.routes if _name(route) in _FRAMEWORKS]
    prefix = next(route.path for route in own if isinstance(route, Route)).rstrip("/")
    app.router.routes[:] = [route for route in app.router.routes if route not in own]
    for name, media_type in FILES.items():
        path = f"{prefix}/" if name == "index.html" else f"{prefix}/{name}"
        app.router.routes.append(_file_route(path, (_FOLDER / name).read_bytes(), media_type))


def _name(route: BaseRoute) -> str | None:
    return route.name if isinstance(route, Route | Mount) else None


def _file_route(path: str, content: bytes, media_type: str) -> Route:
    async def answer(_: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return Route(path, answer, methods=["GET"])
