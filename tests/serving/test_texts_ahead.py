"""Whose text is begun when, and that a waiting edit stays one: its place, its caller, its turn."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from PIL import Image

from hunyuan.errors import Cancelled
from hunyuan.requests import Begun, CancelToken, EditRequest, EditResult, ProgressCallback
from hunyuan.serving.editor_like import SharingEditor
from hunyuan.serving.http_errors import ShuttingDown
from hunyuan.serving.queue import EditQueue, QueuedEdit
from hunyuan.serving.records import EditRecord
from hunyuan.serving.watching import Watcher
from hunyuan.serving.worker import EditorWorker

TOKENS = 3  # of each text


class Text:
    """A text of `TOKENS` tokens."""

    def __init__(self, editor: SharedEditor, request: EditRequest, on_progress: Any, cancel: CancelToken) -> None:
        self.editor, self.request, self.on_progress, self.cancel = editor, request, on_progress, cancel
        self.tokens, self.closed = 0, False
        self.error: Cancelled | None = None

    @property
    def thinking(self) -> bool:
        return self.tokens < TOKENS and self.error is None and self.request.bot_task != "image"

    def step(self) -> None:
        try:
            self.cancel.check()
            self.tokens += 1
            self.on_progress("think", self.tokens, TOKENS)
        except Cancelled as error:
            self.error = error

    def close(self) -> None:
        self.closed = True


class SharedEditor:
    """Notes what it is asked for, in order; `gate` holds it up before the first picture is painted."""

    model_name, notice, high_steps = "shared", None, 50

    def __init__(self, places: int = 3) -> None:
        self.places, self.texts, self.log = places, list[Text](), list[str]()
        self.together: list[int] = []
        self.painting: dict[str, Callable[[], object]] = {}  # by prompt: called while its picture is painted
        self.gate = threading.Event()
        self.gate.set()

    def warm_up(self) -> None:
        pass

    @property
    def text_places(self) -> int:
        return self.places - sum(not text.closed for text in self.texts)

    def begin(self, request: EditRequest, on_progress: ProgressCallback, cancel: CancelToken, *_: object) -> Begun:
        self.log.append(f"begin {request.prompt}")
        if request.prompt == "bad":
            raise ValueError("bad")
        assert self.text_places > 0
        self.texts.append(Text(self, request, on_progress, cancel))
        return self.texts[-1]

    def finish(self, text: Text) -> EditResult:
        assert not text.closed
        try:
            while text.thinking:
                at_work = [other for other in self.texts if other.thinking and not other.closed]
                self.together.append(len(at_work))
                for other in at_work:
                    other.step()
            if text.error is not None:
                raise text.error
            return self._paint(text.request, text.on_progress)
        finally:
            text.close()

    def run(self, request: EditRequest, on_progress: ProgressCallback, *_: object) -> EditResult:
        self.log.append(f"run {request.prompt}")
        return self._paint(request, on_progress)

    def _paint(self, request: EditRequest, on_progress: ProgressCallback) -> EditResult:
        self.log.append(f"paint {request.prompt}")
        on_progress("denoise", 1, 4)
        assert self.gate.wait(30)
        self.painting.get(request.prompt, lambda: None)()
        return EditResult(Image.new("RGB", (16, 16)), None, request.seed or 0, (16, 16), 4, TOKENS, {"think": 0.5})


@contextmanager
def serving(editor: SharedEditor, size: int = 30) -> Iterator[tuple[EditorWorker, EditQueue]]:
    queue = EditQueue(size)
    worker = EditorWorker(lambda: editor, queue, 60, on_failure=lambda: None)
    worker.start()
    until(lambda: worker.ready)
    try:
        yield worker, queue
    finally:
        editor.gate.set()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


class Callers:
    """Edits one behind the other; the first one paints until `editor.gate` opens."""

    def __init__(self, worker: EditorWorker) -> None:
        self.worker = worker
        self.tasks: dict[str, asyncio.Task[EditResult]] = {}
        self.places: dict[str, QueuedEdit] = {}
        self.heard: dict[str, list[tuple[str, int]]] = {}

    async def add(self, prompt: str, *more: EditRequest, **fields: Any) -> None:
        self.tasks[prompt] = asyncio.create_task(self._edit(EditRequest(prompt, **fields), *more))
        while prompt not in self.places or self.places[prompt].queued_at is None:
            await asyncio.sleep(0.001)

    async def _edit(self, request: EditRequest, *more: EditRequest) -> EditResult:
        heard = self.heard[request.prompt] = []
        async with self.worker.place(CancelToken(), EditRecord(1, "auto", None, None)) as queued:
            queued.watcher = Watcher(lambda stage, done, total: heard.append((stage, done)))
            self.places[request.prompt] = queued
            return await self.worker.run(queued, request, *more)

    async def leave(self, prompt: str) -> None:
        self.tasks[prompt].cancel()
        await asyncio.gather(self.tasks[prompt], return_exceptions=True)

    async def outcomes(self) -> list[str]:
        results = await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        return [type(result).__name__ for result in results]


@asynccontextmanager
async def first_paints(editor: SharedEditor, worker: EditorWorker, *prompts: str) -> AsyncIterator[Callers]:
    """An edit `x` alone is being painted, the others wait behind it; the gate opens at the end."""
    callers = Callers(worker)
    editor.gate.clear()
    await callers.add("x")
    while "paint x" not in editor.log:
        await asyncio.sleep(0.001)
    for prompt in prompts:
        await callers.add(prompt)
    yield callers
    editor.gate.set()


def test_the_stub_is_what_the_worker_looks_for() -> None:
    assert isinstance(SharedEditor(), SharingEditor)


def test_whoever_is_alone_is_served_as_ever() -> None:
    editor = SharedEditor()

    async def one_by_one(worker: EditorWorker) -> None:
        for prompt in ("a", "b"):
            callers = Callers(worker)
            await callers.add(prompt)
            assert await callers.outcomes() == ["EditResult"]

    with serving(editor) as (worker, _):
        asyncio.run(one_by_one(worker))
    assert editor.log == ["run a", "paint a", "run b", "paint b"]


def test_texts_of_those_who_wait_are_begun_together_and_painted_in_order() -> None:
    editor = SharedEditor(places=3)

    async def many(worker: EditorWorker) -> list[str]:
        async with first_paints(editor, worker, "a", "b", "c", "d") as callers:
            pass
        outcomes = await callers.outcomes()
        thoughts = [("think", i + 1) for i in range(TOKENS)]
        assert [callers.heard[prompt] for prompt in "abc"] == [[*thoughts, ("denoise", 1)]] * 3
        for prompt in "abcd":
            record = callers.places[prompt].edit
            assert (record.pictures, record.tokens, record.steps_done) == (1, TOKENS, 4)
            assert record.stages["think"] == 0.5
            assert record.queue_s is not None
            assert record.queue_s >= 0
        return outcomes

    with serving(editor) as (worker, _):
        assert asyncio.run(many(worker)) == ["EditResult"] * 5
    begun = ["begin a", "begin b", "begin c", "paint a", "paint b", "paint c"]
    assert editor.log == ["run x", "paint x", *begun, "run d", "paint d"]
    assert editor.together == [3] * TOKENS
    assert all(text.closed for text in editor.texts)


def test_places_in_the_queue_are_told_as_they_are() -> None:
    editor, seen = SharedEditor(), dict[str, int]()

    async def look(worker: EditorWorker, queue: EditQueue) -> None:
        async with first_paints(editor, worker, "a", "b", "c") as callers:

            def look() -> None:
                seen.update({name: worker.ahead_of(place) for name, place in callers.places.items()})
                seen["depth"], seen["started"] = queue.depth, callers.places["b"].started_at is not None

            editor.painting["a"] = look
        assert await callers.outcomes() == ["EditResult"] * 4

    with serving(editor) as (worker, queue):
        asyncio.run(look(worker, queue))
    assert seen == {"x": 0, "a": 0, "b": 1, "c": 2, "depth": 2, "started": False}


def test_one_that_cannot_begin_fails_at_its_turn_and_alone() -> None:
    editor = SharedEditor()

    async def many(worker: EditorWorker) -> list[str]:
        async with first_paints(editor, worker, "a", "bad", "c") as callers:
            pass
        return await callers.outcomes()

    with serving(editor) as (worker, _):
        assert asyncio.run(many(worker)) == ["EditResult", "EditResult", "ValueError", "EditResult"]
        assert worker.alive
    assert editor.log == ["run x", "paint x", "begin a", "begin bad", "begin c", "paint a", "paint c"]


def test_a_caller_that_leaves_takes_its_text_along() -> None:
    editor, gone = SharedEditor(), list[bool]()

    async def leave(worker: EditorWorker) -> list[str]:
        loop = asyncio.get_running_loop()
        async with first_paints(editor, worker, "a", "b", "c") as callers:

            def left() -> None:
                loop.call_soon_threadsafe(callers.tasks["b"].cancel)
                until(lambda: callers.places["b"].cancel.cancelled)
                gone.append(any(text.request.prompt == "b" and not text.closed for text in editor.texts))

            editor.painting["a"] = left
        return await callers.outcomes()

    with serving(editor) as (worker, _):
        assert asyncio.run(leave(worker)) == ["EditResult", "EditResult", "CancelledError", "EditResult"]
    assert gone == [True]  # its row is given back when the turn is over
    assert "paint b" not in editor.log
    assert editor.text_places == 3


def test_one_that_leaves_while_texts_are_decoded_costs_no_token_more() -> None:
    editor = SharedEditor()

    async def leave(worker: EditorWorker) -> list[str]:
        async with first_paints(editor, worker, "a", "b") as callers:
            began = editor.begin

            def begin(request: EditRequest, *rest: Any) -> Begun:
                begun = began(request, *rest)
                if request.prompt == "b":
                    worker._queue.leave(callers.places["b"])
                return begun

            editor.begin = begin  # type: ignore[method-assign]
        await asyncio.gather(callers.tasks["a"])
        callers.tasks["b"].cancel()
        return await callers.outcomes()

    with serving(editor) as (worker, _):
        assert asyncio.run(leave(worker)) == ["EditResult", "EditResult", "CancelledError"]
        until(lambda: editor.text_places == 3)
    assert [text.tokens for text in editor.texts] == [TOKENS, 0]


def test_a_text_that_is_not_complete_goes_on_when_the_next_edit_has_its_turn() -> None:
    editor = SharedEditor()

    async def many(worker: EditorWorker) -> list[str]:
        async with first_paints(editor, worker, "a", "b") as callers:
            pass
        return await callers.outcomes()

    original = editor.begin

    def begin(request: EditRequest, *rest: Any) -> Begun:
        begun = original(request, *rest)
        assert isinstance(begun, Text)
        if request.prompt == "b":
            begun.tokens = -2  # has more to say
        return begun

    editor.begin = begin  # type: ignore[method-assign]
    with serving(editor) as (worker, _):
        assert asyncio.run(many(worker)) == ["EditResult"] * 3
    assert editor.together == [2] * TOKENS + [1] * 2


def test_without_a_text_of_its_own_an_edit_begins_nobody_elses() -> None:
    editor = SharedEditor()

    async def many(worker: EditorWorker) -> list[str]:
        async with first_paints(editor, worker) as callers:
            await callers.add("picture", bot_task="image")
            await callers.add("a")
        return await callers.outcomes()

    with serving(editor) as (worker, _):
        assert asyncio.run(many(worker)) == ["EditResult"] * 3
    assert editor.log == ["run x", "paint x", "begin picture", "paint picture", "run a", "paint a"]


def test_of_several_pictures_the_first_is_begun_ahead() -> None:
    editor = SharedEditor()

    async def many(worker: EditorWorker) -> list[str]:
        async with first_paints(editor, worker, "a") as callers:
            await callers.add("b", EditRequest("b2"))
        assert await callers.outcomes() == ["EditResult"] * 3
        assert callers.places["b"].edit.pictures == 2
        return editor.log

    with serving(editor) as (worker, _):
        log = asyncio.run(many(worker))
    assert log == ["run x", "paint x", "begin a", "begin b", "paint a", "paint b", "run b2", "paint b2"]


def test_shutting_down_ends_texts_whose_edits_will_have_no_turn() -> None:
    editor = SharedEditor()

    async def stop(worker: EditorWorker) -> list[str]:
        async with first_paints(editor, worker, "a", "b") as callers:
            editor.painting["a"] = worker.shut_down
        return await callers.outcomes()

    with serving(editor) as (worker, _):
        assert asyncio.run(stop(worker)) == ["EditResult", "EditResult", ShuttingDown.__name__]
        until(lambda: all(text.closed for text in editor.texts))
        assert all(text.cancel.cancelled for text in editor.texts if text.request.prompt == "b")
