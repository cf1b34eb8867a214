"""What a real server answers: to the clients people use, and to a long table of bad requests.

Bad bodies are built by hand, because no client would send most of them. After each, a good request must work. The
editor is the scripted one of the fault tests, so that an edit takes milliseconds; everything around it is real.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image
from server_process import ROOT, Server, assert_envelope, photo_bytes, running
from span_collector import Spans, collecting

pytestmark = pytest.mark.server

FAULTY = Path(__file__).parent / "faulty"
BOUNDARY = "frontier"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
PHOTO = photo_bytes()
UPLOAD_LIMIT_MB = 1


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
ROUTES = {
    **{
        f"{method} /edit": Bad(405, "method_not_allowed", "POST /edit", b"", None, method)
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS")
    },
    **{
        f"POST {path}": Bad(404, "not_found", "POST /edit", IMAGE + PROMPT + END, path=path)
        for path in ("/nowhere", "/edit/", "/Edit", "/edit/submit", "/edit//", "/static_content/no.js", "/a/../../etc")
    },
    "POST /livez.json": Bad(404, "not_found", "", b"", None, path="/livez.json"),
}
CASES = FIELDS | IMAGES | BODIES | ROUTES


@pytest.fixture(scope="module")
def spans() -> Iterator[Spans]:
    with collecting() as collected:
        yield collected


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, spans: Spans) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("bad")
    extra = {"FAULTS_RECORD": str(folder / "record"), "HUNYUAN_MAX_UPLOAD_MB": str(UPLOAD_LIMIT_MB)}
    extra |= {"OTEL_EXPORTER_OTLP_ENDPOINT": spans.url, "OTEL_BSP_SCHEDULE_DELAY": "100", "NO_PROXY": "127.0.0.1"}
    with running(folder, "faulty_service:HunyuanImage", FAULTY, **extra) as shared:
        yield shared


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30, verify=False) as shared:
        yield shared


def send(client: httpx.Client, bad: Bad, request_id: str) -> httpx.Response:
    headers = {"X-Request-ID": request_id}
    if bad.content_type is not None:
        headers["Content-Type"] = bad.content_type
    return client.request(bad.method, bad.path, content=bad.body, headers=headers)


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "a photo, with; signs.jpg"
    path.write_bytes(PHOTO)
    return path


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_works(server: Server, photo: Path) -> None:
    fields = ["-F", f'image=@"{photo}"', "-F", "prompt=Make the sky red", "-F", "steps=1"]
    done = subprocess.run(["curl", "-sSf", "-m", "30", *fields, f"{server.url}/edit"], capture_output=True, check=True)
    assert done.stdout.startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_script_does_the_same(server: Server, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    command = [str(ROOT / "scripts/curl_edit.sh"), str(photo), "@ a prompt; not a file", str(out)]
    call = {"env": {**os.environ, "URL": server.url}, "capture_output": True, "text": True, "timeout": 100}
    done = subprocess.run([*command, "-F", "seed=1", "-F", "steps=2"], check=False, **call)
    assert done.returncode == 0, done.stderr
    assert "X-Seed: 1" in done.stdout or "x-seed: 1" in done.stdout
    assert out.read_bytes().startswith(b"\x89PNG")
    out.unlink()
    failed = subprocess.run([*command, "-F", "steps=0"], check=False, **call)
    assert failed.returncode == 1
    assert '"invalid_field"' in failed.stderr
    assert not out.exists()


LITERAL = ["42", "true", "null", '"quoted"', '{"a": 1}', 'say "hi"', "[" * 3900, '"' + "[" * 3900]


def prompts_seen(server: Server) -> list[str]:
    """Every prompt the editor got, in order."""
    events = (line.split(" ", 2) for line in (server.folder / "record").read_text().splitlines())
    return [json.loads(rest[0]) for _, event, *rest in events if event == "prompt"]


def test_prompts_arrive_literally_from_bentomls_own_client(server: Server, photo: Path) -> None:
    code = (
        "import json, sys, bentoml\n"
        "from pathlib import Path\n"
        "with bentoml.SyncHTTPClient(sys.argv[1], timeout=100) as client:\n"
        "    for prompt in json.loads(sys.argv[3]):\n"
        "        png = bytes(client.edit(image=Path(sys.argv[2]), prompt=prompt, seed=None, steps=1))\n"
        "        assert png.startswith(b'\\x89PNG')\n"
    )
    command = [sys.executable, "-c", code, server.url, str(photo), json.dumps(LITERAL)]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert prompts_seen(server)[-len(LITERAL) :] == LITERAL


def test_prompts_arrive_literally_from_any_other(server: Server, client: httpx.Client) -> None:
    for prompt in LITERAL:
        body = IMAGE + part("prompt", prompt) + part("steps", "1") + END
        assert send(client, Bad(200, "", "", body), "literal").status_code == 200
    assert prompts_seen(server)[-len(LITERAL) :] == LITERAL


def test_httpx_works(server: Server, photo: Path) -> None:
    with photo.open("rb") as file:
        answer = httpx.post(
            f"{server.url}/edit", files={"image": file}, data={"prompt": "42", "steps": "1"}, timeout=100
        )
    assert answer.status_code == 200, answer.text
    with Image.open(BytesIO(answer.content)) as picture:
        assert (picture.format, picture.text["Steps"]) == ("PNG", "1")
        assert not [value for value in picture.text.values() if "42" in value.split()]


def test_a_browser_form_works(server: Server, photo: Path) -> None:
    """As Firefox sends `<form enctype=multipart/form-data>`: quoted names, a type for the file, line ends as CRLF."""
    boundary = "---------------------------33583206641936452903140582174"
    name = "a %22photo%22.jpg"
    text = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
        for field, value in {"prompt": "zwei\r\nZeilen 🌅", "resolution": "1:1", "steps": "1"}.items()
    )
    file_header = f'Content-Disposition: form-data; name="image"; filename="{name}"\r\nContent-Type: image/jpeg'
    body = (
        f"{text}--{boundary}\r\n{file_header}\r\n\r\n".encode()
        + photo.read_bytes()
        + f"\r\n--{boundary}--\r\n".encode()
    )
    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
        "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
        "Origin": server.url,
        "X-Request-ID": "browser",
    }
    answer = httpx.post(f"{server.url}/edit", content=body, headers=headers, timeout=100)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    line = server.request_line("browser")
    assert (line["prompt_chars"], line["resolution"], line["steps"]) == (len("zwei\r\nZeilen x"), "1:1", 1)


def test_the_table_is_as_long_as_promised() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_gets_its_envelope_and_the_next_one_works(
    server: Server, client: httpx.Client, name: str
) -> None:
    bad, number = CASES[name], list(CASES).index(name)
    answer = send(client, bad, f"bad-{number}")
    message = assert_envelope(answer, bad.status, bad.code)
    assert bad.says in message
    assert answer.headers["x-request-id"] == f"bad-{number}"
    good = send(client, Bad(200, "", "", IMAGE + PROMPT + part("steps", "1") + END), f"good-{number}")
    assert good.status_code == 200, good.text
    assert good.content.startswith(b"\x89PNG")
    line = server.request_line(f"bad-{number}")
    assert (line["status"], line["error"]) == (bad.status, bad.code)


def test_a_body_that_announces_no_length_is_counted(server: Server, client: httpx.Client) -> None:
    pieces = (piece for piece in [part("image", b"", "a")[:-2], *[bytes(100_000)] * 12])
    answer = client.post("/edit", content=pieces, headers={"Content-Type": MULTIPART, "X-Request-ID": "chunked"})
    assert_envelope(answer, 413, "payload_too_large")


def test_bad_requests_leave_no_memory_behind(server: Server, client: httpx.Client) -> None:
    def all_of_them() -> float:
        for name, bad in CASES.items():
            assert send(client, bad, "again").status_code == bad.status, name
        return server.rss_mib()

    all_of_them()
    before = all_of_them()
    for _ in range(4):
        after = all_of_them()
    assert after < before * 1.05


def test_a_websocket_is_a_request_like_any_other(server: Server) -> None:
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13"
    head = f"GET /edit HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{key}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(head.encode())
        answer = b""
        while not answer.endswith(b"}"):
            received = connection.recv(65536)
            assert received, answer
            answer += received
    assert answer.startswith(b"HTTP/1.1 405")
    assert b'{"error": "method_not_allowed"' in answer


def test_a_span_of_each_edit_is_sent(client: httpx.Client, spans: Spans) -> None:
    answer = send(client, Bad(200, "", "", IMAGE + PROMPT + part("steps", "1") + END), "traced")
    assert answer.status_code == 200
    _, span, attributes = spans.of_request("traced")
    assert (span.name, attributes["hunyuan.steps"]) == ("edit", 1)


def test_paths_that_somebody_tries_make_no_figures(server: Server, client: httpx.Client) -> None:
    for number in range(20):
        client.get(f"/wp-admin/{number}")
    text = client.get("/metrics").text
    assert "wp-admin" not in text
    assert "no.js" not in text


def test_nothing_of_the_requests_is_in_the_log(server: Server, client: httpx.Client) -> None:
    log = server.log.read_text()
    for secret in ("seven", "guidance", "wp-admin", "a.jpg", "Traceback"):
        assert secret not in log, secret
