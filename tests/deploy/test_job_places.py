"""Jobs behind deploy/haproxy.cfg: each takes a place in the one queue, on its own replica, until it has ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from box import AUTHORIZATION, Box, needs_haproxy, proxy_before, replicas_in

from scripts.support.ports import free_port

pytestmark = [pytest.mark.server, pytest.mark.slow, needs_haproxy]

FAULTY = "faulty_service:HunyuanImage"


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    port = free_port()
    proxy = f"http://127.0.0.1:{port}"
    with (
        replicas_in(tmp_path / "replicas", target=FAULTY, HUNYUAN_JOBS_PROXY=proxy) as servers,
        proxy_before(servers, tmp_path / "proxy", port=port) as shared,
    ):
        shared.wait_for("gpu0", "gpu1")
        yield shared


def status(box: Box, job_id: str) -> dict[str, Any]:
    answer = httpx.get(f"{box.url}/edit/status", params={"task_id": job_id}, headers=AUTHORIZATION, timeout=30)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def until(true: Callable[[], object], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def until_state(box: Box, job_id: str, state: str) -> None:
    until(lambda: status(box, job_id)["status"] == state)


def begun(box: Box, prompt: str, steps: int) -> str:
    """A job that holds its replica's place: the next one goes to another."""
    job_id = box.submit(prompt, steps)
    until_state(box, job_id, "in_progress")
    return job_id


def done_by(box: Box, name: str) -> str:
    """The replica that did the edit of that request."""
    box.request_line(name)
    return next(f"gpu{n}" for n, one in enumerate(box.replicas) for r in one.requests() if r["request_id"] == name)


def test_edits_go_where_no_job_runs(box: Box) -> None:
    job_id = begun(box, "good job", 60)
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(box.edit, f"beside-{n}", f"good {n}", steps=4) for n in range(4)]
        assert [one.result().status_code for one in asked] == [200] * 4
    assert status(box, job_id)["status"] == "in_progress"
    (other,) = {"gpu0", "gpu1"} - {job_id.partition("-")[0]}
    assert {done_by(box, f"beside-{n}") for n in range(4)} == {other}
    assert all(box.request_line(f"beside-{n}")["queue_s"] < 0.5 for n in range(4)), "nobody waits on a replica"
    until_state(box, job_id, "completed")


def test_a_job_waits_for_its_replica_s_turn_and_frees_it(box: Box) -> None:
    with ThreadPoolExecutor(4) as pool:
        busy = [pool.submit(box.edit, f"busy-{n}", f"good {n}", steps=40) for n in range(2)]
        time.sleep(0.5)
        job_id = box.submit("good patient", 2)
        until(lambda: box.waiting() == 1)
        assert status(box, job_id)["status"] == "pending"
        assert [one.result().status_code for one in busy] == [200, 200]
    until_state(box, job_id, "completed")
    assert [box.edit(f"after-{n}", steps=1).status_code for n in range(4)] == [200] * 4


def test_a_job_that_is_cancelled_while_it_waits_leaves_the_proxy_s_queue(box: Box) -> None:
    first = [begun(box, f"good long-{n}", 90) for n in range(2)]
    waiting = box.submit("good waiting", 2)
    until(lambda: box.waiting() == 1)
    for job_id in (waiting, *first):
        httpx.put(f"{box.url}/edit/cancel", params={"task_id": job_id}, headers=AUTHORIZATION, timeout=30)
        assert status(box, job_id)["status"] == "canceled"
    until(lambda: box.waiting() == 0)
    assert [box.edit(f"free-{n}", steps=1).status_code for n in range(4)] == [200] * 4


def test_a_replica_that_ends_finishes_its_job_and_interrupts_what_waits_for_a_place(box: Box) -> None:
    jobs = [begun(box, f"good {n}", 60) for n in range(2)]
    jobs += [box.submit(f"good {n}", 60) for n in range(2, 4)]
    until(lambda: box.waiting() == 2)
    mine = [one for one in jobs if one.startswith("gpu0-")]
    assert len(mine) == 2
    box.replicas[0].process.send_signal(signal.SIGTERM)
    assert box.replicas[0].process.wait(20) == 0
    records = {one: (box.replicas[0].folder / "jobs" / f"{one}.json").read_text() for one in mine}
    assert sorted('"interrupted"' in text for text in records.values()) == [False, True]
    assert sorted('"completed"' in text for text in records.values()) == [False, True]
