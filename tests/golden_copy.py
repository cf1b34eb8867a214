"""Changes to a copy of the golden folder that its check must notice."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "checkpoint/model.safetensors"


def perturb_weight(folder: Path, key: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[key] = (tensors[key].float() * 1.5 + 0.05).to(tensors[key].dtype)
    save_file(tensors, folder / WEIGHTS)
