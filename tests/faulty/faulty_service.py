"""The real service with an editor that fails as a prompt tells it to; only the fault tests serve it.

`PROMPT_STEPS` of 50 ms each stand for a denoising loop. What happens is written to the file that FAULTS_RECORD
names, one line an event, so that a test can see when the work really stopped.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from PIL import Image

import service
from hunyuan.requests import (
    CancelToken,
    EditRequest,
    EditResult,
    PreviewCallback,
    ProgressCallback,
    TextCallback,
    TokenUsage,
)

STEP_S = 0.05
RECORD = Path(os.environ["FAULTS_RECORD"])
RELEASE = RECORD.with_name("release")  # a `held` edit goes on until the test has made this file


class OutOfMemoryError(RuntimeError):
    """Named like torch's own, which is raised where an allocation on the card fails."""


def note(event: str) -> None:
    with RECORD.open("a") as record:
        record.write(f"{time.time():.3f} {event}\n")


class FaultyEditor:
    """`KIND NAME`: the prompt's first word says what goes wrong, the rest names the request in the record."""

    model_name = "faulty"
    high_steps = 50
    notice: str | None = None

    def warm_up(self) -> None:
        time.sleep(float(os.environ.get("FAULTS_WARM_UP_S", "0.2")))
        until = os.environ.get("FAULTS_WARM_UP_UNTIL")  # a file that the test makes when it has seen enough
        while until is not None and not Path(until).exists():
            time.sleep(0.01)

    def run(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> EditResult:
        assert cancel is not None
        assert on_progress is not None
        kind, _, name = request.prompt.partition(" ")
        steps = request.steps or 2
        note(f"prompt {json.dumps(request.prompt)}")
        note(f"start {name}")
        picture = request.images[0] if request.images else Image.new("RGB", (64, 48))
        assert isinstance(picture, Image.Image)
        try:
            self._stage("prefill", kind)
            for step in range(steps):
                cancel.check()
                time.sleep(STEP_S)
                note(f"step {name}")
                on_progress("denoise", step + 1, steps)
                if on_text is not None:
                    on_text(f"{step} ")
                if on_preview is not None and step < request.previews:
                    on_preview(step + 1, picture.convert("RGB"))
                self._stage("step", kind)
                while kind == "held" and not RELEASE.exists():
                    cancel.check()
                    time.sleep(STEP_S)
                if kind == "stuck":
                    time.sleep(6)  # does not look at its token
            self._stage("vae", kind)
        finally:
            note(f"end {name}")
        timings = {"denoise": steps * STEP_S, "total": steps * STEP_S}
        usage = TokenUsage(3, 20, 0, 100)
        return EditResult(picture.convert("RGB"), None, request.seed or 0, picture.size, steps, 0, timings, usage)

    def _stage(self, stage: str, kind: str) -> None:
        if kind == f"oom-{stage}":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB")
        if kind == f"error-{stage}":
            raise ValueError("shapes do not match")
        if kind == f"lost-{stage}":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


def load_editor(settings: object) -> FaultyEditor:
    return FaultyEditor()


service.load_editor = load_editor
HunyuanImage = service.HunyuanImage
