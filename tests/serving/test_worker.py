"""One thread owns the editor; what that promises to those who wait, and what it says about itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from hunyuan.errors import CheckpointError, OutOfMemory
from hunyuan.requests import CancelToken, EditRequest, EditResult, ProgressCallback
from hunyuan.serving import gpu
from hunyuan.serving.editor_like import EditorLike
from hunyuan.serving.http_errors import Loading, QueueFull, Restarting, ShuttingDown
from hunyuan.serving.queue import EditQueue
from hunyuan.serving.records import EditRecord
from hunyuan.serving.watching import Watcher
from hunyuan.serving.worker import EditorWorker

STUCK_S = 1.0  # far more than collecting the garbage of a cancelled edit takes
ILLEGAL = "CUDA error: an illegal memory access was encountered"


class SlowEditor:
    """Says what it saw: threads, how many edits at once, which prompts."""

    model_name = "slow"
    notice: str | None = None

    def __init__(self) -> None:
        self.threads: set[str] = set()
        self.prompts: list[str] = []
        self.running = self.most = 0
        self.gate = threading.Event()
        self.gate.set()
        self.deaf = False  # does not look at its cancel token

    def warm_up(self) -> None:
        self.threads.add(threading.current_thread().name)

    def run(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        *_: object,
    ) -> EditResult:
        self.threads.add(threading.current_thread().name)
        self.prompts.append(request.prompt)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if on_progress is not None:
                on_progress("think", 5, 10)
                on_progress("denoise", 2, 4)
            while not self.gate.wait(0.005):
                if cancel is not None and not self.deaf:
                    cancel.check()
            failures = {"fail": ValueError("no"), "memory": MemoryError(), "lost": RuntimeError(ILLEGAL)}
            if request.prompt in failures:
                raise failures[request.prompt]
            return EditResult(Image.new("RGB", (16, 16)), None, request.seed or 0, (16, 16), 4, 10, {"think": 0.5})
        finally:
            self.running -= 1


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30  # on a busy machine
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def worker_of(load: Callable[[], EditorLike], size: int = 30, stuck_s: float = 60) -> EditorWorker:
    return EditorWorker(load, EditQueue(size), stuck_s, on_failure=lambda: None)


@contextmanager
def serving(editor: SlowEditor, size: int = 30, stuck_s: float = 60) -> Iterator[EditorWorker]:
    worker = worker_of(lambda: editor, size, stuck_s)
    worker.start()
    until(lambda: worker.ready)
    try:
        yield worker
    finally:
        editor.gate.set()


def facts_of(prompt: str = "x") -> EditRecord:
    return EditRecord(len(prompt), "auto", None, None)


async def edit(worker: EditorWorker, prompt: str, seed: int = 0, facts: EditRecord | None = None) -> EditResult:
    async with worker.place(CancelToken(), facts or facts_of(prompt)) as job:
        return await worker.run(job, EditRequest(prompt, seed=seed))


def test_it_is_ready_only_after_loading_and_warming_up() -> None:
    loading, warming = threading.Event(), threading.Event()

    class Reluctant(SlowEditor):
        def warm_up(self) -> None:
            warming.wait()

    def load() -> SlowEditor:
        loading.wait()
        return Reluctant()

    worker = worker_of(load)
    worker.start()
    assert (worker.ready, worker.alive, worker.model_name, worker.describe()) == (False, True, None, "loading")
    with pytest.raises(Loading, match="loading"):
        asyncio.run(edit(worker, "x"))
    loading.set()
    until(lambda: worker.describe() == "warming up")
    assert not worker.ready
    warming.set()
    until(lambda: worker.ready)
    assert worker.describe() == worker.model_name == "slow"


def test_the_builtin_checkpoint_is_called_what_it_is() -> None:
    editor = SlowEditor()
    editor.notice = "random weights (MODEL_ID=tiny)"
    with serving(editor) as worker:
        assert worker.describe() == "slow: random weights (MODEL_ID=tiny)"


def test_edits_run_one_at_a_time_on_one_thread() -> None:
    editor = SlowEditor()

    async def many(worker: EditorWorker) -> list[EditResult]:
        return await asyncio.gather(*(edit(worker, str(i), seed=i) for i in range(20)))

    with serving(editor) as worker:
        results = asyncio.run(many(worker))
    assert [result.seed for result in results] == list(range(20))
    assert editor.prompts == [str(i) for i in range(20)]
    assert (editor.most, editor.threads) == (1, {"editor"})


def test_several_pictures_have_one_turn_and_their_figures_add_up() -> None:
    editor, facts, seen = SlowEditor(), facts_of(), list[object]()
    watcher = Watcher(lambda *report: seen.append(report), on_result=lambda result: seen.append(result.seed))

    async def three(worker: EditorWorker) -> EditResult:
        async with worker.place(CancelToken(), facts) as job:
            job.watcher = watcher
            return await worker.run(job, *(EditRequest("x", seed=seed) for seed in (5, 6, 7)))

    with serving(editor) as worker:
        assert asyncio.run(three(worker)).seed == 7
    progress = [("think", 5, 10), ("denoise", 2, 4)]
    assert seen == [*progress, 5, *progress, 6, *progress, 7]
    assert (facts.pictures, facts.seed, facts.steps, facts.steps_done, facts.tokens) == (3, 5, 4, 12, 30)
    assert facts.stages == {"think": 1.5}


def test_a_picture_that_fails_ends_the_turn_and_what_was_done_is_known() -> None:
    editor, facts, seeds = SlowEditor(), facts_of(), list[int]()

    async def two(worker: EditorWorker) -> EditResult:
        async with worker.place(CancelToken(), facts) as job:
            job.watcher = Watcher(on_result=lambda result: seeds.append(result.seed))
            return await worker.run(job, EditRequest("x", seed=1), EditRequest("fail"), EditRequest("x"))

    with serving(editor) as worker, pytest.raises(ValueError, match="no"):
        asyncio.run(two(worker))
    assert seeds == [1]
    assert editor.prompts == ["x", "fail"]
    assert (facts.pictures, facts.steps_done, facts.tokens) == (1, 6, 15)
    assert facts.stages["think"] == pytest.approx(0.5, abs=0.4)


def test_a_failed_edit_does_not_end_the_thread() -> None:
    facts = facts_of()
    with serving(SlowEditor()) as worker:
        with pytest.raises(ValueError, match="no"):
            asyncio.run(edit(worker, "fail", facts=facts))
        assert (facts.tokens, facts.steps_done, list(facts.stages)) == (
            5,
            2,
            ["prepare", "denoise", "total"],
        )
        facts = facts_of()
        assert asyncio.run(edit(worker, "next", seed=3, facts=facts)).seed == 3
        assert (facts.tokens, facts.steps_done, facts.stages) == (10, 4, {"think": 0.5})
        assert facts.queue_s is not None
        assert worker.alive


def test_running_out_of_memory_is_told_apart() -> None:
    with serving(SlowEditor()) as worker:
        with pytest.raises(OutOfMemory) as caught:
            asyncio.run(edit(worker, "memory"))
        assert isinstance(caught.value.__cause__, MemoryError)
        assert worker.ready


def test_a_lost_gpu_ends_the_service_but_not_without_an_answer() -> None:
    editor = SlowEditor()

    async def lose(worker: EditorWorker) -> list[EditResult | BaseException]:
        editor.gate.clear()
        edits = [asyncio.create_task(edit(worker, prompt)) for prompt in ("lost", "waiting", "waiting too")]
        while not editor.running:
            await asyncio.sleep(0.005)
        editor.gate.set()
        return await asyncio.gather(*edits, return_exceptions=True)

    with serving(editor) as worker:
        outcomes = asyncio.run(lose(worker))
        assert [type(outcome) for outcome in outcomes] == [RuntimeError, Restarting, Restarting]
        assert (worker.alive, worker.ready) == (False, False)
        assert "restarted" in worker.describe()
        with pytest.raises(Restarting):
            asyncio.run(edit(worker, "later"))
    assert editor.prompts == ["lost"]


def test_a_caller_that_leaves_takes_its_edit_along() -> None:
    editor = SlowEditor()

    async def leave(worker: EditorWorker) -> None:
        editor.gate.clear()
        running = asyncio.create_task(edit(worker, "running"))
        while editor.prompts != ["running"]:
            await asyncio.sleep(0.005)
        waiting = asyncio.create_task(edit(worker, "waiting"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        running.cancel()
        await asyncio.gather(running, waiting, return_exceptions=True)
        while editor.running:  # the gate stays shut: only the token can end the edit
            await asyncio.sleep(0.005)
        editor.gate.set()
        await edit(worker, "after")

    with serving(editor) as worker:
        asyncio.run(asyncio.wait_for(leave(worker), 5))
    assert editor.prompts == ["running", "after"]


def test_an_edit_that_does_not_stop_makes_it_dead_until_it_does() -> None:
    editor = SlowEditor()
    editor.deaf = True

    async def give_up(worker: EditorWorker) -> None:
        editor.gate.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(edit(worker, "stuck"), 0.05)

    with serving(editor, stuck_s=0.1) as worker:
        asyncio.run(give_up(worker))
        assert worker.alive
        until(lambda: not worker.alive)
        assert (worker.ready, worker.stuck) == (False, True)
        assert "does not return" in worker.describe()
        with pytest.raises(Restarting):
            asyncio.run(edit(worker, "later"))
        editor.gate.set()
        until(lambda: worker.ready)


def test_nobody_waits_behind_an_edit_that_does_not_stop() -> None:
    editor = SlowEditor()
    editor.deaf = True

    async def pile_up(worker: EditorWorker) -> list[EditResult | BaseException]:
        editor.gate.clear()
        stuck = asyncio.create_task(edit(worker, "stuck"))
        while not editor.running:
            await asyncio.sleep(0.005)
        waiting = [asyncio.create_task(edit(worker, f"behind {i}")) for i in range(3)]
        await asyncio.sleep(0.01)
        stuck.cancel()
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
        assert worker.stuck
        return outcomes

    with serving(editor, stuck_s=0.1) as worker:
        outcomes = asyncio.run(pile_up(worker))
        assert [type(outcome) for outcome in outcomes] == [Restarting] * 3
        editor.gate.set()
        until(lambda: worker.ready)  # it did return in the end
        asyncio.run(edit(worker, "after"))
    assert editor.prompts == ["stuck", "after"]


def test_an_edit_that_stops_late_but_in_time_sends_nobody_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is slow to end, collecting the garbage for example, takes half of the patience there is."""
    monkeypatch.setattr(gpu, "release", lambda error: time.sleep(STUCK_S / 2))
    editor = SlowEditor()

    async def leave(worker: EditorWorker) -> EditResult:
        editor.gate.clear()
        left = asyncio.create_task(edit(worker, "left"))
        while not editor.running:
            await asyncio.sleep(0.005)
        left.cancel()
        behind = asyncio.create_task(edit(worker, "behind", seed=5))
        await asyncio.sleep(STUCK_S * 1.2)
        assert editor.prompts == ["left", "behind"]
        editor.gate.set()
        return await behind

    with serving(editor, stuck_s=STUCK_S) as worker:
        assert asyncio.run(leave(worker)).seed == 5


@pytest.mark.parametrize("ending", ["cancelled", "fail"])
def test_an_edit_that_does_not_finish_leaves_the_stages_it_went_through(ending: str) -> None:
    editor = SlowEditor()
    facts = EditRecord(1, "auto", None, None)

    async def run(worker: EditorWorker) -> None:
        if ending == "cancelled":
            editor.gate.clear()
        task = asyncio.create_task(edit(worker, ending, facts=facts))
        while not facts.steps_done:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with serving(editor) as worker:
        asyncio.run(run(worker))
        until(lambda: not editor.running and bool(facts.stages))
    assert facts.admitted
    assert list(facts.stages) == ["prepare", "denoise", "total"]
    if ending == "cancelled":
        assert facts.stages["denoise"] >= 0.1
    assert facts.stages["total"] == pytest.approx(facts.stages["prepare"] + facts.stages["denoise"])


def test_no_more_than_the_queue_holds_are_admitted() -> None:
    editor = SlowEditor()

    async def crowd(worker: EditorWorker) -> list[EditResult | BaseException]:
        editor.gate.clear()
        edits = [asyncio.create_task(edit(worker, str(i))) for i in range(6)]
        await asyncio.sleep(0.05)
        editor.gate.set()
        return await asyncio.gather(*edits, return_exceptions=True)

    with serving(editor, size=2) as worker:
        outcomes = asyncio.run(crowd(worker))
    assert [type(outcome) for outcome in outcomes] == [EditResult] * 3 + [QueueFull] * 3
    assert editor.prompts == ["0", "1", "2"]


def test_shutting_down_lets_the_running_one_finish() -> None:
    editor = SlowEditor()

    async def shut_down(worker: EditorWorker) -> list[EditResult | BaseException]:
        editor.gate.clear()
        edits = [asyncio.create_task(edit(worker, str(i))) for i in range(3)]
        while not editor.running:
            await asyncio.sleep(0.005)
        worker.shut_down()
        with pytest.raises(ShuttingDown):
            await edit(worker, "later")
        waiting = await asyncio.gather(*edits[1:], return_exceptions=True)
        assert not edits[0].done()
        editor.gate.set()
        return [await edits[0], *waiting]

    with serving(editor) as worker:
        outcomes = asyncio.run(shut_down(worker))
        assert [type(outcome) for outcome in outcomes] == [EditResult, ShuttingDown, ShuttingDown]
        assert (worker.ready, worker.alive, worker.describe()) == (False, True, "shutting down")


@pytest.mark.parametrize(
    ("error", "last_line"),
    [
        (CheckpointError("no config.json in the folder"), "cannot serve: no config.json in the folder"),
        (RuntimeError("CUDA is lost"), "cannot serve: RuntimeError: CUDA is lost"),
    ],
)
def test_a_failed_start_gives_its_reason_last_and_ends_the_process(
    error: Exception, last_line: str, caplog: pytest.LogCaptureFixture
) -> None:
    ended = threading.Event()

    def load() -> SlowEditor:
        raise error

    worker = EditorWorker(load, EditQueue(1), 1, on_failure=ended.set)
    worker.start()
    assert ended.wait(5)
    assert caplog.records[-1].getMessage() == last_line
    until(lambda: not worker.alive)
    assert not worker.ready
    assert worker.describe().startswith("failed")
