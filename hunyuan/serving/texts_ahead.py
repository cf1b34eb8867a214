"""Begins the texts of waiting edits while the running edit's text is decoded, so that all are decoded together.

Runs on the editor's thread. The edits stay in the queue, where their callers may leave, and have their turns in order:
only then are their pictures painted. A text that is not complete when another edit's picture is painted rests
meanwhile. Nothing happens here while nobody waits. How texts are decoded together is the editor's business.
"""

from __future__ import annotations

from hunyuan.requests import EditRequest
from hunyuan.serving import gpu
from hunyuan.serving.editor_like import SharingEditor
from hunyuan.serving.picture import Picture
from hunyuan.serving.queue import EditQueue, QueuedEdit, State


class TextsAhead:
    """What has been begun, by edit. Of an edit with several pictures only the first one's text is begun ahead."""

    def __init__(self, editor: SharingEditor, queue: EditQueue) -> None:
        self._editor, self._queue = editor, queue
        self._begun: dict[QueuedEdit, Picture] = {}

    def turn_of(self, request: EditRequest, queued: QueuedEdit) -> Picture:
        """The picture of an edit that has its turn, its text begun where others can be decoded beside it.

        What goes wrong with one text is raised when its own picture is painted.
        """
        self.forget_the_gone()
        for other in self._begun.values():
            other.clock.skip()
        picture = self._begun.pop(queued, None)
        if picture is not None:  # what was worked on is no waiting
            queued.edit.queue_s = max(0.0, (queued.edit.queue_s or 0.0) - picture.clock.so_far()["total"])
        else:
            picture = Picture(request, queued)
            if self._editor.text_places > 0 and self._company(1):
                self._begin(picture)
        if picture.thinking:
            for waiting in self._company(self._editor.text_places):
                self._begun[waiting] = Picture(waiting.requests[0], waiting)
                self._begin(self._begun[waiting])
        return picture

    def forget_the_gone(self) -> None:
        """Gives up what was begun for edits whose callers have left."""
        for queued in [queued for queued in self._begun if queued.state is State.ENDED]:
            picture = self._begun.pop(queued)
            if picture.begun is not None:
                picture.begun.close()

    def _company(self, most: int) -> list[QueuedEdit]:
        """The next in line whose text has not been begun."""
        new = [queued for queued in self._queue.waiting(most + len(self._begun)) if queued not in self._begun]
        return new[:most]

    def _begin(self, picture: Picture) -> None:
        try:
            picture.begin(self._editor)
        except BaseException as error:
            gpu.release(error)
            picture.failure = error
