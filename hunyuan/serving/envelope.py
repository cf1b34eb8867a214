"""What every answer has in common: the request id, the body cap, one shape for errors, one report at the end.

`Envelope` is the outermost ASGI layer, so that it also sees the answers the framework makes by itself (wrong method,
its own timeout, a shutdown that cancels a request). It knows nothing of edits.

An error of ours travels beside the framework: `reporting` notes it in the request's `RequestRecord`, the framework then
answers whatever it likes, and the envelope replaces that answer by the noted error.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from bentoml.exceptions import BentoMLException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hunyuan.errors import Cancelled, HunyuanError
from hunyuan.serving.header_text import printable
from hunyuan.serving.http_errors import (
    PayloadTooLarge,
    ShuttingDown,
    describe_failure,
    error_of_status,
    failed,
)
from hunyuan.serving.openai.errors import error_body, is_openai
from hunyuan.serving.records import RECORD, RequestRecord, record_of

logger = logging.getLogger(__name__)

PLAIN_PATHS = frozenset({"/livez", "/healthz", "/readyz", "/metrics"})  # read by machines that expect plain text
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KEPT_HEADERS = ("allow", "retry-after", "vary")  # and what CORS says


def request_id_from(scope: Scope) -> str:
    """The caller's own `X-Request-ID` where it is harmless in a header and a log, else a new one."""
    given = Headers(scope=scope).get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


@contextmanager
def reporting(scope: Scope, *hide: str) -> Iterator[None]:
    """Notes an error raised inside for the envelope, and logs it where it is not the caller's.

    Args:
        hide: the prompt and its like, which must not reach the log.
    """
    record = record_of(scope)
    try:
        yield
    except HunyuanError as error:
        record.error = error
        if error.status >= 500 and error.__cause__ is not None:
            logger.error("request %s: %s", record.request_id, describe_failure(error, *hide))
        raise
    except ClientDisconnect:
        record.error = Cancelled("the client went away")
        raise record.error from None
    except Exception as error:
        logger.error("request %s: %s", record.request_id, describe_failure(error, *hide))
        record.error = failed()
        raise record.error from None


def refusal(error: HunyuanError) -> Response:
    """An answer with the error's status; its body is put there by the envelope, for `reporting` has noted the error."""
    return Response(status_code=error.status)


def error_content(error: HunyuanError, path: str, request_id: str) -> bytes:
    """The body that tells of an error: the envelope, or OpenAI's shape where the path is one of theirs."""
    body: dict[str, Any] = {"error": error.code, "message": str(error), "request_id": request_id}
    if is_openai(path):
        body = error_body(error)
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def let_go(error: BaseException | None) -> None:
    """Drops the frames that an error's traceback keeps alive, and with them the upload and the decoded picture.

    The framework holds on to a request, and through it to this error, until its own timeout would have passed.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        following = error.__cause__ or error.__context__
        error.__traceback__ = error.__cause__ = error.__context__ = None
        error = following


class HideExpectedErrors(logging.Filter):
    """Keeps the framework from logging a traceback for a caller's mistake or for what `reporting` has logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, BentoMLException):
            return error.error_code.value >= 500
        return not isinstance(error, HunyuanError)


class Envelope:
    """The outermost ASGI layer.

    Args:
        app: everything inside.
        max_body_bytes: a longer request body is answered with 413.
        model_name: what to put in `X-Model`; None while it is not known yet.
        known_paths: any other path is 404 right here. The framework would count each path that someone tries under a
            name of its own, for ever. None: the framework decides.
        on_end: called once a request, after its answer was sent; of probes and scrapes only for the refused ones.
        admit: called before anything of a request's body is read; returns the name of the caller's key, None where no
            key is needed, or raises what the caller gets instead of an answer.
        waited_s: how long a request has waited in front of this process, which counts towards its time.
        has_path: whether a path that is none of `known_paths` is answered all the same; may raise what is said instead.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        model_name: Callable[[], str | None],
        known_paths: Collection[str] | None = None,
        on_end: Callable[[RequestRecord], None] = lambda record: None,
        admit: Callable[[Scope], str | None] = lambda scope: None,
        waited_s: Callable[[Scope], float] = lambda scope: 0.0,
        has_path: Callable[[str], bool] = lambda path: False,
    ) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.model_name = model_name
        self.known_paths = known_paths
        self.on_end = on_end
        self.admit = admit
        self.waited_s = waited_s
        self.has_path = has_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        record = scope[RECORD] = RequestRecord(request_id_from(scope), scope["path"])
        record.proxy_s = self.waited_s(scope)
        record.started -= record.proxy_s
        plain = scope["path"] in PLAIN_PATHS
        try:
            await self._answered(scope, receive, _Answer(record, send, self.model_name, plain))
        finally:
            record.ended = time.monotonic()
            if not plain or record.error is not None:
                self.on_end(record)
            let_go(record.error)

    async def _answered(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        record = record_of(scope)
        try:
            record.caller = self.admit(scope)
            self._check_path(scope)
            self._check_announced_length(scope)
            await self.app(scope, self._counted(receive, record), answer.send)
        except HunyuanError as error:
            await answer.fail(error)
        except asyncio.CancelledError:  # the web server's patience with a shutdown is over
            if answer.started:
                raise
            await answer.fail(ShuttingDown())  # with an answer out, nobody above needs to hear of it
        except Exception as error:
            logger.error("request %s: %s", record.request_id, describe_failure(error))
            if answer.started:
                raise  # half an answer is out; closing the connection is all that is left
            await answer.fail(failed())

    def _check_path(self, scope: Scope) -> None:
        known, path = self.known_paths, scope["path"]
        if known is not None and path not in known and not self.has_path(path):
            raise error_of_status(404)

    def _check_announced_length(self, scope: Scope) -> None:
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self.max_body_bytes:
            raise PayloadTooLarge(self.max_body_bytes)

    def _counted(self, receive: Receive, record: RequestRecord) -> Receive:
        """A chunked body announces no length, so what really comes is counted as well."""
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            record.bytes_in = seen
            if seen > self.max_body_bytes:
                record.error = PayloadTooLarge(self.max_body_bytes)
                raise record.error
            return message

        return counted


class TrueStatus:
    """An inner layer: gives an answer the status of the error that was noted, before the framework counts it.

    The framework answers an error of ours with a 500 of its own, and its metrics lie inside the envelope.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = scope.get(RECORD)

        async def corrected(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400 and record and record.error:
                message["status"] = record.error.status
            await send(message)

        await self.app(scope, receive, corrected)


class _Answer:
    """Passes one answer on, or puts the error envelope in its place."""

    def __init__(self, record: RequestRecord, send: Send, model_name: Callable[[], str | None], plain: bool) -> None:
        self.started = False
        self._record = record
        self._send = send
        self._model_name = model_name
        self._plain = plain
        self._replaced = False

    async def send(self, message: Message) -> None:
        if self._replaced:
            return  # the rest of an answer that `fail` has replaced
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and not self._plain:
                allowed = Headers(raw=message.get("headers", [])).get("allow")
                await self.fail(self._record.error or error_of_status(message["status"], allowed), message)
                return
            self.started = True
            self._record.status = message["status"]
            self._mark(MutableHeaders(raw=message.setdefault("headers", [])))
        self._record.bytes_out += len(message.get("body", b""))
        await self._send(message)

    async def fail(self, error: HunyuanError, replaced: Message | None = None) -> None:
        """Sends the envelope of `error`, keeping what a client needs of the answer it replaces."""
        self.started = self._replaced = True
        self._record.status, self._record.error = error.status, error
        content = error_content(error, self._record.path, self._record.request_id)
        headers = MutableHeaders({"content-type": "application/json", "content-length": str(len(content))})
        given = Headers(raw=replaced.get("headers", []) if replaced else [])
        for name, value in given.items():
            if name in _KEPT_HEADERS or name.startswith("access-control-"):
                headers.append(name, value)
        headers.update(getattr(error, "headers", {}))
        retry_after_s = getattr(error, "retry_after_s", None)
        if retry_after_s is not None:
            headers["retry-after"] = str(retry_after_s)
        self._mark(headers)
        self._record.bytes_out = len(content)
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": content})

    def _mark(self, headers: MutableHeaders) -> None:
        headers["X-Request-ID"] = self._record.request_id
        name = self._model_name()
        if name is not None:  # a job's result says already which model made it
            headers.setdefault("X-Model", printable(name))
