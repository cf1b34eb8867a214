"""deploy/haproxy.cfg before two replicas with a scripted editor: one queue, its limits, its errors, and who leaves it.

Every test says how long an edit takes by its steps of 50 ms. tests/deploy/test_box.py has the real editor.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from box import AUTHORIZATION, DEFAULTS, KEY, Box, configuration, needs_haproxy, proxy_before, replicas_in
from server_process import ROOT, Server, assert_envelope, photo_bytes

from scripts.support.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.slow, needs_haproxy]

STEP_S = 0.05
TIMEOUT_S = 4.0
FAULTY = "faulty_service:HunyuanImage"


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("replicas")
    with replicas_in(folder, target=FAULTY, HUNYUAN_REQUEST_TIMEOUT_S=str(TIMEOUT_S)) as servers:
        yield servers


@pytest.fixture(scope="module")
def box(replicas: list[Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    with proxy_before(replicas, tmp_path_factory.mktemp("proxy"), timeout_client="2s") as shared:
        shared.wait_for("gpu0", "gpu1")
        yield shared


def test_haproxy_takes_the_file_as_it_is(tmp_path: Path) -> None:
    """With the names of the compose file, none of which is known here, and without a warning."""
    (tmp_path / "digests.txt").write_text("0" * 64)
    (tmp_path / "origins.txt").touch()
    text = (ROOT / "deploy/haproxy.cfg").read_text().replace("/keys/", f"{tmp_path}/")
    (tmp_path / "haproxy.cfg").write_text(text)
    command = ["haproxy", "-c", "-f", str(tmp_path / "haproxy.cfg")]
    done = subprocess.run(command, env=os.environ | DEFAULTS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr


def test_the_queue_is_one(box: Box) -> None:
    """Beside one long edit the other replica does all the short ones: nobody stands behind the long one."""
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(box.edit, "one-0", "good long", steps=60)]
        time.sleep(0.5)
        asked += [pool.submit(box.edit, f"one-{n}", f"good {n}", steps=4) for n in range(1, 6)]
        answers = [one.result() for one in asked]
    assert [answer.status_code for answer in answers] == [200] * 6
    lines = [box.request_line(f"one-{n}") for n in range(6)]
    assert max(line["proxy_s"] + line["queue_s"] for line in lines) < 3  # the long one takes as much
    assert all(line["queue_s"] < 0.5 for line in lines)  # nobody waits on a replica
    assert sorted(sum(line["steps"] == 4 for line in replica.requests()) for replica in box.replicas) == [0, 5]


def test_waiting_in_the_proxy_counts_towards_the_deadline(box: Box) -> None:
    with ThreadPoolExecutor(4) as pool:
        first = [pool.submit(box.edit, f"long-{n}", "good a", steps=50) for n in range(2)]
        box.until_running(first)
        began = time.monotonic()
        late = box.edit("late", "good b", steps=60)  # 3 s of work, 2 of waiting
        took = time.monotonic() - began
        assert [one.result().status_code for one in first] == [200, 200]
    assert_envelope(late, 504, "timeout")
    assert TIMEOUT_S - 0.5 < took < TIMEOUT_S + 1
    line = box.request_line("late")
    assert line["proxy_s"] > 1.5
    assert 0 < line["steps_done"] < 60


def test_nobody_s_clock_is_believed_but_the_proxy_s(box: Box) -> None:
    """A caller who says that it came long ago is not late, and one from the future has no more time."""
    for seconds in (-3600, 3600):
        headers = AUTHORIZATION | {"X-Request-Start": f"t={(time.time() + seconds) * 1e3:.0f}"}
        files, data = {"image": ("a.jpg", photo_bytes())}, {"prompt": "good x"}
        assert httpx.post(f"{box.url}/edit", files=files, data=data, headers=headers).status_code == 200


def head(length: int, *more: str) -> bytes:
    lines = ["POST /edit HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", f"Content-Length: {length}", *more]
    return "\r\n".join([*lines, "Content-Type: multipart/form-data; boundary=b", "", ""]).encode()


def connect(box: Box, receive_bytes: int | None = None) -> socket.socket:
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", int(box.url.rpartition(":")[2])))
    return connection


def test_a_slow_upload_holds_no_replica(box: Box) -> None:
    slow = [connect(box) for _ in range(6)]
    for connection in slow:
        connection.sendall(head(1_000_000) + bytes(1000))
    time.sleep(0.3)
    began = time.monotonic()
    assert box.edit("beside", steps=2).status_code == 200
    assert time.monotonic() - began < 1
    for connection in slow:
        connection.close()


def test_an_answer_that_is_taken_slowly_holds_no_replica(box: Box) -> None:
    request = httpx.Request(
        "POST", box.url, files={"image": ("a.jpg", photo_bytes(1600, 1200))}, data={"prompt": "good slow", "steps": "1"}
    )
    body = request.read()
    unread = [connect(box, receive_bytes=4096) for _ in range(2)]
    for connection in unread:
        wanted = head(len(body)).replace(b"boundary=b", request.headers["content-type"].partition("; ")[2].encode())
        connection.sendall(wanted + body)
    time.sleep(1)
    began = time.monotonic()
    assert box.edit("behind", steps=2).status_code == 200
    assert time.monotonic() - began < 1.5
    for connection in unread:
        connection.close()


def test_who_leaves_the_queue_or_a_running_edit_costs_nobody_anything(box: Box) -> None:
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(leave, box, f"left-{n}", 1.5) for n in range(2)]
        box.until_running(running)
        waiting = [pool.submit(leave, box, f"waited-{n}", 0.2) for n in range(4)]
        for one in [*running, *waiting]:
            one.result()
    began = time.monotonic()
    assert box.edit("next", steps=2).status_code == 200
    assert time.monotonic() - began < 1
    left = [box.request_line(f"left-{n}") for n in range(2)]
    assert {line["error"] for line in left} == {"cancelled"}
    assert max(line["steps_done"] for line in left) < 50
    time.sleep(0.2)
    names = [line["request_id"] for replica in box.replicas for line in replica.requests()]
    assert not [name for name in names if name.startswith("waited-")]


def leave(box: Box, name: str, after_s: float) -> None:
    with pytest.raises(httpx.ReadTimeout):
        box.edit(name, "good leaves", steps=60, timeout=after_s)


# --- the proxy's own errors


def error_of(answer: httpx.Response, status: int, code: str) -> None:
    """In the envelope, or on /v1 in OpenAI's form; the id is the caller's own."""
    if not answer.request.url.path.startswith("/v1/"):
        assert_envelope(answer, status, code)
        return
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, None)
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    assert error["type"] == kinds.get(status, "invalid_request_error" if status < 500 else "server_error")


@pytest.mark.parametrize("path", ["/edit", "/v1/images/edits"])
def test_refusals(box: Box, path: str) -> None:
    url = f"{box.url}{path}"
    for headers in ({}, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": f"Basic {KEY}"}):
        answer = httpx.post(url, headers=headers | {"X-Request-ID": "mine"}, content=b"x")
        error_of(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["x-request-id"] == "mine"
    error_of(httpx.post(url, headers=AUTHORIZATION, content=bytes(20_971_521)), 413, "payload_too_large")
    pieces = (bytes(1 << 20) for _ in range(22))
    error_of(httpx.post(url, headers=AUTHORIZATION, content=pieces, timeout=30), 413, "payload_too_large")


def test_what_needs_no_key_and_what_is_not_there(box: Box) -> None:
    for path in ("/livez", "/readyz", "/", "/api.js"):
        assert httpx.get(f"{box.url}{path}").status_code == 200, path
    assert_envelope(httpx.get(f"{box.url}/docs.json"), 401, "unauthorized")
    assert httpx.get(f"{box.url}/docs.json", headers=AUTHORIZATION).status_code == 200
    assert_envelope(httpx.get(f"{box.url}/metrics", headers=AUTHORIZATION), 404, "not_found")
    assert_envelope(httpx.post(f"{box.url}/nowhere", headers=AUTHORIZATION), 404, "not_found")


@pytest.mark.parametrize("path", ["/%65dit", "/edit%2Fsubmit", "/v1/images%2fedits", "/%6detrics"])
def test_no_spelling_of_a_path_gets_past_the_queue(box: Box, path: str) -> None:
    request_id = f"odd-{path.strip('/').replace('%', '_').replace('/', '_')}"
    error_of(box.edit(request_id, path=path), 404, "not_found")
    time.sleep(0.2)
    assert not [line for replica in box.replicas for line in replica.requests() if line["request_id"] == request_id]


def test_a_full_queue_and_a_wait_that_ends(replicas: list[Server], tmp_path: Path) -> None:
    with (
        proxy_before(replicas, tmp_path, {"QUEUE_SIZE": "1"}, timeout_queue="500ms") as small,
        ThreadPoolExecutor(1) as pool,
    ):
        small.wait_for("gpu0", "gpu1")
        for path in ("/edit", "/v1/images/edits"):
            with small.held():
                waiting = pool.submit(small.edit, "wait", path=path)
                time.sleep(0.2)
                full = small.edit("full", path=path)
                error_of(full, 429, "queue_full")
                assert 1 <= int(full.headers["retry-after"]) <= 30
                error_of(waiting.result(), 504, "timeout")


def test_no_replica_and_a_slow_request(replicas: list[Server], tmp_path: Path) -> None:
    gone = [Server(replica.process, replica.url, replica.log, 9) for replica in replicas]  # nothing listens there
    with proxy_before(gone, tmp_path, **{"timeout_http-request": "1s"}) as empty:
        empty.wait_for()
        for path in ("/edit", "/v1/images/edits"):
            answer = empty.edit(path=path)
            error_of(answer, 503, "loading")
            assert answer.headers["retry-after"] == "10"
        assert_envelope(httpx.get(f"{empty.url}/docs.json", headers=AUTHORIZATION), 503, "loading")
        status = f"{empty.url}/edit/status?task_id=gpu1-{'0' * 32}"
        assert_envelope(httpx.get(status, headers=AUTHORIZATION), 503, "loading")
        with connect(empty) as connection:
            connection.sendall(b"POST /edit HTTP/1.1\r\nHost: x\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_one_address_gets_a_quarter_of_the_connections(replicas: list[Server], tmp_path: Path) -> None:
    elsewhere = "127.0.0.5"  # 127.0.0.1 stands for the replicas' own network
    with proxy_before(replicas, tmp_path) as box:
        box.wait_for("gpu0", "gpu1")
        port = int(box.url.rpartition(":")[2])
        crowd = [socket.create_connection(("127.0.0.1", port), 5, (elsewhere, 0)) for _ in range(105)]
        time.sleep(0.2)
        with httpx.Client(transport=httpx.HTTPTransport(local_address=elsewhere)) as client:
            answer = client.get(f"{box.url}/livez")
        assert_envelope(answer, 429, "too_many_connections")
        assert httpx.get(f"{box.url}/livez").status_code == 200
        for connection in crowd:
            connection.close()


# --- replicas that end


def test_a_replica_that_is_told_to_end_finishes_and_gets_nothing_more(tmp_path: Path) -> None:
    with (
        replicas_in(tmp_path / "replicas", target=FAULTY) as servers,
        proxy_before(servers, tmp_path / "proxy") as box,
        ThreadPoolExecutor(4) as pool,
    ):
        box.wait_for("gpu0", "gpu1")
        with box.held():
            servers[0].process.send_signal(signal.SIGTERM)
            box.wait_for("gpu1", seconds=2)
            behind = [pool.submit(box.edit, f"behind-{n}", f"good b{n}", steps=4) for n in range(4)]
        assert [one.result().status_code for one in behind] == [200] * 4
        assert servers[0].process.wait(20) == 0
    ended = Counter(line["status"] for server in servers for line in server.requests() if line["path"] == "/edit")
    assert ended == {200: 6}


# --- jobs; test_job_places.py says more


@pytest.fixture(scope="module")
def jobs_box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Replicas that ask the proxy for their jobs' places."""
    folder, port = tmp_path_factory.mktemp("jobs"), free_port()
    places = {"HUNYUAN_JOBS_PROXY": f"http://127.0.0.1:{port}", "HUNYUAN_QUEUE_SIZE": "4"}
    with (
        replicas_in(folder, target=FAULTY, **places) as servers,
        proxy_before(servers, folder / "proxy", port=port) as shared,
    ):
        shared.wait_for("gpu0", "gpu1")
        yield shared


def told(box: Box, action: str, task_id: str, method: str = "GET") -> httpx.Response:
    return httpx.request(
        method, f"{box.url}/edit/{action}", params={"task_id": task_id}, headers=AUTHORIZATION, timeout=30
    )


def until(box: Box, task_id: str, *states: str, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while (state := told(box, "status", task_id).json()["status"]) not in states:
        assert time.monotonic() < end, state
        time.sleep(0.05)


def test_jobs_go_to_free_replicas_and_their_ids_lead_there(jobs_box: Box) -> None:
    ids = []
    for number in range(2):
        ids.append(jobs_box.submit(f"good job{number}", 30))
        until(jobs_box, ids[-1], "in_progress")  # the proxy knows a replica's job by its place, which comes after it
    assert {name.partition("-")[0] for name in ids} == {"gpu0", "gpu1"}
    for name in ids:
        until(jobs_box, name, "completed")
        assert told(jobs_box, "get", name).content.startswith(b"\x89PNG")
    assert_envelope(told(jobs_box, "status", f"gpu7-{'0' * 32}"), 404, "job_not_found")


def test_jobs_leave_room_for_edits(jobs_box: Box) -> None:
    ids: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with jobs_box.held():
            with pytest.raises(AssertionError, match="4 jobs wait here already"):
                ids.extend(jobs_box.submit(f"good many{number}", 2) for number in range(12))
            after = pool.submit(jobs_box.edit, "room-after", steps=2)
        assert after.result().status_code == 200
    assert len(ids) == 8
    for name in ids:
        until(jobs_box, name, "completed")


def test_a_place_is_for_replicas_only(jobs_box: Box) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.5"), headers=AUTHORIZATION) as client:
        assert_envelope(client.post(f"{jobs_box.url}/edit/place?task_id=gpu0-x"), 404, "not_found")
    answer = httpx.post(f"{jobs_box.url}/edit/place?task_id=gpu0-x")
    assert_envelope(answer, 404, "job_not_found")


def test_the_file_says_the_same_of_every_gpu() -> None:
    """Eight of each; what `configuration` leaves out for a smaller box is nothing but whole lines."""
    text = (ROOT / "deploy/haproxy.cfg").read_text()
    for pattern in ("    server gpu{n} gpu{n}:8000\n", "backend replica_gpu{n}\n", "    use-server gpu{n} if "):
        assert all(text.count(pattern.format(n=n)) == 1 for n in range(8)), pattern
    assert all(text.count(f"    server gpu{n} gpu{n}:8000 track edits/gpu{n}\n") == 3 for n in range(8))
    assert "gpu8" not in text
    assert configuration.__doc__
