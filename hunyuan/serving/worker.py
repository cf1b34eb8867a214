"""The one thread that owns the editor: it loads it, warms it up, then runs one edit after the other.

Knows threads, failures and the state of the process. Who waits and in which order is `queue.py`; HTTP is elsewhere.
One request's failure leaves the next untouched; a failure that no later request could survive makes `alive` false,
so that whoever watches /livez starts a new process.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from hunyuan.errors import HunyuanError, OutOfMemory
from hunyuan.requests import CancelToken, EditRequest, EditResult, ProgressCallback
from hunyuan.serving import gpu
from hunyuan.serving.editor_like import EditorLike, SharingEditor
from hunyuan.serving.http_errors import Loading, Restarting, ShuttingDown
from hunyuan.serving.picture import Picture
from hunyuan.serving.queue import EditQueue, QueuedEdit, State
from hunyuan.serving.records import EditRecord, GpuMemory
from hunyuan.serving.texts_ahead import TextsAhead
from hunyuan.serving.watching import NOBODY

logger = logging.getLogger(__name__)

POLL_S = 0.05


class EditorWorker:
    """Owns the editor.

    Args:
        load: builds the editor; called on the worker's own thread.
        queue: where the edits come from.
        stuck_s: how long an edit may go on after its caller has gone before `alive` turns false.
        on_failure: called when loading or warming up has failed, after the reason was logged.
        on_ready: called once, with the line that says what is served.
        on_progress: told how far the running edit is; called on the editor's thread for every token and step.
    """

    def __init__(
        self,
        load: Callable[[], EditorLike],
        queue: EditQueue,
        stuck_s: float,
        on_failure: Callable[[], None],
        on_ready: Callable[[str], None] = lambda serving: None,
        on_progress: ProgressCallback = lambda stage, done, total: None,
    ) -> None:
        self._load = load
        self._queue = queue
        self._stuck_s = stuck_s
        self._on_failure = on_failure
        self._on_ready = on_ready
        self._on_progress = on_progress
        self._editor: EditorLike | None = None
        self._ahead: TextsAhead | None = None
        self._phase = "loading"
        self._lost = self._closing = False
        # A daemon: a process told to stop while it loads 160 GB must not wait for them.
        self._thread = threading.Thread(target=self._main, name="editor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def shut_down(self) -> None:
        """Waiting requests get their 503 now, later ones when they come; the running one finishes."""
        self._closing = True
        self._queue.close(ShuttingDown)

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        return self._editor is not None and self.alive and not self._closing

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._lost and not self.stuck

    @property
    def stuck(self) -> bool:
        return self._queue.overdue_s() > self._stuck_s

    @property
    def model_name(self) -> str | None:
        """None until the editor is ready."""
        return self._editor.model_name if self._editor else None

    @property
    def high_steps(self) -> int | None:
        """Denoising steps for the best quality; None until the editor is ready."""
        return self._editor.high_steps if self._editor else None

    def ahead_of(self, queued: QueuedEdit) -> int:
        """See `EditQueue.ahead_of`."""
        return self._queue.ahead_of(queued)

    def describe(self) -> str:
        """One line on what is being served, or why nothing is."""
        if self._closing:
            return "shutting down"
        if self._lost:
            return "the GPU's state is lost; this process has to be restarted"
        if self.stuck:
            return "the running edit does not return; this process has to be restarted"
        if self._editor is None:
            return self._phase
        name, notice = self._editor.model_name, self._editor.notice
        return name if notice is None else f"{name}: {notice}"

    def require_usable(self) -> None:
        """Raises what a request that comes now gets without waiting."""
        if self._closing:
            raise ShuttingDown
        if self._editor is None:
            raise Loading(f"the model is not ready yet ({self._phase}); GET /readyz tells when it is")
        if not self.alive:
            raise _restarting()

    # -- the event loop's side ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def place(self, cancel: CancelToken, edit: EditRecord) -> AsyncIterator[QueuedEdit]:
        """Holds a place in the queue for as long as the caller is inside.

        Raises:
            QueueFull, Loading, ShuttingDown, Restarting: there is no place to be had.
        """
        self.require_usable()
        queued = QueuedEdit(cancel, edit)
        self._queue.admit(queued)
        edit.admitted = True
        try:
            self.require_usable()  # again: between the two, those who wait may have been sent away
            yield queued
        finally:
            if self._queue.leave(queued):
                asyncio.get_running_loop().call_later(self._stuck_s, self._look_after, queued)

    async def run(self, queued: QueuedEdit, *requests: EditRequest) -> EditResult:
        """Waits for the thread and for the edit; several requests run one after the other, the last result is told."""
        self._queue.put(queued, *requests)
        return await asyncio.wrap_future(queued.done)

    def _look_after(self, left: QueuedEdit) -> None:
        """Called when `left` should have stopped long ago. If it has not, nobody needs to wait behind it."""
        if left.state is State.ENDED:
            return
        if not self.stuck:  # called a moment too early
            asyncio.get_running_loop().call_later(POLL_S, self._look_after, left)
            return
        logger.critical("the running edit does not return; this process takes no work and has to be restarted")
        self._queue.send_away(_restarting)

    # -- the thread's side -------------------------------------------------------------------------------------

    def _main(self) -> None:
        editor = self._bring_up()
        if editor is None:
            self._phase = "failed; the log has the reason"
            self._on_failure()
            return
        self._editor = editor
        self._on_ready(self.describe())
        if isinstance(editor, SharingEditor) and editor.text_places > 0:
            self._ahead = TextsAhead(editor, self._queue)
        while True:
            queued = self._queue.next()
            self._queue.end(queued, self._outcome(queued, editor))
            self._forget_the_gone()

    def _bring_up(self) -> EditorLike | None:
        try:
            editor = self._load()
            logger.info("loaded %s; warming up", editor.model_name)
            self._phase = "warming up"
            editor.warm_up()
        except HunyuanError as error:
            logger.critical("cannot serve: %s", error)
        except BaseException as error:
            logger.exception("loading failed")
            logger.critical("cannot serve: %s: %s", type(error).__name__, error)
        else:
            return editor
        return None

    def _outcome(self, queued: QueuedEdit, editor: EditorLike) -> EditResult | BaseException:
        """Whatever happens, the caller hears of it and the thread goes on."""
        try:
            return _run(queued, editor, self._on_progress, self._ahead)
        except BaseException as error:
            self._note_if_lost(error)
            failure = _as_out_of_memory(error)
            gpu.release(error)
            return failure

    def _forget_the_gone(self) -> None:
        """The rows of edits that have ended go back now, not only when another has its turn."""
        try:
            if self._ahead is not None:
                self._ahead.forget_the_gone()
        except BaseException as error:
            logger.exception("giving up the text of an edit that has ended failed")
            self._note_if_lost(error)
            gpu.release(error)

    def _note_if_lost(self, error: BaseException) -> None:
        if gpu.is_lost(error):
            self._lost = True
            logger.critical("the GPU's state is lost; this process takes no more work and has to be restarted")
            self._queue.close(_restarting)


def _run(queued: QueuedEdit, editor: EditorLike, show: ProgressCallback, ahead: TextsAhead | None) -> EditResult:
    """One edit, with its figures written down as they become known; its last picture."""
    edit, watcher = queued.edit, queued.watcher or NOBODY
    requests, queued.requests = queued.requests, ()  # their pictures go when the edit is over, not its answer
    before = gpu.memory_used()
    gpu.forget_peak()
    try:
        for request in requests:
            picture = Picture(request, queued) if ahead is None else ahead.turn_of(request, queued)
            result = picture.paint(editor, show)
            if watcher.on_result is not None:
                watcher.on_result(result)
    finally:
        after, peak = gpu.memory_used(), gpu.memory_peak()
        edit.gpu_memory = tuple(GpuMemory(i, before.get(i, 0), after[i], peak.get(i, after[i])) for i in after)
    return result


def _as_out_of_memory(error: BaseException) -> BaseException:
    """An engine may not know that its allocator's error is an everyday one."""
    if isinstance(error, HunyuanError) or not gpu.is_out_of_memory(error):
        return error
    failure = OutOfMemory("the server ran out of memory on this request; try a smaller resolution")
    failure.__cause__ = error
    return failure


def _restarting() -> Restarting:
    return Restarting("this server cannot go on and is about to be restarted; try again later")
