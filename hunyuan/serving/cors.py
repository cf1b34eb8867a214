"""Which pages of other sites may call: Starlette's layer, whose refusals are errors like any other here.

Knows what a browser asks before a call (a preflight). Origins and their setting are `hunyuan/origins.py`'s.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from hunyuan.errors import InvalidRequest
from hunyuan.serving.envelope import error_content, request_id_from


class Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        return answer if answer.status_code < 400 else _Refusal(self._why(request_headers), answer.headers)

    def _why(self, asked: Headers) -> InvalidRequest:
        method = asked["access-control-request-method"]
        if not self.is_allowed_origin(asked["origin"]):
            return InvalidRequest("Origin", "pages from there may not call this server (HUNYUAN_CORS_ORIGINS)")
        if method not in self.allow_methods:
            allowed = ", ".join(self.allow_methods)
            return InvalidRequest("Access-Control-Request-Method", f"got {method[:40]!r}; allowed are {allowed}")
        return InvalidRequest("Access-Control-Request-Headers", "pages from elsewhere may not send all of these")


class _Refusal(Response):
    """Its body has the request's id and the shape of the request's path, so it is made when those are known."""

    def __init__(self, error: InvalidRequest, headers: Headers) -> None:
        kept = {name: value for name, value in headers.items() if not name.startswith("content-")}
        super().__init__(status_code=error.status, headers=kept, media_type="application/json")
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = request_id_from(scope)
        self.body = error_content(self._error, scope["path"], request_id)
        self.headers["Content-Length"] = str(len(self.body))
        self.headers["X-Request-ID"] = request_id
        await super().__call__(scope, receive, send)
