"""What an error looks like under /v1: OpenAI's shape around this service's own codes.

Knows the shape and the paths that have it. Everywhere else an error is the envelope of `serving/envelope.py`.
"""

from __future__ import annotations

from typing import Any

from hunyuan.errors import HunyuanError, InvalidRequest
from hunyuan.serving.http_errors import NotFound

PREFIX = "/v1"
_ROUTES = "POST /v1/images/edits, POST /v1/images/generations, GET /v1/models and GET /v1/models/NAME"


def is_openai(path: str) -> bool:
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def error_body(error: HunyuanError) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`; `param` is the field at fault, where there is one."""
    field = error.field if isinstance(error, InvalidRequest) else None
    return {"error": {"message": _message(error), "type": _type(error.status), "param": field, "code": error.code}}


def _message(error: HunyuanError) -> str:
    if isinstance(error, NotFound):
        return f"there is nothing at this path; there are {_ROUTES}"
    return str(error)


def _type(status: int) -> str:
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "invalid_request_error" if status < 500 else "server_error"
