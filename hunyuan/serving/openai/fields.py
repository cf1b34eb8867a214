"""The fields of OpenAI's images API: which there are, of what kind, and which others are refused, and why.

Knows names and single values, from a form's text or from JSON. What the values mean together is `call.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum

from hunyuan.errors import HunyuanError, InvalidPrompt, InvalidRequest, UnknownField
from hunyuan.serving.form_faults import why_not

MAX_TEXT = 100_000  # characters of `cot_text` and `system_prompt`: more than the longest sequence of tokens holds
_WHOLE = re.compile(r"-?[0-9]{1,40}")
_NUMBER = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,2})?")
_FLAGS = {"true": True, "false": False}

Value = str | int | float | bool


class Kind(Enum):
    """What a value may be; its value is how a message calls that."""

    TEXT = "text"
    WHOLE = "a whole number"
    NUMBER = "a number"
    FLAG = "true or false"


_NUMBERS: dict[Kind, tuple[type[int] | type[float], ...]] = {Kind.WHOLE: (int,), Kind.NUMBER: (int, float)}

# `prompt` first, then OpenAI's own, then what is ours.
KINDS: dict[str, Kind] = {
    "prompt": Kind.TEXT,
    "model": Kind.TEXT,
    "n": Kind.WHOLE,
    "size": Kind.TEXT,
    "quality": Kind.TEXT,
    "output_format": Kind.TEXT,
    "output_compression": Kind.WHOLE,
    "response_format": Kind.TEXT,
    "background": Kind.TEXT,
    "user": Kind.TEXT,
    "safety_identifier": Kind.TEXT,
    "stream": Kind.FLAG,
    "partial_images": Kind.WHOLE,
    "stream_progress": Kind.FLAG,
    "seed": Kind.WHOLE,
    "steps": Kind.WHOLE,
    "num_inference_steps": Kind.WHOLE,
    "guidance_scale": Kind.NUMBER,
    "flow_shift": Kind.NUMBER,
    "bot_task": Kind.TEXT,
    "use_system_prompt": Kind.TEXT,
    "system_prompt": Kind.TEXT,
    "cot_text": Kind.TEXT,
    "step_cache": Kind.TEXT,
    "infer_align_image_size": Kind.FLAG,
    "max_new_tokens": Kind.WHOLE,
}

_NO_MASK = "this model takes no mask; say in the prompt where to change what"
_NO_FRAMES = "this model paints one picture, nothing that moves; leave it out"
_NO_ADAPTERS = "adapters are chosen when the server starts (HUNYUAN_LORA), not by a request; leave it out"
REFUSED: dict[str, str] = {
    "mask": _NO_MASK,
    "mask_image": _NO_MASK,
    "markup": "this model takes no drawing over a picture; say in the prompt where to change what",
    "svg": "this model paints pixels, no drawings of lines; leave it out",
    "frame_count": _NO_FRAMES,
    "frame_duration_ms": _NO_FRAMES,
    "complexity": "how much is thought before the picture is called bot_task here",
    "negative_prompt": "this model has no negative prompt; say in the prompt what you want instead",
    "input_fidelity": "this model always sees the whole picture; leave it out",
    "moderation": "this server moderates nothing; leave it out",
    "style": "this model has no styles to choose from; name one in the prompt",
    "strength": "this model repaints the whole picture as the prompt says; leave it out",
    "true_cfg_scale": "there is one guidance scale here; send guidance_scale",
    "lora": _NO_ADAPTERS,
    "lora_path": _NO_ADAPTERS,
    "resolution": "the size of the picture is called size here",
    "sys_type": "the choice of the system prompt is called use_system_prompt here",
    "enable_cache_dit": "step caching is called step_cache here: taylor, spectrum or none",
}


def refuse(name: str, where: Mapping[str, str]) -> HunyuanError:
    """The error for a field that is not taken.

    Args:
        where: fields that are refused, and why; any other name is unknown.
    """
    if reason := why_not(name, where):
        return InvalidRequest(name[:64], reason)
    return UnknownField(name[:64] or "(no name)", f"there is no such field; allowed are {', '.join(KINDS)}")


def from_text(name: str, text: str) -> Value:
    """The value that a form's text spells.

    Nothing is rounded or trimmed; what spells none is refused. Raises `InvalidRequest`.
    """
    kind = KINDS[name]
    if kind is Kind.TEXT:
        return text
    if kind is Kind.FLAG and text in _FLAGS:
        return _FLAGS[text]
    if kind is Kind.WHOLE and _WHOLE.fullmatch(text):
        return int(text)
    if kind is Kind.NUMBER and _NUMBER.fullmatch(text):
        return float(text)
    raise _of_another_kind(name, text)


def from_json(name: str, value: object) -> Value:
    """The value itself, if it is of the field's kind. Raises `InvalidRequest`."""
    kind = KINDS[name]
    if kind is Kind.TEXT and isinstance(value, str):
        return value
    if isinstance(value, bool):
        if kind is Kind.FLAG:
            return value
    elif isinstance(value, _NUMBERS.get(kind, ())):
        return value
    raise _of_another_kind(name, value)


def _of_another_kind(name: str, value: object) -> InvalidRequest:
    if name == "prompt":
        return InvalidPrompt(f"got {_json_kind(value)}; text is allowed")
    shown = repr(value)[:40] if isinstance(value, str | int | float) else _json_kind(value)
    return InvalidRequest(name, f"got {shown}; {KINDS[name].value} is allowed")


def _json_kind(value: object) -> str:
    names = {list: "a list", dict: "an object", bool: "true or false", str: "text", type(None): "null"}
    return names.get(type(value), "a number")
