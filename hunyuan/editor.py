"""The one object to load and call: checks a request, fills in its defaults, hands it to an engine.

Knows bounds and defaults. Does not know how a picture is computed (`hunyuan.generation`, `hunyuan.engines.official`)
nor anything of HTTP.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Protocol, get_args

from PIL import Image

from hunyuan.checkpoint.load import read_json
from hunyuan.checkpoint.tiny import builtin_checkpoint
from hunyuan.errors import InvalidImage, InvalidPrompt, InvalidRequest
from hunyuan.prompt.resolution import parse_resolution
from hunyuan.prompt.system_prompt import CHOICES
from hunyuan.requests import (
    MAX_IMAGES,
    MAX_SEED,
    MAX_STEPS,
    BotTask,
    CancelToken,
    EditRequest,
    EditResult,
    ImageSource,
    ProgressCallback,
    SystemPromptChoice,
    is_blank,
)
from hunyuan.settings import Settings

DEFAULT_STEPS, DISTIL_STEPS = 28, 8
STEP_CACHES = ("taylor",)
BUILTIN_NAME = "builtin-tiny-random"

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
    ) -> EditResult: ...


class Editor:
    """A loaded checkpoint that edits pictures, one at a time."""

    def __init__(
        self, engine: Engine, settings: Settings, model_name: str, default_steps: int, is_builtin: bool = False
    ) -> None:
        self.engine, self.settings = engine, settings
        self.model_name, self.default_steps, self.is_builtin = model_name, default_steps, is_builtin

    @classmethod
    def load(cls, settings: Settings | None = None) -> Editor:
        """Loads the checkpoint that the settings name, or the built-in tiny one.

        Raises:
            SettingsError: the settings ask for what this build or machine does not have.
            CheckpointError: the folder is incomplete or does not match its config.
        """
        settings = settings or Settings()
        folder, builtin = settings.folder, settings.folder is None
        if folder is None:
            folder = builtin_checkpoint(settings.cache_dir)
            asked = f"MODEL_ID={settings.model_id}" if settings.model_id else "MODEL_ID is unset"
            log.warning("%s: serving the built-in tiny checkpoint of random weights", asked)
        distilled = bool(read_json(folder, "config.json").get("cfg_distilled", False))
        steps = settings.default_steps or (DISTIL_STEPS if distilled else DEFAULT_STEPS)
        name = BUILTIN_NAME if builtin else folder.resolve().name
        return cls(_load_engine(folder, settings), settings, name, steps, builtin)

    def run(
        self,
        request: EditRequest,
        on_progress: ProgressCallback | None = None,
        cancel: CancelToken | None = None,
    ) -> EditResult:
        """Makes one picture.

        Raises:
            InvalidRequest: a field is out of bounds; its subclasses say which kind.
            Cancelled, DeadlineExceeded: told so by `cancel`.
            OutOfMemory, InferenceFailed: the engine failed.
        """
        validate(request, self.settings)
        seed = secrets.randbelow(MAX_SEED + 1) if request.seed is None else request.seed
        steps = self.default_steps if request.steps is None else request.steps
        return self.engine.run(request, seed=seed, steps=steps, on_progress=on_progress, cancel=cancel)

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


def _load_engine(folder: Path, settings: Settings) -> Engine:
    if settings.engine == "official":
        from hunyuan.engines.official import OfficialEngine

        return OfficialEngine.load(folder, settings)
    from hunyuan.engines.native import NativeEngine

    return NativeEngine.load(folder, settings)


def validate(request: EditRequest, settings: Settings) -> None:
    """Checks every field that needs no model. Raises `InvalidRequest`."""
    prompt, most = request.prompt, settings.prompt_max_chars
    if not isinstance(prompt, str) or is_blank(prompt):
        raise InvalidPrompt(f"got a blank prompt; 1 to {most} characters are allowed")
    if len(prompt) > most:
        raise InvalidPrompt(f"got {len(prompt)} characters; 1 to {most} are allowed")
    _images(request.images)
    _whole("seed", request.seed, 0, MAX_SEED)
    _whole("steps", request.steps, 1, MAX_STEPS)
    _whole("max_new_tokens", request.max_new_tokens, 1, 2**20, optional=False)
    _whole("top_k", request.top_k, 0, 2**31)
    _number("guidance_scale", request.guidance_scale, 0, 100)
    _number("flow_shift", request.flow_shift, 0.01, 100)
    _number("temperature", request.temperature, 0.01, 100)
    _number("top_p", request.top_p, 0.0, 1.0)
    _choice("bot_task", request.bot_task, get_args(BotTask))
    _choice("use_system_prompt", request.use_system_prompt, CHOICES)
    _type("infer_align_image_size", request.infer_align_image_size, bool)
    for field in ("do_sample", "drop_think"):
        _type(field, getattr(request, field), bool, NoneType)
    for field in ("cot_text", "system_prompt"):
        _type(field, getattr(request, field), str, NoneType)
    if request.step_cache is not None:
        _choice("step_cache", request.step_cache, STEP_CACHES)
    _type("resolution", request.resolution, str)
    parse_resolution(request.resolution)


def _images(images: Sequence[ImageSource]) -> None:
    if isinstance(images, str) or not isinstance(images, Sequence):
        raise InvalidImage(f"got {type(images).__name__}; a list of 0 to {MAX_IMAGES} images is allowed", "images")
    if len(images) > MAX_IMAGES:
        raise InvalidImage(f"got {len(images)} images; 0 to {MAX_IMAGES} are allowed", "images")
    for image in images:
        if not isinstance(image, Image.Image | str | Path):
            raise InvalidImage(f"got {type(image).__name__}; PIL images and paths are allowed", "images")


def _type(field: str, value: object, *allowed: type) -> None:
    if not isinstance(value, allowed):
        names = " or ".join(kind.__name__ for kind in allowed)
        raise InvalidRequest(field, f"got {type(value).__name__}; {names} is allowed")


def _whole(field: str, value: int | None, low: int, high: int, optional: bool = True) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(field, f"got {type(value).__name__}; a whole number from {low} to {high} is allowed")
    if not low <= value <= high:
        raise InvalidRequest(field, f"got {value}; {low} to {high} is allowed")


def _number(field: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(field, f"got {type(value).__name__}; a number from {low} to {high} is allowed")
    if not low <= value <= high:
        raise InvalidRequest(field, f"got {value}; {low} to {high} is allowed")


def _choice(field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InvalidRequest(field, f"got {value!r}; allowed are {', '.join(allowed)}")


__all__ = ["EditRequest", "EditResult", "Editor"]
