"""Whose text is begun when, and that a waiting edit stays one: its place, its caller, its turn."""

from __future__ import annotations

import asyncio
from typing import Any

from shared_editor import TOKENS, Callers, SharedEditor, Text, first_paints, serving, until

from hunyuan.requests import Begun, EditRequest
from hunyuan.serving.editor_like import SharingEditor
from hunyuan.serving.http_errors import ShuttingDown
from hunyuan.serving.queue import EditQueue
from hunyuan.serving.worker import EditorWorker


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
