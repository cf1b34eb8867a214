"""How busy this machine is: limits of tests that measure time grow with it, and stay tight where nothing else runs."""

from __future__ import annotations

import time

SAMPLE_S = 0.1


def slowness() -> float:
    """Seconds that pass while this thread computes for one second: 1 on an idle machine, never less."""
    began, computed = time.monotonic(), time.thread_time()
    while time.thread_time() - computed < SAMPLE_S:
        pass
    return max(1.0, (time.monotonic() - began) / SAMPLE_S)
