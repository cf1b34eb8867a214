"""Errors that only exist over HTTP, and what a failure looks like in the log.

Knows statuses, codes and sentences. Does not know ASGI: `envelope.py` turns these into answers.
"""

from __future__ import annotations

import traceback
from typing import ClassVar

from hunyuan.errors import DeadlineExceeded, HunyuanError, InferenceFailed, InvalidRequest


class Unauthorized(HunyuanError):
    """The caller has shown no key that this server knows."""

    status = 401
    code = "unauthorized"
    headers: ClassVar[dict[str, str]] = {"www-authenticate": "Bearer"}


class NotFound(HunyuanError):
    status = 404
    code = "not_found"


class MethodNotAllowed(HunyuanError):
    status = 405
    code = "method_not_allowed"


class PayloadTooLarge(HunyuanError):
    """The request's body is larger than `HUNYUAN_MAX_UPLOAD_MB`."""

    status = 413
    code = "payload_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the request body is larger than the {limit_bytes:,} bytes this server accepts")


class UnsupportedMediaType(HunyuanError):
    status = 415
    code = "unsupported_media_type"


class TooSlow(HunyuanError):
    """The request came too slowly to be waited for."""

    status = 408
    code = "too_slow"


class QueueFull(HunyuanError):
    """As many requests wait as may.

    Args:
        retry_after_s: when a place should be free, for `Retry-After`.
    """

    status = 429
    code = "queue_full"

    def __init__(self, message: str, retry_after_s: int = 10) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooManyConnections(QueueFull):
    """As many connections are open as may."""

    code = "too_many_connections"


class HeadTooLarge(HunyuanError):
    """A request's line and headers are longer than this server reads."""

    status = 431
    code = "head_too_large"


class Loading(HunyuanError):
    """The checkpoint is still being loaded or warmed up."""

    status = 503
    code = "loading"
    retry_after_s = 10


class ShuttingDown(HunyuanError):
    """The process was told to end; it takes no new work."""

    status = 503
    code = "shutting_down"
    retry_after_s = 10

    def __init__(self) -> None:
        super().__init__("this server is shutting down; send the request again, to another one if there is one")


class Restarting(InferenceFailed):
    """Only a new process can help: the GPU's state is lost, or a step does not return."""

    retry_after_s = 60


NOT_MULTIPART = "send the fields as multipart/form-data (curl -F image=@photo.jpg -F prompt=...)"
_BY_STATUS: dict[int, tuple[type[HunyuanError], str]] = {
    404: (NotFound, "there is nothing at this path; edits go to POST /edit"),
    405: (MethodNotAllowed, "this path does not take that method; edits go to POST /edit"),
    415: (UnsupportedMediaType, NOT_MULTIPART),
    429: (QueueFull, "the server is busy; try again later"),
    504: (DeadlineExceeded, "the request was not finished in time"),
}


def error_of_status(status: int) -> HunyuanError:
    """The error that stands for an answer the framework made by itself."""
    if status in _BY_STATUS:
        kind, message = _BY_STATUS[status]
        return kind(message)
    if status < 500:
        return InvalidRequest("request", "the server could not read it")
    return failed()


def failed() -> InferenceFailed:
    """The one thing a caller learns about a failure that is not theirs."""
    return InferenceFailed("the edit failed on the server; its log has the details under this request_id")


def describe_failure(error: BaseException, hide: str = "") -> str:
    """A traceback for the log in which `hide`, the prompt, does not appear.

    Source lines hold no request data, messages may: those are searched.
    """
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        message = str(current)
        for secret in (hide, repr(hide)[1:-1]):
            if secret:
                message = message.replace(secret, "<prompt>")
        frames = "".join(traceback.format_tb(current.__traceback__))
        parts.append(f"{frames}{type(current).__name__}: {message}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\nwhich came after\n".join(parts)
