"""The real service, one part of whose start fails for a reason that nobody thought of."""

from __future__ import annotations

import service
from service import HunyuanImage

__all__ = ["HunyuanImage"]


def fail() -> None:
    raise RuntimeError("this part cannot be started")


service.SERVER.watch_connections = fail  # type: ignore[method-assign]
