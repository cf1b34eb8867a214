"""Texts begun early: whose time is whose, what is told of an edit that has no turn, and what a failure leaves."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from shared_editor import TOKENS, Callers, SharedEditor, Text, first_paints, serving, until

from hunyuan.requests import Begun, CancelToken, EditRequest
from hunyuan.serving import gpu
from hunyuan.serving.records import EditRecord
from hunyuan.serving.worker import EditorWorker

SLOW_S = 0.3


class SlowToBegin(SharedEditor):
    """A prompt takes `SLOW_S`."""

    def begin(self, request: EditRequest, on_progress: Any, cancel: CancelToken, *rest: object) -> Begun:
        on_progress("prefill", 0, 1)
        time.sleep(SLOW_S)
        on_progress("prefill", 1, 1)
        return super().begin(request, on_progress, cancel, *rest)


def test_the_prompts_of_others_are_waiting_time() -> None:
    editor = SlowToBegin(places=4)

    async def many(worker: EditorWorker) -> Callers:
        async with first_paints(editor, worker, "a", "b", "c", "d") as callers:
            pass
        assert await callers.outcomes() == ["EditResult"] * 5
        return callers

    with serving(editor) as (worker, _):
        callers = asyncio.run(many(worker))
    records = {prompt: place.edit for prompt, place in callers.places.items()}
    assert editor.log[2:6] == ["begin a", "begin b", "begin c", "begin d"]
    assert all(record.queue_s is not None for record in records.values())
    # a has its turn at once and then waits for three prompts; b has its turn after all four, its own aside.
    assert 3 * SLOW_S <= (records["a"].queue_s or 0.0) < 4 * SLOW_S
    assert 3 * SLOW_S <= (records["b"].queue_s or 0.0) < 4 * SLOW_S


def test_the_clock_of_a_failed_edit_leaves_the_others_prompts_out() -> None:
    """As above; here the stages are the service's own, since no result tells them."""
    editor = SlowToBegin(places=4)

    def fail() -> None:
        raise ValueError("no picture")

    editor.painting = {"a": fail, "b": fail}

    async def many(worker: EditorWorker) -> Callers:
        async with first_paints(editor, worker, "a", "b", "c", "d") as callers:
            pass
        assert await callers.outcomes() == ["EditResult", "ValueError", "ValueError", "EditResult", "EditResult"]
        return callers

    with serving(editor) as (worker, _):
        callers = asyncio.run(many(worker))
    for prompt in "ab":
        stages = callers.places[prompt].edit.stages
        assert SLOW_S <= stages["prefill"] < 2 * SLOW_S
        assert stages["total"] < 2 * SLOW_S
        assert stages["think"] < SLOW_S


def test_one_that_leaves_before_its_turn_has_figures() -> None:
    editor = SlowToBegin()

    async def leave(worker: EditorWorker) -> EditRecord:
        loop = asyncio.get_running_loop()
        async with first_paints(editor, worker, "a", "b") as callers:

            def left() -> None:
                loop.call_soon_threadsafe(callers.tasks["b"].cancel)
                until(lambda: callers.places["b"].cancel.cancelled)

            editor.painting["a"] = left
        assert await callers.outcomes() == ["EditResult", "EditResult", "CancelledError"]
        return callers.places["b"].edit

    with serving(editor) as (worker, _):
        record = asyncio.run(leave(worker))
    assert record.tokens == TOKENS
    assert SLOW_S <= record.stages["prefill"] <= record.stages["total"]
    assert record.queue_s is not None
    assert record.queue_s >= 0


def test_a_deadline_that_passes_before_the_turn_leaves_figures_and_no_row() -> None:
    editor = SlowToBegin()

    async def late(worker: EditorWorker) -> EditRecord:
        async with first_paints(editor, worker, "a", "b") as callers:

            def pass_deadline() -> None:
                callers.places["b"].cancel.deadline = time.monotonic() - 1

            editor.painting["a"] = pass_deadline
        assert await callers.outcomes() == ["EditResult", "EditResult", "DeadlineExceeded"]
        return callers.places["b"].edit

    with serving(editor) as (worker, _):
        record = asyncio.run(late(worker))
        until(lambda: editor.text_places == 3)
    assert SLOW_S <= record.stages["prefill"] <= record.stages["total"] < 2 * SLOW_S
    assert "paint b" not in editor.log


def test_an_edit_that_is_over_begins_nobody_else() -> None:
    editor = SharedEditor(places=4)

    async def stop(worker: EditorWorker) -> list[str]:
        async with first_paints(editor, worker, "a", "b", "c") as callers:
            began = editor.begin

            def begin(request: EditRequest, *rest: Any) -> Begun:
                begun = began(request, *rest)
                if request.prompt == "b":
                    callers.places["a"].cancel.cancel()
                return begun

            editor.begin = begin  # type: ignore[method-assign]
        return await callers.outcomes()

    with serving(editor) as (worker, _):
        assert asyncio.run(stop(worker)) == ["EditResult", "Cancelled", "EditResult", "EditResult"]
    assert editor.log[2:5] == ["begin a", "begin b", "begin c"]
    assert editor.together[0] == 2  # b and c, at b's turn: c was not begun at a's


def test_a_second_picture_joins_the_texts_that_rest() -> None:
    editor = SharedEditor(places=3)
    original = editor.begin

    def begin(request: EditRequest, *rest: Any) -> Begun:
        begun = original(request, *rest)
        assert isinstance(begun, Text)
        if request.prompt == "b":
            begun.tokens = -TOKENS  # has more to say
        return begun

    editor.begin = begin  # type: ignore[method-assign]

    async def many(worker: EditorWorker) -> None:
        async with first_paints(editor, worker) as callers:
            await callers.add("a", EditRequest("a2"))
            await callers.add("b")
        assert await callers.outcomes() == ["EditResult"] * 3

    with serving(editor) as (worker, _):
        asyncio.run(many(worker))
    assert editor.log[2:] == ["begin a", "begin b", "paint a", "begin a2", "paint a2", "paint b"]
    assert editor.together == [2] * TOKENS + [2] * TOKENS


@pytest.mark.parametrize("lost", [False, True])
def test_a_row_that_cannot_be_given_back_is_said_and_ends_no_thread(
    lost: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = SharedEditor()
    broken = RuntimeError("CUDA error: an illegal memory access was encountered" if lost else "broken")

    async def leave(worker: EditorWorker) -> list[str]:
        loop = asyncio.get_running_loop()
        async with first_paints(editor, worker, "a", "b") as callers:

            def left() -> None:
                text = next(text for text in editor.texts if text.request.prompt == "b")

                def fail() -> None:
                    raise broken

                monkeypatch.setattr(text, "close", fail)
                loop.call_soon_threadsafe(callers.tasks["b"].cancel)
                until(lambda: callers.places["b"].cancel.cancelled)

            editor.painting["a"] = left
        outcomes = await callers.outcomes()
        await asyncio.to_thread(until, lambda: "giving up the text" in caplog.text)
        assert worker._thread.is_alive()
        if lost:
            await asyncio.to_thread(until, lambda: not worker.alive)
            return outcomes
        later = Callers(worker)
        await later.add("e")
        return outcomes + await later.outcomes()

    with serving(editor) as (worker, _):
        served = ["EditResult", "EditResult", "CancelledError"]
        assert asyncio.run(leave(worker)) == served + ["EditResult"] * (not lost)


def test_a_gpu_that_came_into_use_late_has_its_memory_for_a_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([{0: 5}, {0: 6, 1: 7}])
    monkeypatch.setattr(gpu, "memory_used", lambda: next(used))
    monkeypatch.setattr(gpu, "memory_peak", lambda: {0: 9})
    editor = SharedEditor()

    async def one(worker: EditorWorker) -> EditRecord:
        callers = Callers(worker)
        await callers.add("a")
        assert await callers.outcomes() == ["EditResult"]
        return callers.places["a"].edit

    with serving(editor) as (worker, _):
        record = asyncio.run(one(worker))
    assert [(m.gpu, m.before, m.after, m.peak) for m in record.gpu_memory] == [(0, 5, 6, 9), (1, 0, 7, 7)]
