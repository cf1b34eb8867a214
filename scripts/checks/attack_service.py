#!/usr/bin/env python
"""Slow callers and rubbish in bulk against a server of our own, with a good caller beside them: the long form of
`tests/test_attacks.py`.

    scripts/checks/attack_service.py [--uploads 1000] [--silent 3000] [--half 200] [--slow 32]

Each of these must hold, else it exits 1: every edit of the good caller succeeds and every probe is answered while all
else goes on; every slow connection is ended; after `--uploads` uploads of 19.9 MB that are no pictures the server's
resident memory is within 10 % of what it was after a tenth of them; SIGTERM ends it within seconds.

It does not know how much such an attack costs over a real network: client and server share this machine.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hunyuan.compare.sample_photos import encoded, photo
from scripts.support.attackers import (
    HALF_A_HEAD,
    OPENING,
    GoodCaller,
    crowd,
    good_caller,
    head,
    open_after,
    upload_rubbish,
)
from scripts.support.local_server import STAND_IN, LocalServer, local_server

MEGABYTES = 19.9
AT_A_TIME = 32
GROWTH = 1.10
ENDED_WITHIN_S = 40  # the idle limit and what comes to it, with the default settings
STOPPED_WITHIN_S = 15


def slow_callers(server: LocalServer, caller: GoodCaller, options: argparse.Namespace) -> list[str]:
    """Returns what did not hold."""
    port = urlsplit(server.url).port or 0
    upload = head(5_000_000) + OPENING[:50]
    with good_caller("slow callers", caller), ExitStack() as stack:
        crowds = [
            stack.enter_context(crowd(port, options.slow, "127.0.0.2", upload)),
            stack.enter_context(crowd(port, options.half, "127.0.0.3", HALF_A_HEAD)),
            stack.enter_context(crowd(port, options.silent, "127.0.0.4")),
        ]
        began = time.monotonic()
        left = open_after([connection for each in crowds for connection in each], ENDED_WITHIN_S)
        print(f"slow callers: {left} of {sum(map(len, crowds))} open after {time.monotonic() - began:.0f} s")
    return [f"{left} slow connections were not ended"] if left else []


def rubbish(server: LocalServer, caller: GoodCaller, count: int) -> list[str]:
    port, seen, statuses = urlsplit(server.url).port or 0, {}, Counter[int]()
    tenth = max(1, count // 10)
    with good_caller(f"{count} uploads of {MEGABYTES} MB", caller), ThreadPoolExecutor(AT_A_TIME) as pool:
        for done in range(tenth, count + 1, tenth):
            sources = [f"127.0.1.{1 + i % AT_A_TIME}" for i in range(tenth)]
            statuses.update(pool.map(lambda source: upload_rubbish(port, MEGABYTES, source), sources))
            seen[done] = server.rss_mib() or 0.0
            print(f"{done} uploads: {seen[done]:.0f} MiB resident, answers {dict(statuses)}", flush=True)
    growth = seen[done] / seen[tenth]
    print(f"resident after {done} against after {tenth}: {growth:.3f}")
    return [] if growth <= GROWTH else [f"resident memory grew by {growth:.2f}"]


def stopping(server: LocalServer) -> list[str]:
    port, process = urlsplit(server.url).port or 0, server.process
    assert process is not None
    with crowd(port, 8, "127.0.0.2", head(5_000_000) + OPENING), crowd(port, 100, "127.0.0.3", HALF_A_HEAD):
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOPPED_WITHIN_S)
        except Exception:
            return [f"not ended {STOPPED_WITHIN_S} s after SIGTERM"]
        print(f"ended {time.monotonic() - began:.1f} s after SIGTERM")
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("uploads", 1000), ("silent", 3000), ("half", 200), ("slow", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with local_server(target=STAND_IN) as server:
        callers = [GoodCaller(server.url, encoded(photo(640, 480), "JPEG")) for _ in range(2)]
        faults = slow_callers(server, callers[0], options)
        faults += rubbish(server, callers[1], options.uploads)
        faults += stopping(server)
    faults += [error for caller in callers for error in caller.errors]
    for fault in faults:
        print(f"FAILED: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
