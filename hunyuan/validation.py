"""The bounds of a request's fields, checked once: for Python by the editor, over HTTP when a form is read.

Knows values, not where they came from, and nothing that only a loaded checkpoint can tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import get_args

from PIL import Image

from hunyuan.errors import InvalidImage, InvalidPrompt, InvalidRequest
from hunyuan.prompt.resolution import parse_resolution
from hunyuan.requests import (
    MAX_IMAGES,
    MAX_PREVIEWS,
    MAX_SEED,
    MAX_STEPS,
    BotTask,
    EditRequest,
    ImageSource,
    StepCacheName,
    SystemPromptChoice,
    is_blank,
)
from hunyuan.settings import Settings


def validate(request: EditRequest, settings: Settings) -> None:
    """Checks every field that needs no model. Raises `InvalidRequest`."""
    _prompt(request.prompt, settings.prompt_max_chars)
    _images(request.images)
    whole("seed", request.seed, 0, MAX_SEED)
    whole("steps", request.steps, 1, MAX_STEPS)
    whole("max_new_tokens", request.max_new_tokens, 1, 2**20, optional=False)
    whole("previews", request.previews, 0, MAX_PREVIEWS, optional=False)
    whole("top_k", request.top_k, 0, 2**31)
    _number("guidance_scale", request.guidance_scale, 0, 100)
    _number("flow_shift", request.flow_shift, 0.01, 100)
    _number("temperature", request.temperature, 0.01, 100)
    _number("top_p", request.top_p, 0.0, 1.0)
    _choice("bot_task", request.bot_task, get_args(BotTask))
    _choice("use_system_prompt", request.use_system_prompt, get_args(SystemPromptChoice))
    _type("infer_align_image_size", request.infer_align_image_size, bool)
    for field in ("do_sample", "drop_think"):
        _type(field, getattr(request, field), bool, NoneType)
    for field in ("cot_text", "system_prompt"):
        _type(field, getattr(request, field), str, NoneType)
        if half := half_character(getattr(request, field) or ""):
            raise InvalidRequest(field, half)
    if request.step_cache is not None:
        _choice("step_cache", request.step_cache, get_args(StepCacheName))
    _type("resolution", request.resolution, str)
    parse_resolution(request.resolution)


def _prompt(prompt: str, most: int) -> None:
    allowed = f"allowed are 1 to {most:,} characters, not only blanks"
    if not isinstance(prompt, str):
        raise InvalidPrompt(f"got {type(prompt).__name__}; {allowed}")
    if is_blank(prompt):
        raise InvalidPrompt(f"it is blank; {allowed}")
    if len(prompt) > most:
        raise InvalidPrompt(f"it has {len(prompt):,} characters; {allowed}")
    if half := half_character(prompt):
        raise InvalidPrompt(half)


def half_character(text: str) -> str | None:
    """What to say of a text with half a surrogate pair, which JSON can spell and no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"character {error.start} is half a character; send whole Unicode text"
    return None


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


def whole(field: str, value: int | None, low: int, high: int, optional: bool = True) -> None:
    """Raises `InvalidRequest` where a value is no whole number from `low` to `high`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(field, f"got {_shown(value)}; allowed is a whole number from {low} to {high}")


def _number(field: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidRequest(field, f"got {_shown(value)}; allowed is a number from {low} to {high}")


def _shown(value: object) -> str:
    return repr(value)[:40]


def _choice(field: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise InvalidRequest(field, f"got {_shown(value)}; allowed are {', '.join(allowed)}")
