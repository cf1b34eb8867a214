"""Begins the texts of waiting edits while the running edit's text is decoded, so that all are decoded together.

Runs on the editor's thread. The edits stay in the queue, where their callers may leave, and have their turns in order:
only then are their pictures painted. A text that is not complete when another edit's picture is painted rests
meanwhile. Nothing happens here while nobody waits. How texts are decoded together is the editor's business.
"""

from __future__ import annotations

from hunyuan.errors import HunyuanError
from hunyuan.requests import CancelToken, EditRequest
from hunyuan.serving.editor_like import SharingEditor
from hunyuan.serving.picture import Picture
from hunyuan.serving.queue import EditQueue, QueuedEdit, State


class TextsAhead:
    """What has been begun, by edit. Of an edit with several pictures only the first one's text is begun ahead; the
    others' join those that are still being decoded.
    """

    def __init__(self, editor: SharingEditor, queue: EditQueue) -> None:
        self._editor, self._queue = editor, queue
        self._begun: dict[QueuedEdit, Picture] = {}

    def turn_of(self, request: EditRequest, queued: QueuedEdit) -> Picture:
        """The picture of an edit that has its turn, its text begun where others can be decoded beside it.

        What goes wrong with one text is raised when its own picture is painted.
        """
        self.forget_the_gone()
        self._skip()
        picture = self._begun.pop(queued, None)
        if picture is not None:  # what was worked on is no waiting
            queued.edit.queue_s = max(0.0, (queued.edit.queue_s or 0.0) - picture.clock.so_far()["total"])
        else:
            picture = Picture(request, queued)
            if self._editor.text_places > 0 and (self._resting() or self._company(1)):
                picture.begin(self._editor)
        if picture.thinking:
            self._begin_others(queued)
            self._skip()
            # The others' prompts are no stage of this edit: it waits for them.
            queued.edit.queue_s = (queued.edit.queue_s or 0.0) + picture.clock.skip()
        return picture

    def forget_the_gone(self) -> None:
        """Gives up what was begun for edits whose callers have left."""
        for queued in [queued for queued in self._begun if queued.state is State.ENDED]:
            self._begun.pop(queued).close()

    def _begin_others(self, running: QueuedEdit) -> None:
        for waiting in self._company(self._editor.text_places):
            if _is_over(running.cancel):
                return
            if waiting.state is not State.ENDED:
                self._begun[waiting] = Picture(waiting.requests[0], waiting)
                self._begun[waiting].begin(self._editor)

    def _skip(self) -> None:
        """What has happened since their last tokens is not their time."""
        for other in self._begun.values():
            other.clock.skip()

    def _resting(self) -> bool:
        """Whether a text has been begun and is not complete."""
        return any(picture.thinking for picture in self._begun.values())

    def _company(self, most: int) -> list[QueuedEdit]:
        """The next in line whose text has not been begun."""
        new = [queued for queued in self._queue.waiting(most + len(self._begun)) if queued not in self._begun]
        return new[:most]


def _is_over(cancel: CancelToken) -> bool:
    try:
        cancel.check()
    except HunyuanError:
        return True
    return False
