"""Says which of our Triton kernels are compiled in this process, when, and what it took.

Triton compiles a kernel when it is first called with new constants. Warm-up is meant to call them all; one that is
compiled later makes a request wait, and must not do so in silence. Knows no kernel, and imports Triton only when it is
told to watch. There is one listener per process, because Triton has one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)


@dataclass
class CompileWatch:
    """What was compiled since the last report.

    Attributes:
        names: kernels that were compiled, one entry a variant.
        seconds: what that took, the C stub that starts a kernel not included.
        from_cache: kernels that were read from `TRITON_CACHE_DIR` instead.
    """

    names: list[str] = field(default_factory=list)
    seconds: float = 0.0
    from_cache: int = 0

    def start(self) -> None:
        """Has Triton tell from now on. Raises `ImportError` without Triton."""
        import triton

        triton.knobs.compilation.listener = self.note

    def note(self, *, metadata: dict[str, Any], times: Any, cache_hit: bool, **_: Any) -> None:
        """Called by Triton, in the thread that compiles. `times` are microseconds."""
        if cache_hit:
            self.from_cache += 1
        else:
            self.names.append(metadata["name"])
            self.seconds += times.total / 1e6

    def report(self, while_what: str) -> None:
        """Logs what is new, if anything, and forgets it."""
        if self.names or self.from_cache:
            log.info(
                "%s: %d kernels compiled in %.1f s, %d read from the cache%s",
                while_what,
                len(self.names),
                self.seconds,
                self.from_cache,
                f": {', '.join(self.names)}" if self.names else "",
            )
        self.names, self.seconds, self.from_cache = [], 0.0, 0


COMPILED = CompileWatch()
