"""Bodies under /v1: forms with one picture or several, JSON with data URLs, and what is wrong with the others."""

from __future__ import annotations

import asyncio
import base64
import json
import tracemalloc
from typing import Any

import pytest
from starlette.requests import Request

from hunyuan.errors import HunyuanError, InvalidImage, InvalidRequest, UnknownField
from hunyuan.serving.http_errors import UnsupportedMediaType
from hunyuan.serving.openai.bodies import Body, read_edit, read_generation
from hunyuan.serving.openai.fields import MAX_TEXT
from hunyuan.serving.records import RECORD, RequestRecord

FORM = "multipart/form-data; boundary=b"
URL = "data:image/png;base64," + base64.b64encode(b"pixels").decode()


def part(name: str, value: bytes, file_name: str | None = None) -> bytes:
    file = "" if file_name is None else f'; filename="{file_name}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + value + b"\r\n"


def file(name: str, value: bytes = b"pixels") -> bytes:
    return part(name, value, "a.png")


END = b"--b--\r\n"
PROMPT = part("prompt", b"hello")


def read(body: bytes, media_type: str = FORM, generation: bool = False, encoding: str = "", most: int = 50) -> Body:
    pieces = [body[i : i + most] for i in range(0, len(body), most)] or [b""]
    headers = [(b"content-type", media_type.encode()), (b"content-encoding", encoding.encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1", "headers": headers, RECORD: RequestRecord("id")}
    counts: list[int] = []

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    reader = read_generation if generation else read_edit
    found = asyncio.run(reader(Request(scope, receive), counts.append))
    assert sum(counts) == len(body)
    return found


def in_json(generation: bool = False, **fields: Any) -> Body:
    return read(json.dumps({"prompt": "hello", **fields}).encode(), "application/json", generation)


def test_a_form_with_one_picture() -> None:
    body = read(file("image") + PROMPT + part("n", b"2") + part("stream", b"true") + part("size", b"") + END)
    assert body == Body({"prompt": "hello", "n": 2, "stream": True}, [b"pixels"])


def test_a_form_with_several_pictures_keeps_their_order() -> None:
    body = read(file("image[]", b"one") + PROMPT + file("image[]", b"two") + file("image[]", b"three") + END)
    assert body.pictures == [b"one", b"two", b"three"]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (PROMPT + END, InvalidImage, "image: this field is missing; send one PNG"),
        (file("image[]") * 4 + END, InvalidImage, r"image\[\]: came more than 3 times; 3 are allowed"),
        (file("image") * 2 + END, InvalidImage, r"image: came more than once; send it once, or several as image\[\]"),
        (file("image") + file("image[]") + PROMPT + END, InvalidImage, r"image: it came beside image\[\]"),
        (part("image", b"http://x/a.png") + END, InvalidImage, "addresses are not fetched"),
        (file("mask") + END, InvalidRequest, "mask: this model takes no mask"),
        (part("negative_prompt", b"x") + END, InvalidRequest, "negative_prompt: this model has no negative prompt"),
        (part("images", b"x") + END, InvalidRequest, "images: files are called image"),
        (part("resolution", b"1:1") + END, InvalidRequest, "resolution: the size of the picture is called size here"),
        (part("guidance", b"x") + END, UnknownField, "guidance: there is no such field; allowed are image, image"),
        (part("svg[model]", b"x") + END, InvalidRequest, r"svg\[model\]: this model paints pixels"),
        (PROMPT * 2 + END, InvalidRequest, "prompt: came more than once"),
        (file("image") + PROMPT + part("n", b"two") + END, InvalidRequest, "n: got 'two'; a whole number"),
    ],
)
def test_what_is_wrong_with_a_form(body: bytes, kind: type[HunyuanError], message: str) -> None:
    with pytest.raises(kind, match=message):
        read(body)


def test_json_with_data_urls() -> None:
    body = in_json(images=[URL, {"image_url": URL}], n=2, stream=True, user=None, size="")
    assert body == Body({"prompt": "hello", "n": 2, "stream": True}, [b"pixels", b"pixels"], "images")


def test_the_head_of_a_data_url_has_no_case() -> None:
    assert in_json(images=[URL.replace("data:image/png;base64", "DATA:image/PNG;Base64")]).pictures == [b"pixels"]


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({}, InvalidImage, "images: this field is missing; a list of 1 to 3 data URLs"),
        ({"images": []}, InvalidImage, "images: got 0 pictures"),
        ({"images": [URL] * 4}, InvalidImage, "images: got 4 pictures"),
        ({"images": URL}, InvalidImage, "images: got something else"),
        ({"images": ["https://example.org/a.png"]}, InvalidImage, r"images\[0\]: it is no data URL"),
        ({"images": ["file:///etc/passwd"]}, InvalidImage, "addresses are not fetched"),
        ({"images": [URL, 7]}, InvalidImage, r"images\[1\]: it is no text"),
        ({"images": ["data:image/png;base64,###"]}, InvalidImage, "its base64 is broken"),
        ({"images": ["data:image/png;base64,é"]}, InvalidImage, "its base64 is broken"),
        ({"images": ["data:text/html;base64,AAAA"]}, InvalidImage, "it is no data URL"),
        ({"images": [{"file_id": "f"}]}, InvalidImage, "files are not kept here"),
        ({"images": [{"image_url": URL, "file_id": "f"}]}, InvalidImage, "files are not kept here"),
        ({"image": URL}, InvalidRequest, "image: in JSON the pictures are called images"),
        ({"image[0]": URL}, InvalidRequest, r"image\[0\]: in JSON the pictures are called images"),
        ({"images": [URL], "image": URL}, InvalidRequest, "image: in JSON the pictures are called images"),
        ({"images": [URL], "mask": URL}, InvalidRequest, "mask: this model takes no mask"),
        ({"images": [URL], "Prompt": "x"}, UnknownField, "Prompt: there is no such field"),
        ({"images": [URL], "n": "2"}, InvalidRequest, "n: got '2'; a whole number is allowed"),
    ],
)
def test_what_is_wrong_with_json(fields: dict[str, Any], kind: type[HunyuanError], message: str) -> None:
    with pytest.raises(kind, match=message):
        in_json(**fields)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: it is not JSON"),
        (b"prompt=x", "body: it is not JSON"),
        (b"[1]", "body: it is no JSON object"),
        (b'{"prompt": "a", "prompt": "b"}', "prompt: came more than once"),
        (b'{"n": NaN}', "body: NaN is not JSON"),
        (b'{"guidance_scale": Infinity}', "body: Infinity is not JSON"),
        (b"[" * 100_000, "body: it is JSON that no field here has a use for"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "body: it is JSON that no field"),
        (b'{"prompt": "caf\xe9"}', "body: byte 15 is not valid UTF-8"),
    ],
)
@pytest.mark.parametrize("generation", [True, False])
def test_what_is_no_json(body: bytes, message: str, generation: bool) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read(body, "application/json", generation)


@pytest.mark.parametrize("piece", [b"[],", b'{"a":{}},', b"1,"])
@pytest.mark.parametrize("generation", [True, False])
def test_a_body_of_brackets_costs_no_more_than_its_bytes(piece: bytes, generation: bool) -> None:
    body = b'{"prompt": [' + piece * (10_000_000 // len(piece)) + b"1]}"
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match=r"body: it has [0-9,]+ brackets and commas; at most 500,000"):
            read(body, "application/json", generation, most=len(body))
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


def test_the_longest_texts_have_room_for_any_characters() -> None:
    longest = "[" * MAX_TEXT
    body = in_json(images=[URL], cot_text=longest, system_prompt=longest)
    assert body.values["cot_text"] == body.values["system_prompt"] == longest


def test_words_alone() -> None:
    assert in_json(generation=True, size="1:1") == Body({"prompt": "hello", "size": "1:1"})
    for name in ("image", "images", "image[]"):
        with pytest.raises(InvalidRequest, match="pictures go to POST /v1/images/edits"):
            in_json(generation=True, **{name: URL})


@pytest.mark.parametrize(
    ("media_type", "generation", "encoding"),
    [("text/plain", False, ""), ("", False, ""), (FORM, True, ""), ("application/json", False, "gzip")],
)
def test_another_media_type_is_refused(media_type: str, generation: bool, encoding: str) -> None:
    with pytest.raises(UnsupportedMediaType):
        read(PROMPT + END, media_type, generation, encoding)
