"""The outermost layer on its own, around small ASGI apps that misbehave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from bentoml.exceptions import BentoMLException, InternalServerError, InvalidArgument
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from hunyuan.errors import Cancelled, InferenceFailed, InvalidPrompt, OutOfMemory
from hunyuan.serving.envelope import Envelope, HideExpectedErrors, reporting
from hunyuan.serving.http_errors import Loading, describe_failure, error_of_status
from hunyuan.serving.records import RECORD, RequestRecord, record_of

Endpoint = Callable[[Request], Awaitable[Response]]


def client_of(endpoint: Endpoint, model: str | None = "tiny", limit: int = 1000) -> TestClient:
    routes = [Route(path, endpoint, methods=["GET", "POST"]) for path in ("/x", "/readyz")]
    app = Starlette(routes=routes)
    app.add_middleware(Envelope, max_body_bytes=limit, model_name=lambda: model)
    return TestClient(app, raise_server_exceptions=False)


async def echo(request: Request) -> Response:
    return PlainTextResponse(f"{record_of(request.scope).request_id} {len(await request.body())}")


def assert_envelope(answer: httpx.Response, status: int, code: str) -> dict[str, str]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error", "message", "request_id"}
    assert body["error"] == code
    assert body["message"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return body


def test_a_good_answer_passes_with_two_headers_more() -> None:
    answer = client_of(echo).post("/x", content=b"abc", headers={"X-Request-ID": "a:b.c-1_2"})
    assert answer.text == "a:b.c-1_2 3"
    assert answer.headers["x-request-id"] == "a:b.c-1_2"
    assert answer.headers["x-model"] == "tiny"


@pytest.mark.parametrize("bad", ["", " ", "a b", "a\tb", "x" * 129, "é".encode(), "<script>", 'a"b'])
def test_a_harmful_request_id_is_replaced(bad: str | bytes) -> None:
    answer = client_of(echo).get("/x", headers={"X-Request-ID": bad})
    assert len(answer.headers["x-request-id"]) == 32


def test_the_model_is_named_when_known_and_harmless() -> None:
    assert "x-model" not in client_of(echo, model=None).get("/x").headers
    assert client_of(echo, model="a\r\nb é").get("/x").headers["x-model"] == "a??b ?"


def test_not_found_and_wrong_method() -> None:
    client = client_of(echo)
    assert_envelope(client.get("/nowhere"), 404, "not_found")
    answer = client.delete("/x")
    said = assert_envelope(answer, 405, "method_not_allowed")["message"]
    assert "POST" in answer.headers["allow"]
    assert said == f"this path takes {answer.headers['allow']} only"


def test_probes_keep_their_plain_form() -> None:
    async def not_ready(request: Request) -> Response:
        raise HTTPException(503, "not yet")

    answer = client_of(not_ready).get("/readyz")
    assert (answer.status_code, answer.text) == (503, "not yet")
    assert answer.headers["x-request-id"]


def test_an_error_of_ours_replaces_what_the_framework_says() -> None:
    async def endpoint(request: Request) -> Response:
        try:
            with reporting(request.scope):
                raise Loading("not yet")
        except Loading:
            return PlainTextResponse("the framework's own words", 500)

    answer = client_of(endpoint).get("/x")
    assert assert_envelope(answer, 503, "loading")["message"] == "not yet"
    assert answer.headers["retry-after"] == "10"


@pytest.mark.parametrize(
    ("framework", "status", "code"),
    [
        (400, 400, "invalid_field"),
        (415, 415, "unsupported_media_type"),
        (429, 429, "queue_full"),
        (500, 503, "inference_failed"),
        (504, 504, "timeout"),
    ],
)
def test_the_frameworks_own_errors(framework: int, status: int, code: str) -> None:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("secret details", framework, headers={"Retry-After": "3", "X-Other": "1"})

    answer = client_of(endpoint).get("/x")
    assert "secret" not in assert_envelope(answer, status, code)["message"]
    assert "x-other" not in answer.headers
    assert error_of_status(framework).status == status


def test_a_crash_becomes_an_answer_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    async def endpoint(request: Request) -> Response:
        raise ValueError("boom")

    body = assert_envelope(client_of(endpoint).get("/x"), 503, "inference_failed")
    assert "boom" not in body["message"]
    assert "ValueError: boom" in caplog.text
    assert body["request_id"] in caplog.text


def test_a_crash_after_the_first_byte_is_not_hidden() -> None:
    async def endpoint(request: Request) -> Response:
        async def pieces() -> object:
            yield b"half"
            raise ValueError("boom")

        return StreamingResponse(pieces())

    client = client_of(endpoint)
    client = TestClient(client.app)
    with pytest.raises(ValueError, match="boom"):
        client.get("/x")


def test_a_long_body_is_refused_by_its_announced_length() -> None:
    reached = []

    async def endpoint(request: Request) -> Response:
        reached.append(request)
        return Response()

    client = client_of(endpoint)
    assert "1,000 bytes" in assert_envelope(client.post("/x", content=b"x" * 1001), 413, "payload_too_large")["message"]
    assert not reached
    assert client.post("/x", content=b"x" * 1000).status_code == 200


def test_a_long_body_is_refused_by_what_really_comes() -> None:
    pieces = (b"x" * 400 for _ in range(3))
    answer = client_of(echo).post("/x", content=pieces)
    assert "content-length" not in answer.request.headers
    assert_envelope(answer, 413, "payload_too_large")


def scope() -> dict[str, object]:
    return {RECORD: RequestRecord("id-1")}


def test_reporting_leaves_a_callers_mistake_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    noted = scope()
    with pytest.raises(InvalidPrompt), reporting(noted):
        raise InvalidPrompt("it is blank")
    assert isinstance(record_of(noted).error, InvalidPrompt)
    assert not caplog.records


def test_reporting_hides_the_prompt_and_keeps_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    noted = scope()
    prompt = "my 'secret'\nwish"

    def engine() -> None:
        try:
            raise KeyError(prompt)
        except KeyError as error:
            raise RuntimeError(f"cannot tokenize {prompt}") from error

    with pytest.raises(InferenceFailed), reporting(noted, prompt):
        engine()
    assert "secret" not in caplog.text
    assert "RuntimeError: cannot tokenize <prompt>" in caplog.text
    assert "in engine" in caplog.text
    assert "request id-1" in caplog.text
    assert "secret" not in str(record_of(noted).error)


def test_reporting_logs_the_cause_of_a_server_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(OutOfMemory), reporting(scope()):
        raise OutOfMemory("no room") from MemoryError("80 GiB asked")
    assert "80 GiB asked" in caplog.text


def test_a_client_that_leaves_is_a_cancelled_request(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Cancelled), reporting(scope()):
        raise ClientDisconnect
    assert not caplog.records


def test_a_suppressed_cause_stays_out_of_the_description() -> None:
    def fails() -> None:
        try:
            raise ValueError("first")
        except ValueError:
            raise TypeError("second") from None

    with pytest.raises(TypeError) as caught:
        fails()
    description = describe_failure(caught.value)
    assert description.endswith("TypeError: second")
    assert "ValueError: first" not in description


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (InvalidPrompt("x"), False),
        (InvalidArgument("x"), False),
        (InternalServerError("x"), True),
        (BentoMLException("x"), True),
        (ValueError("x"), True),
        (None, True),
    ],
)
def test_the_framework_logs_only_what_is_unexpected(error: Exception | None, shown: bool) -> None:
    info = (type(error), error, None) if error else None
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "x", (), info)
    assert HideExpectedErrors().filter(record) is shown


def run_alone(
    app: ASGIApp, path: str = "/x", kind: str = "http", **options: Any
) -> tuple[list[Any], list[RequestRecord]]:
    """One request without a server; returns what was sent and what was reported at the end."""
    sent: list[Any] = []
    ended: list[RequestRecord] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"abc", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def main() -> None:
        envelope = Envelope(app, 1000, lambda: None, on_end=ended.append, **options)
        task = asyncio.ensure_future(envelope({"type": kind, "path": path, "headers": []}, receive, send))
        await asyncio.sleep(0.01)
        if not task.done():
            task.cancel()
        await task

    asyncio.run(main())
    return sent, ended


async def good(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await PlainTextResponse("fine")(scope, receive, send)


def test_the_end_of_each_request_is_reported_once() -> None:
    _, (call,) = run_alone(good)
    assert (call.status, call.error, call.bytes_in, call.bytes_out, call.path) == (200, None, 3, 4, "/x")
    assert call.ended is not None


def test_a_failure_is_reported_with_its_error() -> None:
    async def bad(scope: Any, receive: Any, send: Any) -> None:
        raise InvalidPrompt("it is blank")

    sent, (call,) = run_alone(bad)
    assert (call.status, call.bytes_out) == (400, len(sent[1]["body"]))
    assert isinstance(call.error, InvalidPrompt)


def test_probes_are_not_reported() -> None:
    assert run_alone(good, path="/livez")[1] == []


def test_a_path_that_is_none_of_ours_goes_no_further() -> None:
    sent, (call,) = run_alone(good, path="/y", known_paths={"/x"})
    assert (sent[0]["status"], call.status) == (404, 404)
    assert run_alone(good, known_paths={"/x"})[0][0]["status"] == 200


def test_a_request_that_the_web_server_cancels_still_gets_an_answer() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(10)

    sent, (call,) = run_alone(slow)
    assert sent[0]["status"] == 503
    assert call.error is not None
    assert call.error.code == "shutting_down"


def test_half_an_answer_cannot_be_replaced() -> None:
    async def halfway(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(10)

    with pytest.raises(asyncio.CancelledError):
        run_alone(halfway)
