"""A demo checkpoint behind the product's own `Editor`, for the judge: pictures in, pictures and words out."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from hunyuan import Editor, EditRequest, Settings
from hunyuan.engines.native import NativeEngine
from scripts.demo.judge import Answer, to_image, to_tensor


class Product:
    """A loaded checkpoint."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor

    @classmethod
    def load(cls, folder: Path, device: str) -> Product:
        """Raises what `Editor.load` raises."""
        return cls(Editor.load(Settings.model_validate({"model_id": folder, "device": device})))

    def answer(
        self, prompt: str, sources: list[Tensor], steps: int | None = None, guidance: float | None = None
    ) -> Answer:
        """One edit of pictures `[1, 3, h, w]` in 0..1, with a fixed seed."""
        images = [to_image(source) for source in sources]
        began = time.perf_counter()
        result = self.editor.run(EditRequest(prompt, images=images, seed=7, steps=steps, guidance_scale=guidance))
        seconds = time.perf_counter() - began
        return Answer(to_tensor(result.image), result.cot_text or "", seconds)

    @torch.inference_mode()
    def copy(self, picture: Tensor) -> Tensor:
        """Through the autoencoder and back, without its noise."""
        engine = self.editor.engine
        if not isinstance(engine, NativeEngine):
            raise TypeError("only our own engine's autoencoder can be asked")
        model = engine.checkpoint.model
        mean = model.encode_image(picture.to(model.device) * 2 - 1).mean[:, :, 0]
        return (model.decode_image(model.vae.scale(mean)).cpu() / 2 + 0.5).clamp(0, 1)
