"""Reads /v1 as a client does that was written without OpenAI's library: events of a stream, errors of an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx


def events_of(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The events as they come. Each line must be what the format allows, and the names must agree."""
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = answer.iter_lines()
    for line in lines:
        assert line.startswith("event: "), line
        data = next(lines)
        assert data.startswith("data: "), data
        assert next(lines) == ""
        event = json.loads(data.removeprefix("data: "))
        assert event["type"] == line.removeprefix("event: ")
        yield event


def assert_error(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """OpenAI's shape and nothing else; returns what it says."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    return assert_error_body(answer.json(), code)


def assert_error_body(body: dict[str, Any], code: str) -> dict[str, Any]:
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    assert error["message"]
    assert error["type"] in ("invalid_request_error", "rate_limit_error", "server_error")
    return error
