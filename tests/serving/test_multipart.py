"""Bodies as clients get them wrong: each refusal says what is wrong; and no body outlives its request."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
from starlette.requests import Request

from hunyuan.errors import HunyuanError, InvalidImage, InvalidPrompt, InvalidRequest
from hunyuan.serving.http_errors import UnsupportedMediaType
from hunyuan.serving.inputs import json_decoded
from hunyuan.serving.multipart import Form, read_form
from hunyuan.serving.records import RECORD, RequestRecord

TYPE = "multipart/form-data; boundary=b"
IMAGE = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\npixels\r\n'
PROMPT = b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhello\r\n'
END = b"--b--\r\n"


def read(body: bytes, headers: Mapping[str, str] | None = None, chunk: int = 65536) -> Form:
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]
    raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in ({"Content-Type": TYPE} | dict(headers or {})).items()]
    scope = {"type": "http", "method": "POST", "path": "/edit", "headers": raw, RECORD: RequestRecord("id")}

    async def receive() -> dict[str, Any]:
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    return asyncio.run(read_form(Request(scope, receive), ("image",), ("prompt", "seed"), lambda count: None))


def part(headers: str, value: bytes = b"hello") -> bytes:
    return b"--b\r\n" + headers.encode() + b"\r\n\r\n" + value + b"\r\n"


IMAGE_HEADER = 'Content-Disposition: form-data; name="image"'
PROMPT_HEADER = 'Content-Disposition: form-data; name="prompt"'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "body: it is empty; send the fields as multipart/form-data"),
        ((IMAGE + PROMPT + END).replace(b"\r\n", b"\n"), "lines end in LF alone"),
        (b"--b\r\n" + (IMAGE + END)[5:].replace(b"\r\n", b"\n"), "lines end in LF alone"),
        (IMAGE.replace(b'"image"', b'"image"\nX: y') + END, "lines end in LF alone"),
        (b"--other\r\n" + IMAGE[5:] + b"--other--\r\n", "does not begin with the boundary that Content-Type names"),
        (b"prompt=hello&seed=1", "does not begin with the boundary that Content-Type names"),
        (b"\r\n\r\n", "does not begin with the boundary"),
        (b"--b", "behind its first boundary there is no CRLF"),
        (IMAGE + PROMPT, "it stops before its closing boundary (--boundary--); was the upload cut short?"),
        (IMAGE[:-4], "closing boundary"),
        (part("X-Note: 1") + END, "a part has no Content-Disposition header"),
        (part("Content-Disposition: form-data") + END, "a part has no name"),
        (part(f"{PROMPT_HEADER}\r\nX-Long: {'y' * 5000}") + END, "longer than 4,224 bytes"),
        (part("\r\n".join([PROMPT_HEADER, *["X-Many: 1"] * 8])) + END, "more than 8 header lines"),
        (part("Content Disposition: form-data") + END, "a header line of a part is malformed"),
        (part("no colon at all") + END, "a header line of a part is malformed"),
        (part(f"{PROMPT_HEADER}\r\nContent-Transfer-Encoding: rot13") + END, "Content-Transfer-Encoding 'rot13'"),
    ],
)
@pytest.mark.parametrize("chunk", [1, 65536])
def test_a_malformed_body_is_explained(body: bytes, message: str, chunk: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(body, chunk=chunk)
    assert caught.value.field == "body"
    assert message in str(caught.value)
    assert "character" not in str(caught.value)  # the library's own words


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (part(IMAGE_HEADER), InvalidImage, "came as text of 5 bytes, for it has no filename; send it as a file"),
        (part(f"{IMAGE_HEADER}\r\nContent-Type: image/png"), InvalidImage, "it has no filename"),
        (part(f'{IMAGE_HEADER}; filename=""', b""), InvalidImage, "image: no file was chosen"),
        (part(f"{PROMPT_HEADER}\r\nContent-Type: text/plain; charset=iso-8859-1"), InvalidPrompt, "charset=iso-8859-1"),
        (part(f'{PROMPT_HEADER}\r\nContent-Type: text/plain; charset="UTF-16"'), InvalidPrompt, "must be UTF-8"),
        (part(PROMPT_HEADER, b"\xff\xfe"), InvalidPrompt, "byte 0 is not valid UTF-8"),
        (part(f"{PROMPT_HEADER}\r\nContent-Transfer-Encoding: base64", b"a"), InvalidPrompt, "cannot undo"),
    ],
)
def test_a_part_of_the_wrong_kind_is_named(body: bytes, kind: type[InvalidRequest], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read(body + END)
    assert type(caught.value) is kind
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"Content-Type": "multipart/form-data"}, 400, "Content-Type names no boundary; let the client library"),
        ({"Content-Type": 'multipart/form-data; boundary=""'}, 400, "names no boundary"),
        ({"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}, 400, "longer than 256 characters"),
        ({"Content-Type": "text/plain"}, 415, "multipart/form-data"),
        ({"Content-Encoding": "gzip"}, 415, "Content-Encoding 'gzip' is not taken; send the body uncompressed"),
        ({"Content-Encoding": "br, gzip"}, 415, "'br, gzip'"),
    ],
)
def test_headers_that_do_not_fit_are_named(headers: dict[str, str], status: int, message: str) -> None:
    with pytest.raises(HunyuanError) as caught:
        read(IMAGE + PROMPT + END, headers)
    assert caught.value.status == status
    assert isinstance(caught.value, UnsupportedMediaType) == (status == 415)
    assert message in str(caught.value)


@pytest.mark.parametrize("chunk", [1, 7, 65536])
def test_what_is_unusual_but_right_is_read(chunk: int) -> None:
    utf8_name = part(f"{IMAGE_HEADER}; filename*=UTF-8''caf%C3%A9.jpg", b"pixels")
    charset = part(f"{PROMPT_HEADER}\r\nContent-Type: text/plain; charset=UTF-8", "grün".encode())
    form = read(b"\r\n" + utf8_name + charset + END + b"an epilogue", chunk=chunk)
    assert (form.files, form.texts) == ({"image": b"pixels"}, {"prompt": "grün"})
    encoded = f"{PROMPT_HEADER}\r\nContent-Transfer-Encoding: base64"
    assert read(part(encoded, b"aGVs\r\nbG8=") + END, chunk=chunk).texts == {"prompt": "hello"}
    quoted = f"{PROMPT_HEADER}\r\nContent-Transfer-Encoding: Quoted-Printable"
    assert read(part(quoted, b"gr=C3=BCn") + END, chunk=chunk).texts == {"prompt": "grün"}
    assert read(IMAGE + END, {"Content-Encoding": "identity"}).files == {"image": b"pixels"}


@pytest.mark.parametrize("name", ["image", "nothing we know"])
def test_a_body_goes_with_its_request_and_not_with_the_collector(name: str) -> None:
    size = 4_000_000
    body = part(f'Content-Disposition: form-data; name="{name}"; filename="a"', bytes(size)) + END
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in range(3):
            try:
                read(body)
            except InvalidRequest as error:
                error.__traceback__ = None
        assert tracemalloc.get_traced_memory()[0] < size
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.mark.slow
def test_a_text_of_tiny_pieces_costs_no_more_than_its_bytes() -> None:
    size = 60_000
    body = part(PROMPT_HEADER, b"x" * size) + END
    tracemalloc.start()
    try:
        read(body, chunk=1)
        baseline = 60 * size  # the test's own list of pieces and the stream's own objects
        assert tracemalloc.get_traced_memory()[1] < baseline
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("text", ["[" * 3900, '{"a":' * 3000, "9" * 5000, "-" + "1" * 5000, "1e999", "NaN", "tru"])
def test_what_looks_like_json_from_bentomls_client_is_its_own_text(text: str) -> None:
    assert json_decoded({"prompt": text}) == {"prompt": text}


def test_only_whole_json_strings_are_decoded() -> None:
    assert json_decoded({"prompt": '"["', "seed": "null"}) == {"prompt": "["}
    assert json_decoded({"prompt": '"half'}) == {"prompt": '"half'}
    assert json_decoded({"prompt": '"a" b'}) == {"prompt": '"a" b'}
    deep = "[" * 3900
    assert json_decoded({"prompt": f'"{deep}"'}) == {"prompt": deep}


@pytest.mark.parametrize("body", [b"SECRET", part("Se\x01cret", b"x"), part(PROMPT_HEADER, b"x")[:-1] + b"SECRET"])
def test_a_malformed_body_is_quoted_in_no_log(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), pytest.raises(InvalidRequest):
        read(body)
    assert caplog.records == []
