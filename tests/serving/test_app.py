"""What is put around the framework's app: our page in place of its own, CORS on every answer, statuses it counts."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai_events import assert_error
from server_process import ROOT, Server, assert_envelope, photo_bytes, running
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from hunyuan.demo import REQUESTS
from hunyuan.serving.address import address_of, invitation
from hunyuan.serving.app import _take_cors_out
from hunyuan.serving.cors import Cors

pytestmark = pytest.mark.server

ORIGIN = "https://pages.example"
CORS = (
    "services.HunyuanImage.http.cors.enabled=true "
    f"services.HunyuanImage.http.cors.access_control_allow_origins={ORIGIN} "
    "services.HunyuanImage.http.cors.access_control_allow_methods=POST"
)
OURS = {"retry-after", "x-request-id", "x-seed", "x-image-size", "x-steps", "x-model", "x-recaption", "server-timing"}
PAGE = ("/", "/api.css", "/api.js")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The scripted editor; CORS is on."""
    folder = tmp_path_factory.mktemp("app")
    extra = {"BENTOML_CONFIG_OPTIONS": CORS, "FAULTS_RECORD": str(folder / "record"), "HUNYUAN_MAX_UPLOAD_MB": "1"}
    faulty = str(ROOT / "tests" / "faulty")
    with running(folder, "faulty_service:HunyuanImage", cwd=Path(faulty), **extra) as started:
        yield started


def edit(server: Server, prompt: str = "ok a", size: int = 0, origin: str = ORIGIN, **fields: str) -> httpx.Response:
    files = {"image": ("a.jpg", photo_bytes() + bytes(size))}
    data = {"prompt": prompt, **fields}
    return httpx.post(f"{server.url}/edit", files=files, data=data, headers={"Origin": origin}, timeout=30)


# --- the page


def test_the_page_asks_nobody_else(server: Server) -> None:
    for path in PAGE:
        answer = httpx.get(f"{server.url}{path}")
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
        assert not re.search(r"https?://|//[a-z]+\.|@import|eval\(", answer.text), path
    assert httpx.get(f"{server.url}/").headers["content-type"].startswith("text/html")


def test_every_file_that_the_page_names_is_there(server: Server) -> None:
    html = httpx.get(f"{server.url}/").text
    named = set(re.findall(r'(?:src|href|action)="([^"]+)"', html)) - {"data:,", "edit"}
    assert named == {"api.css", "api.js", "docs.json", "ui"}
    for name in named:
        assert httpx.get(f"{server.url}/{name}").status_code == 200
    script = httpx.get(f"{server.url}/api.js").text
    used = set(re.findall(r'(?:byId|show|row)\("(\w+)"', script))
    assert used <= set(re.findall(r'id="(\w+)"', html))


def test_the_page_offers_the_demos_requests(server: Server) -> None:
    html = httpx.get(f"{server.url}/").text
    assert tuple(re.findall(r'<button type="button">(.*?)</button>', html)) == REQUESTS


@pytest.mark.parametrize("path", ["/static_content/swagger-ui-bundle.js", "/static_content/index.css", "/assets/a.js"])
def test_the_frameworks_page_is_gone(server: Server, path: str) -> None:
    assert_envelope(httpx.get(f"{server.url}{path}"), 404, "not_found")


def test_what_the_pages_form_sends_is_an_edit(server: Server) -> None:
    """A browser sends every field, the empty ones too."""
    answer = edit(server, seed="", steps="", resolution="")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"


# --- CORS


def exposed(answer: httpx.Response) -> set[str]:
    return {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}


def test_every_answer_has_the_cors_headers_of_the_200(server: Server) -> None:
    good = edit(server)
    assert good.status_code == 200, good.text
    answers = {
        "of the form": edit(server, prompt=" "),
        "of the queue's side": edit(server, prompt="oom-prefill b"),
        "too large, announced": edit(server, size=1_200_000),
        "no such path": httpx.post(f"{server.url}/nowhere", headers={"Origin": ORIGIN}),
        "wrong method": httpx.put(f"{server.url}/edit", headers={"Origin": ORIGIN}),
    }
    statuses = [answer.status_code for answer in answers.values()]
    assert statuses == [400, 503, 413, 404, 405]
    for what, answer in {**answers, "200": good}.items():
        assert answer.headers.get("access-control-allow-origin") == ORIGIN, what
        assert "Origin" in answer.headers.get("vary", ""), what
        assert exposed(answer) >= OURS, what


def test_a_pages_question_before_the_edit_is_answered(server: Server) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{server.url}/edit", headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    ("origin", "method", "field"),
    [("https://other.example", "POST", "Origin"), (ORIGIN, "DELETE", "Access-Control-Request-Method")],
)
def test_a_refused_question_is_an_error_like_any_other(server: Server, origin: str, method: str, field: str) -> None:
    headers = {"Origin": origin, "Access-Control-Request-Method": method, "X-Request-ID": "asked"}
    answer = httpx.options(f"{server.url}/edit", headers=headers)
    assert assert_envelope(answer, 400, "invalid_field").startswith(f"{field}: ")
    assert answer.headers["x-request-id"] == "asked"
    assert answer.headers.get("access-control-allow-origin") == (ORIGIN if origin == ORIGIN else None)
    assert_error(httpx.options(f"{server.url}/v1/images/edits", headers=headers), 400, "invalid_field")


def test_what_nobody_knows_may_not_be_asked_for() -> None:
    layer = Cors(Starlette(), allow_origins=[ORIGIN], allow_methods=["GET"], allow_headers=["X-Known"])
    asked = {"origin": ORIGIN, "access-control-request-method": "GET", "access-control-request-headers": "X-Other"}
    assert layer.preflight_response(Headers(asked)).status_code == 400
    assert "Access-Control-Request-Headers" in str(layer._why(Headers(asked)))


def test_another_site_gets_no_permission(server: Server) -> None:
    answer = edit(server, origin="https://other.example")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/edit", "POST"),
        ("GET", "/edit/submit", "POST"),
        ("POST", "/edit/cancel", "PUT"),
        ("PUT", "/edit/status", "GET"),
        ("DELETE", "/docs.json", "GET"),
        ("POST", "/ui/ui.css", "GET"),
        ("GET", "/v1/images/edits", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/faulty", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(server: Server, method: str, path: str, allowed: str) -> None:
    answer = httpx.request(method, f"{server.url}{path}")
    assert answer.status_code == 405, answer.text
    error = answer.json()["error"] if path.startswith("/v1") else answer.json()
    assert re.fullmatch(rf"this path takes (?:{allowed}|GET, HEAD|HEAD, GET) only", error["message"]), error["message"]
    assert allowed in error["message"]


# --- what the framework counts


def test_the_framework_counts_the_status_that_was_sent(server: Server) -> None:
    def count() -> dict[str, float]:
        text = httpx.get(f"{server.url}/metrics").text
        lines = re.findall(r"^bentoml_service_request_total\{(.*?)\} (\S+)", text, re.MULTILINE)
        found: dict[str, float] = {}
        for labels, value in lines:
            if 'endpoint="/edit"' in labels:
                code = re.search(r'http_response_code="(\d+)"', labels)
                assert code is not None
                found[code[1]] = found.get(code[1], 0.0) + float(value)
        return found

    before = count()
    assert [edit(server, prompt=" ").status_code, edit(server, steps="0").status_code] == [400, 400]
    assert edit(server, prompt="error-prefill c").status_code == 503
    assert edit(server).status_code == 200
    after = count()
    grown = {code: value - before.get(code, 0.0) for code, value in after.items() if value != before.get(code, 0.0)}
    assert grown == {"400": 2.0, "503": 1.0, "200": 1.0}


# --- the operator's CORS options, as the framework hands them over


@pytest.mark.parametrize(
    ("given", "methods"),
    [
        ({}, ["GET", "POST", "PUT"]),
        ({"allow_methods": "POST,GET"}, ["POST", "GET"]),
        ({"allow_methods": ["PUT"], "expose_headers": "X-Theirs"}, ["PUT"]),
    ],
)
def test_cors_options_are_words_and_expose_our_headers(given: dict[str, object], methods: list[str]) -> None:
    app = Starlette(middleware=[Middleware(CORSMiddleware, allow_origins=[ORIGIN], **given)])
    options = _take_cors_out(app)
    assert options is not None
    assert (options["allow_methods"], options["allow_origins"]) == (methods, [ORIGIN])
    assert {name.lower() for name in options["expose_headers"]} >= OURS
    assert ("X-Theirs" in options["expose_headers"]) == ("expose_headers" in given)
    assert app.user_middleware == []
    assert _take_cors_out(app) is None


# --- the log of a whole server


def test_every_line_is_json_and_the_starts_last_one_says_how_to_begin(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        assert connection.recv(1000)
    time.sleep(0.3)
    text = server.log.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    messages = [line["message"] for line in lines if "message" in line]
    assert sum(message.startswith("Starting production HTTP BentoServer") for message in messages) == 1
    assert "Service HunyuanImage initialized" in messages
    assert messages.count("Invalid HTTP request received.") == 1
    [ready] = [message for message in messages if message.startswith("ready: ")]
    assert ready.startswith(f"ready: serving faulty at {server.url}; to try it: curl ")
    command = shlex.split(ready.partition("to try it: ")[2])
    command[command.index("image=@photo.jpg")] = f"image=@{server.folder / 'photo.jpg'}"
    command[command.index("edited.png")] = str(server.folder / "edited.png")
    (server.folder / "photo.jpg").write_bytes(photo_bytes())
    subprocess.run([*command, "-sS"], check=True, timeout=30)
    assert (server.folder / "edited.png").read_bytes().startswith(b"\x89PNG")


def test_text_where_the_operator_asks_for_it(tmp_path: Path) -> None:
    faulty = ROOT / "tests" / "faulty"
    extra = {"FAULTS_RECORD": str(tmp_path / "record"), "HUNYUAN_LOG_FORMAT": "text"}
    with running(tmp_path, "faulty_service:HunyuanImage", cwd=faulty, **extra) as started:
        edit(started)
        time.sleep(0.3)
        lines = started.log.read_text().splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d (info|warning) ", line) for line in lines), lines
    assert any("/edit 200, " in line for line in lines)


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ('{"HunyuanImage": "http://localhost:8000"}', "http://localhost:8000"),
        ('{"HunyuanImage": "https://h:1"}', "https://h:1"),
        ('{"HunyuanImage": "unix:///tmp/x"}', None),
        ('{"Other": "http://h:1"}', None),
        ("no JSON", None),
        ("[]", None),
        ("", None),
    ],
)
def test_the_address_is_what_the_master_listens_on(
    monkeypatch: pytest.MonkeyPatch, told: str, address: str | None
) -> None:
    monkeypatch.setenv("BENTOML_RUNNER_MAP", told)
    assert address_of("HunyuanImage") == address
    assert (invitation(address) == "") == (address is None)
