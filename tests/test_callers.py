"""A whole server with two keys, and one page elsewhere that may call it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from document_commands import BLOCKS
from server_process import ROOT, Server, assert_envelope, photo_bytes, running

from hunyuan.settings import Settings

pytestmark = pytest.mark.server

KEY, OTHER = "3f9a-not-a-real-key-0217", "71cc-not-a-real-key-5580"
KEYS = f"team-a:{KEY},team-b:{OTHER}"
ORIGIN = "https://pages.example"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The scripted editor."""
    folder = tmp_path_factory.mktemp("callers")
    (folder / "api_keys.txt").write_text(KEYS.replace(",", "\n"))
    extra = {
        "FAULTS_RECORD": str(folder / "record"),
        "HUNYUAN_API_KEYS_FILE": str(folder / "api_keys.txt"),
        "HUNYUAN_CORS_ORIGINS": ORIGIN,
    }
    with running(folder, "faulty_service:HunyuanImage", cwd=ROOT / "tests" / "faulty", **extra) as started:
        yield started


def edit(server: Server, **headers: str) -> httpx.Response:
    files, fields = {"image": ("a.jpg", photo_bytes())}, {"prompt": "good a"}
    return httpx.post(f"{server.url}/edit", files=files, data=fields, headers=headers, timeout=30)


def key(text: str = KEY) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_a_key_gets_an_edit_and_its_name_into_log_and_metrics(server: Server) -> None:
    assert edit(server, **key(), **{"X-Request-ID": "by-a"}).status_code == 200
    assert edit(server, **key(OTHER), **{"X-Request-ID": "by-b"}).status_code == 200
    assert [server.request_line(name)["caller"] for name in ("by-a", "by-b")] == ["team-a", "team-b"]
    text = httpx.get(f"{server.url}/metrics", headers=key()).text
    assert 'hunyuan_caller_requests_total{caller="team-b",status="200"} 1.0' in text


@pytest.mark.parametrize("sent", [{}, key(KEY[:-1])], ids=["no key", "another key"])
def test_no_key_gets_nothing_but_the_probes_and_the_page(server: Server, sent: dict[str, str]) -> None:
    paths = httpx.get(f"{server.url}/docs.json", headers=key()).json()["paths"]
    wanted = [*paths, "/metrics", "/healthz", "/docs.json", "/schema.json", "/nowhere", "/edit/"]
    free = {"/livez", "/readyz", "/", "/api.css", "/api.js"}
    for path in set(wanted) - free:
        for method in ("GET", "POST"):
            answer = httpx.request(method, f"{server.url}{path}", headers=sent, timeout=10)
            if path.startswith("/v1"):
                assert answer.status_code == 401, path
            else:
                assert_envelope(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer", path
    for path in free:
        assert httpx.get(f"{server.url}{path}", headers=sent).status_code == 200, path
    assert httpx.get(f"{server.url}/ui/nowhere", headers=sent).status_code == 404
    assert_envelope(edit(server, **sent, **{"X-Request-ID": f"none-{len(sent)}"}), 401, "unauthorized")
    line = server.request_line(f"none-{len(sent)}")
    assert (line["caller"], line["error"], line["bytes_in"]) == (None, "unauthorized", 0)


def test_the_answer_comes_before_the_body(server: Server) -> None:
    head = "POST /edit HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 401 ")


def test_a_page_elsewhere_may_call_and_reads_every_answer(server: Server) -> None:
    asking = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    asked = httpx.options(f"{server.url}/edit", headers=asking)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in asked.headers
    for answer in (edit(server, Origin=ORIGIN), edit(server, Origin=ORIGIN, **key())):
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        exposed = {name.strip().lower() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert exposed >= {"x-seed", "x-request-id", "retry-after", "www-authenticate", "x-recaption"}
    elsewhere = edit(server, Origin="https://pages.example.evil", **key())
    assert "access-control-allow-origin" not in elsewhere.headers


def test_no_key_is_in_the_log_and_the_invitation_asks_for_one(server: Server) -> None:
    log = server.log.read_text()
    assert KEY not in log
    assert OTHER not in log
    [ready] = [line["message"] for line in server.lines() if str(line.get("message", "")).startswith("ready: ")]
    assert '-H "Authorization: Bearer $EDIT_API_KEY"' in ready


def run(server: Server, given: str, *command: str) -> subprocess.CompletedProcess[str]:
    own = {"EDIT_API_KEY": given, "URL": server.url, "PYTHON": sys.executable}
    return subprocess.run(
        command, env=os.environ | own, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_our_scripts_send_a_key(server: Server, tmp_path: Path) -> None:
    photo, out = tmp_path / "a.jpg", tmp_path / "out.png"
    photo.write_bytes(photo_bytes())
    curl = ("scripts/curl_edit.sh", str(photo), "good a", str(out))
    refused = run(server, "", *curl)
    assert refused.returncode == 1
    assert '"unauthorized"' in refused.stderr
    assert run(server, KEY, *curl).returncode == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    benchmark = ("scripts/benchmark_h100.sh", "-n", "1", "--warm-up", "0", "--url", server.url)
    assert "unauthorized" in run(server, "", *benchmark).stderr
    done = run(server, KEY, *benchmark)
    assert done.returncode == 0, done.stderr
    assert re.search(r"p50 +\d", done.stdout)


def test_the_documents_way_to_make_and_use_keys(server: Server, tmp_path: Path) -> None:
    """Both blocks of docs/operations.md, but for the start of a server."""
    *make, serve = BLOCKS["docs/operations.md-0"].strip().splitlines()
    assert serve == "HUNYUAN_API_KEYS_FILE=api_keys.txt .venv/bin/bentoml serve service:HunyuanImage"
    subprocess.run(["bash", "-euc", "\n".join(make)], cwd=tmp_path, check=True, timeout=10)
    made = tmp_path / "api_keys.txt"
    assert made.stat().st_mode & 0o777 == 0o600
    assert [key.name for key in Settings(api_keys_file=made).keys] == ["team-a", "prometheus"]
    made.write_text(KEYS.replace(",", "\n"))
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    (tmp_path / "photo.jpg").write_bytes(photo_bytes())
    use = ["bash", "-euc", BLOCKS["docs/operations.md-1"]]
    subprocess.run(use, cwd=tmp_path, env=os.environ | {"URL": server.url}, check=True, timeout=30)
    assert (tmp_path / "edited.png").read_bytes().startswith(b"\x89PNG")


def test_the_call_with_a_key_in_the_document_of_http(server: Server, tmp_path: Path) -> None:
    """tests/docs/ runs the examples of jobs and of OpenAI's API; this one is the only other."""
    text = (ROOT / "docs/http.md").read_text(encoding="utf-8").partition("## OpenAI's images API")[0]
    before, _, jobs = text.partition("## Jobs")
    fences = re.findall(r"^```(\w*)\n(.*?)^```", before + jobs.partition("\n## ")[2], re.M | re.S)
    [(language, command)] = fences
    assert language == "bash"
    (tmp_path / "photo.jpg").write_bytes(photo_bytes())
    use = ["bash", "-euc", command.replace("http://127.0.0.1:8000", server.url)]
    subprocess.run(use, cwd=tmp_path, env=os.environ | {"EDIT_API_KEY": KEY}, check=True, timeout=30)
    assert (tmp_path / "edited.png").read_bytes().startswith(b"\x89PNG")
