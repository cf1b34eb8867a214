"""What the service needs of `hunyuan.editor.Editor`, as protocols: it imports no editor."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from hunyuan.requests import (
    Begun,
    CancelToken,
    EditRequest,
    EditResult,
    PreviewCallback,
    ProgressCallback,
    TextCallback,
)


class EditorLike(Protocol):
    """Makes one picture after the other."""

    @property
    def model_name(self) -> str: ...

    @property
    def notice(self) -> str | None: ...

    @property
    def high_steps(self) -> int: ...

    def run(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> EditResult: ...

    def warm_up(self) -> object: ...


@runtime_checkable
class SharingEditor(Protocol):
    """May decode the texts of several edits together; see `Editor.begin`."""

    @property
    def text_places(self) -> int: ...

    def begin(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> Begun: ...

    def finish(self, begun: Begun) -> EditResult: ...
