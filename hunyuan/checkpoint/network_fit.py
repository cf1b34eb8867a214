"""Whether a folder's weights are those that its config.json asks for: every name, shape and type, from headers alone.

What `load_model` checks before it reads, without loading. Knows the network's tensors; reads no weights.
"""

from __future__ import annotations

from pathlib import Path

from hunyuan.checkpoint.folder import OpenWeights, read_config
from hunyuan.checkpoint.tensor_table import expected_tensors
from hunyuan.errors import CheckpointError


def misfits(folder: Path) -> list[str]:
    """What a load would be refused for; nothing for a folder that fits."""
    try:
        with OpenWeights(folder, expected_tensors(read_config(folder))):
            return []
    except CheckpointError as error:
        return [str(error)]
