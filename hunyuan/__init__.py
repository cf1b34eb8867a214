"""HunyuanImage-3.0-Instruct in our own code: load a checkpoint once, edit pictures with it.

`Editor` is imported at its first use: it brings torch along, and not every process that imports this package runs
the model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hunyuan.requests import CancelToken, EditRequest, EditResult
from hunyuan.settings import Settings

if TYPE_CHECKING:
    from hunyuan.editor import Editor

__version__ = "0.1.0"
__all__ = ["CancelToken", "EditRequest", "EditResult", "Editor", "Settings"]


def __getattr__(name: str) -> Any:
    if name == "Editor":
        from hunyuan.editor import Editor

        return Editor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
