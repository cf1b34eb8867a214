"""Signals to a running server under load: every request gets its one answer, and the process ends in bounded time.

The server is the real one in processes of its own; only its editor is a scripted one (`faulty/faulty_service.py`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from server_process import Server, assert_envelope, start
from test_faults import FAULTY, TARGET, edit, faulty, until_recorded

pytestmark = pytest.mark.server

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
ENDS_WITHIN_S = 15
WAITING = 4


@pytest.fixture(autouse=True)
def _hung_up_processes_hear_of_it() -> Iterator[None]:
    """Under nohup these tests ignore SIGHUP, and so would every server that they start."""
    before = signal.signal(HUP, signal.SIG_DFL)
    yield
    signal.signal(HUP, before)


def to_the_master(server: Server, number: signal.Signals) -> None:
    """As `docker stop` does: one process hears of it and passes it on."""
    server.process.send_signal(number)


def to_the_group(server: Server, number: signal.Signals) -> None:
    """As a terminal does: every process hears of it, and the worker once more from the master."""
    os.killpg(server.process.pid, number)


@pytest.mark.parametrize(
    ("send", "signals"),
    [
        (to_the_master, [TERM]),
        (to_the_master, [TERM, TERM]),
        (to_the_group, [TERM, TERM]),
        (to_the_group, [INT]),
        (to_the_master, [HUP]),
        (to_the_group, [HUP]),
    ],
)
def test_every_request_is_accounted_for(
    tmp_path: Path, send: Callable[[Server, signal.Signals], None], signals: list[signal.Signals]
) -> None:
    """The running edit finishes, those who wait get a 503, and the process ends."""
    names = ["running", *(f"waiting-{i}" for i in range(WAITING))]
    with faulty(tmp_path) as server, ThreadPoolExecutor(8) as pool:
        first = pool.submit(edit, server, "good", names[0], 30)
        until_recorded(server, "step running")
        waiting = [pool.submit(edit, server, "good", name) for name in names[1:]]
        while f"hunyuan_queue_depth {WAITING}.0" not in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.02)
        send(server, signals[0])
        for answer in (future.result() for future in waiting):
            assert_envelope(answer, 503, "shutting_down")
            assert int(answer.headers["retry-after"]) > 0
        assert not first.done()
        for number in signals[1:]:
            send(server, number)
            time.sleep(0.1)
        assert not first.done()
        assert first.result().status_code == 200
        assert server.process.wait(ENDS_WITHIN_S) == 0
    lines = {line["request_id"]: line["status"] for line in server.requests()}
    assert len(server.requests()) == len(names)
    assert lines == {name: 200 if name == "running" else 503 for name in names}


def test_who_started_it_with_nohup_may_close_the_terminal(tmp_path: Path) -> None:
    before = signal.signal(HUP, signal.SIG_IGN)  # which a process that is started now inherits
    try:
        server = start(tmp_path, TARGET, FAULTY, FAULTS_RECORD=str(tmp_path / "record"))
    finally:
        signal.signal(HUP, before)
    try:
        server.wait_until()
        to_the_group(server, HUP)
        assert edit(server, "good", "after").status_code == 200
        assert len([line for line in server.lines() if str(line.get("message", "")).startswith("ready: ")]) == 1
        to_the_master(server, TERM)
        assert server.process.wait(ENDS_WITHIN_S) == 0
    finally:
        server.stop()


def test_who_comes_while_the_running_edit_finishes_is_told(tmp_path: Path) -> None:
    with faulty(tmp_path) as server, ThreadPoolExecutor() as pool:
        first = pool.submit(edit, server, "good", "running", 40)
        until_recorded(server, "step running")
        to_the_master(server, TERM)
        server.wait_until("/readyz", 503, seconds=2)
        assert httpx.get(f"{server.url}/readyz").text == "not ready: shutting down\n"
        assert httpx.get(f"{server.url}/livez").status_code == 200
        assert_envelope(edit(server, "good", "late"), 503, "shutting_down")
        assert not first.done()
        assert first.result().status_code == 200
        assert server.process.wait(ENDS_WITHIN_S) == 0
    assert {line["request_id"]: line["status"] for line in server.requests()} == {"running": 200, "late": 503}


def test_a_server_that_still_loads_ends_at_once(tmp_path: Path) -> None:
    server = start(tmp_path, TARGET, FAULTY, FAULTS_RECORD=str(tmp_path / "record"), FAULTS_WARM_UP_S="600")
    try:
        while True:
            assert server.process.poll() is None, server.log.read_text()
            try:
                if "warming up" in httpx.get(f"{server.url}/readyz").text:
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        assert_envelope(edit(server, "good", "early"), 503, "loading")
        to_the_master(server, TERM)
        server.process.wait(ENDS_WITHIN_S)
    finally:
        server.stop()
    assert server.request_line("early")["status"] == 503
