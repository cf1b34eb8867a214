"""When a request came: at this process, or before, at a proxy that let it wait for its turn.

Such a proxy says so in `X-Request-Start`, in seconds, milliseconds or microseconds since 1970, as is the custom
(`t=1700000000000`). Only what a trusted proxy says counts, since a caller could make itself look late or early. The
two clocks must agree: on one machine they are the same.
"""

from __future__ import annotations

import logging
import re
import time

from starlette.datastructures import Headers
from starlette.types import Scope

from hunyuan.serving.http11 import host_of
from hunyuan.serving.peers import Peers

logger = logging.getLogger(__name__)

HEADER = "x-request-start"
LONGEST_S = 86_400.0  # more than any request may take; such a time is a mistake
_TIME = re.compile(r"(?:t=)?([0-9]{9,17}(?:\.[0-9]{1,9})?)")


class Arrivals:
    """Tells how long requests have waited in front of this process.

    Args:
        peers: knows the trusted proxies.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._complained = False

    def waited_s(self, scope: Scope) -> float:
        """Seconds; 0 where no trusted proxy says anything that can be so."""
        lines = Headers(scope=scope).getlist(HEADER)
        if not lines or not self._peers.trusts(host_of(scope)):
            return 0.0
        came = time_of(lines[-1])  # a proxy that adds its line adds it behind
        waited = -1.0 if came is None else time.time() - came
        if not -1.0 <= waited <= LONGEST_S or came is None:
            self._complain()
            return 0.0
        return max(0.0, waited)

    def _complain(self) -> None:
        if not self._complained:
            self._complained = True
            logger.warning("a trusted proxy's X-Request-Start is no time of today; waiting there does not count")


def time_of(text: str) -> float | None:
    """Seconds since 1970; None where it is no such number. The unit shows in its size."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    value = float(match[1])
    return value / 1e6 if value > 1e14 else value / 1e3 if value > 1e11 else value
