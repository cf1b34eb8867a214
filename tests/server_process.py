"""Real server processes for the tests: start one, wait for it, talk to it, read its log, end it.

Knows processes, ports and HTTP. What is asked of the server is the tests' business.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from scripts.support.ports import free_port

ROOT = Path(__file__).parents[1]
READY_WITHIN_S = 120


def environment(folder: Path) -> dict[str, str]:
    """The caller's own, without settings that would change what is tested."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HUNYUAN_", "MODEL_ID", "OTEL_"))}
    ours = {
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "1",
        "HUNYUAN_CACHE_DIR": str(folder / "cache"),
        "HUNYUAN_DEVICE": "cpu",
        "MODEL_ID": "tiny",  # the quickest
        "HUNYUAN_JOBS_DIR": str(folder / "jobs"),
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "PYTHONPATH": str(ROOT),
    }
    return kept | ours


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    url: str
    log: Path
    port: int
    folder: Path = field(default_factory=Path)

    def wait_until(self, path: str = "/readyz", status: int = 200, seconds: float = READY_WITHIN_S) -> httpx.Response:
        end = time.monotonic() + seconds
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            try:
                answer = httpx.get(f"{self.url}{path}", timeout=5)
                if answer.status_code == status:
                    return answer
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(0.05)

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of the log; the framework's own lines are plain text."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.lines() if line.get("event") == "request"]

    def request_line(self, request_id: str, seconds: float = 5) -> dict[str, Any]:
        """The one line about a request; it is written after the answer, by another thread."""
        end = time.monotonic() + seconds
        while True:
            found = [line for line in self.requests() if line["request_id"] == request_id]
            assert len(found) <= 1, found
            if found:
                return found[0]
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def rss_mib(self) -> float:
        """Resident memory of all its processes together."""
        master = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in [master, *master.children(recursive=True)]) / 2**20

    def stop(self, seconds: float = 20) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(5)


def start(
    folder: Path,
    target: str = "service:HunyuanImage",
    cwd: Path = ROOT,
    port: int | None = None,
    arguments: Sequence[str] = (),
    **extra: str,
) -> Server:
    port = port or free_port()
    address = ("--port", str(port), "--host", "127.0.0.1")
    command = [sys.executable, "-m", "bentoml", "serve", target, *address, *arguments]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(folder) | extra,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its worker processes end with it
        )
    return Server(process, f"http://127.0.0.1:{port}", folder / "log.txt", port, folder)


@contextmanager
def running(folder: Path, target: str = "service:HunyuanImage", cwd: Path = ROOT, **extra: str) -> Iterator[Server]:
    server = start(folder, target, cwd, **extra)
    try:
        server.wait_until()
        yield server
    finally:
        server.stop()


def photo_bytes(width: int = 64, height: int = 48, fmt: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(values).convert(mode).save(buffer, format=fmt, **options)
    return buffer.getvalue()


def assert_envelope(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error", "message", "request_id"}
    assert body["error"] == code, body
    assert body["message"]
    assert body["request_id"] == answer.headers["x-request-id"]
    return str(body["message"])
