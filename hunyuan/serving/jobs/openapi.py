"""What the OpenAPI page says about the routes of jobs. Knows the page's format and `routes.py`'s answers, no job."""

from __future__ import annotations

from typing import Any

from hunyuan.serving.jobs.job import STATES
from hunyuan.serving.jobs.routes import ACTIONS

_SUMMARIES = {
    "submit": "Starts an edit in the background. Takes what POST /edit takes, and refuses what that refuses.",
    "status": "How far a job is; with the error it ended with, if it did.",
    "get": "The result of a completed job: the answer of POST /edit. Of a failed one its error, status and code.",
    "retry": "Submits the fields and the picture of a finished job again, as a new job.",
    "cancel": "Ends a job: one that waits at once, one that runs before its next token or step.",
}
_ERRORS: dict[str, dict[int, str]] = {
    "submit": {507: "no_storage"},
    "status": {400: "invalid_field or unknown_field", 404: "job_not_found"},
    "get": {
        400: "invalid_field, unknown_field, or the job's own error",
        404: "job_not_found",
        409: "job_not_finished or job_cancelled",
        503: "interrupted, or the job's own error",
        504: "timeout",
        507: "no_storage",
    },
    "retry": {404: "job_not_found", 409: "job_not_finished", 507: "no_storage"},
    "cancel": {400: "invalid_field or unknown_field", 404: "job_not_found", 409: "job_finished"},
}
_MOMENT = {"type": "string", "format": "date-time", "nullable": True}
_STATUS_SCHEMA = {
    "type": "object",
    "required": ["task_id", "status"],
    "properties": {
        "task_id": {"type": "string"},
        "status": {"type": "string", "enum": list(STATES)},
        "created_at": {"type": "string", "format": "date-time"},
        "executed_at": _MOMENT,
        "completed_at": _MOMENT,
        "expires_at": _MOMENT,
        "request_id": {"type": "string"},
        "progress": {
            "type": "object",
            "nullable": True,
            "properties": {"tokens": {"type": "integer"}, "steps_done": {"type": "integer"}},
        },
        "error": {
            "type": "object",
            "nullable": True,
            "properties": {"error": {"type": "string"}, "message": {"type": "string"}},
        },
    },
}
_TASK_ID = {
    "name": "task_id",
    "in": "query",
    "required": True,
    "description": "from the answer to submit or retry",
    "schema": {"type": "string"},
}
_AS_AN_EDIT = ("submit", "retry")  # errors of an edit come from these too


def operations(edit: dict[str, Any], error_schema: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The method and the operation of each action.

    Args:
        edit: the operation of `POST /edit`, as the page describes it.
        error_schema: of every error's body.
    """
    found = {}
    for action, method in ACTIONS.items():
        answers = edit["responses"]
        common = {status for status in answers if status != 200} if action in _AS_AN_EDIT else {401}
        errors = {status: answer for status, answer in answers.items() if status in common}
        for status, codes in _ERRORS[action].items():
            errors[status] = {"description": codes, "content": {"application/json": {"schema": error_schema}}}
        told = {"description": "the job", "content": {"application/json": {"schema": _STATUS_SCHEMA}}}
        operation: dict[str, Any] = {
            "description": _SUMMARIES[action],
            "operationId": f"{edit['operationId']}_{action}",
            "tags": edit["tags"],
            "responses": {200: answers[200] if action == "get" else told, **dict(sorted(errors.items()))},
        }
        if action == "submit":
            operation["requestBody"] = edit["requestBody"]
        else:
            operation["parameters"] = [_TASK_ID]
        found[action] = (method.lower(), operation)
    return found
