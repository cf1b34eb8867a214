"""The five routes of BentoML's task interface, for edits: submit, status, get, retry, cancel.

Knows HTTP. The framework's own versions of them are not used: why, says docs/decisions.md. An error never leaves a
handler as an exception, for whom the framework would let its client wait: it is noted for the envelope.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hunyuan.errors import HunyuanError, InvalidRequest, UnknownField
from hunyuan.serving.answer import PNG
from hunyuan.serving.disconnect import while_connected
from hunyuan.serving.envelope import refusal, reporting
from hunyuan.serving.http_errors import JobNotFinished
from hunyuan.serving.inputs import OneUpload, read_edit
from hunyuan.serving.jobs.job import EditFields, Job, JobFailed
from hunyuan.serving.jobs.places import PATH as PLACE
from hunyuan.serving.jobs.runner import Jobs
from hunyuan.serving.jobs.store import told
from hunyuan.serving.records import EditRecord, record_of
from hunyuan.settings import Settings

ACTIONS = {"submit": "POST", "status": "GET", "get": "GET", "retry": "POST", "cancel": "PUT"}
Handler = Callable[[Request], Awaitable[Response]]


def job_routes(path: str, jobs: Jobs, settings: Settings, one_upload: OneUpload) -> list[Route]:
    """The routes below `path`, which takes the same edits without a job."""
    handlers = _Handlers(jobs, settings, one_upload)
    routes = [
        Route(f"{path}/{action}", _answering(getattr(handlers, action)), methods=[method], name=f"job_{action}")
        for action, method in ACTIONS.items()
    ]
    if jobs.places is not None:
        routes.append(Route(f"{path}{PLACE}", _answering(handlers.place), methods=["POST"], name="job_place"))
    return routes


def _answering(handler: Handler) -> Handler:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(request)
        except HunyuanError as error:
            return refusal(error)

    return endpoint


class _Handlers:
    """One method a route."""

    def __init__(self, jobs: Jobs, settings: Settings, one_upload: OneUpload) -> None:
        self._jobs, self._settings, self._one_upload = jobs, settings, one_upload

    async def submit(self, request: Request) -> Response:
        with reporting(request.scope):
            values = await read_edit(request, self._settings, self._one_upload)
        source = values.pop("image")
        return await self._submitted(request, EditFields(**values), source)

    async def retry(self, request: Request) -> Response:
        """Another job with the same fields and picture; an absent seed is drawn again."""
        with reporting(request.scope):
            job = self._job(request)
            if not job.finished:
                raise JobNotFinished(told(job))
            source = await self._jobs.store.source(job)
        return await self._submitted(request, job.fields, source)

    async def status(self, request: Request) -> Response:
        with reporting(request.scope):
            return self._told(self._job(request))

    async def get(self, request: Request) -> Response:
        with reporting(request.scope):
            job = self._job(request)
            if job.error is not None:
                raise JobFailed(job.error)
            if not job.finished:
                raise JobNotFinished(told(job))
            png = await self._jobs.store.result(job)
            return Response(png, media_type=PNG, headers=job.headers)

    async def cancel(self, request: Request) -> Response:
        with reporting(request.scope):
            return self._told(await self._jobs.cancel(self._job(request)))

    async def place(self, request: Request) -> Response:
        """Our own request, come back through the proxy: stays unanswered as long as the job has its place."""
        with reporting(request.scope):
            places, deadline = self._jobs.places, record_of(request.scope).started + self._settings.request_timeout_s
            assert places is not None
            await while_connected(places.hold(_task_id(request)), deadline, request.is_disconnected)
            return Response(status_code=204)

    async def _submitted(self, request: Request, fields: EditFields, source: bytes) -> Response:
        record = record_of(request.scope)
        record.edit = fields.record()
        deadline = record.started + self._settings.request_timeout_s
        with reporting(request.scope, fields.prompt):
            work = self._jobs.submit(fields, source, record, deadline, request.headers)
            del source
            job = await while_connected(work, deadline, request.is_disconnected)
        return self._told(job)

    def _job(self, request: Request) -> Job:
        return self._jobs.store.get(_task_id(request))

    def _told(self, job: Job) -> Response:
        return JSONResponse(status_of(job, self._jobs.store.expires(job), self._jobs.edit_of(job)))


def _task_id(request: Request) -> str:
    """The one thing that these routes take. A new seed for a retry, say, is refused: it would change nothing."""
    for name in request.query_params:
        if name != "task_id":
            raise UnknownField(name[:64] or "(no name)", "there is no such field in the address; task_id is allowed")
    if request.headers.get("content-length", "0").strip("0") or "transfer-encoding" in request.headers:
        raise InvalidRequest("body", "this route takes none, only task_id in the address")
    given = request.query_params.getlist("task_id")
    if len(given) != 1:
        raise InvalidRequest("task_id", f"came {len(given)} times; send it once, in the address (?task_id=...)")
    return given[0]


def status_of(job: Job, expires: float | None, edit: EditRecord | None) -> dict[str, Any]:
    """What there is to know about a job: BentoML's fields, then ours. `edit`: how far it is, while it runs."""
    done = None if edit is None else {"tokens": edit.tokens, "steps_done": edit.steps_done}
    error = None if job.error is None else {"error": job.error.code, "message": job.error.message}
    return {
        "task_id": job.id,
        "status": job.state,
        "created_at": _moment(job.created),
        "executed_at": _moment(job.started),
        "completed_at": _moment(job.ended),
        "expires_at": _moment(expires),
        "request_id": job.request_id,
        "progress": done if job.state == "in_progress" else None,
        "error": error,
    }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
