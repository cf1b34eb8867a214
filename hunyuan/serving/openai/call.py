"""One request to /v1/images as a checked value: what to paint, how often, and how to answer.

Knows what the fields mean together, their bounds and defaults. Where they came from is `bodies.py`.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast, get_args

from hunyuan.errors import InvalidPrompt, InvalidRequest
from hunyuan.prompt.resolution import parse_resolution
from hunyuan.requests import MAX_PREVIEWS, MAX_SEED, EditRequest, StepCacheName
from hunyuan.serving.openai.fields import MAX_TEXT, Value
from hunyuan.serving.picture_files import FORMATS, Format
from hunyuan.settings import Settings
from hunyuan.validation import validate, whole

MOST = 4  # pictures of one request
Operation = Literal["image_edit", "image_generation"]
Quality = Literal["low", "medium", "high"]

# What OpenAI's names of quality mean here. `low` forecasts most steps, `high` takes as many as are of use.
QUALITIES: dict[str, Quality] = {
    "auto": "medium",
    "standard": "medium",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "hd": "high",
    "xhigh": "high",
    "max": "high",
}
LOW_STEP_CACHE: StepCacheName = "taylor"
_AS_THEY_ARE = (
    *("guidance_scale", "flow_shift", "bot_task", "use_system_prompt", "system_prompt", "cot_text"),
    *("infer_align_image_size", "max_new_tokens"),
)
_DYNAMIC_TASK = "think_recaption"  # the one for which use_system_prompt dynamic takes the caller's text
_NO_TRANSPARENCY = "this model paints no transparency; allowed are opaque and auto"
_Choice = TypeVar("_Choice", bound=str)


@dataclass
class ImageCall:
    """Everything that one request asks for.

    Attributes:
        request: the first picture to paint, with its seed; `requests` adds the sources and the steps of `quality`.
        pictures: files that are not decoded yet.
        picture_names: of the fields that they came in, for what is said of them.
        steps_given: false where the quality decides the steps.
        output_compression: 0 to 100, of a JPEG or WebP: 100 is the best and the largest.
    """

    operation: Operation
    request: EditRequest
    pictures: list[bytes] = field(repr=False)
    n: int
    quality: Quality
    steps_given: bool
    output_format: Format
    output_compression: int
    stream: bool
    stream_progress: bool
    picture_names: list[str]

    @property
    def seed(self) -> int:
        """Of the first picture."""
        return cast(int, self.request.seed)

    @property
    def hidden(self) -> tuple[str, ...]:
        """What must not reach the log."""
        texts = (self.request.prompt, self.request.system_prompt, self.request.cot_text)
        return tuple(text for text in texts if text)

    def requests(self, images: Sequence[Any], high_steps: int | None) -> list[EditRequest]:
        """One for each picture: the seeds follow each other, the rest is the same.

        Args:
            images: the decoded pictures.
            high_steps: how many steps the checkpoint's best quality takes.
        """
        steps = self.request.steps
        if self.quality == "high" and not self.steps_given:
            steps = high_steps
        return [replace(self.request, images=images, steps=steps, seed=self.seed + k) for k in range(self.n)]


def call_of(
    operation: Operation,
    values: Mapping[str, Value],
    pictures: list[bytes],
    settings: Settings,
    field_name: str = "image",
) -> ImageCall:
    """Checks the values of a request's fields, all of the right kind by now, and fills in the defaults.

    `field_name` is that of the pictures: `images` in JSON, `image` in a form.

    Raises:
        InvalidRequest: a value is out of bounds, or two do not go together.
    """
    v = dict(values)
    if "prompt" not in v:
        raise InvalidPrompt(f"this field is missing; 1 to {settings.prompt_max_chars:,} characters are allowed")
    _refuse_what_cannot_be(v)
    n = _whole(v, "n", 1, 1, MOST)
    quality = QUALITIES[_choice(v, "quality", "auto", tuple(QUALITIES))]
    output_format = _choice(v, "output_format", "png", FORMATS)
    compression = _compression(v, output_format)
    stream, partial_images, progress = _streaming(v)
    request = _request(v, quality, partial_images)
    _validate(request, settings, "num_inference_steps" if "num_inference_steps" in v else "steps")
    if request.seed is None:
        request.seed = secrets.randbelow(MAX_SEED - n + 2)
    if request.seed + n - 1 > MAX_SEED:
        raise InvalidRequest("seed", f"got {request.seed}; the {n} pictures take seeds up to {MAX_SEED}")
    given, listed = request.steps is not None, field_name == "images" or len(pictures) > 1
    names = [f"{field_name}[{number}]" if listed else field_name for number in range(len(pictures))]
    return ImageCall(
        operation, request, pictures, n, quality, given, output_format, compression, stream, progress, names
    )


def _refuse_what_cannot_be(v: Mapping[str, Value]) -> None:
    response_format = v.get("response_format", "b64_json")
    if response_format == "url":
        raise InvalidRequest("response_format", "got 'url'; this server keeps no pictures, only b64_json is allowed")
    _choice(v, "response_format", "b64_json", ("b64_json",))
    if v.get("background") == "transparent":
        raise InvalidRequest("background", f"got 'transparent'; {_NO_TRANSPARENCY}")
    _choice(v, "background", "auto", ("opaque", "auto"))


def _compression(v: Mapping[str, Value], output_format: Format) -> int:
    compression = _whole(v, "output_compression", 100, 0, 100)
    if output_format == "png" and compression != 100:
        raise InvalidRequest("output_compression", f"got {compression}; a PNG loses nothing, send jpeg or webp")
    return compression


def _streaming(v: Mapping[str, Value]) -> tuple[bool, int, bool]:
    stream, progress = bool(v.get("stream", False)), bool(v.get("stream_progress", False))
    partial_images = _whole(v, "partial_images", 0, 0, MAX_PREVIEWS)
    for name, given in (("partial_images", partial_images), ("stream_progress", progress)):
        if given and not stream:
            raise InvalidRequest(name, "there is nowhere to send that; it needs stream: true")
    return stream, partial_images, progress


def _request(v: Mapping[str, Value], quality: Quality, previews: int) -> EditRequest:
    names = [name for name in ("steps", "num_inference_steps") if name in v]
    if len(names) == 2 and v["steps"] != v["num_inference_steps"]:
        raise InvalidRequest("num_inference_steps", "it is another word for steps, and the two differ")
    size = cast(str, v.get("size", "auto"))
    parse_resolution(size, "size")
    given: dict[str, Any] = {name: v[name] for name in _AS_THEY_ARE if name in v}
    for name in ("cot_text", "system_prompt"):
        if len(given.get(name, "")) > MAX_TEXT:
            raise InvalidRequest(name, f"it has {len(given[name]):,} characters; at most {MAX_TEXT:,} are allowed")
    _settle_system_prompt(given)
    cache = _choice(v, "step_cache", "", ("none", *get_args(StepCacheName), ""))
    if not cache:
        cache = LOW_STEP_CACHE if quality == "low" else "none"
    return EditRequest(
        cast(str, v["prompt"]),
        seed=cast(int | None, v.get("seed")),
        steps=cast(int | None, v[names[0]] if names else None),
        resolution=size,
        step_cache=None if cache == "none" else cast(StepCacheName, cache),
        previews=previews,
        **given,
    )


def _settle_system_prompt(given: dict[str, Any]) -> None:
    """A text of one's own and the choice of it go together: neither is dropped silently."""
    if "system_prompt" in given:
        choice = given.setdefault("use_system_prompt", "custom")
        if choice not in ("custom", "dynamic"):
            raise InvalidRequest("system_prompt", f"it needs use_system_prompt custom; {choice[:40]!r} came")
        if choice == "dynamic" and given.get("bot_task", _DYNAMIC_TASK) != _DYNAMIC_TASK:
            raise InvalidRequest(
                "system_prompt", f"dynamic has prompts of its own for every bot_task but {_DYNAMIC_TASK}; send custom"
            )
    elif given.get("use_system_prompt") == "custom":
        raise InvalidRequest(
            "system_prompt", "this field is missing; use_system_prompt custom needs it (None means no text)"
        )


def _validate(request: EditRequest, settings: Settings, steps_name: str) -> None:
    """The checks that every request has, in the words of these fields."""
    try:
        validate(request, settings)
    except InvalidRequest as error:
        if error.field != "steps":
            raise
        raise InvalidRequest(steps_name, str(error).removeprefix("steps: ")) from None


def _whole(v: Mapping[str, Value], name: str, default: int, low: int, high: int) -> int:
    value = cast(int, v.get(name, default))
    whole(name, value, low, high, optional=False)
    return value


def _choice(v: Mapping[str, Value], name: str, default: _Choice, allowed: tuple[_Choice, ...]) -> _Choice:
    value = v.get(name, default)
    for word in allowed:
        if value == word:
            return word
    words = ", ".join(word for word in allowed if word)
    raise InvalidRequest(name, f"got {str(value)[:40]!r}; allowed are {words}")
