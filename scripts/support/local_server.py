"""Starts our service on this machine, for the scripts that measure or torment it, and ends it again.

Knows processes and ports. Does not know what is asked of the server; only loopback is ever listened on.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from hunyuan.loopback import NAMES as LOOPBACK
from hunyuan.loopback import ask_no_proxy
from scripts.support.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 120
SERVICE = "service:HunyuanImage"
STAND_IN = "scripts.support.stand_in_service:HunyuanImage"  # no model behind it


@dataclass(frozen=True)
class LocalServer:
    """`process` is None for a server that somebody else started; its log and memory are then not known."""

    url: str
    process: subprocess.Popen[bytes] | None = None
    log_path: Path | None = None

    def log(self) -> str:
        return self.log_path.read_text("utf-8", "replace") if self.log_path else ""

    def rss_mib(self) -> float | None:
        """Resident memory of the server's processes together, or None when they are not ours."""
        if self.process is None:
            return None
        whole = psutil.Process(self.process.pid)
        return sum(p.memory_info().rss for p in [whole, *whole.children(recursive=True)]) / 2**20

    def alive(self) -> bool:
        return self.process is None or self.process.poll() is None


def existing_server(url: str) -> LocalServer:
    """A running server. Raises `SystemExit` for one that is not on this machine: these scripts are no toys."""
    if urlsplit(url).hostname not in LOOPBACK:
        raise SystemExit(f"{url}: only a server on this machine (127.0.0.1) is ever a target")
    ask_no_proxy()
    return LocalServer(url.rstrip("/"))


@contextmanager
def local_server(
    settings: dict[str, str] | None = None, target: str = SERVICE, folder: Path | None = None
) -> Iterator[LocalServer]:
    """A server of our own until the `with` ends, ready to answer.

    Args:
        settings: environment variables, over those of the caller.
        target: what `bentoml serve` is given.
        folder: for its log and caches; None: a temporary one.
    """
    ask_no_proxy()
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(str(folder)) as name:
        port, log_path = free_port(), Path(name) / "log.txt"
        server = LocalServer(f"http://127.0.0.1:{port}", _start(target, port, Path(name), settings or {}), log_path)
        try:
            wait_until_ready(server)
            yield server
        finally:
            _stop(server)


def server_for(
    url: str | None, settings: dict[str, str] | None = None, target: str = SERVICE
) -> AbstractContextManager[LocalServer]:
    """The running server at `url`, or one of our own where there is no `url`."""
    return local_server(settings, target) if url is None else nullcontext(existing_server(url))


def _start(target: str, port: int, folder: Path, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    ours = {
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "1",
        "HUNYUAN_JOBS_DIR": str(folder / "jobs"),
        "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | ours | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its worker processes can be ended with it
        )


def wait_until_ready(server: LocalServer, within_s: float = READY_WITHIN_S) -> None:
    """Raises `RuntimeError` with the server's log when it ends or takes too long."""
    end = time.monotonic() + within_s
    while time.monotonic() < end and server.alive():
        try:
            if httpx.get(f"{server.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)
    raise RuntimeError(f"the server at {server.url} did not get ready\n{server.log()}")


def _stop(server: LocalServer) -> None:
    process = server.process
    assert process is not None
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(5)


def key_headers() -> dict[str, str]:
    """What shows a server the key that EDIT_API_KEY holds; empty where it holds none."""
    key = os.environ.get("EDIT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def percentile(values: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
