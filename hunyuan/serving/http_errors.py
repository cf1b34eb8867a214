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


class ModelNotFound(InvalidRequest):
    """A model was asked for by a name that the served one does not have."""

    status = 404
    code = "model_not_found"

    def __init__(self, served: str) -> None:
        super().__init__("model", f"there is no such model here; {served} is served")


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


class JobNotFound(HunyuanError):
    """Nobody made a job of that id, or it is no longer kept."""

    status = 404
    code = "job_not_found"

    def __init__(self) -> None:
        super().__init__("task_id: there is no such job; it may have been here and its time is over")


class JobNotFinished(HunyuanError):
    """The job has no result yet, and cannot be done again before it has ended."""

    status = 409
    code = "job_not_finished"
    retry_after_s = 1

    def __init__(self, state: str) -> None:
        super().__init__(f"the job is {state}; GET /edit/status tells when it has ended")


class JobFinished(HunyuanError):
    """The job has ended and cannot be cancelled any more."""

    status = 409
    code = "job_finished"

    def __init__(self, state: str) -> None:
        super().__init__(f"the job is {state} already; there is nothing to cancel")


class JobCancelled(HunyuanError):
    """Somebody cancelled the job; the work stopped before its next token or step."""

    status = 409
    code = "job_cancelled"

    def __init__(self) -> None:
        super().__init__("the job was cancelled; POST /edit/retry does it again")


class Interrupted(HunyuanError):
    """The process that had the job ended before the job did."""

    status = 503
    code = "interrupted"

    def __init__(self, state: str) -> None:
        super().__init__(f"the server ended while the job was {state}; POST /edit/retry does it again")


class NoStorage(HunyuanError):
    """A job's files cannot be kept."""

    status = 507
    code = "no_storage"

    def __init__(self, why: str) -> None:
        super().__init__(f"the job cannot be kept: {why}")


NOT_MULTIPART = "send the fields as multipart/form-data (curl -F image=@photo.jpg -F prompt=...)"
_BY_STATUS: dict[int, tuple[type[HunyuanError], str]] = {
    404: (NotFound, "there is nothing at this path; edits go to POST /edit"),
    415: (UnsupportedMediaType, NOT_MULTIPART),
    429: (QueueFull, "the server is busy; try again later"),
    504: (DeadlineExceeded, "the request was not finished in time"),
}


def error_of_status(status: int, allowed: str | None = None) -> HunyuanError:
    """The error that stands for an answer the framework made by itself.

    Args:
        allowed: its `Allow`, the methods that the path takes; the framework's files have none, and take GET.
    """
    if status == MethodNotAllowed.status:
        return MethodNotAllowed(f"this path takes {allowed or 'GET, HEAD'} only")
    if status in _BY_STATUS:
        kind, message = _BY_STATUS[status]
        return kind(message)
    if status < 500:
        return InvalidRequest("request", "the server could not read it")
    return failed()


def failed(request_id: str | None = None) -> InferenceFailed:
    """The one thing a caller learns about a failure that is not theirs.

    Args:
        request_id: of the request that failed, where the caller is told in the answer to another one.
    """
    which = "this request_id" if request_id is None else f"the request_id {request_id}"
    return InferenceFailed(f"the edit failed on the server; its log has the details under {which}")


def describe_failure(error: BaseException, *hide: str) -> str:
    """A traceback for the log in which `hide`, the prompt and its like, does not appear.

    Source lines hold no request data, messages may: those are searched.
    """
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        message = str(current)
        for secret in (form for text in hide for form in (text, repr(text)[1:-1])):
            if secret:
                message = message.replace(secret, "<prompt>")
        frames = "".join(traceback.format_tb(current.__traceback__))
        parts.append(f"{frames}{type(current).__name__}: {message}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\nwhich came after\n".join(parts)
