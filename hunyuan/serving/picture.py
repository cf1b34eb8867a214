"""One picture of an edit on its way, and its figures in the edit's record as they become known.

Runs on the editor's thread. Its text may have been begun before the edit's turn; when, is decided in `texts_ahead.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from hunyuan.requests import Begun, EditRequest, EditResult, ProgressCallback, Stage
from hunyuan.serving import gpu
from hunyuan.serving.editor_like import EditorLike, SharingEditor
from hunyuan.serving.queue import QueuedEdit
from hunyuan.serving.stage_clock import StageClock
from hunyuan.serving.watching import NOBODY


class Picture:
    """The figures of several add up in the record.

    Attributes:
        begun: its text on its way; None: nothing has been done yet.
        failure: what went wrong before the edit's turn; its turn raises it.
    """

    def __init__(self, request: EditRequest, queued: QueuedEdit) -> None:
        self.request, self.queued = request, queued
        self.clock = StageClock()
        self.begun: Begun | None = None
        self.failure: BaseException | None = None
        self._watcher = queued.watcher or NOBODY
        self._steps_before, self._tokens_before = queued.edit.steps_done, queued.edit.tokens
        self._stages_before = queued.edit.stages
        self._show: ProgressCallback | None = None

    @property
    def thinking(self) -> bool:
        return self.begun is not None and self.begun.thinking

    def begin(self, editor: SharingEditor) -> None:
        """Everything up to the text, which is then decoded beside others; what goes wrong, `paint` raises."""
        watcher, cancel = self._watcher, self.queued.cancel
        try:
            self.begun = editor.begin(self.request, self._progress, cancel, watcher.on_text, watcher.on_preview)
        except BaseException as error:
            self._tell(self.clock.so_far())
            gpu.release(error)
            self.failure = error

    def close(self) -> None:
        """Gives up what was begun, where the edit will have no turn."""
        if self.begun is not None:
            self.begun.close()

    def paint(self, editor: EditorLike, show: ProgressCallback) -> EditResult:
        """The edit has its turn. `show` is told how far the running edit is."""
        edit, watcher, self._show = self.queued.edit, self._watcher, show
        self._look_if_wanted()
        try:
            if self.failure is not None:
                raise self.failure
            if self.begun is not None and isinstance(editor, SharingEditor):
                result = editor.finish(self.begun)
            else:
                result = editor.run(
                    self.request, self._progress, self.queued.cancel, watcher.on_text, watcher.on_preview
                )
        except BaseException:
            self._tell(self.clock.so_far())
            raise
        edit.seed = result.seed if edit.pictures == 0 else edit.seed  # of the first
        edit.steps, edit.output_size = result.steps, result.size
        edit.steps_done, edit.tokens = self._steps_before + result.steps, self._tokens_before + result.tokens
        edit.pictures += 1
        self._tell(result.timings)
        return result

    def _look_if_wanted(self) -> None:
        """Raises what the edit's token says before anything more is done."""
        try:
            self.queued.cancel.check()
        except BaseException:
            if self.begun is not None:
                self._tell(self.clock.so_far())
            self.close()
            raise

    def _tell(self, seconds: Mapping[str, float]) -> None:
        self.queued.edit.tell_stages(self._stages_before, seconds)

    def _progress(self, stage: Stage, done: int, total: int) -> None:
        edit = self.queued.edit
        self.clock.progress(stage, done, total)
        if self._show is not None:
            self._show(stage, done, total)
        else:  # it may end before its turn, without another word from here
            self._tell(self.clock.so_far())
        if stage == "think":
            edit.tokens = self._tokens_before + done
        elif stage == "denoise":
            edit.steps_done = self._steps_before + done
        if self._watcher.on_progress is not None:
            self._watcher.on_progress(stage, done, total)
