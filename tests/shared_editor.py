"""An editor that decodes texts together, pretended, and callers that wait behind each other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from PIL import Image

from hunyuan.errors import HunyuanError
from hunyuan.requests import Begun, CancelToken, EditRequest, EditResult, ProgressCallback
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
        self.error: HunyuanError | None = None

    @property
    def thinking(self) -> bool:
        return self.tokens < TOKENS and self.error is None and self.request.bot_task != "image"

    def step(self) -> None:
        try:
            self.cancel.check()
            self.tokens += 1
            self.on_progress("think", self.tokens, TOKENS)
        except HunyuanError as error:
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
