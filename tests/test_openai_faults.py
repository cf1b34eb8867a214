"""Streams and answers under /v1 when something goes wrong: each ends in one known way, and the next one works.

The server is the real one; its editor is the scripted one of the other fault tests. `openai` is the newest client.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai_events import assert_error, assert_error_body, events_of
from server_process import Server, assert_envelope, photo_bytes, start
from test_faults import FAULTY, STEP_S, TARGET, edit, faulty, record, until_recorded

pytestmark = pytest.mark.server

GENERATIONS = "/v1/images/generations"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with faulty(tmp_path_factory.mktemp("faults"), HUNYUAN_QUEUE_SIZE="1") as shared:
        yield shared


def wish(prompt: str, steps: int, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "steps": steps, **fields}


STREAM = {"stream": True, "stream_progress": True}


def stream(server: Server, prompt: str, steps: int = 2, **fields: Any) -> list[dict[str, Any]]:
    """All events; the request's id is the prompt's second word."""
    headers = {"X-Request-ID": prompt.split()[1]}
    body = wish(prompt, steps, **{**STREAM, **fields})
    with (
        httpx.Client(base_url=server.url, timeout=30, verify=False) as client,
        client.stream("POST", GENERATIONS, json=body, headers=headers) as answer,
    ):
        return list(events_of(answer))


def assert_ends_with_error(events: list[dict[str, Any]], code: str) -> None:
    assert [event["type"] for event in events].count("error") == 1
    last = events[-1]
    assert last.pop("type") == "error"
    assert_error_body(last, code)


def assert_next_works(server: Server, name: str) -> None:
    kinds = [event["type"] for event in stream(server, f"good {name}")]
    assert kinds[-1] == "image_generation.completed"


@pytest.mark.parametrize(("kind", "code"), [("oom-step", "out_of_memory"), ("error-step", "inference_failed")])
def test_a_failure_within_a_stream_is_its_last_event(server: Server, kind: str, code: str) -> None:
    events = stream(server, f"{kind} {kind}")
    assert_ends_with_error(events, code)
    line = server.request_line(kind)
    assert (line["status"], line["error"], line["pictures"]) == (200, code, 0)
    assert_next_works(server, f"after-{kind}")


def test_a_failure_before_the_first_event_is_an_answer_with_its_status(server: Server) -> None:
    body = wish("oom-prefill early", 2, stream=True, partial_images=3)
    assert_error(httpx.post(f"{server.url}{GENERATIONS}", json=body, timeout=30), 503, "out_of_memory")


def test_openais_client_raises_what_a_stream_ends_with(server: Server) -> None:
    client = openai.OpenAI(api_key="any", base_url=f"{server.url}/v1", max_retries=0)
    events = client.images.generate(prompt="oom-step typed", stream=True, extra_body={"steps": 2, **STREAM})
    assert [next(events).type for _ in range(2)] == ["hunyuan.queue", "hunyuan.stage"]
    with pytest.raises(openai.APIError, match="out of memory") as caught:
        list(events)
    assert (caught.value.code, caught.value.type) == ("out_of_memory", "server_error")


def test_a_client_that_leaves_a_stream_stops_the_work_within_a_step(server: Server) -> None:
    with (
        httpx.Client(base_url=server.url, timeout=30, verify=False) as client,
        client.stream(
            "POST", GENERATIONS, json=wish("good leaver", 90, n=2, **STREAM), headers={"X-Request-ID": "leaver"}
        ) as answer,
    ):
        steps = (event for event in events_of(answer) if event["type"] == "hunyuan.stage" and event["done"] >= 2)
        next(steps)
    left = time.time()
    stopped = until_recorded(server, "end leaver", 3)
    assert stopped - left < 0.1 + 2 * STEP_S + 0.2  # the look at the connection, the step, a busy machine
    line = server.request_line("leaver")
    assert (line["error"], line["pictures"]) == ("cancelled", 0)
    assert 0 < line["steps_done"] < 50
    assert_next_works(server, "after-leaver")
    assert [event for _, event in record(server)].count("start leaver") == 1  # the second picture was not begun


def test_who_closes_the_sending_side_has_left(server: Server) -> None:
    """A connection that is half closed looks like one whose client has gone: no answer, and a line that says so."""
    body = json.dumps(wish("good half", 90, **STREAM)).encode()
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: x\r\nX-Request-ID: half\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
    line = server.request_line("half")
    assert (line["error"], line["pictures"]) == ("cancelled", 0)
    assert_next_works(server, "after-half")


def test_a_full_queue_and_the_place_of_those_who_wait(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(edit, server, "good", "in-front", 20)
        until_recorded(server, "step in-front")
        waiting = pool.submit(stream, server, "good waiting", 2)
        while "hunyuan_queue_depth 1.0" not in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.02)
        answer = httpx.post(f"{server.url}{GENERATIONS}", json=wish("good shed", 2, **STREAM), timeout=30)
        error = assert_error(answer, 429, "queue_full")
        assert error["type"] == "rate_limit_error"
        assert 1 <= int(answer.headers["retry-after"]) <= 600
        client = openai.OpenAI(api_key="any", base_url=f"{server.url}/v1", max_retries=0)
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt="good shed-too", stream=True)
        assert caught.value.code == "queue_full"
        assert first.result().status_code == 200
        events = waiting.result()
    assert [event["ahead"] for event in events if event["type"] == "hunyuan.queue"] == [1, 0]
    assert events[0]["type"] == "hunyuan.queue"
    assert events[-1]["type"] == "image_generation.completed"


def test_pictures_are_decoded_for_those_who_have_a_place_only(server: Server) -> None:
    """The bound on memory that the documents tell: three pictures of `HUNYUAN_MAX_PIXELS` for each place."""

    def fuse(name: str, steps: int) -> httpx.Response:
        files = [("image[]", (f"{i}.jpg", photo_bytes(640, 640))) for i in range(3)]
        data, headers = {"prompt": f"good {name}", "steps": str(steps)}, {"X-Request-ID": name}
        return httpx.post(f"{server.url}/v1/images/edits", files=files, data=data, headers=headers, timeout=60)

    with ThreadPoolExecutor(8) as pool:
        placed = [pool.submit(fuse, f"placed-{n}", 40) for n in range(2)]
        end = time.monotonic() + 20
        while decoded_pictures(server) < 6:
            assert time.monotonic() < end
            time.sleep(0.02)
        refused = [fuse(f"refused-{n}", 2) for n in range(4)]
        assert decoded_pictures(server) == 6
        for answer in refused:
            assert_error(answer, 429, "queue_full")
        assert [one.result().status_code for one in placed] == [200, 200]
    end = time.monotonic() + 5
    while decoded_pictures(server):
        assert time.monotonic() < end
        time.sleep(0.02)


def decoded_pictures(server: Server) -> int:
    """That its processes hold; each is a memory file of its own."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    maps = [Path(f"/proc/{process.pid}/maps").read_text() for process in processes]
    return sum(text.count("memfd:pixels") for text in maps)


def test_openais_client_comes_back_after_a_full_queue(server: Server) -> None:
    """Its own retries, and `Retry-After`, are enough."""
    client = openai.OpenAI(api_key="any", base_url=f"{server.url}/v1", max_retries=5)
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(client.images.generate, prompt=f"good back-{i}", extra_body={"steps": 4}) for i in range(4)
        ]
        assert all(call.result().data for call in calls)


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with faulty(tmp_path_factory.mktemp("hasty"), HUNYUAN_REQUEST_TIMEOUT_S="1") as shared:
        yield shared


def test_a_stream_past_its_deadline_ends_with_that(hasty: Server) -> None:
    began = time.monotonic()
    assert_ends_with_error(stream(hasty, "good late", 90), "timeout")
    assert 1 <= time.monotonic() - began < 2
    assert until_recorded(hasty, "end late", 2)
    line = hasty.request_line("late")
    assert (line["status"], line["error"]) == (200, "timeout")
    assert 0 < line["steps_done"] < 40
    assert_next_works(hasty, "after-late")


def test_an_answer_past_its_deadline_is_a_504(hasty: Server) -> None:
    for more in ({}, {"stream": True}):
        answer = httpx.post(f"{hasty.url}{GENERATIONS}", json=wish("good whole", 90, **more), timeout=30)
        assert assert_error(answer, 504, "timeout")["type"] == "server_error"


def test_a_stream_that_is_not_read_does_not_hold_the_model_up(server: Server) -> None:
    """Events wait for their reader; the edit behind does not."""
    held = threading.Event()

    def slow_reader() -> str:
        with (
            httpx.Client(base_url=server.url, timeout=30, verify=False) as client,
            client.stream("POST", GENERATIONS, json=wish("good unread", 6, partial_images=3, **STREAM)) as answer,
        ):
            events = events_of(answer)
            next(events)
            held.wait(20)
            return str(list(events)[-1]["type"])

    with ThreadPoolExecutor() as pool:
        reader = pool.submit(slow_reader)
        until_recorded(server, "start unread")
        assert edit(server, "good", "behind-unread").status_code == 200
        assert not reader.done()
        held.set()
        assert reader.result() == "image_generation.completed"


def test_a_stop_of_the_process_lets_the_running_stream_finish_and_tells_the_others(tmp_path: Path) -> None:
    with faulty(tmp_path) as server, ThreadPoolExecutor(8) as pool:
        running = pool.submit(stream, server, "good running", 30)
        until_recorded(server, "step running")
        waiting = pool.submit(stream, server, "good waiting", 2)
        silent = pool.submit(
            httpx.post, f"{server.url}{GENERATIONS}", json=wish("good silent", 2, stream=True), timeout=30
        )
        while "hunyuan_queue_depth 2.0" not in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.02)
        server.process.terminate()
        assert_ends_with_error(waiting.result(), "shutting_down")
        answer = silent.result()
        assert_error(answer, 503, "shutting_down")
        assert int(answer.headers["retry-after"]) > 0
        assert not running.done()
        assert running.result()[-1]["type"] == "image_generation.completed"
        assert server.process.wait(15) == 0
    lines = {line["request_id"]: (line["status"], line["error"]) for line in server.requests()}
    assert lines["running"] == (200, None)
    assert lines["waiting"] == (200, "shutting_down")
    assert len(lines) == 3


@contextmanager
def cut_short(folder: Path) -> Iterator[Server]:
    """A server that gives running requests one second after SIGTERM, which comes when one named `cut` runs."""
    arguments = ("--timeout-graceful-shutdown", "1")
    server = start(folder, TARGET, FAULTY, arguments=arguments, FAULTS_RECORD=str(folder / "record"))
    try:
        server.wait_until()
        yield server
        assert server.process.wait(15) == 0
    finally:
        server.stop()
    line = server.request_line("cut")
    assert (line["error"], line["pictures"]) == ("shutting_down", 0)
    assert not [line for line in server.lines() if "Traceback" in str(line.get("traceback"))]


def test_a_stop_that_does_not_wait_ends_a_stream_with_its_error(tmp_path: Path) -> None:
    with cut_short(tmp_path) as server, ThreadPoolExecutor() as pool:
        cut = pool.submit(stream, server, "good cut", 90)
        until_recorded(server, "step cut")
        server.process.terminate()
        events = cut.result()
        assert any(event["type"] == "hunyuan.stage" for event in events)
        assert_ends_with_error(events, "shutting_down")


@pytest.mark.parametrize("path", ["/edit", "/v1/images/edits"])
def test_a_stop_that_does_not_wait_answers_who_waits_for_a_picture(tmp_path: Path, path: str) -> None:
    with cut_short(tmp_path) as server, ThreadPoolExecutor() as pool:
        fields = {"prompt": "good cut", "steps": "90"}
        files, headers = {"image": ("a.jpg", photo_bytes())}, {"X-Request-ID": "cut"}
        url = f"{server.url}{path}"
        cut = pool.submit(httpx.post, url, data=fields, files=files, headers=headers, timeout=30)
        until_recorded(server, "step cut")
        server.process.terminate()
        if path == "/edit":
            assert_envelope(cut.result(), 503, "shutting_down")
        else:
            assert_error(cut.result(), 503, "shutting_down")


def test_a_killed_process_leaves_no_stream_that_looks_whole(tmp_path: Path) -> None:
    with faulty(tmp_path) as server, ThreadPoolExecutor() as pool:
        cut = pool.submit(stream, server, "good cut", 90)
        until_recorded(server, "step cut")
        for process in psutil.Process(server.process.pid).children(recursive=True):
            process.kill()
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            cut.result()
