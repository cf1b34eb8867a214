"""What a training keeps between two slices of time, in files of at most 15 MB.

Parameters and their average as 16-bit floats: half the size, and finer than the bfloat16 that is exported. The
optimizer's momentum is not kept; the learning rate warms up again after a break instead. Knows names and tensors only.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hunyuan.checkpoint.safetensors_file import write_durably

PART_BYTES = 15 * 1000 * 1000


def save(folder: Path, name: str, content: Mapping[str, Any]) -> None:
    """Writes `name.0.part` and so on in place of an earlier state; a stop at any moment leaves one of them, whole."""
    folder.mkdir(parents=True, exist_ok=True)
    _take_over(folder, name)
    buffer = io.BytesIO()
    torch.save(_halved(content), buffer)
    raw = buffer.getvalue()
    parts = [raw[start : start + PART_BYTES] for start in range(0, len(raw), PART_BYTES)]
    for number, part in enumerate(parts):
        (folder / f"{name}.{number}.new").write_bytes(part)
    write_durably(folder / f"{name}.complete", str(len(parts)))
    _take_over(folder, name)


def _take_over(folder: Path, name: str) -> None:
    """Puts parts that were written as a whole in the earlier ones' place; goes on where it, or another process, was."""
    complete = folder / f"{name}.complete"
    if not complete.exists():
        return
    count = int(complete.read_text())
    for number in range(count):
        with suppress(FileNotFoundError):  # in its place already
            (folder / f"{name}.{number}.new").replace(folder / f"{name}.{number}.part")
    for stale in _parts(folder, name)[count:]:
        stale.unlink(missing_ok=True)
    complete.unlink(missing_ok=True)


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """The state as it was saved last, or None where there is none."""
    _take_over(folder, name)
    parts = _parts(folder, name)
    if not parts:
        return None
    raw = b"".join(part.read_bytes() for part in parts)
    return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def decoder_step(autoencoder_average: Mapping[str, Any], transformer_step: int) -> int:
    """How many steps the decoder has made on the answers of the transformer as it is now."""
    current = autoencoder_average.get("decoder_for") == transformer_step
    return int(autoencoder_average["decoder_step"]) if current else 0


def _parts(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}.*.part"), key=lambda path: int(path.suffixes[-2][1:]))


def _halved(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu().half() if value.is_floating_point() else value.cpu()
    if isinstance(value, Mapping):
        return {key: _halved(item) for key, item in value.items()}
    return value
