"""What a quantization asks of whatever chooses 4-bit values by what the experts compute.

Knows files and tensors; requests and the network are the other side's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hunyuan.checkpoint.adapters.merge import Adapters
from hunyuan.checkpoint.folder import OpenWeights
from hunyuan.checkpoint.quantize_tasks import Measured
from hunyuan.checkpoint.safetensors_file import ShardWriter
from hunyuan.formats.config import CheckpointConfig


class Calibrator(Protocol):
    """Chooses the 4-bit values of one layer's experts after the other's, and keeps what it needs to go on.

    `hunyuan.calibration.run` has one.
    """

    @property
    def job(self) -> dict[str, Any]:
        """What makes two calibrations the same."""
        ...

    def start(self, weights: OpenWeights, adapters: Adapters, config: CheckpointConfig, out: Path, layer: int) -> int:
        """The layer to go on with: `layer`, or an earlier one if what `layer` begins with is not kept in `out`."""
        ...

    def quantize(
        self, layer: int, writer: ShardWriter, update: Callable[[int], object]
    ) -> tuple[dict[str, list[Measured]], dict[str, Any]]:
        """Writes a layer's experts; what was measured of its weights, by tensor, and of its outputs."""
        ...

    def keep(self, out: Path, layer: int) -> None:
        """Keeps in `out`, durably, what `layer` begins with."""
        ...

    def forget(self, out: Path, layer: int | None = None) -> None:
        """Deletes what was kept for `layer`, or for all."""
        ...
