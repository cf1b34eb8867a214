"""Whether something that has to keep moving does: a body that comes, an answer that is taken.

Knows a growing number and a clock, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Least:
    """The slowest that is borne: something within every `idle_s`, and `rate` bytes a second over each of them."""

    idle_s: float
    rate: float


class Pace:
    """Looks at a total number of bytes now and then. Times are of `time.monotonic()`."""

    def __init__(self, least: Least, now: float, total: int = 0) -> None:
        self._least = least
        self._total = self._marked = total
        self._moved_at = self._marked_at = now

    def see(self, total: int, now: float) -> None:
        if total > self._total:
            self._total, self._moved_at = total, now

    def fault(self, now: float) -> str | None:
        """What is wrong with it, in words; None: nothing. Begins a new measurement where one is complete."""
        least = self._least
        if now - self._moved_at >= least.idle_s:
            return f"nothing moved for {least.idle_s:g} s"
        if now - self._marked_at < least.idle_s:
            return None
        if self.creeps(now):
            return f"less than {least.rate / 1024:g} KiB a second moved for {least.idle_s:g} s"
        self._marked_at, self._marked = now, self._total
        return None

    def rate(self, now: float) -> float:
        """Bytes a second in the present measurement."""
        return (self._total - self._marked) / max(now - self._marked_at, 0.1)

    def creeps(self, now: float) -> bool:
        return self.rate(now) < self._least.rate

    def stalls(self, now: float, seconds: float) -> bool:
        """A harsher look: it has not moved for `seconds`, or has crept at least so long."""
        return now - self._moved_at >= seconds or (now - self._marked_at >= seconds and self.creeps(now))

    def patience_s(self, now: float) -> float:
        """Seconds until `fault` finds one, if it goes on like this."""
        return min(self._marked_at, self._moved_at) + self._least.idle_s - now
