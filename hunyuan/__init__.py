"""HunyuanImage-3.0-Instruct in our own code: load a checkpoint once, edit pictures with it.

What it exports is imported at its first use: `Editor` brings torch along, `Settings` pydantic, and not every process
that imports this package runs the model.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hunyuan.editor import Editor
    from hunyuan.requests import CancelToken, EditRequest, EditResult
    from hunyuan.settings import Settings

__version__ = "0.1.0"
__all__ = ["CancelToken", "EditRequest", "EditResult", "Editor", "Settings"]

_HOMES = {
    "CancelToken": "requests",
    "EditRequest": "requests",
    "EditResult": "requests",
    "Editor": "editor",
    "Settings": "settings",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
