"""Bad requests that every way in has to refuse alike: forms, pictures and bodies, each with the answer it must get.

Built by hand, because no client would send most of them. Which path they go to is the tests' business.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image
from server_process import Server, photo_bytes

BOUNDARY = "frontier"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
PHOTO = photo_bytes()
UPLOAD_LIMIT_MB = 1  # of the server that they are sent to


def part(name: str | None, value: str | bytes, file_name: str | None = None, disposition: str = "form-data") -> bytes:
    header = disposition if name is None else f'{disposition}; name="{name}"'
    if file_name is not None:
        header += f'; filename="{file_name}"'
    data = value.encode() if isinstance(value, str) else value
    return f"--{BOUNDARY}\r\nContent-Disposition: {header}\r\n\r\n".encode() + data + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
IMAGE, PROMPT = part("image", PHOTO, "a.jpg"), part("prompt", "good")


class Bad(NamedTuple):
    """`body` defaults to the good one with `extra` behind it."""

    status: int
    code: str
    says: str
    body: Any = None
    content_type: str | None = MULTIPART
    method: str = "POST"
    path: str = "/edit"


def with_field(name: str, value: str | bytes, says: str, code: str = "invalid_field") -> Bad:
    return Bad(400, code, says, IMAGE + PROMPT + part(name, value) + END)


def with_image(data: bytes, says: str, name: str = "a.jpg") -> Bad:
    return Bad(400, "invalid_image", says, part("image", data, name) + PROMPT + END)


def with_prompt(value: str | bytes, says: str) -> Bad:
    return Bad(400, "invalid_prompt", says, IMAGE + part("prompt", value) + END)


def saved(fmt: str, width: int = 64, height: int = 48, frames: int = 1) -> bytes:
    values = np.random.default_rng(1).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    first, *rest = (Image.fromarray(frame) for frame in values)
    buffer = BytesIO()
    more = {"save_all": True, "append_images": rest} if rest else {}
    first.save(buffer, format=fmt, **more)
    return buffer.getvalue()


def png_claiming(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


FIELDS = {
    "no image": Bad(400, "invalid_image", "image: this field is missing", PROMPT + END),
    "no prompt": Bad(400, "invalid_prompt", "prompt: this field is missing", IMAGE + END),
    "no fields": Bad(400, "invalid_image", "image: this field is missing", END),
    "unknown field": with_field("guidance", "3", "guidance: there is no such field", "unknown_field"),
    "misspelt field": with_field("step", "3", "allowed are image, prompt, seed", "unknown_field"),
    "field in capitals": with_field("Prompt", "x", "Prompt: there is no such field", "unknown_field"),
    "list of images": Bad(400, "unknown_field", "image[]", part("image[]", PHOTO, "a.jpg") + PROMPT + END),
    "field without a name": Bad(400, "unknown_field", "no such field", IMAGE + PROMPT + part("", "x") + END),
    "two prompts": with_field("prompt", "again", "prompt: came more than once", "invalid_prompt"),
    "two images": Bad(400, "invalid_image", "came more than once", IMAGE + IMAGE + PROMPT + END),
    "two seeds": Bad(400, "invalid_field", "seed: came more", IMAGE + PROMPT + part("seed", "1") * 2 + END),
    "prompt as a file": Bad(400, "invalid_prompt", "came as a file", IMAGE + part("prompt", "x", "p.txt") + END),
    "seed as a file": Bad(400, "invalid_field", "came as a file", IMAGE + PROMPT + part("seed", "1", "s") + END),
    "image as text": Bad(400, "invalid_image", "came as text", part("image", "hello") + PROMPT + END),
    "image as an address": Bad(
        400, "invalid_image", "addresses are not fetched", part("image", "http://127.0.0.1:9/a.png") + PROMPT + END
    ),
    "blank prompt": with_prompt(" \t\n", "prompt: it is blank"),
    "empty prompt": with_prompt("", "prompt: it is blank"),
    "long prompt": with_prompt("x" * 4001, "it has 4,001 characters; allowed are 1 to 4,000"),
    "prompt in Latin-1": with_prompt(b"caf\xe9", "byte 3 is not valid UTF-8"),
    "negative seed": with_field("seed", "-1", "seed: got -1; allowed is a whole number from 0"),
    "seed too large": with_field("seed", str(2**63), "seed: got 9223372036854775808"),
    "fractional seed": with_field("seed", "1.5", "seed: got '1.5'"),
    "seed in words": with_field("seed", "seven", "seed: got 'seven'"),
    "blank seed": with_field("seed", " ", "seed: got ' '"),
    "padded seed": with_field("seed", " 1", "seed: got ' 1'"),
    "seed as JSON null": with_field("seed", "null", "seed: got 'null'"),
    "seed in hex": with_field("seed", "0x10", "seed: got '0x10'"),
    "seed in other digits": with_field("seed", "１２", "seed: got"),
    "no steps": with_field("steps", "0", "steps: got 0; allowed is a whole number from 1 to 100"),
    "too many steps": with_field("steps", "101", "steps: got 101"),
    "astronomical steps": with_field("steps", "9" * 5000, "steps: got '9999"),
    "steps as JSON": with_field("steps", "true", "steps: got 'true'"),
    "resolution in words": with_field("resolution", "huge", "resolution: got 'huge'"),
    "blank resolution": with_field("resolution", " ", "resolution: got ' '"),
    "half a resolution": with_field("resolution", "1024x", "resolution: got '1024x'"),
    "zero resolution": with_field("resolution", "0x0", "resolution: "),
    "negative resolution": with_field("resolution", "-512x512", "resolution: got '-512x512'"),
    "resolution too long": with_field("resolution", "1024x16", "at most 8:1"),
    "ratio too long": with_field("resolution", "1:9", "at most 8:1"),
    "resolution of many digits": with_field("resolution", f"{'9' * 300}x1", "resolution: "),
}
IMAGES = {
    "empty file": with_image(b"", "the file is empty"),
    "text file": with_image(b"no picture at all", "none of PNG, JPEG, WebP, HEIC and AVIF"),
    "web page": with_image(b"<html><body>404</body></html>", "a web page"),
    "vector picture": with_image(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    "PDF": with_image(b"%PDF-1.7\n" + bytes(100), "a PDF document"),
    "GIF": with_image(saved("GIF"), "a GIF file"),
    "BMP": with_image(saved("BMP"), "a BMP file"),
    "TIFF": with_image(saved("TIFF"), "a TIFF file"),
    "magic number only": with_image(b"\x89PNG\r\n\x1a\n", "damaged"),
    "cut PNG": with_image(saved("PNG")[:600], "damaged"),
    "cut JPEG": with_image(saved("JPEG")[:900], "damaged"),
    "cut WebP": with_image(saved("WEBP")[:400], "damaged"),
    "flipped PNG": with_image(saved("PNG")[:500] + b"\xff" * 200 + saved("PNG")[700:], "damaged"),
    "PNG without data": with_image(png_claiming(100, 100), "damaged"),
    "animated PNG": with_image(saved("PNG", frames=2), "animated PNG"),
    "animated WebP": with_image(saved("WEBP", frames=2), "animated WebP"),
    "picture too small": with_image(photo_bytes(15, 40), "at least 16 px"),
    "picture too long": with_image(photo_bytes(200, 16), "at most 8:1"),
    "121 megapixels": with_image(png_claiming(11_000, 11_000), "50,000,000"),
    "decompression bomb": with_image(png_claiming(65_000, 65_000), "50,000,000"),
}
BODIES = {
    "JSON": Bad(415, "unsupported_media_type", "multipart/form-data", b'{"prompt": "x"}', "application/json"),
    "pickle": Bad(415, "unsupported_media_type", "multipart/form-data", b"cos", "application/vnd.bentoml+pickle"),
    "URL-encoded": Bad(415, "unsupported_media_type", "", b"prompt=x", "application/x-www-form-urlencoded"),
    "plain text": Bad(415, "unsupported_media_type", "", b"x", "text/plain"),
    "no media type": Bad(415, "unsupported_media_type", "", b"x", None),
    "another multipart": Bad(
        415, "unsupported_media_type", "", IMAGE + PROMPT + END, f"multipart/mixed; boundary={BOUNDARY}"
    ),
    "no boundary": Bad(400, "invalid_field", "body: ", IMAGE + PROMPT + END, "multipart/form-data"),
    "wrong boundary": Bad(
        400, "invalid_field", "body: ", IMAGE + PROMPT + END, "multipart/form-data; boundary=elsewhere"
    ),
    "nothing at all": Bad(400, "invalid_field", "body: ", b""),
    "garbage": Bad(400, "invalid_field", "body: ", bytes(range(256)) * 4),
    "no end": Bad(400, "invalid_field", "stops before its closing boundary", IMAGE + PROMPT),
    "end in a file": Bad(400, "invalid_field", "stops before", PROMPT + IMAGE[: len(IMAGE) // 2]),
    "part without a name": Bad(400, "invalid_field", "body: ", IMAGE + PROMPT + part(None, "x") + END),
    "broken part header": Bad(
        400, "invalid_field", "body: ", f"--{BOUNDARY}\r\nContent Disposition\r\n\r\nx\r\n".encode() + END
    ),
    "too large": Bad(413, "payload_too_large", "1,048,576", part("image", bytes(1_100_000), "a") + PROMPT + END),
}


def send(client: httpx.Client, bad: Bad, request_id: str) -> httpx.Response:
    headers = {"X-Request-ID": request_id}
    if bad.content_type is not None:
        headers["Content-Type"] = bad.content_type
    return client.request(bad.method, bad.path, content=bad.body, headers=headers)


def assert_leave_no_memory_behind(server: Server, client: httpx.Client, cases: Mapping[str, Bad]) -> None:
    """All of them six times; from the second on the server does not grow."""

    def all_of_them() -> float:
        for name, bad in cases.items():
            assert send(client, bad, "again").status_code == bad.status, name
        return server.rss_mib()

    all_of_them()
    before = all_of_them()
    for _ in range(4):
        after = all_of_them()
    assert after < before * 1.05
