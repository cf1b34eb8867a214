"""Where the environment names a proxy, what asks this machine does not ask the proxy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from document_commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DEAD = "http://127.0.0.1:9"  # the discard port: nothing listens there
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), DEAD)


class Answers(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a server that answers; with a proxy in the environment that does not, and no exceptions from it."""
    for name, value in PROXIES.items():
        monkeypatch.setenv(name, value)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


def health_command(port: int) -> str:
    (run,) = (command for command in COMMANDS if command.startswith("docker run"))
    found = re.search(r"--health-cmd '(.*?)' --", run)
    assert found
    return found[1].replace("8000", str(port)).replace("python -c", f"{sys.executable} -c")


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_command(monkeypatch: pytest.MonkeyPatch, port: int, status: int, healthy: bool) -> None:
    monkeypatch.setattr(Answers, "status", status)
    result = subprocess.run(["sh", "-c", health_command(port)], capture_output=True, text=True, check=False)
    assert (result.returncode == 0) == healthy, result.stderr


def test_the_health_command_of_a_server_that_is_gone(port: int) -> None:
    assert subprocess.run(["sh", "-c", health_command(9)], capture_output=True, check=False).returncode != 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_edit(port: int, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"any")
    command = [str(ROOT / "scripts/curl_edit.sh"), str(photo), "a prompt", str(tmp_path / "out.png")]
    for host in ("127.0.0.1", "localhost"):
        own = {"URL": f"http://{host}:{port}"}
        result = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)
        # no header of ours is in the stand-in's answer, which is all that grep complains of
        assert "no answer" not in result.stderr, result.stderr
    elsewhere = {"URL": "http://example.invalid"}
    result = subprocess.run(command, env=os.environ | elsewhere, capture_output=True, text=True, check=False)
    assert "port 9" in result.stderr, "another machine is asked through the proxy"


def test_every_curl_of_the_documents() -> None:
    calls = [line for line in COMMANDS if re.search(r"\bcurl\b.*(127\.0\.0\.1|localhost)", line)]
    assert calls
    for line in calls:
        assert "curl --noproxy 127.0.0.1 " in line, line
