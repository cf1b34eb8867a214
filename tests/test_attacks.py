"""Callers who mean harm, in short form, against a real server; beside them a good caller whose edits must succeed.

How long the good one waited is printed (`pytest -rP`). The editor is the scripted one of the fault tests, everything
else is real. `scripts/checks/attack_service.py` is the long form.
"""

from __future__ import annotations

import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from server_process import Server, assert_envelope, photo_bytes
from slowness import slowness
from test_faults import edit, faulty, until_recorded

from scripts.support.attackers import (
    HALF_A_HEAD,
    OPENING,
    GoodCaller,
    answer_of,
    connect,
    crowd,
    good_caller,
    head,
    open_after,
    upload_rubbish,
)

pytestmark = pytest.mark.server

IDLE_S = 2.0
SLACK_S = 6.0  # a look now and then, a busy machine; who attacks stays for longer
ATTACKER, PROXY = "127.0.0.2", "127.0.0.9"
PHOTO = photo_bytes()
NO_IMAGE_MB = 19.9
PLACES = 32


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"HUNYUAN_IDLE_S": str(IDLE_S), "HUNYUAN_TRUSTED_PROXIES": f"{PROXY}, 10.0.0.0/8"}
    with faulty(tmp_path_factory.mktemp("attacks"), **limits) as shared:
        yield shared


def good(server: Server, source: str = "127.0.0.1", **headers: str) -> GoodCaller:
    return GoodCaller(server.url, PHOTO, source, headers)


def assert_was_served(caller: GoodCaller, within_s: float) -> None:
    assert caller.errors == []
    assert caller.waits
    within_s *= slowness()
    assert max(caller.waits) < within_s, caller.waits
    assert max(caller.probes) < within_s, caller.probes


def closed(server: Server, reason: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    line = next(x for x in text.splitlines() if f'closed_total{{reason="{reason}"}}' in x)
    return float(line.split()[-1])


SLOW_UPLOAD = head(5_000_000) + OPENING[:50]


@pytest.mark.parametrize("source", [ATTACKER, "127.0.0.1"], ids=["another address", "the same address"])
def test_slow_uploads_keep_nobody_out(server: Server, source: str) -> None:
    with (
        crowd(server.port, 32, source, SLOW_UPLOAD) as slow,
        good_caller(f"32 slow uploads, {source}", good(server)) as one,
    ):
        time.sleep(IDLE_S)
        answers = [answer_of(connection, IDLE_S + SLACK_S) for connection in slow]
    assert_was_served(one, IDLE_S + SLACK_S)
    statuses = {answer[9:12] for answer in answers}
    assert statuses == {b"408", b"429"}, statuses
    assert any(b"the request's body comes too slowly: nothing moved for 2 s" in answer for answer in answers)
    for answer in (answer for answer in answers if b" 429 " in answer[:15]):
        retry_after_s = int(next(line for line in answer.lower().splitlines() if b"retry-after" in line).split()[-1])
        assert 1 <= retry_after_s <= IDLE_S + 1  # one of those before it is ended by then


def test_a_body_that_creeps_is_ended(server: Server) -> None:
    with connect(server.port, ATTACKER) as connection:
        connection.sendall(SLOW_UPLOAD)
        began = time.monotonic()
        connection.settimeout(0.1)
        while True:
            connection.sendall(b"x" * 100)
            try:
                answer = connection.recv(1)
                break
            except TimeoutError:
                assert time.monotonic() - began < 2 * IDLE_S + SLACK_S
        answer += first_answer(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"less than 16 KiB a second" in answer


def test_silent_connections_and_half_heads_end(server: Server) -> None:
    with (
        good_caller("200 half heads, 800 silent", good(server)) as one,
        crowd(server.port, 200, ATTACKER, HALF_A_HEAD) as half,
        crowd(server.port, 800, ATTACKER) as silent,
        crowd(server.port, 1, "127.0.0.3", HALF_A_HEAD) as (lonely,),
    ):
        assert answer_of(lonely, IDLE_S + SLACK_S).startswith(b"HTTP/1.1 408")
        assert open_after([*half, *silent], IDLE_S + SLACK_S) == 0
    assert_was_served(one, 3)
    assert closed(server, "share") > 0
    assert closed(server, "silent") > 0
    assert closed(server, "slow_head") > 0


def test_the_same_address_as_the_probes_does_no_harm_either(server: Server) -> None:
    with good_caller("800 silent, same address", good(server)) as one, crowd(server.port, 800, "127.0.0.1") as silent:
        assert open_after(silent, IDLE_S + SLACK_S) == 0
    assert_was_served(one, 3)


def test_an_answer_that_nobody_takes_is_given_up(server: Server) -> None:
    large = photo_bytes(1600, 1200)
    request = httpx.Request("POST", server.url, files={"image": ("a.jpg", large)}, data={"prompt": "good x"})
    body = request.read()
    lines = f"POST /edit HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\n"
    before = closed(server, "answer_not_read")
    with good_caller("4 answers that nobody takes", good(server)) as one, ExitStack() as stack:
        for _ in range(4):
            connection = stack.enter_context(connect(server.port, ATTACKER, receive_bytes=4096))
            connection.sendall(f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        end = time.monotonic() + 10 * slowness()
        while closed(server, "answer_not_read") < before + 4:
            assert time.monotonic() < end
            time.sleep(0.1)
    assert_was_served(one, 5)


def test_waiting_for_an_edit_is_not_idle(server: Server) -> None:
    answer = edit(server, "good", "patient", steps=round(2.5 * IDLE_S / 0.05))
    assert answer.status_code == 200
    assert server.request_line("patient")["seconds"] > 2 * IDLE_S


def test_a_proxy_has_no_share_but_its_callers_have(server: Server) -> None:
    """One caller behind the proxy takes all that it gets; the other one, through the same proxy, is served."""
    harm = head(5_000_000, "X-Forwarded-For: 203.0.113.5, 198.51.100.1, 10.1.2.3") + OPENING[:50]
    caller = good(server, PROXY, **{"X-Forwarded-For": "203.0.113.5"})
    with crowd(server.port, 40, PROXY, harm) as slow, good_caller("40 slow uploads through a proxy", caller) as one:
        answers = [answer_of(connection, IDLE_S + SLACK_S) for connection in slow]
    assert_was_served(one, 3)
    assert one.refusals == []
    refused = [answer for answer in answers if b" 429 " in answer[:15]]
    assert len(refused) == 40 - 8
    assert all(b"8 uploads from your address are under way already" in answer for answer in refused)


GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (
            b"POST /edit HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET,
            [400],
        ),
        (b"POST /edit HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n" + GET, [400]),
        (b"POST /edit HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + GET, [400]),
        (b"GET /livez HTTP/1.1\nHost: x\n\n" + GET, [400]),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + GET, [200, 200]),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n\r\n", [200]),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET, [200]),
        (head(100, "Transfer-Encoding: chunked")[:-2], [408]),  # its head never ends
        (head(12) + b"--b\r\nX" + b" Y\r\n\r\n" + GET, [400, 200]),
        (b"POST /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n" + GET, [400]),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", [200]),
    ],
)
def test_nobody_gets_a_second_request_in(server: Server, sent: bytes, statuses: list[int]) -> None:
    with connect(server.port, ATTACKER) as connection:
        connection.sendall(sent)
        answer = answer_of(connection, 5 * IDLE_S)
    assert [int(line[9:12]) for line in re.findall(rb"HTTP/1\.1 [0-9]{3} ", answer)] == statuses, answer[:2000]
    assert "Traceback" not in server.log.read_text()


def test_memory_is_given_back(server: Server) -> None:
    """In rounds of as many uploads as there are places, none of them a picture."""

    def rounds(count: int) -> float:
        sources = [f"127.0.1.{1 + i % PLACES}" for i in range(count)]
        with ThreadPoolExecutor(PLACES) as pool:
            statuses = set(pool.map(lambda source: upload_rubbish(server.port, NO_IMAGE_MB, source), sources))
        assert statuses <= {400, 429}, statuses
        return server.rss_mib()

    assert edit(server, "good", "before-memory").status_code == 200
    idle = server.rss_mib()
    first = rounds(PLACES)
    with good_caller("uploads of 19.9 MB", good(server)) as one:
        second = rounds(PLACES)
    print(
        f"resident: {idle:.0f} MiB, after {PLACES} uploads of {NO_IMAGE_MB} MB {first:.0f}, after the next {second:.0f}"
    )
    assert first < idle + 6 * NO_IMAGE_MB
    assert second < first + 4 * NO_IMAGE_MB
    assert_was_served(one, 10)


def test_few_file_descriptors_are_enough_for_the_probes(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    with ExitStack() as stack:
        try:
            server = stack.enter_context(faulty(tmp_path, HUNYUAN_IDLE_S="30"))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        one = stack.enter_context(good_caller("120 silent, 128 descriptors", good(server)))
        for number in range(2, 5):
            stack.enter_context(crowd(server.port, 40, f"127.0.0.{number}", HALF_A_HEAD[: number % 2 * 9]))
        time.sleep(1)
    assert_was_served(one, 4)  # a full backlog costs a second, when TCP asks again
    assert "RLIMIT_NOFILE is 128" in server.log.read_text()


def test_it_ends_whatever_its_clients_do(tmp_path: Path) -> None:
    """A running edit finishes, uploads are told at once, and nobody else is waited for."""
    with faulty(tmp_path) as server, ThreadPoolExecutor() as pool, ExitStack() as stack:
        large = photo_bytes(1600, 1200)
        files, data = {"image": ("a.jpg", large)}, {"prompt": "good unread", "steps": "1"}
        request = httpx.Request("POST", server.url, files=files, data=data)
        body = request.read()
        unread = stack.enter_context(connect(server.port, "127.0.0.4", receive_bytes=4096))
        lines = f"POST /edit HTTP/1.1\r\nHost: x\r\nContent-Type: {request.headers['content-type']}\r\n"
        unread.sendall(f"{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until_recorded(server, "end unread")
        running = pool.submit(edit, server, "good", "running", 40)
        until_recorded(server, "step running")
        stack.enter_context(crowd(server.port, 5, "127.0.0.2"))
        stack.enter_context(crowd(server.port, 5, "127.0.0.2", HALF_A_HEAD))
        uploads = stack.enter_context(crowd(server.port, 4, "127.0.0.3", SLOW_UPLOAD))
        time.sleep(0.2)
        told = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        answers = [first_answer(connection) for connection in uploads]
        assert time.monotonic() - told < 1 * slowness()
        assert_envelope(httpx.post(f"{server.url}/edit", content=b"x" * 100, timeout=5), 503, "shutting_down")
        assert not running.done()
        assert running.result().status_code == 200
        finished = time.monotonic()
        assert server.process.wait(60) == 0
        took = time.monotonic() - finished
        print(f"ended {took:.1f} s after its last edit")
        assert took < 6 * slowness()
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 503")
        assert b'"shutting_down"' in answer


def first_answer(connection: socket.socket) -> bytes:
    connection.settimeout(5)
    received = b""
    while not received.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, received
        received += piece
    return received
