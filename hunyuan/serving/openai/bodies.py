"""Reads the body of a request to /v1/images: a form with files, or JSON with data URLs.

Knows the two forms, and makes values of the right kind and bytes of pictures; what they mean is `call.py`. Nothing is
ever fetched from an address that a field contains.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from hunyuan.errors import InvalidImage, InvalidRequest
from hunyuan.pictures.reader import ALLOWED
from hunyuan.requests import MAX_IMAGES
from hunyuan.serving.http_errors import UnsupportedMediaType
from hunyuan.serving.multipart import MULTIPART, read_form
from hunyuan.serving.openai.fields import KINDS, REFUSED, Value, from_json, from_text, refuse

JSON = "application/json"
OnBytes = Callable[[int], None]

# Brackets and commas that a body may have: each can cost what takes thirty times its own bytes, in memory and time.
# All texts together have fewer, whatever they are made of (unless the operator allows very long prompts); base64 none.
MAX_MARKS = 500_000
_MARKS = b"[{,"

_A_FILE = ALLOWED.replace(" and ", " or ")
_DATA_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]{1,40};base64,", re.IGNORECASE)
_NO_FILES = "pictures go to POST /v1/images/edits"
_IN_A_FORM = REFUSED | {"images": "files are called image, or image[] where there are several"}
_IN_JSON = REFUSED | dict.fromkeys(("image", "image[]"), "in JSON the pictures are called images: a list of data URLs")
_FOR_GENERATIONS = REFUSED | dict.fromkeys(("image", "image[]", "images"), _NO_FILES)


@dataclass
class Body:
    """What came: values by field, each of its kind, and the files of pictures, which the field `field_name` held."""

    values: dict[str, Value]
    pictures: list[bytes] = field(default_factory=list)
    field_name: str = "image"


async def read_edit(request: Request, on_bytes: OnBytes) -> Body:
    """The body of /v1/images/edits.

    Raises:
        UnsupportedMediaType: neither a form nor JSON.
        InvalidRequest: the body is malformed, or a field is unknown, refused or of the wrong kind.
    """
    media_type = _media_type(request)
    if media_type == JSON:
        content = await _json(request, on_bytes)
        return await asyncio.to_thread(_edit_in_json, content)
    if media_type == MULTIPART:
        return await _form(request, on_bytes)
    raise UnsupportedMediaType(f"send {MULTIPART} with the picture as the file image, or {JSON} with images")


async def read_generation(request: Request, on_bytes: OnBytes) -> Body:
    """The body of /v1/images/generations; raises as `read_edit`."""
    if _media_type(request) != JSON:
        raise UnsupportedMediaType(f"send the fields as {JSON}")
    content = await _json(request, on_bytes)
    return Body(_values(_object_of(content), _FOR_GENERATIONS))


async def _form(request: Request, on_bytes: OnBytes) -> Body:
    form = await read_form(request, ("image",), tuple(KINDS), on_bytes, {"image[]": MAX_IMAGES}, _IN_A_FORM)
    several = form.lists.get("image[]", [])
    if several and "image" in form.files:
        raise InvalidImage("it came beside image[]; send all pictures as image[]")
    pictures = several or [form.files[name] for name in ("image",) if name in form.files]
    if not pictures:
        raise InvalidImage(f"this field is missing; send one {_A_FILE} file, or up to {MAX_IMAGES} as image[]")
    return Body(
        {name: from_text(name, text) for name, text in form.texts.items() if text or name == "prompt"}, pictures
    )


def _edit_in_json(content: bytes) -> Body:
    fields = _object_of(content)
    images = fields.pop("images", None)
    values = _values(fields, _IN_JSON)  # first: who sends `image` learns that it is called `images`
    return Body(values, _pictures(images), "images")


def _pictures(images: object) -> list[bytes]:
    allowed = f"a list of 1 to {MAX_IMAGES} data URLs (data:image/png;base64,...) is allowed"
    if images is None:
        raise InvalidImage(f"this field is missing; {allowed}", "images")
    if not isinstance(images, list) or not 1 <= len(images) <= MAX_IMAGES:
        came = f"{len(images)} pictures" if isinstance(images, list) else "something else"
        raise InvalidImage(f"got {came}; {allowed}", "images")
    return [_picture(f"images[{i}]", image) for i, image in enumerate(images)]


def _picture(name: str, image: object) -> bytes:
    """A data URL, by itself or as OpenAI's `{"image_url": ...}`."""
    if isinstance(image, dict):
        if set(image) != {"image_url"}:
            raise InvalidImage('an object must be {"image_url": "data:image/..."}; files are not kept here', name)
        image = image["image_url"]
    if not isinstance(image, str):
        raise InvalidImage("it is no text; send a data URL (data:image/png;base64,...)", name)
    head = _DATA_URL.match(image)
    if head is None:
        raise InvalidImage("it is no data URL (data:image/png;base64,...); addresses are not fetched", name)
    try:
        return binascii.a2b_base64(image[head.end() :].encode("ascii"), strict_mode=True)
    except ValueError as error:
        raise InvalidImage(f"its base64 is broken ({error})", name) from None


def _values(fields: Mapping[str, object], refused: Mapping[str, str]) -> dict[str, Value]:
    for name in fields:
        if name not in KINDS:
            raise refuse(name, refused)
    return {name: from_json(name, value) for name, value in fields.items() if not (_absent(value) and name != "prompt")}


def _absent(value: object) -> bool:
    return value is None or value == ""


def _media_type(request: Request) -> str:
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!r} is not taken; send the body uncompressed")
    return parse_options_header(request.headers.get("content-type"))[0].decode("latin-1")


async def _json(request: Request, on_bytes: OnBytes) -> bytes:
    content = bytearray()  # the envelope bounds it
    async for chunk in request.stream():
        on_bytes(len(chunk))
        content += chunk
    return bytes(content)


def _object_of(content: bytes) -> dict[str, Any]:
    marks = sum(content.count(mark) for mark in _MARKS)
    if marks > MAX_MARKS:
        raise InvalidRequest("body", f"it has {marks:,} brackets and commas; at most {MAX_MARKS:,} are allowed")
    try:
        values = json.loads(content.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise InvalidRequest("body", f"byte {error.start} is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest("body", f"it is not JSON ({error.msg}, character {error.pos})") from None
    except (RecursionError, ValueError):  # lists in lists without end, numbers of thousands of digits
        raise InvalidRequest("body", "it is JSON that no field here has a use for") from None
    if not isinstance(values, dict):
        raise InvalidRequest("body", "it is no JSON object; send {...} with the fields")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise InvalidRequest(name[:64], "came more than once; send it once")
        values[name] = value
    return values


def _no_number(word: str) -> NoReturn:
    raise InvalidRequest("body", f"{word} is not JSON")
