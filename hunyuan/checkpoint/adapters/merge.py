"""All adapters of a load or a quantization: what a weight becomes with them, and what is said about them.

A weight is merged when it is read, tensor by tensor or in rows of one, in fp32: W + scale (alpha / rank) B A for each
adapter, rounded once by whoever stores it. Does not know what happens to the weight then.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hunyuan.adapters import Adapter, labelled
from hunyuan.checkpoint.adapters.file import AdapterFile, name_of
from hunyuan.checkpoint.adapters.keys import LinearLayers
from hunyuan.checkpoint.folder import checkpoint_name, read_config
from hunyuan.errors import CheckpointError
from hunyuan.formats.config import CheckpointConfig, MergedAdapter

log = logging.getLogger(__name__)


class Adapters:
    """Open LoRA files over one checkpoint; without any, nothing changes. Several threads may call `merged` at once."""

    def __init__(self, chosen: Sequence[Adapter], folder: Path) -> None:
        """Raises `CheckpointError`: the folder is quantized already, or an adapter does not fit it."""
        self._stack, self.files = ExitStack(), list[AdapterFile]()
        if not chosen:
            return
        config = read_config(folder)
        check_not_quantized(config, chosen, folder)
        layers = LinearLayers(config)
        try:
            for adapter in chosen:
                self.files.append(AdapterFile(adapter, layers))
                self._stack.callback(self.files[-1].close)
        except CheckpointError:
            self._stack.close()
            raise
        for file in self.files:
            log.info("merging the adapter %s into %d matrices", labelled(file.name, file.scale), len(file.pairs))

    def __enter__(self) -> Adapters:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def change(self, key: str) -> bool:
        """Whether the weight `key` becomes another one."""
        return any(file.changes(key) for file in self.files)

    def merged(self, key: str, weight: Tensor, first: int = 0) -> Tensor:
        """The weight with what all adapters add.

        Args:
            weight: `[rows, inputs]`, those of the weight `key` from row `first` on; it stays as it is.

        Returns:
            The same tensor where no adapter changes it; otherwise fp32 on its device.

        Raises:
            ValueError: an adapter holds values that are no numbers.
        """
        if not self.change(key):
            return weight
        total = weight.to(torch.float32, copy=True)
        for file in self.files:
            if file.changes(key):
                file.add_to(total, key, first)
        return total

    def records(self) -> tuple[MergedAdapter, ...]:
        """What a folder says about adapters that are in its weights. Reads the files once more, for their hashes."""
        return tuple(
            MergedAdapter(name=file.name, scale=file.scale, sha256=file.digests()[".safetensors"])
            for file in self.files
        )

    def job(self) -> dict[str, Any]:
        """What makes a quantization with them another one than without; nothing without any."""
        rows = [{"name": file.name, "scale": file.scale, "sha256": file.digests()} for file in self.files]
        return {"lora": rows} if rows else {}


def model_name(name: str, folder: Path, chosen: Sequence[Adapter]) -> str:
    """A checkpoint's name and its adapters, those in its weights first: `name+first+second:0.5`."""
    within = [labelled(adapter.name, adapter.scale) for adapter in read_config(folder).merged_adapters]
    return "+".join([name, *within, *(labelled(name_of(adapter), adapter.scale) for adapter in chosen)])


def check_not_quantized(config: CheckpointConfig, chosen: Sequence[Adapter], folder: Path) -> None:
    """Raises `CheckpointError` with the command that merges the adapters before quantizing."""
    section = config.quantization_config
    if section is None or not chosen:
        return
    kinds = set(config.expert_formats)
    weights = {frozenset({"mxfp4"}): "4bit", frozenset({"fp8"}): "fp8"}.get(frozenset(kinds), "mixed")
    words = ["--weights", weights, *(["--dense", "fp8"] if config.dense_format == "fp8" else [])]
    words += [word for adapter in chosen for word in ("--lora", str(adapter))]
    within = ", ".join(labelled(adapter.name, adapter.scale) for adapter in config.merged_adapters)
    more = f" (what is in its weights, {within}, is to be named there again)" if within else ""
    raise CheckpointError(
        f"{checkpoint_name(folder)} is quantized already, and adapters are merged before that. From the official "
        f"folder: hunyuan quantize OFFICIAL_FOLDER NEW_FOLDER {shlex.join(words)}{more}"
    )
