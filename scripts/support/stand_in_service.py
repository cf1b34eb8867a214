"""Our service with an engine that paints nothing: for what is about HTTP and not about the model.

    bentoml serve scripts.support.stand_in_service:HunyuanImage          (with the root on PYTHONPATH)

Everything between the socket and the engine is the real thing. `STAND_IN_SECONDS` is what an edit takes (0),
`STAND_IN_SIZE` the picture's WIDTHxHEIGHT (64x48; it is incompressible, so its PNG has 3 bytes per pixel). The engine
prepares the uploaded picture as ours does, unless `STAND_IN_PREPARE=0`.
"""

from __future__ import annotations

import os
import time

import numpy as np
from PIL import Image

import service
from hunyuan.pictures.reader import load_image
from hunyuan.requests import CancelToken, EditRequest, EditResult, PreviewCallback, ProgressCallback, TextCallback

POLL_S = 0.01  # stands for one denoising step: how soon a cancelled edit stops


class StandInEngine:
    """What `hunyuan.editor.Editor` is to the service."""

    model_name = "stand-in"
    notice: str | None = None
    high_steps = 50

    def __init__(self, seconds: float, size: tuple[int, int], prepare: bool) -> None:
        values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        self._picture, self._seconds, self._prepare = Image.fromarray(values), seconds, prepare

    def warm_up(self) -> None:
        """There is nothing to warm up."""

    def run(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> EditResult:
        started = time.monotonic()
        if self._prepare:
            for image in request.images:
                load_image(image)
        while (left := started + self._seconds - time.monotonic()) > 0:
            if cancel is not None:
                cancel.check()
            time.sleep(min(left, POLL_S))
        seed, steps = (7 if request.seed is None else request.seed), request.steps or 28
        timings = {"total": time.monotonic() - started}
        return EditResult(self._picture, None, seed, self._picture.size, steps, 0, timings)


def engine_from_environment() -> StandInEngine:
    width, height = map(int, os.environ.get("STAND_IN_SIZE", "64x48").split("x"))
    seconds, prepare = float(os.environ.get("STAND_IN_SECONDS", "0")), os.environ.get("STAND_IN_PREPARE", "1") == "1"
    return StandInEngine(seconds, (width, height), prepare)


service.load_editor = lambda settings: engine_from_environment()
HunyuanImage = service.HunyuanImage
