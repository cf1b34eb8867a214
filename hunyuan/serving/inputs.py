"""The fields of `POST /edit`: their names, bounds and meaning, for the server and for its OpenAPI page.

Takes a multipart body apart into plain values. Pictures stay bytes here: decoding one is work, and the service
decides when to do it (`decoders.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated, Any

import bentoml
from pydantic import ConfigDict, WithJsonSchema
from pydantic import Field as Described
from starlette.requests import Request

from hunyuan.errors import InvalidImage, InvalidPrompt
from hunyuan.pictures.reader import ALLOWED
from hunyuan.requests import MAX_SEED, MAX_STEPS, EditRequest
from hunyuan.serving.envelope import reporting
from hunyuan.serving.multipart import MULTIPART, Form, read_form
from hunyuan.serving.records import record_of
from hunyuan.serving.uploads import Upload as Arriving
from hunyuan.settings import Settings
from hunyuan.validation import validate

if TYPE_CHECKING:
    from _bentoml_impl.serde import Serde

FILES = ("image",)
OPTIONAL = ("seed", "steps", "resolution")
TEXTS = ("prompt", *OPTIONAL)

# BentoML's own client asks schema.json which fields are files, people read docs.json: two words for the same.
Upload = Annotated[
    bytes,
    WithJsonSchema({"type": "file", "format": "image"}, mode="validation"),
    WithJsonSchema({"type": "string", "format": "binary"}, mode="serialization"),
]
OneUpload = Callable[[Request, float], AbstractAsyncContextManager[Arriving]]
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,40}")
_BENTOML_CLIENT = "BentoML HTTP Client/"


def max_body_bytes(settings: Settings) -> int:
    return int(settings.max_upload_mb * 1024 * 1024)


def edit_form(settings: Settings, one_upload: OneUpload) -> type[bentoml.IODescriptor]:
    """The input specification of `/edit`, with this server's limits.

    `one_upload` is entered, with the request and its deadline, for as long as a body arrives; it may refuse.
    """

    class EditForm(bentoml.IODescriptor):
        """One edit, as multipart/form-data."""

        model_config = ConfigDict(extra="forbid")
        media_type = MULTIPART

        image: Upload = Described(description=f"the picture to edit, as a file: {ALLOWED}")
        prompt: str = Described(
            min_length=1, max_length=settings.prompt_max_chars, description="what to change, in any language"
        )
        seed: int | None = Described(None, ge=0, le=MAX_SEED, description="drawn, and returned in X-Seed, if absent")
        steps: int | None = Described(None, ge=1, le=MAX_STEPS, description="denoising steps")
        resolution: str = Described(
            "auto",
            pattern=r"^(auto|[0-9]+[x:][0-9]+)$",
            description="auto, WIDTHxHEIGHT or W:H, at most 8:1; chooses the shape, and not how many pixels there are",
        )

        @classmethod
        async def from_http_request(cls, request: Request, serde: Serde) -> bentoml.IODescriptor:
            with reporting(request.scope):
                # `model_construct`: the bounds are checked by now, with messages of our own.
                return cls.model_construct(**await read_edit(request, settings, one_upload))

    return EditForm


async def read_edit(request: Request, settings: Settings, one_upload: OneUpload) -> dict[str, Any]:
    """The fields of an edit from a request's body, checked: what `values_of` returns. Raises `HunyuanError`."""
    deadline = record_of(request.scope).started + settings.request_timeout_s
    async with one_upload(request, deadline) as upload:
        form = await read_form(request, FILES, TEXTS, upload.receive)
    if request.headers.get("user-agent", "").startswith(_BENTOML_CLIENT):
        form.texts = json_decoded(form.texts)
    return values_of(form, settings)


def json_decoded(texts: dict[str, str]) -> dict[str, str]:
    """Undoes what BentoML's own client does: it sends the JSON of each value, and `null` for None.

    Only strings change by that. Anything else is the text that it looks like, and is not parsed: JSON can be nested
    deeper than Python's own stack.
    """
    return {name: _string_of(text) for name, text in texts.items() if text != "null"}


def _string_of(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def values_of(form: Form, settings: Settings) -> dict[str, Any]:
    """Every field as the edit takes it; optional fields that are absent or empty get their defaults.

    An HTML form sends every field it has, and one that nobody filled in is empty. Raises `InvalidRequest`.
    """
    if "image" not in form.files:
        raise InvalidImage(f"this field is missing; send one {ALLOWED.replace(' and ', ' or ')} file")
    texts = {name: text for name, text in form.texts.items() if text or name not in OPTIONAL}
    if "prompt" not in texts:
        raise InvalidPrompt(f"this field is missing; 1 to {settings.prompt_max_chars:,} characters are allowed")
    values: dict[str, Any] = {
        "prompt": texts["prompt"],
        "seed": number_of(texts.get("seed")),
        "steps": number_of(texts.get("steps")),
        "resolution": texts.get("resolution", "auto"),
    }
    validate(EditRequest(**values), settings)
    return {"image": form.files["image"], **values}


def number_of(text: str | None) -> int | str | None:
    """The whole number that a field spells; the text itself where it is none, for `validate` to refuse.

    Nothing is rounded, trimmed or clipped.
    """
    return int(text) if text is not None and _WHOLE_NUMBER.fullmatch(text) else text
