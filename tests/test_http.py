"""What a real server answers: to the clients people use, and to a long table of bad requests.

The bad bodies are in `bad_requests.py`. After each, a good request must work. The
editor is the scripted one of the fault tests, so that an edit takes milliseconds; everything around it is real.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from bad_requests import (
    BODIES,
    END,
    FIELDS,
    IMAGE,
    IMAGES,
    MULTIPART,
    PHOTO,
    PROMPT,
    UPLOAD_LIMIT_MB,
    Bad,
    assert_leave_no_memory_behind,
    part,
    send,
)
from PIL import Image
from server_process import ROOT, Server, assert_envelope, running
from span_collector import Spans, collecting

pytestmark = pytest.mark.server

FAULTY = Path(__file__).parent / "faulty"
ROUTES = {
    **{
        f"{method} /edit": Bad(405, "method_not_allowed", "takes POST only", b"", None, method)
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS")
    },
    **{
        f"POST {path}": Bad(404, "not_found", "POST /edit", IMAGE + PROMPT + END, path=path)
        for path in ("/nowhere", "/edit/", "/Edit", "/edit/submits", "/edit//", "/static_content/no.js", "/a/../../etc")
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
    assert_leave_no_memory_behind(server, client, CASES)


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
