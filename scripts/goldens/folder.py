"""A golden folder: recorded values, their manifest, and the checkpoint they were computed from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from hunyuan.engines.native import NativeEngine
from hunyuan.generation.job import Checkpoint
from hunyuan.model.config import ModelConfig
from hunyuan.model.network import HunyuanImage3
from hunyuan.pictures.reader import load_image
from hunyuan.prompt.images import CondImage, prepare_cond_image
from hunyuan.prompt.layout import CondShape, LayoutBuilder
from hunyuan.prompt.resolution import ResolutionGroup, Size, resolution_group
from hunyuan.settings import Settings
from scripts.goldens.report import Check, Tolerance


class Golden:
    """Reads a folder; loads its checkpoint in fp32 at first need, noise drawn on the CPU."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.folder, self.device = folder, device
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        self.sections: dict[str, dict[str, Any]] = self.manifest["sections"]

    @cached_property
    def engine(self) -> NativeEngine:
        path = self.folder / "checkpoint"
        settings = Settings(
            model_id=path, device=self.device, dtype="float32", moe_impl="eager", noise_device="cpu", engine="native"
        )
        return NativeEngine.load(path, settings)

    @property
    def checkpoint(self) -> Checkpoint:
        return self.engine.checkpoint

    @property
    def model(self) -> HunyuanImage3:
        return self.checkpoint.model

    @property
    def config(self) -> ModelConfig:
        return self.model.config

    @property
    def group(self) -> ResolutionGroup:
        return resolution_group(self.config.image_base_size, self.config.has_extra_ratios)

    def layouts(self, template: str | None = None) -> LayoutBuilder:
        if template is None:
            return self.checkpoint.layouts
        return LayoutBuilder(self.checkpoint.tokenizer, self.config, template)

    def check(self, section: str, present: list[str]) -> Check:
        default = Tolerance.parse(self.manifest.get("tolerance_default"), Tolerance(1e-3, 1e-4))
        check = Check(section, present, Tolerance.parse(self.sections[section].get("tolerance"), default))
        absent = [name for name in self.sections[section].get("keys", {}) if present and name not in present]
        if absent:
            check.failures.append(f"named by the manifest and not in the file: {', '.join(absent)}")
        return check

    def tensors(self, section: str) -> dict[str, Tensor]:
        return load_file(self.folder / self.sections[section]["file"])

    def given(self, section: str, recorded: dict[str, Tensor], name: str, shape: Sequence[int] | None) -> Tensor | None:
        """An input of a section: as recorded or, where a trimmed folder left it out, drawn again from its seed.

        None where neither can be had: `shape` is None when what would tell it is not there either.
        """
        if name in recorded:
            return recorded[name].to(self.model.device)
        seed = self.sections[section].get("seeds", {}).get(name)
        if seed is None or shape is None:
            return None
        return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(self.model.device)

    def values(self, section: str) -> dict[str, Any]:
        return json.loads((self.folder / self.sections[section]["file"]).read_text())

    def image(self, path: str) -> Image.Image:
        return load_image(self.folder / path)

    def cond(self, path: str, align: bool = False) -> CondImage:
        return prepare_cond_image(self.image(path), self.config, align)

    def shapes(self, paths: list[str], align: bool = False) -> list[CondShape]:
        images = [self.cond(path, align) for path in paths]
        return [CondShape(image.bucket, image.vision.grid) for image in images]


def official_size(text: str | list[int]) -> Size:
    """The official code writes HEIGHTxWIDTH and [height, width], but W:H."""
    if isinstance(text, list):
        return Size(width=text[1], height=text[0])
    if ":" in text:
        width, height = text.split(":")
    else:
        height, width = text.split("x")
    return Size(int(width), int(height))
