"""Who hears of an edit while it runs.

Plain callbacks, called on the editor's thread: each must be quick and raise nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hunyuan.requests import EditResult, PreviewCallback, ProgressCallback, TextCallback


@dataclass(frozen=True)
class Watcher:
    """What somebody wants to be told. None: not that.

    Attributes:
        on_result: called with each picture of a request, in order.
    """

    on_progress: ProgressCallback | None = None
    on_text: TextCallback | None = None
    on_preview: PreviewCallback | None = None
    on_result: Callable[[EditResult], None] | None = None


NOBODY = Watcher()
