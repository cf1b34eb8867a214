"""What the OpenAPI page says about the routes under /v1. Knows the page's format and the fields, no request.

`FIELDS` has the bounds that `call.py` and `validation.py` check; the tests compare the names, and try the bounds.
"""

from __future__ import annotations

from typing import Any, get_args

from hunyuan.requests import MAX_IMAGES, MAX_PREVIEWS, MAX_SEED, MAX_STEPS, BotTask, StepCacheName, SystemPromptChoice
from hunyuan.serving.openai.call import MOST, QUALITIES, Operation
from hunyuan.serving.openai.errors import PREFIX
from hunyuan.serving.openai.fields import MAX_TEXT
from hunyuan.serving.picture_files import FORMATS
from hunyuan.settings import Settings

TAGS = ["OpenAI"]
OUR_EVENTS = ("hunyuan.queue", "hunyuan.stage", "hunyuan.text")
Schema = dict[Any, Any]


def _whole(low: int, high: int, about: str) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "description": about}


def _number(low: float, high: float, about: str) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high, "description": about}


def _words(words: tuple[str, ...], about: str) -> Schema:
    return {"type": "string", "enum": list(words), "description": about}


def _text(about: str, longest: int | None = None) -> Schema:
    return {"type": "string", "description": about, **({} if longest is None else {"maxLength": longest})}


def _flag(about: str) -> Schema:
    return {"type": "boolean", "description": about}


_STEPS = _whole(1, MAX_STEPS, "denoising steps; num_inference_steps is another name for it")
FIELDS: dict[str, Schema] = {
    "prompt": {**_text("what to change or to paint, in any language"), "minLength": 1},
    "model": _text("taken and not used: one model is served"),
    "n": _whole(1, MOST, "pictures; their seeds follow each other"),
    "size": {**_text("auto, WIDTHxHEIGHT or W:H; at most 8:1"), "pattern": r"^(auto|[0-9]+[x:][0-9]+)$"},
    "quality": _words(tuple(QUALITIES), "low forecasts most steps, high takes 50 (a Distil checkpoint 8)"),
    "output_format": _words(FORMATS, "of the files; png by default"),
    "output_compression": _whole(0, 100, "of jpeg and webp; 100, the default, is the best and the largest"),
    "response_format": _words(("b64_json",), "no pictures are kept, so there are no addresses of any"),
    "background": _words(("opaque", "auto"), "the model paints no transparency"),
    "user": _text("taken and not used"),
    "safety_identifier": _text("taken and not used"),
    "stream": _flag("server-sent events instead of one answer"),
    "partial_images": _whole(0, MAX_PREVIEWS, "previews of each picture; with stream"),
    "stream_progress": _flag("events about queue, stages and thinking too; with stream"),
    "seed": _whole(0, MAX_SEED, "of the first picture; drawn, and returned, when absent"),
    "steps": _STEPS,
    "num_inference_steps": _STEPS,
    "guidance_scale": _number(0, 100, "the checkpoint's own when absent"),
    "flow_shift": _number(0.01, 100, "the checkpoint's own when absent"),
    "bot_task": _words(get_args(BotTask), "what is written before the picture; image: nothing"),
    "use_system_prompt": _words(get_args(SystemPromptChoice), "which system prompt; en_unified by default"),
    "system_prompt": _text("one of your own; means use_system_prompt custom", MAX_TEXT),
    "cot_text": _text("replaces the thinking", MAX_TEXT),
    "step_cache": _words(("none", *get_args(StepCacheName)), "forecasts most steps: faster, and another picture"),
    "infer_align_image_size": _flag("the picture's ratio follows the source's to the pixel; true by default"),
    "max_new_tokens": _whole(1, 2**20, "of the thinking"),
}
_FILE = {"type": "string", "format": "binary"}
_DATA_URL = {"type": "string", "pattern": "^data:image/[a-zA-Z0-9.+-]{1,40};base64,"}
_COUNTS = {"image_tokens": {"type": "integer"}, "text_tokens": {"type": "integer"}}
_USAGE: Schema = {
    "type": "object",
    "nullable": True,
    "properties": {
        "input_tokens": {"type": "integer"},
        "input_tokens_details": {"type": "object", "properties": _COUNTS},
        "output_tokens": {"type": "integer"},
        "output_tokens_details": {"type": "object", "properties": _COUNTS},
        "total_tokens": {"type": "integer"},
    },
}
_PICTURE: Schema = {
    "type": "object",
    "required": ["b64_json", "revised_prompt", "cot_text", "seed", "size"],
    "properties": {
        "b64_json": {"type": "string"},
        "revised_prompt": {"type": "string", "nullable": True},
        "cot_text": {"type": "string", "nullable": True},
        "seed": {"type": "integer"},
        "size": {"type": "string"},
    },
}
_ANSWER: Schema = {
    "type": "object",
    "required": ["created", "data", "output_format", "quality", "size", "background", "usage"],
    "properties": {
        "created": {"type": "integer"},
        "data": {"type": "array", "items": _PICTURE},
        **{name: {"type": "string"} for name in ("output_format", "quality", "size", "background")},
        "usage": _USAGE,
    },
}
_MODEL: Schema = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        **{name: {"type": "string"} for name in ("id", "object", "owned_by")},
        "created": {"type": "integer"},
    },
}
_MODELS: Schema = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"type": "string"}, "data": {"type": "array", "items": _MODEL}},
}
_MODEL_NAME = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
_NULLABLE = {"type": "string", "nullable": True}
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "additionalProperties": False,
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "param": _NULLABLE}
            | {"code": {"type": "string"}},
            "additionalProperties": False,
        }
    },
}


def operations(settings: Settings, errors: dict[int, str]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The method and the operation of each path.

    Args:
        errors: the codes of an edit's errors, by status.
    """
    fields = FIELDS | {"prompt": {**FIELDS["prompt"], "maxLength": settings.prompt_max_chars}}
    files = {"image": _FILE, "image[]": {"type": "array", "items": _FILE, "minItems": 1, "maxItems": MAX_IMAGES}}
    images = {"images": {"type": "array", "items": _DATA_URL, "minItems": 1, "maxItems": MAX_IMAGES}}
    form = _object({**files, **fields}, ["prompt"])
    form["oneOf"] = [{"required": ["image"]}, {"required": ["image[]"]}]
    in_json = _object({**images, **fields}, ["images", "prompt"])
    edit_bodies = {"multipart/form-data": {"schema": form}, "application/json": {"schema": in_json}}
    words = {"application/json": {"schema": _object(fields, ["prompt"])}}
    refusals = {status: _error(codes) for status, codes in errors.items()}
    common = {status: refusals[status] for status in (401, 503) if status in refusals}
    models: Schema = {200: _success("the model that is served", _MODELS), **common}
    model: Schema = {200: _success("the model", _MODEL), 404: _error("model_not_found"), **common}
    one = _operation("v1_model", "Tells of the model by its name.", model) | {"parameters": [_MODEL_NAME]}
    edits = "Edits a picture, or makes one of up to three, as OpenAI's images API does."
    edited, generated = ({200: _painted(name), **refusals} for name in get_args(Operation))
    return {
        f"{PREFIX}/images/edits": ("post", _operation("v1_edits", edits, edited, edit_bodies)),
        f"{PREFIX}/images/generations": ("post", _operation("v1_generations", "Paints from words.", generated, words)),
        f"{PREFIX}/models": ("get", _operation("v1_models", "Names the one model that is served.", models)),
        f"{PREFIX}/models/{{model}}": ("get", one),
    }


def _operation(name: str, about: str, responses: Schema, bodies: Schema | None = None) -> Schema:
    operation = {"operationId": name, "description": about, "tags": TAGS, "responses": responses}
    return operation if bodies is None else operation | {"requestBody": {"required": True, "content": bodies}}


def _object(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _painted(operation: Operation) -> Schema:
    answer = _success("the pictures; with stream, server-sent events", _ANSWER)
    names = [f"{operation}.{name}" for name in ("partial_image", "completed")] + [*OUR_EVENTS, "error"]
    about = f"events, each with JSON as its data: {', '.join(names)}"
    answer["content"]["text/event-stream"] = {"schema": _text(about)}
    return answer


def _success(about: str, schema: Schema) -> Schema:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _error(codes: str) -> Schema:
    return {"description": codes, "content": {"application/json": {"schema": ERROR}}}
