"""Shows a running edit on the terminal: a bar per stage, and the text as it is thought.

Knows tqdm and standard error; what the stages are called is the caller's. Where standard error is no terminal there are
no bars, and the text comes all the same.
"""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm


class Progress:
    """The two callbacks of `Editor.run`; use it in a `with`, so that the last bar ends whatever happens."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet, self.stage = quiet, ""
        self.bar: tqdm | None = None
        self.in_text = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` of this stage's tokens or steps."""
        if self.quiet:
            return
        if stage != self.stage:
            self._end()
            self.stage = stage
        if self.in_text:  # the text itself shows how far it is
            return
        if self.bar is None:
            self.bar = tqdm(total=total, desc=stage, leave=True, disable=None, file=sys.stderr)
        self.bar.update(done - self.bar.n)

    def on_text(self, piece: str) -> None:
        """The next piece of what the model thinks."""
        if self.quiet:
            return
        if not self.in_text:
            self._close_bar(leave=False)
            self.in_text = True
        print(piece, end="", file=sys.stderr, flush=True)

    def _end(self) -> None:
        self._close_bar(leave=True)
        if self.in_text:
            print(file=sys.stderr)
            self.in_text = False

    def _close_bar(self, leave: bool) -> None:
        if self.bar is not None:
            self.bar.leave = leave
            self.bar.close()
            self.bar = None
