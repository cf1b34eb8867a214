"""The fields of /edit: multipart parts in, checked values or a clear refusal out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import Request

from hunyuan.errors import HunyuanError, InvalidImage, InvalidPrompt, InvalidRequest, UnknownField
from hunyuan.requests import EditRequest
from hunyuan.serving.http_errors import UnsupportedMediaType
from hunyuan.serving.inputs import MAX_SEED, edit_form, json_decoded, max_body_bytes
from hunyuan.serving.pace import Least
from hunyuan.serving.records import RECORD, RequestRecord
from hunyuan.serving.uploads import Uploads
from hunyuan.settings import Settings
from hunyuan.validation import validate

# BentoML's input classes still use this way of Pydantic's.
pytestmark = pytest.mark.filterwarnings("ignore:The `__get_pydantic_core_schema__` method:DeprecationWarning")

Part = tuple[str, bytes] | tuple[str, bytes, str]  # name, value, file name
IMAGE: Part = ("image", b"bytes", "a.jpg")
PROMPT: Part = ("prompt", b"make it blue")
BOUNDARY = "frontier"


def body_of(parts: Sequence[Part], end: bytes = b"--frontier--\r\n") -> bytes:
    chunks = []
    for name, value, *file_name in parts:
        disposition = f'form-data; name="{name}"' + (f'; filename="{file_name[0]}"' if file_name else "")
        chunks.append(b"--frontier\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + value + b"\r\n")
    return b"".join(chunks) + end


def parse(
    parts: Sequence[Part] = (),
    body: bytes | None = None,
    content_type: str = f"multipart/form-data; boundary={BOUNDARY}",
    agent: str = "curl/8",
    chunk: int = 7,
) -> Any:
    """What the service gets from a body that arrives in small pieces."""
    data = body if body is not None else body_of(parts)
    pieces = [data[i : i + chunk] for i in range(0, len(data), chunk)] or [b""]
    headers = [(b"content-type", content_type.encode()), (b"user-agent", agent.encode())]
    scope = {"type": "http", "method": "POST", "path": "/edit", "headers": headers, RECORD: RequestRecord("id")}

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    uploads = Uploads(1, 1, Least(10, 0))
    form = edit_form(Settings(), lambda request, deadline: uploads.one(None, None, deadline))
    return asyncio.run(form.from_http_request(Request(scope, receive), None))


def refusal(parts: Sequence[Part], **options: Any) -> HunyuanError:
    with pytest.raises(HunyuanError) as caught:
        parse(parts, **options)
    return caught.value


def test_the_two_required_fields_are_enough() -> None:
    form = parse([IMAGE, PROMPT])
    assert (form.image, form.prompt, form.seed, form.steps, form.resolution) == (
        b"bytes",
        "make it blue",
        None,
        None,
        "auto",
    )


@pytest.mark.parametrize("agent", ["curl/8", "BentoML HTTP Client/1.4"])
def test_an_empty_optional_field_is_an_absent_one(agent: str) -> None:
    empty = b'""' if agent.startswith("BentoML") else b""
    form = parse([IMAGE, PROMPT, ("seed", empty), ("steps", empty), ("resolution", empty)], agent=agent)
    assert (form.seed, form.steps, form.resolution) == (None, None, "auto")


BLANK = ["\u200b\u200b", "\u2060\ufeff", " \t\r\n", "\u00a0\u3000", "\x00\x07", "\u202e", "\ufe0f", "\u3164\u2800"]


@pytest.mark.parametrize("prompt", BLANK, ids=ascii)
def test_a_prompt_that_shows_nothing_is_blank(prompt: str) -> None:
    error = refusal([IMAGE, ("prompt", prompt.encode())])
    assert isinstance(error, InvalidPrompt)
    assert "it is blank" in str(error)
    with pytest.raises(InvalidPrompt, match="blank"):
        validate(EditRequest(prompt), Settings())


@pytest.mark.parametrize("prompt", ["\u200bx", "e\u0301", "👩\u200d🚀", "1", "।", "한", "?"], ids=ascii)
def test_a_prompt_that_shows_something_is_taken_as_it_is(prompt: str) -> None:
    assert parse([IMAGE, ("prompt", prompt.encode())]).prompt == prompt
    validate(EditRequest(prompt), Settings())


def test_all_fields() -> None:
    form = parse(
        [("resolution", b"4:3"), ("steps", b"100"), ("seed", str(MAX_SEED).encode()), PROMPT, IMAGE], chunk=4096
    )
    assert (form.seed, form.steps, form.resolution) == (MAX_SEED, 100, "4:3")


@pytest.mark.parametrize(
    "prompt", ["42", "true", "null", '"quoted"', '{"a": 1}', " a ", "把背景变蓝", "a\r\nb", "+%20"]
)
def test_a_prompt_arrives_literally(prompt: str) -> None:
    assert parse([IMAGE, ("prompt", prompt.encode())]).prompt == prompt


def test_a_large_file_arrives_whole() -> None:
    data = bytes(range(256)) * 8000
    assert parse([("image", data, "a.png"), PROMPT], chunk=65536).image == data


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        ([PROMPT], InvalidImage, "image: this field is missing"),
        ([IMAGE], InvalidPrompt, "prompt: this field is missing; 1 to 4,000"),
        ([], InvalidImage, "image: this field is missing"),
        ([IMAGE, ("prompt", b" \n\t")], InvalidPrompt, "prompt: it is blank"),
        ([IMAGE, ("prompt", b"x" * 4001)], InvalidPrompt, "prompt: it has 4,001 characters; allowed are 1 to 4,000"),
        ([IMAGE, ("prompt", b"caf\xe9")], InvalidPrompt, "prompt: byte 3 is not valid UTF-8"),
        ([IMAGE, PROMPT, ("seed", b"-1")], InvalidRequest, "seed: got -1; allowed is a whole number from 0"),
        ([IMAGE, PROMPT, ("seed", b"9223372036854775808")], InvalidRequest, "seed: got 9223372036854775808"),
        ([IMAGE, PROMPT, ("seed", b"1.0")], InvalidRequest, "seed: got '1.0'"),
        ([IMAGE, PROMPT, ("seed", b" 1")], InvalidRequest, "seed: got ' 1'"),
        ([IMAGE, PROMPT, ("seed", b" ")], InvalidRequest, "seed: got ' '"),
        ([IMAGE, PROMPT, ("seed", "１".encode())], InvalidRequest, "seed: got"),
        ([IMAGE, PROMPT, ("seed", b"9" * 10_000)], InvalidRequest, "seed: got '9999"),
        ([IMAGE, PROMPT, ("steps", b"0")], InvalidRequest, "steps: got 0; allowed is a whole number from 1 to 100"),
        ([IMAGE, PROMPT, ("steps", b"101")], InvalidRequest, "steps: got 101"),
        ([IMAGE, PROMPT, ("steps", b"true")], InvalidRequest, "steps: got 'true'"),
        ([IMAGE, PROMPT, ("resolution", b"big")], InvalidRequest, "resolution: got 'big'"),
        ([IMAGE, PROMPT, ("resolution", b"9:1")], InvalidRequest, "resolution: "),
        ([IMAGE, PROMPT, ("resolution", b"8x8")], InvalidRequest, "resolution: "),
        (
            [IMAGE, PROMPT, ("step", b"8")],
            UnknownField,
            "step: there is no such field; allowed are image, prompt, seed",
        ),
        ([IMAGE, PROMPT, ("image[]", b"x", "b.png")], UnknownField, "image[]: there is no such field"),
        ([IMAGE, IMAGE, PROMPT], InvalidImage, "image: came more than once"),
        ([IMAGE, PROMPT, PROMPT], InvalidPrompt, "prompt: came more than once"),
        ([IMAGE, PROMPT, ("seed", b"1"), ("seed", b"1")], InvalidRequest, "seed: came more than once"),
        ([PROMPT, ("image", b"http://example.org/a.png")], InvalidImage, "image: came as text of 24 bytes"),
        ([IMAGE, ("prompt", b"hello", "p.txt")], InvalidPrompt, "prompt: came as a file"),
        ([IMAGE, PROMPT, ("seed", b"1", "s.txt")], InvalidRequest, "seed: came as a file"),
    ],
)
def test_a_refusal_names_the_field(parts: list[Part], kind: type[InvalidRequest], message: str) -> None:
    error = refusal(parts, chunk=1000)
    assert type(error) is kind
    assert error.status == 400
    assert message in str(error)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/x-www-form-urlencoded", "multipart/mixed; boundary=frontier", ""]
)
def test_only_multipart_is_taken(content_type: str) -> None:
    error = refusal([IMAGE, PROMPT], content_type=content_type)
    assert type(error) is UnsupportedMediaType
    assert error.status == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no boundary at all",
        body_of([IMAGE, PROMPT, ("seed", b"4")], end=b""),
        body_of([IMAGE, PROMPT])[:-30],
        b"--frontier\r\nContent-Disposition: form-data\r\n\r\nx\r\n--frontier--\r\n",
    ],
)
def test_a_malformed_body_is_refused_as_a_whole(body: bytes) -> None:
    error = refusal([], body=body)
    assert (error.status, error.code) == (400, "invalid_field")
    assert str(error).startswith("body: ")


def test_a_missing_boundary_is_a_malformed_body() -> None:
    assert refusal([IMAGE, PROMPT], content_type="multipart/form-data").status == 400


def test_bentomls_own_client_sends_json() -> None:
    parts: list[Part] = [IMAGE, ("prompt", b'"say \\"hi\\""'), ("seed", b"null"), ("steps", b"8")]
    form = parse(parts, agent="BentoML HTTP Client/1.4.39")
    assert (form.prompt, form.seed, form.steps) == ('say "hi"', None, 8)
    assert parse(parts[:2], agent="curl/8").prompt == '"say \\"hi\\""'


def test_json_decoding_keeps_what_is_no_json_string() -> None:
    texts = {"prompt": "plain words", "seed": "7", "steps": "null", "resolution": '"4:3"'}
    assert json_decoded(texts) == {"prompt": "plain words", "seed": "7", "resolution": "4:3"}


def test_half_a_character_from_json_is_refused() -> None:
    error = refusal([IMAGE, ("prompt", b'"a\\ud83d"')], agent="BentoML HTTP Client/1.4.39")
    assert "prompt: character 1 is half a character" in str(error)


def test_the_body_limit_is_counted_in_mebibytes() -> None:
    assert max_body_bytes(Settings(max_upload_mb=0.5)) == 524_288
