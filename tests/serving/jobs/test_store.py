"""What is on the disk when, and what a next process makes of it."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hunyuan.errors import OutOfMemory
from hunyuan.serving.http_errors import JobCancelled, JobNotFound, NoStorage
from hunyuan.serving.jobs.files import JobFiles
from hunyuan.serving.jobs.job import EditFields, Job, new_id
from hunyuan.serving.jobs.store import JobStore
from hunyuan.serving.jobs.table import JobTable

PNG = b"\x89PNG picture"


def a_job() -> Job:
    return Job(new_id(None), "r", EditFields("x", None, None, "auto"))


@contextmanager
def opened(
    folder: Path, most: int = 9, most_bytes: int = 10**9, keep_s: float = 100, **more: Any
) -> Iterator[JobStore]:
    store = JobStore(folder, JobTable(most, most_bytes, keep_s), **more)
    store.open()
    try:
        yield store
    finally:
        store.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def refuse_writes(monkeypatch: pytest.MonkeyPatch, kind: str = "") -> None:
    """From now on the disk is full for files of that kind."""
    write = JobFiles.write

    def full(self: JobFiles, job_id: str, what: str, data: bytes) -> None:
        if what.endswith(kind):
            raise NoStorage("the disk does not take it (No space left on device)")
        write(self, job_id, what, data)

    monkeypatch.setattr(JobFiles, "write", full)


def on_disk(folder: Path, job: Job) -> set[str]:
    return {path.suffix for path in folder.glob(f"{job.id}*")}


def test_a_completed_job_survives_a_restart(tmp_path: Path) -> None:
    job = a_job()

    async def live(store: JobStore) -> None:
        await store.add(job, b"source")
        await store.complete(job, PNG, {"X-Seed": "5"})
        assert (job.state, job.result_bytes) == ("completed", len(PNG))

    with opened(tmp_path) as store:
        run(live(store))
    assert on_disk(tmp_path, job) == {".json", ".source", ".png"}

    async def after(store: JobStore) -> None:
        again = store.get(job.id)
        assert (again.state, again.headers, again.ended) == ("completed", {"X-Seed": "5"}, job.ended)
        assert await store.result(again) == PNG
        assert await store.source(again) == b"source"

    with opened(tmp_path) as store:
        run(after(store))


@pytest.mark.parametrize(("state", "word"), [("pending", "waiting"), ("in_progress", "running")])
def test_what_had_not_ended_says_that_it_was_interrupted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, state: Any, word: str
) -> None:
    job = a_job()

    async def live(store: JobStore) -> None:
        await store.add(job, b"source")
        job.state = state
        store.note(job)

    with opened(tmp_path) as store:
        run(live(store))
    with caplog.at_level(logging.INFO), opened(tmp_path) as store:
        again = store.get(job.id)
        assert again.state == "failed"
        assert again.error is not None
        assert (again.error.status, again.error.code) == (503, "interrupted")
        assert f"while the job was {word}" in again.error.message
    assert "1 jobs are kept" in caplog.text
    assert "1 were interrupted" in caplog.text
    with opened(tmp_path) as store:  # and it is written down: the next start knows when that was
        assert store.get(job.id).ended == again.ended


def test_states_without_a_result_survive_too(tmp_path: Path) -> None:
    failed, cancelled = a_job(), a_job()

    async def live(store: JobStore) -> None:
        for job in (failed, cancelled):
            await store.add(job, b"source")
        store.fail(failed, OutOfMemory("too big"))
        store.fail(cancelled, JobCancelled(), canceled=True)

    with opened(tmp_path) as store:
        run(live(store))
    with opened(tmp_path) as store:
        first, second = store.get(failed.id), store.get(cancelled.id)
        assert first.error is not None
        assert (first.state, first.error.code, first.error.message) == ("failed", "out_of_memory", "too big")
        assert second.error is not None
        assert (second.state, second.error.code) == ("canceled", "job_cancelled")


def test_a_full_disk_refuses_the_job_and_keeps_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = a_job()
    seen: list[tuple[int, int]] = []

    async def live(store: JobStore) -> None:
        with pytest.raises(NoStorage):
            await store.add(job, b"source")
        with pytest.raises(JobNotFound):
            store.get(job.id)

    refuse_writes(monkeypatch, ".json")
    with opened(tmp_path, on_change=lambda number, size: seen.append((number, size))) as store:
        run(live(store))
    assert on_disk(tmp_path, job) == set()
    assert seen[-1] == (0, 0)


@pytest.mark.parametrize("kind", [".png", ".json"])
def test_a_disk_that_is_full_at_the_end_leaves_no_half_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    job = a_job()

    async def live(store: JobStore) -> None:
        await store.add(job, b"source")
        refuse_writes(monkeypatch, kind)
        with pytest.raises(NoStorage):
            await store.complete(job, PNG, {"X-Seed": "5"})
        assert (job.state, job.ended, job.headers, job.result_bytes) == ("pending", None, {}, 0)

    with opened(tmp_path) as store:
        run(live(store))
    assert on_disk(tmp_path, job) == {".json", ".source"}


def test_a_record_that_the_disk_does_not_take_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = a_job()

    async def live(store: JobStore) -> None:
        await store.add(job, b"source")
        refuse_writes(monkeypatch)
        store.fail(job, OutOfMemory("too big"))
        assert store.get(job.id).state == "failed", "in memory it counts"

    with caplog.at_level(logging.ERROR), opened(tmp_path) as store:
        run(live(store))
    assert "is not on the disk" in caplog.text


def test_jobs_that_are_too_many_or_too_old_go_with_their_files(tmp_path: Path) -> None:
    jobs = [a_job() for _ in range(3)]

    async def live(store: JobStore) -> None:
        store.start()
        for job in jobs:
            await store.add(job, b"source")
            await store.complete(job, PNG, {})
        with pytest.raises(JobNotFound):
            store.get(jobs[0].id)
        assert [store.get(job.id) for job in jobs[1:]] == jobs[1:]
        end = asyncio.get_running_loop().time() + 5
        while any(path.suffix == ".json" for path in tmp_path.iterdir()):  # nobody asks: they go by themselves
            assert asyncio.get_running_loop().time() < end
            await asyncio.sleep(0.02)

    with opened(tmp_path, most=2, keep_s=0.5) as store:
        run(live(store))
    assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_a_start_keeps_to_the_bounds(tmp_path: Path) -> None:
    jobs = [a_job() for _ in range(3)]

    async def live(store: JobStore) -> None:
        for job in jobs:
            await store.add(job, bytes(10_000))
            await store.complete(job, PNG, {})

    with opened(tmp_path) as store:
        run(live(store))
    with opened(tmp_path, most_bytes=jobs[0].size * 2) as store:
        with pytest.raises(JobNotFound):
            store.get(jobs[0].id)
        assert store.get(jobs[2].id).state == "completed"
    assert on_disk(tmp_path, jobs[0]) == set()


def test_without_a_folder_jobs_are_refused_and_nothing_else_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hunyuan.serving.jobs.store.jobs_folder", lambda named: None)
    store = JobStore(None, JobTable(1, 10**9, 1))
    store.open()

    async def live() -> None:
        with pytest.raises(NoStorage, match="no folder"):
            await store.add(a_job(), b"source")

    run(live())
    store.close()


def test_a_slow_disk_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop answers while the disk's thread waits, and what was told first is written first."""
    first, second, gate = a_job(), a_job(), threading.Event()
    write: Callable[..., None] = JobFiles.write

    def slow(self: JobFiles, *arguments: Any) -> None:
        gate.wait(5)
        write(self, *arguments)

    async def live(store: JobStore) -> None:
        await store.add(first, b"source")
        monkeypatch.setattr(JobFiles, "write", slow)
        adding = asyncio.create_task(store.add(second, b"source"))
        await asyncio.sleep(0.05)
        assert store.get(first.id) is first
        assert not adding.done()
        adding.cancel()
        gate.set()
        await asyncio.gather(adding, return_exceptions=True)

    with opened(tmp_path) as store:
        run(live(store))
    assert on_disk(tmp_path, second) == set(), "the caller has left while it was written"
    assert on_disk(tmp_path, first) == {".json", ".source"}
    assert not [path for path in os.listdir(tmp_path) if path.endswith(".part")]
