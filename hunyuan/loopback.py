"""This machine's own addresses are reached directly, whatever proxies the environment names.

A health check, a tracing collector beside the service or a test that asks 127.0.0.1 through a proxy gets the proxy's
answer. Knows environment variables only; every HTTP client here (urllib, httpx, requests) reads them.
"""

from __future__ import annotations

import os

NAMES = ("127.0.0.1", "localhost", "::1")


def ask_no_proxy() -> None:
    """Adds the loopback names to NO_PROXY for this process and those it starts."""
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name for name in (part.strip() for part in known.split(",")) if name]
    value = ",".join(dict.fromkeys([*names, *NAMES]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = value
