"""Everything that can go wrong in a running server, made to go wrong; every request is accounted for.

The server is the real one in a process of its own; only its editor is a scripted one (`faulty/faulty_service.py`).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from server_process import Server, assert_envelope, photo_bytes, running, start
from slowness import slowness

FAULTY = Path(__file__).parent / "faulty"
TARGET = "faulty_service:HunyuanImage"
STEP_S = 0.05
STUCK_FOR_S = 6.0  # so long does a stuck step of the scripted editor take

pytestmark = pytest.mark.server


@contextmanager
def faulty(folder: Path, **extra: str) -> Iterator[Server]:
    with running(folder, TARGET, FAULTY, FAULTS_RECORD=str(folder / "record"), **extra) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all faults that a process survives."""
    with faulty(tmp_path_factory.mktemp("faults"), HUNYUAN_QUEUE_SIZE="2", HUNYUAN_STUCK_S="1") as shared:
        yield shared


@pytest.fixture(scope="module")
def doomed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, set[str]]]:
    """One with little patience, and what its /readyz said while it started. The last test that uses it ends it."""
    folder = tmp_path_factory.mktemp("doomed")
    limits = {"HUNYUAN_REQUEST_TIMEOUT_S": "1", "HUNYUAN_STUCK_S": "2", "FAULTS_RECORD": str(folder / "record")}
    looked_at = folder / "looked at"  # however slow this machine is, the warm-up lasts until somebody has looked
    server, seen = start(folder, TARGET, FAULTY, FAULTS_WARM_UP_UNTIL=str(looked_at), **limits), set[str]()
    try:
        end = time.monotonic() + 10
        while "not ready: warming up\n" not in seen and time.monotonic() < end:
            seen.add(server.wait_until("/readyz", 503).text)
        looked_at.touch()
        seen.add(server.wait_until("/readyz", 200).text)
        yield server, seen
    finally:
        server.stop()


def edit(server: Server, prompt: str, name: str, steps: int = 2, timeout: float = 30) -> httpx.Response:
    return httpx.post(
        f"{server.url}/edit",
        files={"image": ("a.jpg", photo_bytes())},
        data={"prompt": f"{prompt} {name}", "steps": str(steps)},
        headers={"X-Request-ID": name},
        timeout=timeout,
        verify=False,  # plain HTTP; loading the certificates would take longer than the request
    )


def record(server: Server) -> list[tuple[float, str]]:
    path = server.folder / "record"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]


def until_recorded(server: Server, event: str, seconds: float = 10) -> float:
    end = time.monotonic() + seconds
    while True:
        for at, what in record(server):
            if what == event:
                return at
        assert time.monotonic() < end, f"no {event!r} in {record(server)}"
        time.sleep(0.01)


def assert_next_works(server: Server, name: str) -> None:
    answer = edit(server, "good", name)
    assert answer.status_code == 200, answer.text
    assert answer.content.startswith(b"\x89PNG")
    assert server.request_line(name)["status"] == 200


@pytest.mark.parametrize("stage", ["prefill", "step", "vae"])
def test_out_of_memory_leaves_the_next_request_untouched(server: Server, stage: str) -> None:
    name = f"oom-in-{stage}"
    assert_envelope(edit(server, f"oom-{stage}", name), 503, "out_of_memory")
    line = server.request_line(name)
    assert (line["status"], line["error"]) == (503, "out_of_memory")
    assert_next_works(server, f"after-{name}")
    assert httpx.get(f"{server.url}/livez").status_code == 200


def test_an_exception_leaves_the_next_request_untouched(server: Server) -> None:
    message = assert_envelope(edit(server, "error-step", "broken"), 503, "inference_failed")
    assert "shapes" not in message
    assert server.request_line("broken")["error"] == "inference_failed"
    assert_next_works(server, "after-broken")
    (reason,) = [line for line in server.lines() if "shapes do not match" in line.get("message", "")]
    assert "request broken" in reason["message"]


def leave(server: Server, name: str, steps: int, when: threading.Event, kind: str = "good") -> None:
    """Sends a whole request and closes the connection at the signal, without waiting for the answer."""
    request = httpx.Request(
        "POST",
        f"{server.url}/edit",
        files={"image": ("a.jpg", photo_bytes())},
        data={"prompt": f"{kind} {name}", "steps": str(steps)},
    )
    lines = [f"POST /edit HTTP/1.1\r\nX-Request-ID: {name}\r\n"]
    lines += [f"{key}: {value}\r\n" for key, value in request.headers.items()]
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall("".join(lines).encode() + b"\r\n" + request.read())
        when.wait(10)


def test_a_client_that_leaves_stops_its_work_within_a_step(server: Server) -> None:
    go = threading.Event()
    with ThreadPoolExecutor() as pool:
        pool.submit(leave, server, "leaver", 90, go)
        until_recorded(server, "step leaver")
        left = time.time()
        go.set()
        stopped = until_recorded(server, "end leaver", 3)
    assert stopped - left < 0.1 + 2 * STEP_S + 0.2  # the look at the connection, the step, a busy machine
    line = server.request_line("leaver")
    assert (line["status"], line["error"]) == (499, "cancelled")
    assert 0 < line["steps_done"] < 50
    assert_next_works(server, "after-leaver")


def test_a_client_that_leaves_while_it_waits_is_never_worked_for(server: Server) -> None:
    go = threading.Event()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(edit, server, "good", "in-front", 20)
        until_recorded(server, "step in-front")
        pool.submit(leave, server, "waiter", 2, go)
        time.sleep(0.2)
        go.set()
        line = server.request_line("waiter")
        assert not first.done()
        assert first.result().status_code == 200
    assert (line["status"], line["error"]) == (499, "cancelled")
    assert line["queue_s"] > 0
    assert_next_works(server, "after-waiter")
    assert "start waiter" not in [event for _, event in record(server)]


def test_a_full_queue_sheds_and_says_when_to_come_back(server: Server) -> None:
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(edit, server, "good", "crowd-0", 20)
        until_recorded(server, "step crowd-0")
        rest = [pool.submit(edit, server, "good", f"crowd-{i}") for i in range(1, 8)]
        answers = [future.result() for future in [first, *rest]]
    shed = [answer for answer in answers if answer.status_code == 429]
    assert len(shed) == 5  # one runs, two wait
    for answer in shed:
        assert_envelope(answer, 429, "queue_full")
        assert 1 <= int(answer.headers["retry-after"]) <= 600
    assert sum(answer.status_code == 200 for answer in answers) == 3
    lines = [server.request_line(f"crowd-{i}") for i in range(8)]
    assert sorted(line["status"] for line in lines) == [200] * 3 + [429] * 5
    assert "hunyuan_queue_depth 0.0" in httpx.get(f"{server.url}/metrics").text


def test_metrics_count_what_happened_under_fixed_names(server: Server) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    assert 'hunyuan_requests_total{error="out_of_memory",status="503"}' in text
    assert 'hunyuan_requests_total{error="",status="200"}' in text
    assert 'hunyuan_cancellations_total{reason="disconnect"} 2.0' in text
    assert "hunyuan_queue_wait_seconds_count" in text
    assert 'hunyuan_stage_seconds_count{stage="denoise"}' in text
    assert "hunyuan_steps_per_second_count" in text


def test_nobody_waits_behind_a_step_that_does_not_return(server: Server) -> None:
    """`HUNYUAN_STUCK_S` after its client has left; those behind it have minutes until their own deadline."""
    go = threading.Event()
    with ThreadPoolExecutor() as pool:
        pool.submit(leave, server, "hanger", 9, go, "stuck")
        until_recorded(server, "step hanger")
        waiting = [pool.submit(edit, server, "good", f"behind-hanger-{i}") for i in range(2)]
        time.sleep(0.3)
        assert not any(future.done() for future in waiting)
        left = time.monotonic()
        go.set()
        answers = [future.result() for future in waiting]
        assert 1 <= time.monotonic() - left < STUCK_FOR_S
        answers.append(edit(server, "good", "after-hanger"))
        assert httpx.get(f"{server.url}/livez").status_code == 503
    for answer in answers:
        assert "restarted" in assert_envelope(answer, 503, "inference_failed")
        assert answer.headers["retry-after"] == "60"
    for name in ("behind-hanger-0", "behind-hanger-1", "after-hanger"):
        assert server.request_line(name)["status"] == 503
    assert "does not return" in next(line["message"] for line in server.lines() if line["level"] == "critical")
    server.wait_until("/livez", 200, seconds=30)  # it did return in the end
    assert_next_works(server, "after-all")
    events = [event for _, event in record(server)]
    assert not [event for event in events if event.startswith("start behind-hanger")]


def test_before_it_is_ready_it_says_why(doomed: tuple[Server, set[str]]) -> None:
    assert "not ready: warming up\n" in doomed[1]


def test_a_stuck_step_gets_its_504_and_then_fails_the_liveness_probe(doomed: tuple[Server, set[str]]) -> None:
    server, _ = doomed
    with ThreadPoolExecutor() as pool:
        began = time.monotonic()
        stuck = pool.submit(edit, server, "stuck", "stuck", 9)
        until_recorded(server, "start stuck")
        waiting = pool.submit(edit, server, "good", "behind")
        assert_envelope(stuck.result(), 504, "timeout")
        assert_envelope(waiting.result(), 504, "timeout")
        assert 1 <= time.monotonic() - began < 3  # before it counts as stuck
        assert httpx.get(f"{server.url}/livez").status_code == 200
        server.wait_until("/livez", 503, seconds=STUCK_FOR_S)
        assert "does not return" in httpx.get(f"{server.url}/readyz").text
        assert_envelope(edit(server, "good", "too-late"), 503, "inference_failed")
        assert [server.request_line(name)["status"] for name in ("stuck", "behind", "too-late")] == [504, 504, 503]
        assert "start behind" not in [event for _, event in record(server)]
        server.wait_until("/livez", 200, seconds=30)  # it did return in the end
        assert_next_works(server, "after-stuck")
        assert 'hunyuan_cancellations_total{reason="deadline"} 2.0' in httpx.get(f"{server.url}/metrics").text


def test_an_upload_that_dawdles_gets_its_504(doomed: tuple[Server, set[str]]) -> None:
    server, _ = doomed
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(half_an_upload("dawdler"))
        answer = b""
        while not answer.endswith(b"}"):  # head and body may come apart
            answer += connection.recv(65536)
    assert 0.9 < time.monotonic() - began < 2 * slowness()
    assert answer.startswith(b"HTTP/1.1 504")
    assert b'"timeout"' in answer
    assert server.request_line("dawdler")["status"] == 504


def test_an_upload_that_breaks_off_is_a_cancelled_request(doomed: tuple[Server, set[str]]) -> None:
    server, _ = doomed
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(half_an_upload("quitter"))
        time.sleep(0.1)
    line = server.request_line("quitter")
    assert (line["status"], line["error"]) == (499, "cancelled")


def half_an_upload(name: str) -> bytes:
    head = "POST /edit HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    body = '--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
    return f"{head}Content-Length: 5000\r\nX-Request-ID: {name}\r\n\r\n{body}".encode()


def test_a_lost_gpu_fails_the_liveness_probe_at_once(doomed: tuple[Server, set[str]]) -> None:
    server, _ = doomed
    with ThreadPoolExecutor() as pool:
        lost = pool.submit(edit, server, "lost-vae", "lost", 10)
        until_recorded(server, "start lost")
        waiting = pool.submit(edit, server, "good", "behind-lost")
        assert_envelope(lost.result(), 503, "inference_failed")
        assert "restarted" in assert_envelope(waiting.result(), 503, "inference_failed")
        assert httpx.get(f"{server.url}/livez").status_code == 503
        assert "GPU's state is lost" in httpx.get(f"{server.url}/readyz").text
        answer = edit(server, "good", "later")
        assert_envelope(answer, 503, "inference_failed")
        assert int(answer.headers["retry-after"]) > 0
        assert [server.request_line(name)["status"] for name in ("lost", "behind-lost", "later")] == [503, 503, 503]
