"""A job's way from a place in the queue to a state that stays, and everything that may end it on the way."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hunyuan.errors import DeadlineExceeded, HunyuanError, InvalidImage
from hunyuan.requests import CancelToken, EditRequest, EditResult, ProgressCallback
from hunyuan.serving.http_errors import JobFinished, JobNotFound, NoStorage, QueueFull
from hunyuan.serving.jobs.files import JobFiles
from hunyuan.serving.jobs.job import EditFields, Job
from hunyuan.serving.jobs.runner import Jobs
from hunyuan.serving.jobs.store import JobStore
from hunyuan.serving.jobs.table import JobTable
from hunyuan.serving.queue import EditQueue
from hunyuan.serving.records import RequestRecord
from hunyuan.serving.tracing import Tracing
from hunyuan.serving.worker import EditorWorker


class Editor:
    """Waits at its gate, looking at the token; fails where the prompt says so."""

    model_name = "model 蓝"
    notice: str | None = None

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.started: list[str] = []
        self.ended: list[str] = []

    def warm_up(self) -> None:
        """Nothing to do."""

    def run(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        *_: object,
    ) -> EditResult:
        assert on_progress is not None
        assert cancel is not None
        self.started.append(request.prompt)
        try:
            on_progress("denoise", 1, 2)
            while not self.gate.wait(0.005):
                cancel.check()
            if request.prompt == "secret failure":
                raise ValueError(f"no {request.prompt}")
            return EditResult(Image.new("RGB", (16, 8)), None, request.seed or 0, (16, 8), 2, 3, {"total": 0.1})
        finally:
            self.ended.append(request.prompt)


class FakeDecoders:
    """Not an undecodable picture: bytes that are one, or none."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.pictures: list[weakref.ref[Image.Image]] = []

    async def decode(self, data: bytes) -> Image.Image:
        await self.gate.wait()
        if data == b"broken":
            raise InvalidImage("damaged")
        picture = Image.new("RGB", (16, 8))
        self.pictures.append(weakref.ref(picture))
        return picture


class House:
    """Jobs over a real queue and worker."""

    def __init__(self, folder: Path, size: int = 2, most_bytes: int = 10**9) -> None:
        self.editor, self.decoders = Editor(), FakeDecoders()
        self.queue = EditQueue(size)
        self.worker = EditorWorker(lambda: self.editor, self.queue, 60, lambda: None)
        self.ended: list[tuple[str, RequestRecord]] = []
        self.store = JobStore(folder, JobTable(9, most_bytes, 100))
        self.jobs = Jobs(
            self.store,
            self.worker,
            self.decoders,  # type: ignore[arg-type]
            self.encode,
            Tracing(),
            "gpu0",
            on_end=lambda job, record: self.ended.append((job.state, record)),
        )

    async def encode(self, result: EditResult, prompt: str) -> bytes:
        return f"PNG of {prompt}".encode()

    async def __aenter__(self) -> House:
        self.worker.start()
        self.store.open()
        self.jobs.start()
        await until(lambda: self.worker.ready)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.editor.gate.set()
        await self.jobs.stop()

    async def submit(self, prompt: str = "x", source: bytes = b"source", within_s: float = 60) -> Job:
        record = RequestRecord(f"r-{prompt}", "/edit/submit")
        fields = EditFields(prompt, 5, None, "auto")
        return await self.jobs.submit(fields, source, record, time.monotonic() + within_s, {})


async def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30  # on a busy machine
    while not true():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def in_house(folder: Path, story: Callable[[House], Awaitable[None]], **more: Any) -> House:
    async def live() -> House:
        async with House(folder, **more) as house:
            await story(house)
            return house

    work: Coroutine[Any, Any, House] = live()
    return asyncio.run(work)


def test_a_job_ends_with_its_result_and_the_headers_of_an_edit(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        house.editor.gate.clear()
        job = await house.submit()
        assert job.id.startswith("gpu0-")
        await until(lambda: job.state == "in_progress")
        assert house.jobs.busy
        edit = house.jobs.edit_of(job)
        assert edit is not None
        await until(lambda: edit.steps_done == 1)
        house.editor.gate.set()
        await until(lambda: job.finished)
        await until(lambda: not house.jobs.busy)
        assert job.started is not None
        assert job.ended is not None
        assert job.created <= job.started <= job.ended
        assert (job.state, job.error) == ("completed", None)
        assert await house.store.result(job) == b"PNG of x"
        assert {name: job.headers[name] for name in ("X-Seed", "X-Image-Size", "X-Steps", "X-Model")} == {
            "X-Seed": "5",
            "X-Image-Size": "16x8",
            "X-Steps": "2",
            "X-Model": "model ?",
        }
        [(state, record)] = house.ended
        assert record.edit is not None
        assert (state, record.request_id, record.status, record.error) == ("completed", "r-x", 200, None)
        assert (record.edit.input_size, record.edit.steps_done) == ((16, 8), 2)

    in_house(tmp_path, story)


def test_a_bad_picture_is_the_submitters_error_and_no_job(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        with pytest.raises(InvalidImage):
            await house.submit(source=b"broken")
        assert (house.queue.awaited, house.jobs.busy) == (0, False)
        job = await house.submit()
        await until(lambda: job.finished and not house.jobs.busy)

    house = in_house(tmp_path, story, size=1)
    assert [state for state, _ in house.ended] == ["completed"]
    assert len(list(tmp_path.glob("*.json"))) == 1


def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        house.editor.gate.clear()
        await house.submit("a")
        await house.submit("b")
        with pytest.raises(QueueFull):
            await house.submit("c")
        assert len(list(tmp_path.glob("*.json"))) == 2

    in_house(tmp_path, story, size=1)


def test_a_running_job_is_cancelled_within_a_step(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        house.editor.gate.clear()
        job = await house.submit()
        await until(lambda: bool(house.editor.started))
        assert (await house.jobs.cancel(job)).state == "canceled"
        await until(lambda: bool(house.editor.ended))
        assert job.error is not None
        assert (job.error.status, job.error.code) == (409, "job_cancelled")
        assert await house.jobs.cancel(job) is job, "twice is no error"
        house.editor.gate.set()
        other = await house.submit("other")
        await until(lambda: other.finished)
        assert other.state == "completed"
        with pytest.raises(JobFinished, match="completed"):
            await house.jobs.cancel(other)

    house = in_house(tmp_path, story)
    assert [state for state, _ in house.ended] == ["canceled", "completed"]


def test_a_waiting_job_that_is_cancelled_is_never_worked_for(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        house.editor.gate.clear()
        first, second = await house.submit("first"), await house.submit("second")
        await until(lambda: first.state == "in_progress")
        assert second.state == "pending"
        both = await asyncio.gather(house.jobs.cancel(second), house.jobs.cancel(second))
        assert [job.state for job in both] == ["canceled", "canceled"]
        house.editor.gate.set()
        await until(lambda: first.state == "completed")

    house = in_house(tmp_path, story)
    assert house.editor.started == ["first"]


def test_its_deadline_ends_it_waiting_or_running(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        house.editor.gate.clear()
        running, waiting = await house.submit("a", within_s=0.3), await house.submit("b", within_s=0.3)
        await until(lambda: running.finished and waiting.finished)
        for job in (running, waiting):
            assert job.error is not None
            assert (job.state, job.error.status, job.error.code) == ("failed", 504, "timeout")
        await until(lambda: house.editor.ended == ["a"])

    house = in_house(tmp_path, story)
    assert all(isinstance(record.error, DeadlineExceeded) for _, record in house.ended)


def test_a_failure_says_where_its_reason_is_and_not_what_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(house: House) -> None:
        job = await house.submit("secret failure")
        await until(lambda: job.finished)
        assert job.error is not None
        assert (job.state, job.error.status, job.error.code) == ("failed", 503, "inference_failed")
        assert "under the request_id r-secret failure" in job.error.message

    in_house(tmp_path, story)
    assert "ValueError: no <prompt>" in caplog.text


def test_a_submitter_that_leaves_before_the_answer_leaves_nothing(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        house.decoders.gate.clear()
        submitting = asyncio.create_task(house.submit())
        await until(lambda: house.jobs.busy)
        submitting.cancel()
        await asyncio.gather(submitting, return_exceptions=True)
        assert not house.jobs.busy
        assert house.queue.awaited == 0
        house.decoders.gate.set()

    house = in_house(tmp_path, story)
    assert house.editor.started == []
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_job_that_cannot_be_kept_is_refused_and_frees_its_place(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        with pytest.raises(NoStorage, match="more than is left"):
            await house.submit(source=bytes(200_000))
        assert (house.queue.awaited, house.jobs.busy) == (0, False)

    house = in_house(tmp_path, story, most_bytes=100_000)
    assert house.editor.started == []


def test_a_result_that_cannot_be_kept_is_a_failure_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(house: House) -> None:
        house.editor.gate.clear()
        job = await house.submit()
        await until(lambda: job.state == "in_progress")
        write = JobFiles.write

        def full(self: JobFiles, job_id: str, kind: str, data: bytes) -> None:
            if kind == ".png":
                raise NoStorage("the disk does not take it")
            write(self, job_id, kind, data)

        monkeypatch.setattr(JobFiles, "write", full)
        house.editor.gate.set()
        await until(lambda: job.finished)
        assert job.error is not None
        assert (job.state, job.error.status, job.error.code) == ("failed", 507, "no_storage")

    in_house(tmp_path, story)


def test_the_end_of_the_process_is_told_in_the_state(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        house.editor.gate.clear()
        await house.submit("running")
        await house.submit("waiting")
        await until(lambda: bool(house.editor.started))
        house.worker.shut_down()  # those who wait hear of it at once
        await until(lambda: len(house.ended) == 1)
        await house.jobs.stop()  # and the rest when there is no more time

    house = in_house(tmp_path, story)
    assert [(state, record.error.code if record.error else "") for state, record in house.ended] == [
        ("failed", "interrupted"),
        ("failed", "interrupted"),
    ]
    with_all = [Job.from_json(path.read_bytes()) for path in tmp_path.glob("*.json")]
    assert {job.state for job in with_all} == {"failed"}


def test_the_web_server_is_told_of_every_job(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        tasks: set[asyncio.Task[None]] = set()
        house.jobs.start(tasks)
        house.editor.gate.clear()
        job = await house.submit()
        (task,) = tasks
        task.cancel()  # as uvicorn does when its patience with a shutdown is over
        await asyncio.wait({task})
        assert tasks == set()
        assert job.error is not None
        assert (job.state, job.error.code) == ("failed", "interrupted")

    in_house(tmp_path, story)


def test_pictures_go_when_they_are_used(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        jobs: list[Job] = [await house.submit("good"), await house.submit("secret failure")]
        await until(lambda: all(job.finished for job in jobs) and not house.jobs.busy)
        await asyncio.sleep(0.05)
        gc.collect()
        assert [reference() for reference in house.decoders.pictures] == [None, None]

    in_house(tmp_path, story)


def test_a_job_that_was_dropped_is_unknown(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        job = await house.submit()
        await until(lambda: job.finished and not house.jobs.busy)
        house.store.drop(job)
        with pytest.raises(HunyuanError) as caught:
            house.store.get(job.id)
        assert isinstance(caught.value, JobNotFound)

    in_house(tmp_path, story)
