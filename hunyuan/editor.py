"""The one object to load and call: checks a request, fills in its defaults, hands it to an engine.

Knows defaults. Does not know how a picture is computed (`hunyuan.generation`, `hunyuan.engines.official`)
nor anything of HTTP.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from hunyuan.checkpoint import builtin, identity
from hunyuan.checkpoint.adapters.merge import model_name
from hunyuan.checkpoint.folder import CONFIG_FILE, checkpoint_name, read_config, read_json, weight_files
from hunyuan.errors import SettingsError
from hunyuan.requests import (
    MAX_SEED,
    Begun,
    BotTask,
    CancelToken,
    EditRequest,
    EditResult,
    ImageSource,
    PreviewCallback,
    ProgressCallback,
    SystemPromptChoice,
    TextCallback,
)
from hunyuan.settings import Settings
from hunyuan.validation import validate

DEFAULT_STEPS, DISTIL_STEPS = 28, 8
HIGH_STEPS = 50  # the authors' own number; a Distil checkpoint was made for 8

log = logging.getLogger(__name__)


class Engine(Protocol):
    """Computes pictures. `seed` and `steps` are settled; other None fields mean the checkpoint's own."""

    def run(
        self,
        request: EditRequest,
        *,
        seed: int,
        steps: int,
        on_progress: ProgressCallback | None,
        cancel: CancelToken | None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> EditResult: ...


@runtime_checkable
class SharingEngine(Protocol):
    """An engine that decodes the texts of several requests together; `finish` takes what `begin` gave, once."""

    @property
    def text_places(self) -> int: ...

    def begin(
        self,
        request: EditRequest,
        *,
        seed: int,
        steps: int,
        on_progress: ProgressCallback | None,
        cancel: CancelToken | None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> Begun: ...

    def finish(self, job: Any) -> EditResult: ...


class Editor:
    """A loaded checkpoint that edits pictures, one at a time.

    Attributes:
        notice: what there is to say about a built-in checkpoint, in one line; None for a folder that was named.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        model_name: str,
        default_steps: int,
        notice: str | None = None,
        high_steps: int = HIGH_STEPS,
    ) -> None:
        self.engine, self.settings = engine, settings
        self.model_name, self.default_steps, self.notice = model_name, default_steps, notice
        self.high_steps = max(high_steps, default_steps)

    @classmethod
    def load(cls, settings: Settings | None = None) -> Editor:
        """Loads the checkpoint that the settings name, or a built-in one.

        Raises:
            SettingsError: the settings ask for what this build or machine does not have.
            CheckpointError: the folder is incomplete or does not match its config.
        """
        settings = settings or Settings()
        folder, name, notice = _checkpoint(settings)
        if notice is not None:
            log.warning("%s: %s", name, notice)
        config = _whole(folder, settings)
        _say_which(folder, settings)
        distilled = bool(config.get("cfg_distilled", False))
        steps = settings.default_steps or (DISTIL_STEPS if distilled else _steps_of(folder))
        high_steps = DISTIL_STEPS if distilled else HIGH_STEPS
        if settings.engine == "native":
            name = model_name(name, folder, settings.lora or ())
        if distilled and steps > DISTIL_STEPS:
            log.warning(
                "HUNYUAN_DEFAULT_STEPS=%d with a Distil checkpoint, which is made for %d steps; leave the setting out "
                "for that number",
                steps,
                DISTIL_STEPS,
            )
        return cls(_load_engine(folder, settings), settings, name, steps, notice, high_steps)

    def run(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> EditResult:
        """Makes one picture.

        Args:
            on_progress: called with a stage's name, how much of it is done, and of how much.
            cancel: looked at before each token and each step.
            on_text: called with the next piece of the text while it is thought; together they are what the model says,
                tags included. The official engine hands it on in one piece at the end.
            on_preview: called `request.previews` times while the picture is painted (less often where there are hardly
                more steps than that) with the number of steps done and the picture as they predict it, in the result's
                size. The official engine has none.

        Raises:
            InvalidRequest: a field is out of bounds; its subclasses say which kind.
            Cancelled, DeadlineExceeded: told so by `cancel`.
            OutOfMemory, InferenceFailed: the engine failed.
        """
        seed, steps = self._settle(request)
        return self.engine.run(
            request,
            seed=seed,
            steps=steps,
            on_progress=on_progress,
            cancel=cancel,
            on_text=on_text,
            on_preview=on_preview,
        )

    def _settle(self, request: EditRequest) -> tuple[int, int]:
        """Checks the request; its seed and steps."""
        validate(request, self.settings)
        seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
        return seed, self.default_steps if request.steps is None else request.steps

    # -- several texts together (HUNYUAN_TEXT_BATCH) -------------------------------------------------------------

    @property
    def text_places(self) -> int:
        """How many edits more may be begun; 0 where each text is decoded alone."""
        return self.engine.text_places if isinstance(self.engine, SharingEngine) else 0

    def begin(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
        on_text: TextCallback | None = None,
        on_preview: PreviewCallback | None = None,
    ) -> Begun:
        """Runs an edit up to its text, which is then decoded while `finish` decodes that of another, or its own.

        The result is that of `run`. Arguments and errors as of `run`; what `cancel` and the callbacks raise later, in
        another's `finish`, is raised by the edit's own. Each begun edit keeps one of `text_places` until it is finished
        or closed.

        Raises:
            RuntimeError: there is no place.
        """
        if not isinstance(self.engine, SharingEngine):
            raise RuntimeError("this engine decodes each text alone")
        seed, steps = self._settle(request)
        return self.engine.begin(
            request,
            seed=seed,
            steps=steps,
            on_progress=on_progress,
            cancel=cancel,
            on_text=on_text,
            on_preview=on_preview,
        )

    def finish(self, begun: Begun) -> EditResult:
        """Decodes what is missing of the edit's text, others' beside it, and paints its picture. Errors as of `run`."""
        assert isinstance(self.engine, SharingEngine)
        return self.engine.finish(begun)

    def generate_image(
        self,
        prompt: str,
        image_paths: Sequence[ImageSource] = (),
        seed: int | None = None,
        image_size: str = "auto",
        use_system_prompt: SystemPromptChoice = "en_unified",
        bot_task: BotTask = "think_recaption",
        infer_align_image_size: bool = True,
        diff_infer_steps: int | None = None,
        verbose: int = 0,
        request_id: str | None = None,
    ) -> Image.Image:
        """The official call's shape: returns the picture. `image_size` is `auto`, `WIDTHxHEIGHT` or `W:H`.

        `verbose` above 0 logs how long each stage took, under `request_id`.
        """
        request = EditRequest(
            prompt,
            images=image_paths,
            seed=seed,
            steps=diff_infer_steps,
            resolution=image_size,
            bot_task=bot_task,
            use_system_prompt=use_system_prompt,
            infer_align_image_size=infer_align_image_size,
        )
        result = self.run(request)
        if verbose > 0:
            stages = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in result.timings.items())
            log.info("request %s: size %s, %d tokens, %s", request_id or "-", result.size, result.tokens, stages)
        return result.image

    def warm_up(self) -> EditResult:
        """One small edit, thinking included, so that the first request finds everything ready."""
        picture = Image.new("RGB", (96, 64), (200, 120, 40))
        return self.run(EditRequest("warm up", images=[picture], seed=0, steps=2, max_new_tokens=8))


def _whole(folder: Path, settings: Settings) -> dict[str, Any]:
    """config.json of a folder that has its files: what is missing comes before all that is said of what is there.

    Raises:
        CheckpointError: config.json or a weight file is missing, or config.json is malformed.
    """
    if settings.engine == "native":
        read_config(folder)  # the authors' own code may read others
    config = read_json(folder, CONFIG_FILE)
    weight_files(folder)
    return config


def _say_which(folder: Path, settings: Settings) -> None:
    """One line in the log names the checkpoint; a warning each where config.json is not that of these weights."""
    contents = identity.look(folder)
    if settings.folder is not None:
        table = builtin.known_checkpoints(folder)
        log.info("checkpoint: %s", identity.describe(contents, table))
    else:
        table, name = identity.PUBLISHED, builtin.KINDS[settings.builtin or "demo"].named
        log.info("checkpoint: %s", identity.describe(contents, table, name))
    # Weights that cannot be read contradict nothing; whoever loads them says why they cannot.
    for line in identity.contradictions(contents, table) if contents.types else []:
        log.warning("checkpoint: %s", line)


def _steps_of(folder: Path) -> int:
    """28, or the checkpoint's own number where that is lower (the published Instruct has 50)."""
    own = read_json(folder, "generation_config.json").get("diff_infer_steps")
    return min(own, DEFAULT_STEPS) if isinstance(own, int) and own >= 1 else DEFAULT_STEPS


def _checkpoint(settings: Settings) -> tuple[Path, str, str | None]:
    """The folder that is asked for, what it is called, and for a built-in one what there is to say about it."""
    if settings.folder is not None:
        return settings.folder, checkpoint_name(settings.folder), None
    kind = builtin.KINDS[settings.builtin or "demo"]
    asked = f"MODEL_ID={settings.model_id}" if settings.model_id else "MODEL_ID is unset"
    return kind.folder(settings.cache_dir), kind.name, f"{kind.about} ({asked})"


def _load_engine(folder: Path, settings: Settings) -> Engine:
    if settings.engine == "official":
        if settings.lora:
            raise SettingsError("HUNYUAN_LORA: the official engine merges no adapters; use HUNYUAN_ENGINE=native")
        if settings.text_batch > 1:
            raise SettingsError(
                "HUNYUAN_TEXT_BATCH: the official engine decodes each text alone; use HUNYUAN_ENGINE=native"
            )
        from hunyuan.engines.official import OfficialEngine

        return OfficialEngine.load(folder, settings)
    from hunyuan.engines.native import NativeEngine

    return NativeEngine.load(folder, settings)


__all__ = ["EditRequest", "EditResult", "Editor"]
