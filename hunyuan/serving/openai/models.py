"""The one model, as OpenAI's API tells of it: in a list, by its name, and what another name gets.

Knows shapes and the model's own path, which holds its name.
"""

from __future__ import annotations

from typing import Any

from hunyuan.serving.http_errors import ModelNotFound
from hunyuan.serving.openai.errors import PREFIX
from hunyuan.serving.png import SOFTWARE
from hunyuan.serving.worker import EditorWorker

MODELS = f"{PREFIX}/models"


def model_of(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": SOFTWARE}


def models_of(name: str, created: int) -> dict[str, Any]:
    return {"object": "list", "data": [model_of(name, created)]}


def is_model_path(worker: EditorWorker, path: str) -> bool:
    """Whether `path` is that of the served model.

    Raises:
        Loading, ShuttingDown, Restarting: nothing is served now.
        ModelNotFound: it is the path of a model, but of another one.
    """
    head, _, name = path.partition(f"{MODELS}/")
    if head or not name:
        return False
    worker.require_usable()
    if name != worker.model_name:
        raise ModelNotFound(worker.model_name or "")
    return True
